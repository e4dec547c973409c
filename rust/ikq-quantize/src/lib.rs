//! The quantization of whole models, from a file to a file.
//!
//! ```text
//! gguf::Model -> recipe -> Plan (a type and a reason per tensor) -> units (tensor, expert, rows)
//!             -> pool -> ikq-encode -> gguf::Writer
//! ```
//! - [`imatrix`]: importance matrices, both file forms.
//! - [`ftype`], [`mix`]: TYPEs and the rules behind them; [`custom`], [`roles`]: the user's own.
//! - [`coverage`]: what of a plan an imatrix has data for.
//! - [`repack`]: rows into groups and out of them.
//! - [`recipe`], [`plan`]: rules to types; [`run`]: plan to file.

pub mod coverage;
pub mod custom;
mod error;
pub mod ftype;
pub mod imatrix;
pub mod mix;
pub mod overrides;
pub mod plan;
pub mod recipe;
pub mod repack;
pub mod roles;
pub mod run;
mod statistics;
mod units;

pub use error::Error;
