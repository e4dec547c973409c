//! [`Staging`]: the way of weights to the device. The host writes one of two pieces of pinned memory while the device
//! copies from the other.

use crate::error::Error;
use crate::event::Event;
use crate::gpu::Gpu;
use crate::memory::{Address, Arena, HostUse, Pinned};

/// Most bytes of a piece.
const MOST: usize = 16 << 20;
const LEAST: usize = 64 << 10;

/// Memory for weights on their way: pinned memory of the host, and device memory for bytes in the file's form, before
/// they are brought into the device's form.
#[derive(Debug, Default)]
pub struct Staging {
    pieces: [Option<Piece>; 2],
    next: usize,
    arena: Option<(Arena, Address)>,
}

/// Pinned memory that is being filled, or that the device copies from.
#[derive(Debug)]
pub(crate) struct Piece {
    pub pinned: Pinned,
    /// When the device has copied what is there.
    pub copied: Event,
}

impl Drop for Piece {
    fn drop(&mut self) {
        // the device may still copy from it
        let _ = self.copied.wait();
    }
}

impl Staging {
    /// Makes room for `bytes` on the device. Before memory is replaced, all work of the device is waited for.
    ///
    /// # Errors
    /// [`Error::Memory`], and errors of the driver.
    pub fn room(&mut self, gpu: &Gpu, bytes: usize) -> Result<Address, Error> {
        match &self.arena {
            Some((arena, at)) if arena.size() >= bytes => Ok(*at),
            _ => {
                gpu.wait()?;
                self.arena = None; // frees the old one before another is allocated
                let mut arena = Arena::new(gpu.context(), "weights on the way", bytes)?;
                let at = arena.take(bytes)?;
                self.arena = Some((arena, at));
                Ok(at)
            }
        }
    }

    /// Copies bytes to the device, after everything that was launched before. The source can be used again when this
    /// returns.
    ///
    /// # Errors
    /// Errors of the driver.
    ///
    /// # Safety
    /// There must be room for the bytes at `to`, and this must live until the device was waited for.
    pub unsafe fn send(&mut self, gpu: &Gpu, to: Address, bytes: &[u8]) -> Result<(), Error> {
        // SAFETY: the caller promises the room
        unsafe { self.send_rows(gpu, to, bytes, (1, 1)) }
    }

    /// [`Staging::send`] for rows of `from` bytes each, which get zeros behind them up to `to_bytes`.
    ///
    /// # Errors
    /// Errors of the driver.
    ///
    /// # Safety
    /// As for [`Staging::send`].
    pub unsafe fn send_rows(
        &mut self,
        gpu: &Gpu,
        to: Address,
        bytes: &[u8],
        (from, to_bytes): (usize, usize),
    ) -> Result<(), Error> {
        let at_once = (MOST / to_bytes).max(1);
        for (i, rows) in bytes.chunks(at_once * from).enumerate() {
            let n = rows.len() / from * to_bytes;
            let piece = self.piece(gpu, n)?;
            let target = &mut piece.pinned.bytes_mut()[..n];
            if from == to_bytes {
                target.copy_from_slice(rows);
            } else {
                for (to, from) in target.chunks_exact_mut(to_bytes).zip(rows.chunks_exact(from)) {
                    let (front, behind) = to.split_at_mut(from.len());
                    front.copy_from_slice(from);
                    behind.fill(0);
                }
            }
            // SAFETY: the caller promises the room; the piece is not written before the event
            unsafe { gpu.copy_in_later(to.offset(i * at_once * to_bytes), &piece.pinned, 0, n) }?;
            gpu.mark(&piece.copied)?;
        }
        Ok(())
    }

    /// The next piece, of at least `n` bytes, from which nothing is being copied.
    fn piece(&mut self, gpu: &Gpu, n: usize) -> Result<&mut Piece, Error> {
        let slot = &mut self.pieces[self.next];
        self.next = 1 - self.next;
        if let Some(piece) = slot {
            piece.copied.wait()?;
        }
        let piece = match slot.take().filter(|piece| piece.pinned.size() >= n) {
            Some(piece) => piece,
            None => Piece {
                pinned: Pinned::new(gpu.context(), n.next_power_of_two().max(LEAST), HostUse::Writes)?,
                copied: Event::new(gpu.context())?,
            },
        };
        Ok(slot.insert(piece))
    }
}
