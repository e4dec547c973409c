//! [`Pool`]: a fixed number of threads, and the loop over a queue of units.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::cancel::Cancel;
use crate::team::{self, Team};

/// CPUs that this process may use, at least 1; affinity and container limits are taken into account.
pub fn n_cpus() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}

/// The error when the threads of a pool could not be started.
#[derive(Debug)]
pub struct StartError {
    n_threads: usize,
    reason: String,
}

impl std::fmt::Display for StartError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "cannot start {} threads: {}", self.n_threads, self.reason)
    }
}

impl std::error::Error for StartError {}

/// Why a loop ended before its last unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop<E> {
    /// The [`Cancel`] flag was set.
    Cancelled,
    /// The error of the first unit (in order of the queue) that failed.
    Failed(E),
}

impl<E> From<E> for Stop<E> {
    fn from(e: E) -> Stop<E> {
        Stop::Failed(e)
    }
}

/// A fixed number of threads that wait for work. Dropping the pool ends them.
#[derive(Debug)]
pub struct Pool {
    threads: rayon::ThreadPool,
}

impl Pool {
    /// Starts `n_threads` threads; 0 means one per CPU.
    ///
    /// # Errors
    /// [`StartError`] when the system refuses.
    pub fn new(n_threads: usize) -> Result<Pool, StartError> {
        let n_threads = if n_threads == 0 { n_cpus() } else { n_threads };
        rayon::ThreadPoolBuilder::new()
            .num_threads(n_threads)
            .thread_name(|i| format!("ikq-{i}"))
            .build()
            .map(|threads| Pool { threads })
            .map_err(|e| StartError { n_threads, reason: e.to_string() })
    }

    pub fn n_threads(&self) -> usize {
        self.threads.current_num_threads()
    }

    /// Runs `work` on a thread of the pool and waits for it. Loops inside it start without switching threads again.
    pub fn install<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.threads.install(work)
    }

    /// Runs `lead` on one of the pool's threads while the others wait for its phases; see [`Team`].
    pub fn step<R: Send>(&self, lead: impl FnOnce(&Team<'_>) -> R + Send) -> R {
        team::step(&self.threads, lead)
    }

    /// Calls `work` for all `units`; free threads take the next unit in order. Returns when all threads
    /// are done.
    ///
    /// # Errors
    /// [`Stop::Failed`] with the error of the first failing unit, whatever the number of threads (units
    /// behind it may or may not have run); [`Stop::Cancelled`] when `cancel` was set before all
    /// units were taken.
    pub fn for_each<U, T, E>(
        &self,
        units: U,
        cancel: &Cancel,
        work: impl Fn(T) -> Result<(), E> + Sync,
    ) -> Result<(), Stop<E>>
    where
        U: IntoIterator<Item = T>,
        U::IntoIter: Send,
        T: Send,
        E: Send,
    {
        let queue = Mutex::new(units.into_iter().enumerate());
        let first_error: Mutex<Option<(usize, E)>> = Mutex::new(None);
        let stop = AtomicBool::new(false);
        self.threads.broadcast(|_| {
            loop {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                // After a unit fails no more units are taken, but every unit before it was taken already and
                // is finished by its thread, so the first error in order is always found.
                let next = {
                    let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
                    if cancel.is_cancelled() {
                        return;
                    }
                    queue.next()
                };
                let Some((index, unit)) = next else { return };
                if let Err(e) = work(unit) {
                    stop.store(true, Ordering::Relaxed);
                    let mut first = first_error.lock().unwrap_or_else(PoisonError::into_inner);
                    if first.as_ref().is_none_or(|(i, _)| index < *i) {
                        *first = Some((index, e));
                    }
                }
            }
        });
        if let Some((_, e)) = first_error.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(Stop::Failed(e));
        }
        match cancel.is_cancelled() {
            true => Err(Stop::Cancelled),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[test]
    fn every_unit_runs_once_on_any_number_of_threads() {
        for n_threads in [1, 2, 3, 5, 13] {
            let pool = Pool::new(n_threads).expect("threads");
            assert_eq!(pool.n_threads(), n_threads);
            for n_units in [0, 1, 2, 100] {
                let mut seen = vec![0u32; n_units];
                let done = pool.for_each(seen.iter_mut(), &Cancel::new(), |n| {
                    *n += 1;
                    Ok::<(), ()>(())
                });
                assert_eq!(done, Ok(()));
                assert_eq!(seen, vec![1; n_units]);
            }
        }
    }

    #[test]
    fn the_first_error_wins() {
        let pool = Pool::new(5).expect("threads");
        for _ in 0..200 {
            let done = pool.for_each(0..64, &Cancel::new(), |i| match i % 7 {
                3 => {
                    if i == 3 {
                        std::thread::yield_now();
                    }
                    Err(i)
                }
                _ => Ok(()),
            });
            assert_eq!(done, Err(Stop::Failed(3)));
        }
    }

    #[test]
    fn a_cancelled_loop_takes_no_more_units() {
        let pool = Pool::new(2).expect("threads");
        let (cancel, ran) = (Cancel::new(), AtomicUsize::new(0));
        let done = pool.for_each(0..1_000_000, &cancel, |i| {
            ran.fetch_add(1, Ordering::Relaxed);
            if i == 10 {
                cancel.cancel();
            }
            Ok::<(), ()>(())
        });
        assert_eq!(done, Err(Stop::Cancelled));
        assert!(ran.load(Ordering::Relaxed) < 1_000_000);
    }

    #[test]
    fn every_unit_of_every_phase_runs_once() {
        for n_threads in [1, 2, 3, 13] {
            let pool = Pool::new(n_threads).expect("threads");
            for _ in 0..20 {
                let total = pool.step(|team| {
                    assert_eq!(team.n_threads(), n_threads);
                    let mut seen = vec![0usize; 57];
                    for phase in 0..50 {
                        let units = phase % 57;
                        team.for_each(&mut seen[..units], |n, thread| {
                            assert!(thread < n_threads);
                            *n += 1;
                        });
                    }
                    seen.iter().sum::<usize>()
                });
                assert_eq!(total, (0..50).sum());
            }
        }
    }

    #[test]
    fn a_panic_of_a_unit_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(3).expect("threads");
        for at in [0, 5, 99] {
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                pool.step(|team| {
                    let mut units: Vec<usize> = (0..100).collect();
                    team.for_each(&mut units, |u, _| assert_ne!(*u, at, "unit of doom"));
                })
            }));
            assert!(outcome.is_err());
        }
        assert_eq!(pool.step(|team| team.n_threads()), 3);
    }

    #[test]
    fn phases_after_a_pause_find_sleeping_threads() {
        let pool = Pool::new(2).expect("threads");
        let threads = pool.step(|team| {
            let mut used = [false; 2];
            for _ in 0..5 {
                std::thread::sleep(std::time::Duration::from_millis(20));
                let mut units = vec![0; 40];
                team.for_each(&mut units, |unit, thread| {
                    std::thread::sleep(std::time::Duration::from_millis(1));
                    *unit = thread;
                });
                units.iter().for_each(|thread| used[*thread] = true);
            }
            used
        });
        assert_eq!(threads, [true, true]);
    }

    #[test]
    fn loops_nest() {
        let pool = Pool::new(2).expect("threads");
        let total = AtomicUsize::new(0);
        let inner = |n: usize| {
            pool.for_each(0..n, &Cancel::new(), |_| {
                total.fetch_add(1, Ordering::Relaxed);
                Ok::<(), ()>(())
            })
        };
        pool.install(|| inner(10)).expect("no unit fails");
        assert_eq!(total.load(Ordering::Relaxed), 10);
    }
}
