//! The key/value cache and attention over it.
//!
//! ```text
//! score[i, j] = softcap(scale q_i . k_j)        j <= i, and i - j < window
//! out_i       = sum_j p_j v_j,   p = softmax of the scores, a sink being one more score without a value
//! ```
//! Keys and values stand in [`Pages`] that sequences share. One body serves prompts and single tokens: a tile of query
//! rows that share a key/value head goes over the keys block by block, keeping each row's largest score, the sum of
//! its exponentials and the weighted sum of the values ([`Partial`]).
//!
//! The result of a row has the same bits whatever else is in the step, however the work is cut, and on any number of
//! threads (`block` and `fold` say how).
//!
//! | file | what |
//! |---|---|
//! | `types` | [`CacheType`]: how numbers are stored |
//! | `pages` | [`Pages`]: storage, in rows and in lanes |
//! | `shift` | rows moved to other places, when positions are removed |
//! | `hadamard` | [`Rotation`]: rows turned before they are stored |
//! | `encode` | floats to the cache's types |
//! | `scale` | scales with the least squared error |
//! | `lanes` | positions side by side |
//! | `few` | products of few rows |
//! | `softmax` | exponentials of a block of scores |
//! | `block` | a tile against blocks of keys |
//! | `partial` | what is known of rows after some of the keys |
//! | `fold` | partial results made one, in a fixed order |
//! | `plan`, `work` | a step's attention cut into units for threads |

mod block;
mod encode;
mod few;
mod fold;
mod hadamard;
mod lanes;
mod pages;
mod partial;
mod plan;
mod scale;
mod scratch;
mod shift;
mod softmax;
mod types;
mod work;

pub use fold::{CHUNK, SPAN};
pub use hadamard::Rotation;
pub use pages::{At, NO_PAGE, PAGE, PageRows, PageShape, Pages, Place};
pub use partial::Partial;
pub use plan::Plan;
pub use scratch::Scratch;
pub use shift::Turn;
pub use types::{CacheError, CacheType};
pub use work::{Attention, Merge, Sequence, Unit, Work};
