//! The CPU as a device that runs models.
//!
//! | module | what |
//! |---|---|
//! | [`device`] | [`Cpu`]: its weights, caches and buffers, and the stages by name |
//! | [`load`], [`weight`] | weights in memory, with rows in lanes |
//! | [`exec`] | the phases that all stages are made of |
//! | [`attention`] | grouped heads, latent, recurrent |
//! | [`ffn`], [`stages`], [`router`] | feed-forward networks and who is routed to them |
//! | [`cache`] | pages and states |
//! | [`rope`] | angles of a step's positions |
//! | [`speed`] | what products take on this machine |

pub mod attention;
pub mod cache;
pub mod device;
pub mod exec;
pub mod ffn;
pub mod load;
mod low_rank;
pub mod rope;
pub mod router;
pub mod speed;
pub mod stages;
pub mod weight;

pub use cache::CacheForm;
pub use device::{Cpu, Options, predict};
pub use load::Mmap;
