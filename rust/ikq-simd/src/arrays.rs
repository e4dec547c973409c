//! [`array`] and [`map`]: arrays whose elements are computed by a closure, always inlined.
//!
//! The compiler may not inline `std::array::from_fn` and `[T; N]::map`. Inside an
//! [`crate::IsaOp`] such a function lacks the instruction set's features: loops stay scalar, and an
//! intrinsic in the closure becomes a call with vectors in memory (ten times slower). Use these functions
//! instead.

/// `[f(0), f(1), ...]`.
#[inline(always)]
pub fn array<T: Copy + Default, const N: usize>(mut f: impl FnMut(usize) -> T) -> [T; N] {
    let mut out = [T::default(); N];
    for (i, x) in out.iter_mut().enumerate() {
        *x = f(i);
    }
    out
}

/// `[f(a[0]), f(a[1]), ...]`.
#[inline(always)]
pub fn map<T: Copy, U: Copy + Default, const N: usize>(a: [T; N], mut f: impl FnMut(T) -> U) -> [U; N] {
    array(|i| f(a[i]))
}
