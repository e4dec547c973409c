//! [`Team`]: the threads of a pool during one step of a model, where phases of a few microseconds follow one
//! another.
//!
//! One thread, the leader, runs the step's code; the others wait for phases. A phase is a queue of units that all
//! threads take from, the leader too. So a thread that the system has suspended between units delays nobody: it
//! finds that the phase is over when it runs again. Waiting threads spin for a while, because the next phase
//! usually comes soon, then yield, then sleep.
//!
//! ```text
//! leader   publish job, phase += 1, take units until none is left, close, wait until nobody is inside
//! others   wait for phase to change, enter, (job open?) take units until none is left, leave
//! ```

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

/// The function that every thread runs in a phase; it takes units until none is left. The argument is the thread's
/// number.
type Job<'a> = dyn Fn(usize) + Sync + 'a;

/// How often a waiting thread checks the phase before it begins to yield, and how often it yields before it sleeps.
const SPINS: u32 = 4000;
const YIELDS: u32 = 200;

/// The state that all threads of a step share.
struct Shared {
    /// Number of phases so far; the end of the step counts as one.
    phase: AtomicU64,
    /// The job of the phase; `None` before the first one.
    job: Mutex<Option<*const Job<'static>>>,
    /// Whether threads may enter the job.
    open: AtomicBool,
    /// Number of threads between entering and leaving the job.
    inside: AtomicUsize,
    /// Whether the step is over.
    over: AtomicBool,
    /// Number of threads that sleep, and what they sleep on.
    sleepers: AtomicUsize,
    lock: Mutex<()>,
    wake: Condvar,
    /// The first panic of a unit.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: the job pointer is only followed between `enter` and `leave` while the job is open (see `help`),
// during which the leader keeps what it points to alive; a `Job` is `Sync`.
unsafe impl Sync for Shared {}
// SAFETY: as above; nothing in it is tied to a thread.
unsafe impl Send for Shared {}

/// The leader's handle on the threads of a step.
pub struct Team<'a> {
    shared: &'a Shared,
    n_threads: usize,
    /// Whether a phase is running. Phases do not nest.
    busy: AtomicBool,
}

impl Team<'_> {
    /// Threads that work on a phase, the leader included.
    pub fn n_threads(&self) -> usize {
        self.n_threads
    }

    /// Runs a phase: calls `work` for all `units`, of which free threads take the next in order, and returns when
    /// all are done. `work` gets the unit and the number of the thread (below [`Team::n_threads`]).
    ///
    /// # Panics
    /// When called from inside a unit, and when a unit panics (with its panic).
    pub fn for_each<T: Send>(&self, units: &mut [T], work: impl Fn(&mut T, usize) + Sync) {
        if units.len() <= 1 || self.n_threads == 1 {
            units.iter_mut().for_each(|unit| work(unit, 0));
            return;
        }
        assert!(!self.busy.swap(true, Ordering::Relaxed), "phases of a team do not nest");
        let (n_units, next) = (units.len(), AtomicUsize::new(0));
        let first = Units(units.as_mut_ptr());
        let job = |thread: usize| {
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                if i >= n_units {
                    return;
                }
                // SAFETY: `i` is below the length and given out once, so the reference is the only one.
                let unit = unsafe { &mut *first.at(i) };
                if let Err(panic) = catch_unwind(AssertUnwindSafe(|| work(unit, thread))) {
                    next.store(n_units, Ordering::Relaxed);
                    lock(&self.shared.panic).get_or_insert(panic);
                }
            }
        };
        self.shared.open_phase(&job);
        job(0);
        self.shared.close_phase();
        self.busy.store(false, Ordering::Relaxed);
        if let Some(panic) = lock(&self.shared.panic).take() {
            resume_unwind(panic);
        }
    }
}

/// A pointer to the first of the units, which all threads share.
struct Units<T>(*mut T);

impl<T> Units<T> {
    fn at(&self, i: usize) -> *mut T {
        // the caller checks that the offset is inside the slice that the pointer was made from
        self.0.wrapping_add(i)
    }
}

// SAFETY: every element is handed to one thread only, and `T: Send` wherever this is made.
unsafe impl<T: Send> Sync for Units<T> {}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn new() -> Shared {
        Shared {
            phase: AtomicU64::new(0),
            job: Mutex::new(None),
            open: AtomicBool::new(false),
            inside: AtomicUsize::new(0),
            over: AtomicBool::new(false),
            sleepers: AtomicUsize::new(0),
            lock: Mutex::new(()),
            wake: Condvar::new(),
            panic: Mutex::new(None),
        }
    }

    /// Lets the other threads run `job`. The caller must call [`Shared::close_phase`] before `job` is dropped.
    fn open_phase(&self, job: &Job<'_>) {
        // SAFETY: only the lifetime changes. The pointer is followed by threads that are inside an open
        // phase; `close_phase`, which `for_each` reaches whatever units do (their panics are caught),
        // returns when none is inside and none can enter any more.
        let job = unsafe { std::mem::transmute::<*const Job<'_>, *const Job<'static>>(job) };
        *lock(&self.job) = Some(job);
        self.open.store(true, Ordering::SeqCst);
        self.advance();
    }

    fn close_phase(&self) {
        self.open.store(false, Ordering::SeqCst);
        let mut spins = 0u32;
        while self.inside.load(Ordering::SeqCst) > 0 {
            wait_a_little(&mut spins);
        }
    }

    /// Tells waiting threads that something changed.
    fn advance(&self) {
        self.phase.fetch_add(1, Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            let _guard = lock(&self.lock);
            self.wake.notify_all();
        }
    }

    /// Runs on the other threads during a step: waits for phases and takes part in them.
    fn help(&self, thread: usize) {
        let mut seen = 0;
        loop {
            seen = self.wait_for_change(seen);
            if self.over.load(Ordering::SeqCst) {
                return;
            }
            // enters before it checks `open`, because the leader closes before it checks `inside`
            self.inside.fetch_add(1, Ordering::SeqCst);
            if self.open.load(Ordering::SeqCst) {
                let job = *lock(&self.job);
                if let Some(job) = job {
                    // SAFETY: this thread is inside and saw the phase open, so the leader waits for it
                    // before the job ends.
                    unsafe { (*job)(thread) };
                }
            }
            self.inside.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Waits until the phase is not `seen` any more. Returns the new one.
    fn wait_for_change(&self, seen: u64) -> u64 {
        let mut spins = 0;
        loop {
            let phase = self.phase.load(Ordering::SeqCst);
            if phase != seen {
                return phase;
            }
            if spins < SPINS + YIELDS {
                wait_a_little(&mut spins);
                continue;
            }
            let guard = lock(&self.lock);
            // the leader changes the phase, then checks for sleepers, so one of the two notices the other
            self.sleepers.fetch_add(1, Ordering::SeqCst);
            let awake = self
                .wake
                .wait_while(guard, |()| self.phase.load(Ordering::SeqCst) == seen)
                .unwrap_or_else(PoisonError::into_inner);
            self.sleepers.fetch_sub(1, Ordering::SeqCst);
            drop(awake);
        }
    }
}

/// Spins at first; later lets other threads run.
fn wait_a_little(spins: &mut u32) {
    *spins = spins.saturating_add(1);
    match *spins < SPINS {
        true => std::hint::spin_loop(),
        false => std::thread::yield_now(),
    }
}

/// Ends the step for the other threads, also when the leader panics.
struct Over<'a>(&'a Shared);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::SeqCst);
        self.0.advance();
    }
}

/// Runs `lead` on one of `threads`, which becomes thread 0, while the others help with its phases.
pub(crate) fn step<R: Send>(threads: &rayon::ThreadPool, lead: impl FnOnce(&Team<'_>) -> R + Send) -> R {
    let n_threads = threads.current_num_threads();
    let shared = Shared::new();
    if n_threads == 1 {
        return lead(&Team { shared: &shared, n_threads, busy: AtomicBool::new(false) });
    }
    let leader = Mutex::new(Some(lead));
    let result = Mutex::new(None);
    // the leader has number 0
    let numbers = AtomicUsize::new(1);
    threads.broadcast(|_| {
        // whichever thread comes first leads, so that the step need not wait for all of them
        let Some(lead) = lock(&leader).take() else {
            return shared.help(numbers.fetch_add(1, Ordering::Relaxed));
        };
        let _over = Over(&shared);
        let team = Team { shared: &shared, n_threads, busy: AtomicBool::new(false) };
        *lock(&result) = Some(lead(&team));
    });
    let result = lock(&result).take();
    result.expect("the first thread of a broadcast leads")
}
