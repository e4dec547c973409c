//! What can be wrong with a type name, a row length or a byte count.

use crate::types::QuantType;

/// Errors of the format layer. Messages start in lower case and say what to do.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("unknown type `{name}`{}", suggest(.suggestions))]
    UnknownType { name: String, suggestions: Vec<&'static str> },

    #[error("row length {n_per_row} is not a multiple of {block_size} ({ty:?}); {}", way_out(*.ty, *.n_per_row))]
    RowLength { ty: QuantType, n_per_row: usize, block_size: usize },

    #[error("{n_rows} rows are not a multiple of {rows}: {ty:?} stores {rows} rows together; use {}", plain(*.ty))]
    RowCount { ty: QuantType, n_rows: usize, rows: usize },

    #[error("{ty:?} data of {n_rows} rows of {n_per_row} elements must have {expected} bytes, got {found}")]
    ByteCount { ty: QuantType, n_rows: usize, n_per_row: usize, expected: usize, found: usize },

    #[error("{n_elements} elements are not a multiple of 128, which I2_S needs")]
    I2sLength { n_elements: usize },

    #[error(
        "a tensor of {n_rows} rows of {n_per_row} elements of type {ty:?} is larger than memory can address"
    )]
    TooLarge { ty: QuantType, n_rows: usize, n_per_row: usize },

    #[error("{from:?} cannot be repacked to {to:?}: {why}")]
    Repack { from: QuantType, to: QuantType, why: &'static str },

    #[error("{ty:?} has no block layout to pack or unpack")]
    NoLayout { ty: QuantType },

    #[error("field `{field}` of {ty:?}: value {value} at index {index} does not fit {levels} levels")]
    FieldValue { ty: QuantType, field: &'static str, index: usize, value: u32, levels: u64 },

    #[error(
        "codes of {ty:?}: the group of four at element {index} has an odd number of ones, which the \
         format cannot store; change one bit of one of its codes"
    )]
    CodesClash { ty: QuantType, index: usize },
}

fn suggest(names: &[&'static str]) -> String {
    match names {
        [] => "; `ikq types` lists all".to_string(),
        _ => format!("; did you mean {}? (`ikq types` lists all)", names.join(", ")),
    }
}

fn way_out(ty: QuantType, n_per_row: usize) -> String {
    let mut next = ty.info().fallback;
    while let Some(t) = next {
        if n_per_row.is_multiple_of(crate::row::row_multiple(t)) {
            return format!("use {}", t.name());
        }
        next = t.info().fallback;
    }
    "use F16".to_string()
}

fn plain(ty: QuantType) -> &'static str {
    ty.info().base.map_or("a type that is not interleaved", |b| b.name())
}
