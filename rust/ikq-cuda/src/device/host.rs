//! [`Host`]: pinned memory, through which the values of a step come to a device and go from it.

use crate::error::Error;
use crate::gpu::Gpu;
use crate::memory::{ALIGNMENT, Address, HostUse, Pinned};

/// Most bytes of either direction that are under way at a time; what is larger goes in pieces.
pub const MOST: usize = 64 << 20;
/// Bytes that are allocated at least.
const LEAST: usize = 256 << 10;

/// Pinned memory for copies in either direction. Copies are begun and not waited for, until a value is wanted.
#[derive(Debug, Default)]
pub struct Host {
    /// What is on its way to the device, and how many bytes of it are in use until the device was waited for.
    up: Option<Pinned>,
    used: usize,
    /// Whether the device was waited for since something was launched.
    is_idle: bool,
    /// What comes from the device.
    down: Option<Pinned>,
    /// The choices of a router, which come beside other values.
    choices: Option<Pinned>,
}

/// Makes sure that there is room for `n` bytes, which loses what is there.
fn fit(slot: &mut Option<Pinned>, gpu: &Gpu, n: usize, used: HostUse) -> Result<(), Error> {
    if slot.as_ref().is_none_or(|pinned| pinned.size() < n) {
        gpu.wait()?; // nothing may be under way
        *slot = None;
        *slot = Some(Pinned::new(gpu.context(), n.next_power_of_two().max(LEAST), used)?);
    }
    Ok(())
}

fn of(slot: Option<&Pinned>) -> Result<&Pinned, Error> {
    slot.ok_or_else(|| Error::Plan { name: "copy".into(), why: "room was not made before".into() })
}

impl Host {
    /// Waits for all work of the device.
    ///
    /// # Errors
    /// Errors of the driver, including those of earlier launches.
    pub fn wait(&mut self, gpu: &Gpu) -> Result<(), Error> {
        if !self.is_idle {
            gpu.wait()?;
        }
        (self.used, self.is_idle) = (0, true);
        Ok(())
    }

    /// Notes that something is launched, for which the next wait is.
    pub fn launches(&mut self) {
        self.is_idle = false;
    }

    /// Copies bytes to the device, after everything that was launched before. The source can be used again when this
    /// returns.
    ///
    /// # Errors
    /// Errors of the driver.
    ///
    /// # Safety
    /// There must be room for the bytes at `to`.
    pub unsafe fn send(&mut self, gpu: &Gpu, to: Address, bytes: &[u8]) -> Result<(), Error> {
        for (i, piece) in bytes.chunks(MOST).enumerate() {
            if self.up.as_ref().is_none_or(|up| up.size() < self.used + piece.len()) {
                self.wait(gpu)?;
                // a step sends several values before it is waited for
                fit(&mut self.up, gpu, (4 * piece.len()).min(MOST), HostUse::Writes)?;
            }
            let Some(up) = &mut self.up else { continue };
            let at = self.used;
            up.bytes_mut()[at..at + piece.len()].copy_from_slice(piece);
            self.used = (at + piece.len()).next_multiple_of(ALIGNMENT);
            self.is_idle = false;
            // SAFETY: the caller promises the room; this part is not written again before the device was waited for
            unsafe { gpu.copy_in_later(to.offset(i * MOST), up, at, piece.len()) }?;
        }
        Ok(())
    }

    /// Copies bytes from the device, after everything that was launched before, and waits for them.
    ///
    /// # Errors
    /// Errors of the driver, including those of earlier launches.
    ///
    /// # Safety
    /// There must be as many bytes at `from`.
    pub unsafe fn fetch(&mut self, gpu: &Gpu, bytes: &mut [u8], from: Address) -> Result<(), Error> {
        for (i, piece) in bytes.chunks_mut(MOST).enumerate() {
            self.make_room(gpu, piece.len())?;
            self.is_idle = false;
            // SAFETY: the caller promises the bytes; they are waited for before they are read
            unsafe { gpu.copy_out_later(self.down()?, 0, from.offset(i * MOST), piece.len()) }?;
            self.wait(gpu)?;
            piece.copy_from_slice(&self.down()?.bytes()[..piece.len()]);
        }
        Ok(())
    }

    /// [`Host::fetch`] for parts, each with the number of its bytes, which come one behind the other.
    ///
    /// # Errors
    /// As [`Host::fetch`].
    ///
    /// # Safety
    /// There must be as many bytes at each address.
    pub unsafe fn fetch_all(
        &mut self,
        gpu: &Gpu,
        bytes: &mut [u8],
        parts: &[(Address, usize)],
    ) -> Result<(), Error> {
        if bytes.len() > MOST {
            let mut rest = bytes;
            for (from, n) in parts {
                let (part, behind) = rest.split_at_mut(*n);
                // SAFETY: the caller promises the bytes
                unsafe { self.fetch(gpu, part, *from) }?;
                rest = behind;
            }
            return Ok(());
        }
        self.make_room(gpu, bytes.len())?;
        self.is_idle = false;
        let mut at = 0;
        for (from, n) in parts {
            // SAFETY: the caller promises the bytes; they are waited for before they are read
            unsafe { gpu.copy_out_later(self.down()?, at, *from, *n) }?;
            at += n;
        }
        self.wait(gpu)?;
        bytes.copy_from_slice(&self.down()?.bytes()[..bytes.len()]);
        Ok(())
    }

    /// Makes room for `n` bytes that come from the device.
    ///
    /// # Errors
    /// Errors of the driver.
    pub fn make_room(&mut self, gpu: &Gpu, n: usize) -> Result<(), Error> {
        fit(&mut self.down, gpu, n, HostUse::Reads)
    }

    /// Makes room for `n` bytes of choices that come from the device.
    ///
    /// # Errors
    /// Errors of the driver.
    pub fn make_room_for_choices(&mut self, gpu: &Gpu, n: usize) -> Result<(), Error> {
        fit(&mut self.choices, gpu, n, HostUse::Reads)
    }

    /// Memory for what comes from the device.
    ///
    /// # Errors
    /// [`Error::Plan`] before room was made.
    pub fn down(&self) -> Result<&Pinned, Error> {
        of(self.down.as_ref())
    }

    /// Memory for choices that come from the device.
    ///
    /// # Errors
    /// [`Error::Plan`] before room was made.
    pub fn choices(&self) -> Result<&Pinned, Error> {
        of(self.choices.as_ref())
    }
}
