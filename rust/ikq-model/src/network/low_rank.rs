//! What LoRA adapters add to a network's products: pairs of matrices, found by the names of the base's tensors and
//! checked against their shapes.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::Range;

use ikq_formats::QuantType;
use ikq_gguf::{Bytes, Model};
use ikq_simd::IsaKind;

use crate::adapter::{Adapter, Pair, Stored};
use crate::error::Error;
use crate::spec::Names;

/// `scale * B (A x)`, which is added to the product of a weight: one pair of matrices, or one per expert.
#[derive(Clone, Debug)]
pub struct LowRank {
    /// Index among the model's adapters.
    pub adapter: usize,
    pub rank: usize,
    /// What the user's scale is multiplied with, for each expert; 0: the expert has no pair.
    pub factors: Vec<f32>,
    /// `rank` rows of as many elements as the weight's rows have.
    pub a: Factor,
    /// As many rows as the weight has, of `rank` elements.
    pub b: Factor,
}

/// One half of all pairs.
#[derive(Clone, Debug)]
pub struct Factor {
    /// F32, F16 or BF16.
    pub ty: QuantType,
    pub n_rows: usize,
    pub k: usize,
    /// Rows in file form, for each expert.
    pub matrices: Vec<Bytes>,
}

/// Rows of the base's matrices that a weight takes.
pub(super) struct Rows {
    /// Elements of a row.
    pub k: usize,
    /// Rows of each matrix of the tensor, and those of them that are taken.
    pub n_stored: usize,
    pub taken: Range<usize>,
    pub n_experts: usize,
    /// The matrices are rows of one tensor of two axes: they share A.
    pub is_pooled: bool,
}

/// The adapters of a network that is being made, and which of their pairs have found their place.
pub struct Adapters<'a> {
    all: &'a [Adapter],
    used: RefCell<BTreeSet<(usize, String)>>,
    /// The tensor whose rows are gathered, and so has pairs of its own form.
    embedding: &'a str,
}

impl<'a> Adapters<'a> {
    pub(super) fn new(all: &'a [Adapter], embedding: &'a str) -> Adapters<'a> {
        Adapters { all, used: RefCell::default(), embedding }
    }

    /// The pair that an adapter has for a tensor, which is used from now on.
    fn pair(&self, adapter: usize, name: &str) -> Option<&'a Pair> {
        let pair = self.all[adapter].pair(name)?;
        self.used.borrow_mut().insert((adapter, name.to_string()));
        Some(pair)
    }

    /// What is added to products with these matrices.
    ///
    /// # Errors
    /// [`Error::AdapterShape`].
    pub(super) fn of(&self, names: &Names, rows: &Rows) -> Result<Vec<LowRank>, Error> {
        // where the output is the embedding the pair belongs to the gathered rows: it was trained there
        if self.all.is_empty() || names.first() == self.embedding {
            return Ok(Vec::new());
        }
        let mut found = Vec::new();
        for (index, adapter) in self.all.iter().enumerate() {
            match names {
                Names::One(name) => {
                    if let Some(pair) = self.pair(index, name) {
                        found.push(one(index, adapter, name, pair, rows)?);
                    }
                }
                Names::Each(names) => {
                    let alone = Rows { n_experts: 1, taken: rows.taken.clone(), ..*rows };
                    let mut of_experts = Vec::new();
                    for name in names {
                        let pair = self.pair(index, name);
                        of_experts
                            .push(pair.map(|pair| one(index, adapter, name, pair, &alone)).transpose()?);
                    }
                    found.extend(stacked(index, &of_experts, rows));
                }
            }
        }
        Ok(found)
    }

    /// What is added to gathered rows: A has `n_vocab` rows, one for each token, and B `n_embd`.
    ///
    /// # Errors
    /// [`Error::AdapterShape`].
    pub(super) fn of_embedding(&self, n_vocab: usize, n_embd: usize) -> Result<Vec<LowRank>, Error> {
        let mut found = Vec::new();
        for (index, adapter) in self.all.iter().enumerate() {
            let Some(pair) = self.pair(index, self.embedding) else { continue };
            let rank = pair.a.ne[0];
            check(adapter, self.embedding, &pair.a, "a", [rank, n_vocab as u64, 1])?;
            check(adapter, self.embedding, &pair.b, "b", [rank, n_embd as u64, 1])?;
            found.push(LowRank {
                adapter: index,
                rank: rank as usize,
                factors: vec![adapter.factor(rank as usize)],
                a: Factor::new(&pair.a, vec![pair.a.rows(0..n_vocab)]),
                b: Factor::new(&pair.b, vec![pair.b.rows(0..n_embd)]),
            });
        }
        Ok(found)
    }

    /// Whether every pair has found a product.
    ///
    /// # Errors
    /// [`Error::Adapter`] with the first that has not.
    pub(super) fn check_used(&self, base: &Model) -> Result<(), Error> {
        let used = self.used.borrow();
        for (index, adapter) in self.all.iter().enumerate() {
            let Some(name) = adapter.names().find(|name| !used.contains(&(index, (*name).to_string())))
            else {
                continue;
            };
            let why = match base.tensor(name) {
                Some(_) => {
                    format!("`{name}` is multiplied with nothing in this model, so that no pair fits it")
                }
                None => format!("the model has no tensor `{name}`: is the adapter for another one?"),
            };
            return Err(Error::Adapter { path: adapter.path.clone(), why });
        }
        Ok(())
    }
}

fn check(
    adapter: &Adapter,
    name: &str,
    stored: &Stored,
    part: &str,
    [k, n_rows, n_experts]: [u64; 3],
) -> Result<(), Error> {
    let expected = [k, n_rows, n_experts, 1];
    match stored.ne == expected && k > 0 && n_rows > 0 {
        true => Ok(()),
        false => Err(Error::AdapterShape {
            path: adapter.path.clone(),
            tensor: format!("{name}.lora_{part}"),
            found: stored.ne.to_vec(),
            expected: expected.to_vec(),
        }),
    }
}

/// The pair of a tensor, cut into those of its experts.
fn one(index: usize, adapter: &Adapter, name: &str, pair: &Pair, rows: &Rows) -> Result<LowRank, Error> {
    let Rows { k, n_stored, ref taken, n_experts, is_pooled } = *rows;
    let (rank, n) = (pair.a.ne[1], n_experts as u64);
    let (n_a, n_b, of_b) = match is_pooled {
        true => (1, n_stored as u64 * n, 1),
        false => (n, n_stored as u64, n),
    };
    check(adapter, name, &pair.a, "a", [k as u64, rank, n_a])?;
    check(adapter, name, &pair.b, "b", [rank, n_b, of_b])?;
    let rank = rank as usize;
    let a =
        (0..n_experts).map(|e| if is_pooled { 0 } else { e }).map(|e| pair.a.rows(e * rank..(e + 1) * rank));
    let b = (0..n_experts).map(|e| pair.b.rows(e * n_stored + taken.start..e * n_stored + taken.end));
    Ok(LowRank {
        adapter: index,
        rank,
        factors: vec![adapter.factor(rank); n_experts],
        a: Factor::new(&pair.a, a.collect()),
        b: Factor::new(&pair.b, b.collect()),
    })
}

/// Pairs of experts that have tensors of their own as one: in float32, and with zeros to the largest rank.
fn stacked(adapter: usize, of_experts: &[Option<LowRank>], rows: &Rows) -> Option<LowRank> {
    let rank = of_experts.iter().flatten().map(|p| p.rank).max()?;
    let (k, n_rows) = (rows.k, rows.taken.len());
    let mut whole = LowRank {
        adapter,
        rank,
        factors: Vec::new(),
        a: Factor { ty: QuantType::F32, n_rows: rank, k, matrices: Vec::new() },
        b: Factor { ty: QuantType::F32, n_rows, k: rank, matrices: Vec::new() },
    };
    for expert in of_experts {
        let (mut a, mut b) = (vec![0.0; rank * k], vec![0.0; n_rows * rank]);
        if let Some(pair) = expert {
            let (found_a, found_b) = (pair.a.floats(0), pair.b.floats(0));
            a[..found_a.len()].copy_from_slice(&found_a);
            for (to, from) in b.chunks_exact_mut(rank).zip(found_b.chunks_exact(pair.rank)) {
                to[..pair.rank].copy_from_slice(from);
            }
        }
        whole.factors.push(expert.as_ref().map_or(0.0, |pair| pair.factors[0]));
        whole.a.matrices.push(of_floats(&a));
        whole.b.matrices.push(of_floats(&b));
    }
    Some(whole)
}

impl LowRank {
    /// What is added to products with the transposed matrices.
    pub(super) fn transposed(&self) -> LowRank {
        LowRank { a: self.b.transposed(), b: self.a.transposed(), ..self.clone() }
    }
}

impl Factor {
    fn new(stored: &Stored, matrices: Vec<Bytes>) -> Factor {
        let per_row = stored.ne[0] as usize * if stored.ty == QuantType::F32 { 4 } else { 2 };
        let n_rows = matrices.first().map_or(0, |m| m.len() / per_row.max(1));
        Factor { ty: stored.ty, n_rows, k: stored.ne[0] as usize, matrices }
    }

    /// Row `row` of the first matrix as floats, `k` of them.
    ///
    /// # Panics
    /// When there is no such row.
    pub fn decode_row(&self, kind: IsaKind, row: usize, out: &mut [f32]) {
        let per_row = self.matrices[0].len() / self.n_rows;
        let row = &self.matrices[0][row * per_row..][..per_row];
        ikq_decode::dequantize(kind, self.ty, row, 1, self.k, out).expect("the shape was checked");
    }

    /// Elements of an expert's matrix.
    fn floats(&self, expert: usize) -> Vec<f32> {
        let ne = [self.k as u64, self.n_rows as u64, 1, 1];
        let stored = Stored { ty: self.ty, ne, data: self.matrices[expert].clone() };
        stored.floats().expect("floats of a shape that was checked")
    }

    fn transposed(&self) -> Factor {
        let turn = |expert| {
            let floats = self.floats(expert);
            let columns = (0..self.k).flat_map(|c| floats[c..].iter().step_by(self.k).copied());
            of_floats(&columns.collect::<Vec<f32>>())
        };
        let matrices = (0..self.matrices.len()).map(turn).collect();
        Factor { ty: QuantType::F32, n_rows: self.k, k: self.n_rows, matrices }
    }
}

fn of_floats(floats: &[f32]) -> Bytes {
    Stored::of_floats([floats.len() as u64, 1, 1, 1], floats).data
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_factor_is_transposed() {
        let matrices = vec![of_floats(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])];
        let factor = Factor { ty: QuantType::F32, n_rows: 2, k: 3, matrices };
        let turned = factor.transposed();
        assert_eq!((turned.n_rows, turned.k, turned.floats(0)), (3, 2, vec![1.0, 4.0, 2.0, 5.0, 3.0, 6.0]));
    }

    #[test]
    fn experts_of_several_ranks_are_filled_up() {
        let pair = |rank: usize, value: f32| LowRank {
            adapter: 0,
            rank,
            factors: vec![value],
            a: Factor {
                ty: QuantType::F32,
                n_rows: rank,
                k: 3,
                matrices: vec![of_floats(&vec![value; 3 * rank])],
            },
            b: Factor {
                ty: QuantType::F32,
                n_rows: 2,
                k: rank,
                matrices: vec![of_floats(&vec![value; 2 * rank])],
            },
        };
        let rows = Rows { k: 3, n_stored: 2, taken: 0..2, n_experts: 3, is_pooled: false };
        let whole = stacked(0, &[Some(pair(1, 2.0)), None, Some(pair(2, 3.0))], &rows).expect("two of three");
        assert_eq!((whole.rank, &whole.factors[..]), (2, &[2.0, 0.0, 3.0][..]));
        assert_eq!(whole.a.floats(0), [2.0, 2.0, 2.0, 0.0, 0.0, 0.0]);
        assert_eq!(whole.b.floats(0), [2.0, 0.0, 2.0, 0.0]);
        assert_eq!(whole.b.floats(2), [3.0; 4]);
        assert!(stacked(0, &[None, None], &rows).is_none());
    }
}
