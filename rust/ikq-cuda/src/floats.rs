//! Floats and numbers to and from a device.

use crate::error::Error;
use crate::gpu::Gpu;
use crate::memory::Address;

/// Numbers of four bytes, any of which is one.
pub trait Number: Copy {}
impl Number for f32 {}
impl Number for i32 {}

impl Gpu {
    /// Copies numbers to the device; the source can be used again when this returns.
    ///
    /// # Errors
    /// What the driver says.
    ///
    /// # Safety
    /// There is room for as many at `to`.
    pub unsafe fn copy_in_floats<T: Number>(&self, to: Address, from: &[T]) -> Result<(), Error> {
        // SAFETY: numbers are bytes
        let bytes = unsafe { std::slice::from_raw_parts(from.as_ptr().cast::<u8>(), size_of_val(from)) };
        // SAFETY: the caller's word
        unsafe { self.copy_in(to, bytes) }
    }

    /// Copies numbers from the device, after all that was launched before.
    ///
    /// # Errors
    /// What the driver says, also about earlier launches.
    ///
    /// # Safety
    /// There are as many at `from`.
    pub unsafe fn copy_out_floats<T: Number>(&self, to: &mut [T], from: Address) -> Result<(), Error> {
        let n = size_of_val(to);
        // SAFETY: any four bytes are a number
        let bytes = unsafe { std::slice::from_raw_parts_mut(to.as_mut_ptr().cast::<u8>(), n) };
        // SAFETY: the caller's word
        unsafe { self.copy_out(bytes, from) }
    }
}
