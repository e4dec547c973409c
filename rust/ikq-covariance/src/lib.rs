//! Covariances of activations: sums of outer products ([`add_products`], and
//! [`add_cross_products`] of two inputs), and the triangular factors of such a sum, which
//! error feedback works with ([`Factors`]). This crate knows nothing of files, threads or models.
//!
//! A symmetric matrix of K columns is stored as its lower triangle, row after row: `K (K + 1) / 2` floats, with
//! element (i, j), j <= i, at `i (i + 1) / 2 + j`.

mod cholesky;
mod cross;
mod factors;
mod missing;
mod products;
mod starts;
pub mod steps;
mod whole;

pub use cross::add_cross_products;
pub use factors::{Factors, NotPositive, Strips, UNIT, Wanted, damping};
pub use missing::Missing;
pub use products::add_products;
pub use starts::Starts;
pub use whole::Whole;

/// Floats of the lower triangle of a matrix of `k` columns.
pub const fn triangle(k: usize) -> usize {
    k * (k + 1) / 2
}
