//! Fast arithmetic: it knows tensor types and instruction sets, not models or threads.
//!
//! Every function works on slices and runs on the calling thread; who owns the threads cuts the work into
//! units. Functions take the instruction set as a value (`IsaKind`) and give the same result to rounding on
//! each.
//!
//! | module | what |
//! |---|---|
//! | [`act`] | activations: float columns and their 8-bit form, made once per product's input |
//! | [`matmul`] | a block of a matrix's rows times columns of activations, any type |
//! | [`tiles`] | disjoint blocks of an output, for threads to write |
//! | [`ops`] | norms, rotary embedding, gated activations, routing |
//! | [`attention`] | the key/value cache and attention over it |
//! | [`delta`] | the recurrence of gated delta-net layers |

pub mod act;
mod aligned;
pub mod attention;
pub mod delta;
pub mod matmul;
pub mod ops;
pub mod tiles;
