//! Encoding with error feedback: what a column's code misses is moved to the columns behind it, as far as the inputs of
//! both go together, so that the error of the *product* becomes small where that of the weights does not.
//!
//! ```text
//! for every block of a row                                          (lanes are rows: sixteen at a time)
//!     m = x - what the errors of earlier columns ask for            matrix product with the factor N
//!     scales of m by the type's own encoder                         ikq-encode, weighed by w
//!     for every sub-block: a few scales around that one are tried
//!         codes column by column, or group by group,                the scale with the least e^2 w stays
//!         errors moved on inside
//! scales of the row divided by its gain under the covariance        g = sum(x H y) / sum(x H x)
//! ```
//! [`Factors`] has N, w and R of a covariance. [`encode_rows`] is the door; [`has_feedback`] tells the types. How a type's
//! fields become scales is a [`form::Form`], what finds its codes a [`coder::Coder`], and all else is one body (`body.rs`). A
//! row's bytes depend on that row and the factors, never on its neighbours.
//!
//! [`Factors`]: ikq_covariance::Factors

mod body;
mod coder;
mod form;
mod groups;
mod lanes;
mod passes;
mod points;
mod types;

pub use body::{encode_rows, working_bytes};
pub use types::has_feedback;
