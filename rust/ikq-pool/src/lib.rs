//! Threads, and queues of units of work that they take from. All threads of the project are those of this crate;
//! that they are rayon's is known nowhere else.
//!
//! The caller decides what a unit is, such as a run of rows. Units are taken one
//! by one, in order, by whichever thread is free. So any number of threads can work on any number of
//! units, and the iterator may make them lazily.
//!
//! ```
//! use ikq_pool::{Cancel, Pool};
//! let pool = Pool::new(3)?;
//! let (x, mut y) = ([1.0f32, 2.0, 3.0, 4.0, 5.0], [0.0; 5]);
//! let units = x.chunks(2).zip(y.chunks_mut(2));
//! let done = pool.for_each(units, &Cancel::new(), |(x, y)| -> Result<(), ()> {
//!     y.iter_mut().zip(x).for_each(|(y, x)| *y = 2.0 * x);
//!     Ok(())
//! });
//! assert_eq!((done, y), (Ok(()), [2.0, 4.0, 6.0, 8.0, 10.0]));
//! # Ok::<(), ikq_pool::StartError>(())
//! ```
#![deny(unsafe_code)]

mod cancel;
mod memory;
mod pool;
// the only module of this crate with `unsafe` code
#[allow(unsafe_code)]
mod team;

pub use cancel::Cancel;
pub use memory::available_memory;
pub use pool::{Pool, StartError, Stop, n_cpus};
pub use team::Team;
