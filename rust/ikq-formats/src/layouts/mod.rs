//! The layout of every type, one file per family. The head of each file lists the fields of its
//! types in the order of the value array; element codes (`q`) come last.
//!
//! `d`, `dmin`, `m`, `s` and other floats inside blocks are fields holding the float's bits. Row
//! headers are in front of the blocks and belong to no layout. Names that recur:
//!
//! | field | what |
//! |---|---|
//! | `d` | scale of the block |
//! | `scales` | scales of the sub-blocks, whole, as stored (offsets not subtracted) |
//! | `sc`, `m` | the same where sub-blocks have minima as well |
//! | `shift` | one bit per sub-block: which row of the value table, sign of the shift (IQ1), offset (IQ4_KT) |
//! | `grid` | codebook indices in element order |
//! | `signs` | sign codes or sign bits in element order |
//! | `q` | element codes in element order (IQ2_KL: of pairs; trellis types: of groups) |

mod activation;
mod float;
mod fp4;
pub(crate) mod interleaved;
mod iqk;
mod iquants;
mod kquants;
mod legacy;
mod places;
mod ternary;
mod trellis;

use std::sync::OnceLock;

use crate::error::Error;
use crate::layout::Layout;
use crate::types::QuantType;

static LAYOUTS: [OnceLock<Option<Layout>>; QuantType::ALL.len()] =
    [const { OnceLock::new() }; QuantType::ALL.len()];

/// The bit layout of a block of `ty`; of a group of blocks for interleaved types. It is built on
/// first use and then kept.
///
/// Two kinds of types have another unit than the block size of the table says: I2_S (128 elements
/// in 32 bytes; its scale is behind the codes of the whole tensor), and the `_X4` activation types
/// (four blocks of 32; up to three blocks left over at the end of a row are single Q8_0 or Q8_1
/// blocks). BF16_R16 goes by pairs of elements.
///
/// # Errors
/// [`Error::NoLayout`] for Q8_K16 and Q8_K64, whose unit is a row, and for I64 and F64, whose
/// elements are wider than the numbers of a value array.
pub fn layout(ty: QuantType) -> Result<&'static Layout, Error> {
    // ALL is in order of id
    let i = QuantType::ALL.binary_search(&ty).map_err(|_| Error::NoLayout { ty })?;
    LAYOUTS[i].get_or_init(|| build(ty)).as_ref().ok_or(Error::NoLayout { ty })
}

fn build(ty: QuantType) -> Option<Layout> {
    let families = [
        float::build,
        legacy::build,
        kquants::build,
        iquants::build,
        iqk::build,
        trellis::build,
        ternary::build,
        fp4::build,
        activation::build,
        interleaved::build,
    ];
    families.iter().find_map(|family| family(ty))
}

#[cfg(test)]
mod tests;
