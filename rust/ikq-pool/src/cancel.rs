//! [`Cancel`]: the flag that long loops look at between units.

use std::sync::atomic::{AtomicBool, Ordering};

/// Asks running work to stop. Set from any thread; work looks at it between units.
#[derive(Debug, Default)]
pub struct Cancel(AtomicBool);

impl Cancel {
    pub const fn new() -> Cancel {
        Cancel(AtomicBool::new(false))
    }

    /// Asks to stop. There is no way back: a job gets a flag of its own.
    pub fn cancel(&self) {
        // relaxed: the flag carries no data
        self.0.store(true, Ordering::Relaxed);
    }

    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
