//! Memory of a device: [`Arena`]s, each of which is one allocation from which pieces are taken, and pinned memory
//! of the host.

use std::sync::Arc;

use cudarc::driver::result;
use cudarc::driver::sys::CUresult;

use crate::error::Error;
use crate::gpu::Context;

/// Pieces of arenas begin at multiples of this, which is enough for the widest loads and all rules of the driver.
pub const ALIGNMENT: usize = 256;

/// An address in a device's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Address(pub u64);

impl Address {
    /// The address `bytes` further on.
    #[must_use]
    pub fn offset(self, bytes: usize) -> Address {
        Address(self.0 + bytes as u64)
    }
}

/// One allocation of device memory, which is handed out in pieces and freed as a whole.
#[derive(Debug)]
pub struct Arena {
    context: Arc<Context>,
    base: Address,
    size: usize,
    used: usize,
}

impl Arena {
    /// Allocates an arena of `size` bytes; error messages say that it is for `what`.
    ///
    /// # Errors
    /// [`Error::Memory`] when the device does not have as much free.
    pub fn new(context: &Arc<Context>, what: &str, size: usize) -> Result<Arena, Error> {
        context.bind()?;
        let (context, used) = (context.clone(), 0);
        if size == 0 {
            return Ok(Arena { context, base: Address(0), size, used });
        }
        // SAFETY: a context is bound; the address is freed once, in `drop`
        match unsafe { result::malloc_sync(size) } {
            Ok(base) => {
                context.count_allocation();
                Ok(Arena { context, base: Address(base), size, used })
            }
            Err(e) if e.0 != CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                Err(context.failed("allocating memory", e))
            }
            Err(_) => {
                let (free, _) = context.memory()?;
                Err(Error::Memory { device: context.name().into(), what: what.into(), needed: size, free })
            }
        }
    }

    /// Takes a piece of `bytes`, at a multiple of [`ALIGNMENT`].
    ///
    /// # Errors
    /// [`Error::Plan`] when the arena is too small, which is a mistake of the caller.
    pub fn take(&mut self, bytes: usize) -> Result<Address, Error> {
        let end =
            self.used.checked_add(bytes).filter(|end| *end <= self.size).ok_or_else(|| Error::Plan {
                name: "arena".into(),
                why: format!(
                    "{bytes} bytes are asked for, {} of {} are left",
                    self.size - self.used,
                    self.size
                ),
            })?;
        let address = self.base.offset(self.used);
        self.used = end.next_multiple_of(ALIGNMENT);
        Ok(address)
    }

    /// Makes all pieces available again.
    pub fn reset(&mut self) {
        self.used = 0;
    }

    /// Bytes of the arena.
    pub fn size(&self) -> usize {
        self.size
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        if self.base.0 != 0 && self.context.bind().is_ok() {
            // SAFETY: allocated in `new`, and nothing uses the address any more
            let _ = unsafe { result::free_sync(self.base.0) };
        }
    }
}

/// The size of an arena for pieces of these sizes.
pub fn arena_bytes(pieces: impl IntoIterator<Item = usize>) -> usize {
    pieces.into_iter().map(|n| n.next_multiple_of(ALIGNMENT)).sum()
}

/// How the CPU uses pinned memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostUse {
    /// It only writes; the memory is write-combined, so reading it is very slow.
    Writes,
    /// It reads the memory.
    Reads,
}

/// Memory of the host that the device copies from and to directly.
#[derive(Debug)]
pub struct Pinned {
    context: Arc<Context>,
    pointer: *mut u8,
    size: usize,
}

// SAFETY: it owns its memory, like a `Vec`
unsafe impl Send for Pinned {}

impl Pinned {
    /// Allocates `size` bytes of zeros.
    ///
    /// # Errors
    /// Errors of the driver.
    pub fn new(context: &Arc<Context>, size: usize, used: HostUse) -> Result<Pinned, Error> {
        context.bind()?;
        const WRITE_COMBINED: u32 = 4;
        let flags = if used == HostUse::Writes { WRITE_COMBINED } else { 0 };
        // SAFETY: a context is bound; freed once, in `drop`
        let pointer = unsafe { result::malloc_host(size.max(1), flags) }
            .map_err(|e| context.failed("allocating pinned memory", e))?
            .cast::<u8>();
        context.count_allocation();
        // SAFETY: there are as many bytes
        unsafe { pointer.write_bytes(0, size) };
        Ok(Pinned { context: context.clone(), pointer, size })
    }

    /// Bytes of the memory.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Where `n` bytes from `at` on lie, if there are as many.
    pub(crate) fn part(&self, at: usize, n: usize) -> Option<*mut u8> {
        // SAFETY: the part is in the memory
        at.checked_add(n).filter(|end| *end <= self.size).map(|_| unsafe { self.pointer.add(at) })
    }

    /// The bytes, to be read.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: initialized in `new`, owned
        unsafe { std::slice::from_raw_parts(self.pointer, self.size) }
    }

    /// The bytes, to be written.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `bytes`, and borrowed for writing
        unsafe { std::slice::from_raw_parts_mut(self.pointer, self.size) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: allocated in `new`
            let _ = unsafe { result::free_host(self.pointer.cast()) };
        }
    }
}
