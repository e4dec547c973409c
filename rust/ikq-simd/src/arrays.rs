//! [`array`] and [`map`]: arrays whose elements are computed by a closure, always inlined; and [`written_out!`](crate::written_out), for loops that
//! must not stay loops.
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

/// What `$body` does, for each `$k` of the first 8 or 16 in order. A loop over so many scales stays a loop, whose shifts and shuffles
/// are made anew each time, since its counter is no constant.
#[macro_export]
macro_rules! written_out {
    (8, $k:ident => $body:expr) => { $crate::written_out!(@ $k, $body, 0 1 2 3 4 5 6 7) };
    (16, $k:ident => $body:expr) => {
        $crate::written_out!(@ $k, $body, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    (@ $k:ident, $body:expr, $($n:literal)*) => { $( { let $k = $n; $body } )* };
}
