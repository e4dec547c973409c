//! The key/value cache and attention over it.
//!
//! ```text
//! score[i, j] = softcap(scale q_i . k_j)        j <= i, and i - j < window
//! out_i       = sum_j p_j v_j,   p = softmax of the scores, a sink being one more score without a value
//! ```
//! One body serves prompts and single tokens: a tile of query rows that share a key/value head goes over the
//! keys block by block, keeping each row's largest score, the sum of its exponentials and the weighted sum of
//! the values ([`Partial`]). Ranges of keys can be worked off apart and merged, so that all threads have work
//! when there is one token.
//!
//! | file | what |
//! |---|---|
//! | `cache` | [`Cache`]: rows of heads in one of the [`CacheType`]s |
//! | `encode` | floats to the cache's types |
//! | `kernels` | dot products, softmax of a block (matrix products: `ops::matrix`) |
//! | `flash` | the walk over blocks of keys |
//! | `partial` | what is known of rows after some of the keys |

mod cache;
mod encode;
mod flash;
mod kernels;
mod partial;

pub use cache::{Cache, CacheError, CacheRows, CacheType};
pub use flash::{KvHead, Scratch, TILE_ROWS, attend};
pub use partial::Partial;
