//! Plain arrays as layouts of one element.
//!
//! | type | fields (count x bits) |
//! |---|---|
//! | F32, F16, BF16 | x 1x32 or 1x16: the float's bits |
//! | I8, I16, I32 | x 1x8, 1x16, 1x32, two's complement |

use crate::layout::{Layout, le};
use crate::types::QuantType::{self, *};

pub fn build(ty: QuantType) -> Option<Layout> {
    match ty {
        F32 | F16 | BF16 | I8 | I16 | I32 => Some(element(ty)),
        _ => None,
    }
}

fn element(ty: QuantType) -> Layout {
    let bytes = ty.info().block_bytes;
    let field = Layout::block(1, bytes).field("x", 1, 8 * bytes as u32, |_| le(0, bytes));
    match ty {
        I8 | I16 | I32 => field.signed().build(),
        _ => field.build(),
    }
}
