//! [`Cancel`]: the flag by which long loops are asked to stop.

use std::sync::atomic::{AtomicBool, Ordering};

/// A flag that asks running work to stop. Any thread may set it; work checks it between units.
#[derive(Debug, Default)]
pub struct Cancel(AtomicBool);

impl Cancel {
    pub const fn new() -> Cancel {
        Cancel(AtomicBool::new(false))
    }

    /// Sets the flag. It cannot be cleared, so every job has a flag of its own.
    pub fn cancel(&self) {
        // relaxed, because no other data depend on the flag
        self.0.store(true, Ordering::Relaxed);
    }

    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
