//! Work units: the pieces of a plan that threads take one by one.
//!
//! A unit is a block of rows of one expert, of about [`UNIT_ELEMENTS`] elements whatever the
//! tensor's shape (but a whole tensor where all its rows share a scale, I2_S), so that any number of threads is busy to the end and the memory in flight is a
//! small multiple of a unit. Units are listed in file order, which keeps reading and writing
//! sequential.

use ikq_formats::{QuantType, matrix_bytes, row_bytes};
use ikq_gguf::Tensor;

use crate::plan::Plan;

/// Elements in a unit that is encoded: 1 MiB of floats.
pub(crate) const UNIT_ELEMENTS: usize = 1 << 18;
/// Bytes in a unit that is copied.
pub(crate) const COPY_BYTES: usize = 4 << 20;

/// One piece of work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unit {
    /// Index of the tensor in the plan.
    pub tensor: usize,
    /// Range of the source tensor's bytes.
    pub source: std::ops::Range<usize>,
    /// Where the result goes in the output tensor.
    pub offset: u64,
    /// What to do with the bytes.
    pub work: Work,
}

/// What a unit asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    Copy,
    /// Decode `n_rows` rows of `from`, encode them as `to`.
    Encode {
        from: QuantType,
        to: QuantType,
        n_rows: usize,
        n_per_row: usize,
        /// The matrix (expert) that the rows belong to, and the first row in it.
        matrix: usize,
        first_row: usize,
        bytes_out: usize,
    },
}

/// All units of a plan, in file order. Sizes were checked when the plan was made.
pub(crate) fn units(plan: &Plan, tensors: &[Tensor]) -> Result<Vec<Unit>, ikq_formats::Error> {
    let mut all = Vec::new();
    for (index, planned) in plan.tensors.iter().enumerate() {
        let t = &tensors[planned.source];
        match (planned.encode, t.ty.known()) {
            (Some(to), Some(from)) => encode_units(index, t, from, to, &mut all)?,
            _ => copy_units(index, t.data.len(), &mut all),
        }
    }
    Ok(all)
}

fn copy_units(tensor: usize, n_bytes: usize, all: &mut Vec<Unit>) {
    for start in (0..n_bytes).step_by(COPY_BYTES) {
        let source = start..n_bytes.min(start + COPY_BYTES);
        all.push(Unit { tensor, source, offset: start as u64, work: Work::Copy });
    }
}

fn encode_units(
    tensor: usize,
    t: &Tensor,
    from: QuantType,
    to: QuantType,
    all: &mut Vec<Unit>,
) -> Result<(), ikq_formats::Error> {
    let [n_per_row, rows_per_matrix] = [t.ne[0] as usize, t.ne[1] as usize];
    let n_matrices = (t.ne[2] * t.ne[3]) as usize;
    if to == QuantType::I2_S {
        // one scale behind the codes of all matrices: the tensor is one unit, however large
        let n_rows = rows_per_matrix * n_matrices;
        let source = 0..row_bytes(from, n_per_row)? * n_rows;
        let bytes_out = matrix_bytes(to, n_rows, n_per_row)?;
        let work = Work::Encode { from, to, n_rows, n_per_row, matrix: 0, first_row: 0, bytes_out };
        all.push(Unit { tensor, source, offset: 0, work });
        return Ok(());
    }
    // groups of 4, 8 or 16 rows: the larger is a multiple of the smaller
    let group = from.info().rows.max(to.info().rows);
    let step = (UNIT_ELEMENTS / n_per_row.max(1)).max(1).next_multiple_of(group);
    let (mut source, mut offset) = (0, 0u64);
    for matrix in 0..n_matrices {
        for first_row in (0..rows_per_matrix).step_by(step) {
            let n_rows = step.min(rows_per_matrix - first_row);
            // I2_S has its scale behind all rows, which is not a part of any of them
            let bytes_in = row_bytes(from, n_per_row)? * n_rows;
            let bytes_out = matrix_bytes(to, n_rows, n_per_row)?;
            let work = Work::Encode { from, to, n_rows, n_per_row, matrix, first_row, bytes_out };
            all.push(Unit { tensor, source: source..source + bytes_in, offset, work });
            source += bytes_in;
            offset += bytes_out as u64;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ikq_gguf::{Bytes, TensorType};

    fn cut(ne: [u64; 4], from: QuantType, to: QuantType) -> Vec<Unit> {
        let n = matrix_bytes(from, (ne[1] * ne[2] * ne[3]) as usize, ne[0] as usize).expect("valid");
        let t = Tensor {
            name: "t".into(),
            ne,
            n_dims: 4,
            ty: TensorType::Known(from),
            shard: 0,
            file_offset: 0,
            data: Bytes::from(vec![0; n]),
        };
        let mut all = Vec::new();
        encode_units(0, &t, from, to, &mut all).expect("valid");
        let trailer = if from == QuantType::I2_S { 32 } else { 0 };
        assert_eq!(all.last().map(|u| u.source.end), Some(n - trailer), "the units cover the source");
        assert!(all.windows(2).all(|w| w[0].source.end == w[1].source.start));
        all
    }

    #[test]
    fn units_do_not_span_experts_and_keep_groups_whole() {
        let all = cut([1024, 300, 3, 1], QuantType::BF16, QuantType::IQ4_KS);
        let rows: Vec<(usize, usize)> = all
            .iter()
            .map(|u| match u.work {
                Work::Encode { matrix, n_rows, .. } => (matrix, n_rows),
                Work::Copy => (9, 9),
            })
            .collect();
        assert_eq!(rows, [(0, 256), (0, 44), (1, 256), (1, 44), (2, 256), (2, 44)]);
        for u in cut([65536 * 8, 32, 1, 1], QuantType::BF16_R16, QuantType::Q4_0_R8) {
            assert!(matches!(u.work, Work::Encode { n_rows: 16, .. }));
        }
    }

    #[test]
    fn a_tensor_that_gets_one_scale_is_one_unit() {
        let all = cut([1024, 300, 3, 1], QuantType::BF16, QuantType::I2_S);
        assert!(matches!(all[..], [Unit { work: Work::Encode { n_rows: 900, .. }, .. }]));
    }

    #[test]
    fn a_tensor_with_one_scale_is_cut_by_expert_all_the_same() {
        let all = cut([1024, 300, 2, 1], QuantType::I2_S, QuantType::Q8_0);
        assert_eq!(all.iter().map(|u| u.source.start).collect::<Vec<_>>(), [0, 65_536, 76_800, 142_336]);
    }
}
