//! Groups of interleaved types: `rows` blocks of one column of blocks, side by side. A group has
//! exactly the fields of the plain type, per row; only their places differ (and signs or offsets
//! are stored in another code where noted). Notation: `k` row in the group, `i` element in the row's
//! block, `e = i % 32`, `b = i / 32`, `h = i / 16 % 2`.
//!
//! | file | types |
//! |---|---|
//! | `legacy.rs` | Q4_0_R8, Q4_0_4_4, Q4_0_4_8, Q4_0_8_8, Q5_0_R4, Q6_0_R4, Q8_0_R8, IQ4_NL_R4, MXFP4_R8, BF16_R16 |
//! | `kquants.rs` | Q2_K_R4 ... Q6_K_R4 |
//! | `iquants.rs` | IQ2_XXS_R4, IQ2_XS_R4, IQ2_S_R4, IQ3_XXS_R4, IQ3_S_R4, IQ4_XS_R8 |
//! | `iqk.rs` | IQ2_K_R4, IQ3_K_R4, IQ4_K_R4, IQ5_K_R4, IQ4_KS_R4, IQ5_KS_R4, IQ2_BN_R4 |
//! | `rowless.rs` | IQ1_S_R4, IQ1_M_R4, Q8_K_R8, Q8_K_R16, Q8_KV_R8: no plain type; fields listed there |

mod iqk;
mod iquants;
mod kquants;
mod legacy;
mod rowless;

use crate::layout::{Builder, Layout, Part, bits, le, nib};
use crate::types::QuantType;

pub(crate) use rowless::row_layout;

pub fn build(ty: QuantType) -> Option<Layout> {
    let families = [legacy::build, kquants::build, iquants::build, iqk::build, rowless::build];
    families.iter().find_map(|family| family(ty))
}

/// Begins the group of `ty`: the fields of its plain type, to be placed.
fn group(ty: QuantType) -> Option<Builder> {
    let base = super::layout(ty.info().base?).ok()?;
    Some(Builder::group(base, ty.info().rows))
}

/// The f16 of row `k` in an array of them at `at`.
fn f16_at(at: usize, k: usize) -> Vec<Part> {
    le(at + 2 * k, 2)
}

/// Which 16 bytes (l) and which nibble (n) of pattern A hold element `e`.
fn a_place(e: usize) -> (usize, usize) {
    let t = e / 4;
    (t / 4 + 2 * (t % 2), t / 2 % 2)
}

/// Pattern A: 64 bytes at `at` hold 32 four-bit codes of each of four rows.
fn pattern_a(at: usize, k: usize, e: usize) -> Part {
    let (l, n) = a_place(e);
    nib(at + 16 * l + 4 * k + e % 4, n)
}

/// Pattern B: 32 bytes at `at` hold 32 two-bit codes of each of four rows.
fn pattern_b(at: usize, k: usize, e: usize) -> Part {
    bits(at + 16 * (e / 16) + 4 * k + e % 4, 2 * (e % 16 / 4), 2)
}

/// Pattern S: six-bit scale number `z`, four bits in 32 bytes at `low`, two in 16 bytes at `high`.
fn pattern_s(low: usize, high: usize, z: usize) -> [Part; 2] {
    [nib(low + z % 32, z / 32), bits(high + z % 16, 2 * (z / 16), 2).at(4)]
}
