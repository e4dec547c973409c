//! Quantizes whole models: reads a GGUF model, decides a type for every tensor, and writes a GGUF file.
//!
//! ```text
//! gguf::Model -> recipe -> Plan (a type and a reason per tensor) -> units (tensor, expert, rows)
//!             -> pool -> ikq-encode -> gguf::Writer
//! ```
//! - [`imatrix`]: importance matrices, both file forms.
//! - [`ftype`], [`mix`]: TYPEs and the rules behind them; [`custom`], [`roles`]: the user's own.
//! - [`covariance`]: covariances of inputs, and what error feedback makes of them.
//! - [`coverage`]: what of a plan an imatrix has data for.
//! - [`range`]: how large and how small a type's numbers can be.
//! - [`repack`]: rows into groups and out of them.
//! - [`recipe`], [`plan`]: rules to types; [`run`]: plan to file, going on where an earlier run ended (`journal`,
//!   `found`), unit by unit (`units`, `work`), with errors ([`measure`]) if wanted, by
//!   this process or by others ([`remote`]).

mod begin;
pub mod covariance;
pub mod coverage;
pub mod custom;
mod error;
mod found;
pub mod ftype;
mod hash;
pub mod imatrix;
mod journal;
pub mod measure;
pub mod mix;
pub mod overrides;
pub mod plan;
pub mod predict;
pub mod range;
pub mod recipe;
mod recipe_hash;
pub mod remote;
pub mod repack;
pub mod roles;
pub mod run;
mod statistics;
mod tally;
mod units;
pub mod verify;
mod work;

pub use error::Error;
pub use hash::ENCODERS;
pub use recipe_hash::TENSOR_HASHES;
