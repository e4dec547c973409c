//! Room on the disk: how much there is, and taking it before the first byte is written.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

/// Bytes that this user may still write where `directory` lies; `None` when the system does not tell.
pub fn free_bytes(directory: &Path) -> Option<u64> {
    let found = rustix::fs::statvfs(directory).ok()?;
    found.f_bavail.checked_mul(found.f_frsize)
}

/// Bytes of the disk that a file has already.
pub(crate) fn taken_bytes(file: &File) -> u64 {
    // blocks of 512 bytes, whatever the file system's own are
    file.metadata().map_or(0, |m| m.blocks() * 512)
}

/// Makes a file `len` bytes long and takes that room, so that a disk cannot fill up under it later. What the
/// file has is kept. A file system that cannot take room ahead gives the length only.
///
/// # Errors
/// That of the system: no space, a size limit.
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
    }
}
