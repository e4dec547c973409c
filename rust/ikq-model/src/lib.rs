//! Runs a model that a [`spec::ModelSpec`] describes: weights by role, attention, FFN plans, cache; a whole step for a
//! batch of tokens in one call.
//!
//! | module | what |
//! |---|---|
//! | [`spec`] | the description, as Python writes it |
//! | [`load`] | where weights live: mapped files, or huge pages |
//! | [`repack`] | rows joined to groups while loading, for comparison |
//! | [`weights`] | a spec's names made into checked matrices |
//! | [`layers`] | a block's weights |
//! | [`rope`] | the rotary embeddings that layers share |
//! | [`exec`] | the phases that all parts of a step are made of |
//! | [`attention`] | grouped heads, latent, recurrent |
//! | [`ffn`] | fused, merged, separate |
//! | [`statistics`] | what weights are multiplied with, collected on the way |
//! | [`engine`] | the model with its cache, and the step |

pub mod attention;
pub mod engine;
pub mod error;
pub mod exec;
pub mod ffn;
pub mod layers;
pub mod load;
pub mod repack;
pub mod rope;
pub mod spec;
pub mod statistics;
pub mod weights;

pub use engine::Engine;
pub use error::Error;
