//! What a model is, and what a step of it does: checked layers, their places, sequences and their pages, the order
//! of stages. Arithmetic is the business of devices.
//!
//! | module | what |
//! |---|---|
//! | [`spec`] | the description, as Python writes it |
//! | [`adapter`] | LoRA adapters |
//! | [`network`] | a spec's names made into checked matrices |
//! | [`placement`] | which stage is on which device |
//! | [`device_name`] | names of devices, as users write them |
//! | [`device`] | what a device can do |
//! | [`batch`] | the tokens of a step |
//! | [`cache`] | bookkeeping of pages and states |
//! | [`sequence`] | tokens that were read |
//! | [`saved`] | sequences in files |
//! | [`step`] | the order of stages |
//! | [`results`] | what a step gives |
//! | [`context`] | how long sequences may be |
//! | [`model`] | all of it together |
//! | [`statistics`] | what weights are multiplied with, collected on the way |

pub mod adapter;
pub mod batch;
pub mod cache;
pub mod context;
pub mod covariance;
pub mod device;
pub mod device_name;
pub mod error;
pub mod model;
pub mod network;
pub mod placement;
pub mod results;
pub mod saved;
pub mod sequence;
pub mod spec;
pub mod statistics;
pub mod step;

pub use adapter::Adapter;
pub use error::Error;
pub use model::{Model, Options};
pub use results::{Best, MOST_BEST, Output};
pub use sequence::Sequence;
pub use step::{Entry, Want};
