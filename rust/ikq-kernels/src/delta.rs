//! The recurrence of gated delta-net layers.
//!
//! ```text
//! S = decay S;  delta = beta (v - S^T k);  S = S + k delta^T;  o = S^T q
//! ```
//! The state S of a head is `dk` rows of `dv`. Tokens are grouped in chunks that start at positions which are
//! multiples of [`CHUNK`]. Within a chunk S stays what it was at its start; what the chunk's tokens add is kept
//! beside it, a row per token, until the chunk is full. So a token's result is made by the same operations in the
//! same order whether it comes alone or with others: the bits do not depend on how a prompt is cut, and tokens of the
//! unfinished chunk can be forgotten.
//!
//! Of a layer's step, for each sequence: [`convolve`] with [`State::before`] for every token, [`advance`] with every
//! one of [`State::heads_mut`], then [`State::finish`].

mod advance;
mod convolve;
mod rows;
mod see;
mod state;

pub use advance::{Scratch, Tokens, advance};
pub use convolve::convolve;
pub use state::{Head, Shape, State, StateError};

/// Tokens of a chunk. Products with the state cost the same per token whatever it is, those within the chunk grow
/// with it.
pub const CHUNK: usize = 32;

/// Tokens of a chunk whose keys stand side by side, one in a lane.
const BLOCK: usize = 16;

#[cfg(test)]
mod tests;
