//! Work units: the pieces of a plan that threads take one by one.
//!
//! A piece is a block of rows of one expert, of about [`PIECE_ELEMENTS`] elements whatever the tensor's shape (but a
//! whole tensor where all its rows share a scale, I2_S), so that any number of threads is busy to the end and the
//! memory in flight is a small multiple of a piece. Pieces depend on the shape and the type written alone, copied
//! or not: hashes of pieces can be compared between files. They are counted in file order, which keeps reading and
//! writing sequential, and computed when asked for: a model has millions.

use std::ops::Range;

use ikq_formats::{QuantType, matrix_bytes, row_bytes};
use ikq_gguf::Tensor;

use crate::plan::{Plan, TensorPlan};

/// Elements in a piece: 1 MiB of floats.
pub(crate) const PIECE_ELEMENTS: usize = 1 << 18;
/// Rows of a piece are a multiple of this: every type's group of rows divides it.
const ROW_STEP: usize = 16;
/// Bytes in a piece of a tensor whose type is not known.
const PIECE_BYTES: usize = 4 << 20;

/// One piece of work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unit {
    /// Index of the tensor in the plan.
    pub tensor: usize,
    /// Range of the source tensor's bytes.
    pub source: Range<usize>,
    /// Where the result goes in the output tensor, and its size.
    pub offset: u64,
    pub bytes_out: usize,
    /// What to do with the bytes.
    pub work: Work,
}

/// What a unit asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    Copy,
    /// Decode rows of `from`, encode them as `to`.
    Encode {
        from: QuantType,
        to: QuantType,
        rows: Rows,
    },
    /// Put rows of `from` into groups of `to`, or the other way round.
    Repack {
        from: QuantType,
        to: QuantType,
        rows: Rows,
    },
}

/// Rows of a matrix (expert); of all matrices where they are one piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rows {
    pub n_rows: usize,
    pub n_per_row: usize,
    pub matrix: usize,
    pub first_row: usize,
}

/// How a tensor is cut into units.
#[derive(Clone, Debug)]
enum Cut {
    /// Runs of bytes: the type is not known.
    Bytes { n_bytes: usize },
    Rows {
        /// Type read, and written; equal for a copy.
        from: QuantType,
        to: QuantType,
        change: Change,
        n_per_row: usize,
        rows_per_matrix: usize,
        n_matrices: usize,
        /// Rows of a piece.
        step: usize,
        /// Bytes of a row.
        row_in: usize,
        row_out: usize,
    },
    /// One scale behind the codes of all matrices: the tensor is one piece, however large.
    Whole { work: Work, bytes_in: usize, bytes_out: usize },
}

/// What a unit does with its rows.
#[derive(Clone, Copy, Debug)]
enum Change {
    Nothing,
    Encode,
    Repack,
}

/// All units of a plan.
#[derive(Clone, Debug)]
pub(crate) struct Units {
    cuts: Vec<Cut>,
    /// Number of the first unit of each tensor, and of all at the end.
    first: Vec<usize>,
}

impl Units {
    /// Cuts the tensors of a plan. Sizes were checked when the plan was made.
    ///
    /// # Errors
    /// Types without a size for such rows, which planning has refused.
    pub fn new(plan: &Plan, tensors: &[Tensor]) -> Result<Units, ikq_formats::Error> {
        let cut = |planned: &TensorPlan| Cut::new(&tensors[planned.source], planned.encode, planned.repack);
        Units::of_cuts(plan.tensors.iter().map(cut).collect::<Result<Vec<_>, _>>()?)
    }

    /// Cuts the tensors of a file into the pieces by which they were written.
    ///
    /// # Errors
    /// As [`Units::new`].
    pub fn of_file(tensors: &[Tensor]) -> Result<Units, ikq_formats::Error> {
        let cut = |t: &Tensor| Cut::new(t, None, false);
        Units::of_cuts(tensors.iter().map(cut).collect::<Result<Vec<_>, _>>()?)
    }

    fn of_cuts(cuts: Vec<Cut>) -> Result<Units, ikq_formats::Error> {
        let mut first = vec![0];
        for cut in &cuts {
            first.push(first.last().copied().unwrap_or(0) + cut.n_pieces());
        }
        Ok(Units { cuts, first })
    }

    /// The number of units.
    pub fn len(&self) -> usize {
        self.first.last().copied().unwrap_or(0)
    }

    /// The range of unit numbers that belong to a tensor.
    pub fn of_tensor(&self, tensor: usize) -> Range<usize> {
        self.first[tensor]..self.first[tensor + 1]
    }

    /// The unit with this number.
    pub fn get(&self, number: usize) -> Unit {
        let tensor = self.first.partition_point(|first| *first <= number) - 1;
        self.cuts[tensor].piece(tensor, number - self.first[tensor])
    }
}

impl Cut {
    /// `encode`: what it becomes, or nothing for a copy; `repack`: without decoding.
    fn new(t: &Tensor, encode: Option<QuantType>, repack: bool) -> Result<Cut, ikq_formats::Error> {
        let Some(from) = t.ty.known() else { return Ok(Cut::Bytes { n_bytes: t.n_bytes() }) };
        let to = encode.unwrap_or(from);
        let [n_per_row, rows_per_matrix] = [t.ne[0] as usize, t.ne[1] as usize];
        let n_matrices = (t.ne[2] * t.ne[3]) as usize;
        if to == QuantType::I2_S {
            let n_rows = rows_per_matrix * n_matrices;
            let bytes_out = matrix_bytes(to, n_rows, n_per_row)?;
            let rows = Rows { n_rows, n_per_row, matrix: 0, first_row: 0 };
            return Ok(match encode {
                Some(_) => Cut::Whole {
                    work: Work::Encode { from, to, rows },
                    bytes_in: row_bytes(from, n_per_row)? * n_rows,
                    bytes_out,
                },
                None => Cut::Whole { work: Work::Copy, bytes_in: t.n_bytes(), bytes_out },
            });
        }
        let step = (PIECE_ELEMENTS / n_per_row.max(1)).max(1).next_multiple_of(ROW_STEP);
        Ok(Cut::Rows {
            from,
            to,
            change: match encode {
                None => Change::Nothing,
                Some(_) if repack => Change::Repack,
                Some(_) => Change::Encode,
            },
            n_per_row,
            rows_per_matrix,
            n_matrices,
            step,
            // I2_S has its scale behind all rows, which is not a part of any of them
            row_in: row_bytes(from, n_per_row)?,
            row_out: row_bytes(to, n_per_row)?,
        })
    }

    fn n_pieces(&self) -> usize {
        match self {
            Cut::Bytes { n_bytes } => n_bytes.div_ceil(PIECE_BYTES),
            Cut::Rows { n_per_row: 0, .. } => 0,
            Cut::Rows { rows_per_matrix, n_matrices, step, .. } => {
                rows_per_matrix.div_ceil(*step) * n_matrices
            }
            Cut::Whole { bytes_out: 0, .. } => 0,
            Cut::Whole { .. } => 1,
        }
    }

    fn piece(&self, tensor: usize, index: usize) -> Unit {
        match self {
            Cut::Bytes { n_bytes } => {
                let source = index * PIECE_BYTES..(*n_bytes).min((index + 1) * PIECE_BYTES);
                let (offset, bytes_out) = (source.start as u64, source.len());
                Unit { tensor, source, offset, bytes_out, work: Work::Copy }
            }
            Cut::Rows {
                from,
                to,
                change,
                n_per_row,
                rows_per_matrix,
                n_matrices: _,
                step,
                row_in,
                row_out,
            } => {
                let per_matrix = rows_per_matrix.div_ceil(*step);
                let (matrix, first_row) = (index / per_matrix, index % per_matrix * step);
                let n_rows = (*step).min(rows_per_matrix - first_row);
                let before = matrix * rows_per_matrix + first_row;
                let rows = Rows { n_rows, n_per_row: *n_per_row, matrix, first_row };
                Unit {
                    tensor,
                    source: before * row_in..(before + n_rows) * row_in,
                    offset: (before * row_out) as u64,
                    bytes_out: n_rows * row_out,
                    work: match change {
                        Change::Encode => Work::Encode { from: *from, to: *to, rows },
                        Change::Repack => Work::Repack { from: *from, to: *to, rows },
                        Change::Nothing => Work::Copy,
                    },
                }
            }
            Cut::Whole { work, bytes_in, bytes_out } => {
                Unit { tensor, source: 0..*bytes_in, offset: 0, bytes_out: *bytes_out, work: work.clone() }
            }
        }
    }
}

impl Unit {
    /// Memory that working on it takes: floats of the source, and of the result where it is `decoded` again, the result,
    /// and the source's pages.
    pub fn memory(&self, decoded: bool) -> u64 {
        match &self.work {
            // written from the source's pages
            Work::Copy => self.source.len() as u64,
            Work::Repack { .. } => (self.bytes_out + self.source.len()) as u64,
            Work::Encode { rows, .. } => {
                let floats = 4 * (rows.n_rows * rows.n_per_row) as u64 * if decoded { 2 } else { 1 };
                floats + (self.bytes_out + self.source.len()) as u64
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Statistics;
    use ikq_gguf::{Bytes, TensorType};

    fn cut(ne: [u64; 4], from: QuantType, to: Option<QuantType>) -> Vec<Unit> {
        let n_rows = (ne[1] * ne[2] * ne[3]) as usize;
        let n = matrix_bytes(from, n_rows, ne[0] as usize).expect("valid");
        let t = Tensor {
            name: "t".into(),
            ne,
            n_dims: 4,
            ty: TensorType::Known(from),
            shard: 0,
            file_offset: 0,
            data: Bytes::from(vec![0; n]),
            made: None,
        };
        let written = to.unwrap_or(from);
        let bytes_out = matrix_bytes(written, n_rows, ne[0] as usize).expect("valid");
        let planned = TensorPlan {
            name: "t".into(),
            source: 0,
            dims: ne.to_vec(),
            from: t.ty,
            to: TensorType::Known(written),
            encode: to,
            repack: false,
            unbiased: false,
            feedback: crate::covariance::Feedback::NotUsed,
            reason: String::new(),
            fallback_from: None,
            bytes_in: n as u64,
            bytes_out: bytes_out as u64,
            statistics: Statistics::NotUsed,
        };
        let cut = Cut::new(&t, planned.encode, planned.repack).expect("valid");
        let all: Vec<Unit> = (0..cut.n_pieces()).map(|i| cut.piece(0, i)).collect();
        let trailer = if from == QuantType::I2_S && to.is_some() { 32 } else { 0 };
        assert_eq!(all.last().map(|u| u.source.end), Some(n - trailer), "the units cover the source");
        assert!(all.windows(2).all(|w| w[0].source.end == w[1].source.start));
        let ends = all.iter().scan(0, |end, u| {
            let begins = *end == u.offset;
            *end = u.offset + u.bytes_out as u64;
            Some((begins, *end))
        });
        let ends: Vec<_> = ends.collect();
        assert!(ends.iter().all(|(begins, _)| *begins), "no gaps in the output");
        assert_eq!(ends.last().map(|e| e.1), Some(bytes_out as u64), "the units cover the output");
        all
    }

    #[test]
    fn units_do_not_span_experts_and_keep_groups_whole() {
        let rows = |all: Vec<Unit>| -> Vec<(usize, usize)> {
            let of = |u: &Unit| match u.work {
                Work::Encode { rows, .. } => (rows.matrix, rows.n_rows),
                Work::Copy | Work::Repack { .. } => (9, u.bytes_out),
            };
            all.iter().map(of).collect()
        };
        let all = rows(cut([1024, 300, 3, 1], QuantType::BF16, Some(QuantType::IQ4_KS)));
        assert_eq!(all, [(0, 256), (0, 44), (1, 256), (1, 44), (2, 256), (2, 44)]);
        for u in cut([65536 * 8, 32, 1, 1], QuantType::BF16_R16, Some(QuantType::Q4_0_R8)) {
            assert!(matches!(u.work, Work::Encode { rows: Rows { n_rows: 16, .. }, .. }));
        }
        // a copy has the pieces of what it copies
        let copied = rows(cut([1024, 300, 3, 1], QuantType::IQ4_KS, None));
        assert_eq!(copied.len(), 6);
        assert_eq!(copied[0], (9, 256 * 548));
    }

    #[test]
    fn a_tensor_that_gets_one_scale_is_one_unit() {
        let all = cut([1024, 300, 3, 1], QuantType::BF16, Some(QuantType::I2_S));
        assert!(matches!(all[..], [Unit { work: Work::Encode { rows: Rows { n_rows: 900, .. }, .. }, .. }]));
        assert_eq!(cut([1024, 300, 3, 1], QuantType::I2_S, None).len(), 1);
    }

    #[test]
    fn a_tensor_with_one_scale_is_cut_by_expert_all_the_same() {
        let all = cut([1024, 300, 2, 1], QuantType::I2_S, Some(QuantType::Q8_0));
        assert_eq!(all.iter().map(|u| u.source.start).collect::<Vec<_>>(), [0, 65_536, 76_800, 142_336]);
    }
}
