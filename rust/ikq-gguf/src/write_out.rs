//! Starting to write a file's bytes to the disk before anybody waits for that.

use std::fs::File;

/// Asks the system to begin writing what a file holds to its disk, and does not wait for it. What is not on its way
/// by then goes when the system pleases, or when the file is synchronised.
#[cfg(target_os = "linux")]
pub(crate) fn begin(file: &File) {
    use std::os::fd::AsRawFd;

    // SAFETY: the descriptor is open as long as `file` is borrowed, and the call has no access to memory. It changes
    // no content of the file, only when it is written.
    let _ = unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
}

/// Elsewhere it is left to the system.
#[cfg(not(target_os = "linux"))]
pub(crate) fn begin(_: &File) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_stays() {
        let path = std::env::temp_dir().join(format!("ikq-write-out-{}", std::process::id()));
        std::fs::write(&path, vec![7; 100_000]).expect("written");
        begin(&File::open(&path).expect("opened"));
        let found = std::fs::read(&path).expect("readable");
        std::fs::remove_file(&path).expect("removable");
        assert_eq!(found, vec![7; 100_000]);
        // only files have a disk behind them; others are left alone
        begin(&File::open("/dev/null").expect("there"));
    }
}
