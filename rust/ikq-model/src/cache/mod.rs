//! Bookkeeping of caches: which pages and states there are, and who holds them. Devices have the memory.

mod pools;
mod snapshots;

pub use pools::{Pools, Slots};
pub use snapshots::{Snapshots, most_states};
