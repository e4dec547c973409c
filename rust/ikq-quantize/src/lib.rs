//! From floats to blocks: encoders and the quantization of whole models.
//!
//! ```text
//! gguf::Model -> recipe -> Plan (a type and a reason per tensor) -> units (tensor, expert, rows)
//!             -> pool -> encode (search -> formats::pack) -> gguf::Writer
//! ```
//! - [`encode`]: one encoder per type; what it minimises stands in its docs.
//! - [`search`]: the searches that encoders share (level sets, affine, tables, grids, trellis).
//! - [`imatrix`]: importance matrices, both file forms.
//! - [`ftype`], [`mix`]: TYPEs and the rules behind them; [`custom`], [`roles`]: the user's own.
//! - [`recipe`], [`plan`]: rules to types; [`run`]: plan to file.

pub mod custom;
pub mod encode;
mod error;
pub mod ftype;
pub mod imatrix;
pub mod mix;
pub mod overrides;
pub mod plan;
pub mod recipe;
pub mod roles;
pub mod run;
pub mod search;
mod units;

pub use error::Error;
