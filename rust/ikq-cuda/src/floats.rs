//! Floats and integers as bytes, and copying them to a device.

use crate::error::Error;
use crate::gpu::Gpu;
use crate::memory::Address;

/// Numbers of four bytes, of which all bit patterns are valid.
pub trait Number: Copy {}
impl Number for f32 {}
impl Number for i32 {}
impl Number for u32 {}

/// The bytes of numbers.
pub fn as_bytes<T: Number>(numbers: &[T]) -> &[u8] {
    // SAFETY: numbers are bytes
    unsafe { std::slice::from_raw_parts(numbers.as_ptr().cast::<u8>(), size_of_val(numbers)) }
}

/// The bytes of numbers, to be written.
pub fn as_bytes_mut<T: Number>(numbers: &mut [T]) -> &mut [u8] {
    // SAFETY: any four bytes are a number
    unsafe { std::slice::from_raw_parts_mut(numbers.as_mut_ptr().cast::<u8>(), size_of_val(numbers)) }
}

impl Gpu {
    /// Copies numbers to the device. The source can be used again when this returns.
    ///
    /// # Errors
    /// Errors of the driver.
    ///
    /// # Safety
    /// There must be room for the numbers at `to`.
    pub unsafe fn copy_in_floats<T: Number>(&self, to: Address, from: &[T]) -> Result<(), Error> {
        // SAFETY: the caller promises the room
        unsafe { self.copy_in(to, as_bytes(from)) }
    }
}
