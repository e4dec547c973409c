//! Disk space: how much is free, reserving it before the first byte is written, and how fast it is written.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::Instant;

use rustix::fs::{FallocateFlags, Mode, OFlags};
use rustix::io::Errno;

/// Bytes that [`write_rate`] writes.
const TRIAL_BYTES: usize = 32 << 20;

/// Bytes that this user may still write to the file system of `directory`; `None` when the system does not tell.
pub fn free_bytes(directory: &Path) -> Option<u64> {
    let found = rustix::fs::statvfs(directory).ok()?;
    found.f_bavail.checked_mul(found.f_frsize)
}

/// Bytes of the disk that a file occupies.
pub(crate) fn taken_bytes(file: &File) -> u64 {
    // counted in blocks of 512 bytes on every file system
    file.metadata().map_or(0, |m| m.blocks() * 512)
}

/// Makes a file `len` bytes long and reserves that much disk space, so that writing it later cannot fail for want
/// of space. The file's content is kept. On file systems that cannot reserve space, only the length is set.
///
/// # Errors
/// That of the system, such as no space or a size limit.
pub fn reserve(file: &File, len: u64) -> io::Result<()> {
    file.set_len(len)?;
    if len == 0 {
        return Ok(());
    }
    loop {
        return match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, len) {
            Err(Errno::INTR) => continue,
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) | Ok(()) => Ok(()),
            Err(e) => Err(e.into()),
        };
    }
}

/// Measures how many bytes per second reach the disk of `directory`, by writing an unnamed temporary file there;
/// `None` where that is not possible (the disk is full or read-only, or has no unnamed files).
pub fn write_rate(directory: &Path) -> Option<f64> {
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(directory, flags, Mode::RUSR | Mode::WUSR).ok()?);
    // random bytes, because a file system may compress others, which would change the rate
    let mut state = 1u64;
    let noise: Vec<u8> = (0..TRIAL_BYTES / 8)
        .flat_map(|_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state ^ state >> 29).to_le_bytes()
        })
        .collect();
    let start = Instant::now();
    file.write_all_at(&noise, 0).ok()?;
    file.sync_data().ok()?;
    Some(noise.len() as f64 / start.elapsed().as_secs_f64().max(1e-9))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_taken_and_content_kept() {
        let path = std::env::temp_dir().join(format!("ikq-disk-{}", std::process::id()));
        std::fs::write(&path, b"abc").expect("written");
        let file = File::options().read(true).write(true).open(&path).expect("opened");
        reserve(&file, 100_000).expect("room");
        let bytes = std::fs::read(&path).expect("readable");
        std::fs::remove_file(&path).expect("removable");
        assert_eq!((bytes.len(), &bytes[..4]), (100_000, &b"abc\0"[..]));
        assert!(free_bytes(&std::env::temp_dir()).is_some_and(|n| n > 0));
        assert_eq!(free_bytes(Path::new("/no/such/directory")), None);
        assert_eq!(write_rate(Path::new("/no/such/directory")), None);
        assert!(write_rate(&std::env::temp_dir()).is_none_or(|rate| rate > 1e3));
    }
}
