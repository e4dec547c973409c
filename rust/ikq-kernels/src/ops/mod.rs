//! The operations of language models beside matrix products.
//!
//! | file | what |
//! |---|---|
//! | `math` | exp, sigmoid, tanh of sixteen lanes |
//! | `matrix` | products of small matrices |
//! | `elementwise` | functions of one or two vectors, element by element |
//! | `norm` | RMS and L2 norms |
//! | `rope` | rotary position embedding |
//! | `routing` | which experts a token takes, and with which weight |

pub mod elementwise;
pub(crate) mod math;
pub(crate) mod matrix;
pub mod norm;
pub mod rope;
pub mod routing;

pub use elementwise::{Activation, glu, sigmoid, sigmoid_gate, silu_gate, silu_in_place, softcap, softplus};
pub use norm::{l2_norm_in_place, rms_norm, rms_norm_in_place};
pub use rope::{Pairing, rotate};
pub use routing::{NotFinite, Routing, RoutingFunc};

use ikq_simd::Isa;

/// Loads up to sixteen elements as lanes, with zeros behind them.
#[inline(always)]
pub(crate) fn load_tail<I: Isa>(isa: I, x: &[f32]) -> I::F {
    let mut lanes = [0.0; 16];
    lanes[..x.len()].copy_from_slice(x);
    isa.load_f(&lanes)
}

/// Stores the first lanes to a slice of up to sixteen elements.
#[inline(always)]
pub(crate) fn store_tail<I: Isa>(isa: I, v: I::F, out: &mut [f32]) {
    let lanes = isa.array(v);
    out.copy_from_slice(&lanes[..out.len()]);
}
