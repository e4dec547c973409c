//! Copying floats and integers to and from a device.

use crate::error::Error;
use crate::gpu::Gpu;
use crate::memory::Address;

/// Numbers of four bytes, of which all bit patterns are valid.
pub trait Number: Copy {}
impl Number for f32 {}
impl Number for i32 {}
impl Number for u32 {}

impl Gpu {
    /// Copies numbers to the device. The source can be used again when this returns.
    ///
    /// # Errors
    /// Errors of the driver.
    ///
    /// # Safety
    /// There must be room for the numbers at `to`.
    pub unsafe fn copy_in_floats<T: Number>(&self, to: Address, from: &[T]) -> Result<(), Error> {
        // SAFETY: numbers are bytes
        let bytes = unsafe { std::slice::from_raw_parts(from.as_ptr().cast::<u8>(), size_of_val(from)) };
        // SAFETY: the caller promises the room or the numbers
        unsafe { self.copy_in(to, bytes) }
    }

    /// Copies numbers from the device, after everything that was launched before.
    ///
    /// # Errors
    /// Errors of the driver, including those of earlier launches.
    ///
    /// # Safety
    /// There must be as many numbers at `from`.
    pub unsafe fn copy_out_floats<T: Number>(&self, to: &mut [T], from: Address) -> Result<(), Error> {
        let n = size_of_val(to);
        // SAFETY: any four bytes are a number
        let bytes = unsafe { std::slice::from_raw_parts_mut(to.as_mut_ptr().cast::<u8>(), n) };
        // SAFETY: the caller promises the room or the numbers
        unsafe { self.copy_out(bytes, from) }
    }
}
