//! Counts of what this process asked drivers for, so that tests and checks see how much work a step is.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// Kernels and copies within a device that were launched one by one.
    Launch,
    /// The same, recorded for graphs.
    Recorded,
    /// Graphs that ran.
    Replay,
    /// Copies to and from devices.
    Copy,
    /// Times that the host waited for a device.
    Wait,
    /// Bytes that were copied from devices.
    BytesOut,
    /// Products that cuBLAS computed.
    Blas,
}

const ALL: [(Call, &str); 7] = [
    (Call::Launch, "launches"),
    (Call::Recorded, "recorded"),
    (Call::Replay, "replays"),
    (Call::Copy, "copies"),
    (Call::Wait, "waits"),
    (Call::BytesOut, "bytes_out"),
    (Call::Blas, "blas_products"),
];

static COUNTS: [AtomicU64; ALL.len()] = [const { AtomicU64::new(0) }; ALL.len()];

pub(crate) fn count(call: Call) {
    count_more(call, 1);
}

pub(crate) fn count_more(call: Call, n: u64) {
    COUNTS[call as usize].fetch_add(n, Relaxed);
}

/// Names and numbers, of all devices since this process began.
pub fn counts() -> [(&'static str, u64); ALL.len()] {
    ALL.map(|(call, name)| (name, COUNTS[call as usize].load(Relaxed)))
}
