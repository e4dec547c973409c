//! Repacking at load time: plain rows become groups of their interleaved twin.
//!
//! There is no need for it: products read plain rows at least as fast. It is there to compare with engines that
//! repack, and changes no result, because the codes and scales are the same ones in other places.
//!
//! What stays as it is: types without a lossless twin, tensors whose rows are not whole groups (or of which parts that are not
//! whole groups are used apart: merged experts, fused attention matrices, heads), and embeddings, of which single rows are
//! read. The same tensors stay as in ik_llama.cpp's `-rtr`; BF16 is repacked on every machine, F16 never, since
//! its twin there has fewer digits.

use std::collections::HashMap;

use ikq_formats::QuantType;
use ikq_gguf::Tensor;

use crate::spec::{Attention, DenseFfn, Ffn, Linear, ModelSpec, Names};

/// The interleaved type with the same codes; of several the one that ik_llama.cpp repacks to.
pub(crate) fn twin(ty: QuantType) -> Option<QuantType> {
    QuantType::ALL.iter().copied().rfind(|t| t.info().base == Some(ty))
}

/// Which tensors of a model are repacked.
#[derive(Debug)]
pub struct Repack {
    /// Tensors that are used in parts: rows at which a part begins or ends are multiples of this.
    parts: HashMap<String, usize>,
    embedding: String,
}

impl Repack {
    pub fn new(spec: &ModelSpec) -> Repack {
        let mut of = Repack { parts: HashMap::new(), embedding: spec.token_embd.clone() };
        of.linear(&spec.output);
        for layer in &spec.layers {
            of.attention(&layer.attention);
            match &layer.ffn {
                Ffn::Dense(ffn) => of.dense(ffn),
                Ffn::Moe(moe) => {
                    [&moe.routing.router, &moe.gate, &moe.up, &moe.down]
                        .into_iter()
                        .for_each(|l| of.linear(l));
                    moe.shared.iter().for_each(|ffn| of.dense(ffn));
                }
            }
        }
        of
    }

    /// The type that a tensor is repacked to.
    pub(crate) fn to(&self, tensor: &Tensor, ty: QuantType) -> Option<QuantType> {
        let twin = twin(ty).filter(|_| tensor.name != self.embedding)?;
        let group = twin.info().rows;
        let parts = self.parts.get(&tensor.name).copied().unwrap_or(0);
        (tensor.ne[1].is_multiple_of(group as u64) && parts.is_multiple_of(group)).then_some(twin)
    }

    fn cut(&mut self, name: &str, row: usize) {
        let parts = self.parts.entry(name.to_string()).or_default();
        *parts = gcd(*parts, row);
    }

    fn linear(&mut self, linear: &Linear) {
        let names = match &linear.weight {
            Names::One(name) => std::slice::from_ref(name),
            Names::Each(names) => names,
        };
        for name in names {
            self.cut(name, linear.first_row);
            self.cut(name, linear.n_rows.map_or(0, |n| linear.first_row + n));
        }
    }

    fn dense(&mut self, ffn: &DenseFfn) {
        [&ffn.gate, &ffn.up, &ffn.down].into_iter().for_each(|l| self.linear(l));
    }

    fn attention(&mut self, attention: &Attention) {
        match attention {
            Attention::Gqa(a) => [&a.q, &a.k, &a.v, &a.output].into_iter().for_each(|l| self.linear(l)),
            Attention::Mla(a) => {
                [&a.q, &a.kv_a, &a.output].into_iter().chain(&a.q_a).for_each(|l| self.linear(l));
                // matrices per head, which older files store as one
                for (tensor, cuts) in [
                    (&a.k_b, [a.kv_rank, 0]),
                    (&a.v_b, [a.head_dim_v, 0]),
                    (&a.kv_b, [a.n_nope, a.head_dim_v]),
                ] {
                    tensor.iter().for_each(|name| cuts.into_iter().for_each(|row| self.cut(name, row)));
                }
            }
            Attention::DeltaNet(a) => {
                let linears = [&a.qkv, &a.beta, &a.alpha, &a.output];
                linears.into_iter().chain(&a.z).for_each(|l| self.linear(l));
            }
        }
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use QuantType::*;
    use ikq_gguf::{Bytes, TensorType};

    fn tensor(name: &str, rows: u64) -> Tensor {
        let data = Bytes::from(Vec::new());
        let ty = TensorType::Known(Q4_0);
        Tensor { name: name.into(), ne: [32, rows, 1, 1], n_dims: 2, ty, shard: 0, file_offset: 0, data }
    }

    #[test]
    fn the_twin_is_the_one_that_others_repack_to() {
        assert_eq!((twin(Q4_0), twin(IQ4_XS), twin(BF16)), (Some(Q4_0_R8), Some(IQ4_XS_R8), Some(BF16_R16)));
        assert_eq!((twin(F16), twin(IQ1_S), twin(Q4_0_R8), twin(Q8_KV)), (None, None, None, None));
    }

    #[test]
    fn parts_must_be_whole_groups() {
        let mut repack = Repack { parts: HashMap::new(), embedding: "token_embd.weight".into() };
        repack.cut("halves", 24);
        repack.cut("halves", 48);
        repack.cut("thirds", 20);
        assert_eq!(repack.to(&tensor("halves", 48), Q4_0), Some(Q4_0_R8));
        assert_eq!(repack.to(&tensor("thirds", 40), Q4_0), None);
        assert_eq!(repack.to(&tensor("whole", 20), Q4_0), None);
        assert_eq!(repack.to(&tensor("whole", 40), Q4_0), Some(Q4_0_R8));
        assert_eq!(repack.to(&tensor("token_embd.weight", 40), Q4_0), None);
    }
}
