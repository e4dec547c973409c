//! Rows as products read them: one after another, in the row form of their type.

/// Rows of a block type.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub data: &'a [u8],
    /// Bytes of a row, header included.
    pub stride: usize,
    /// The float scale that the rows' headers would hold, where it stands elsewhere (I2_S).
    pub header: Option<f32>,
}

impl<'a> Rows<'a> {
    pub fn n(&self) -> usize {
        self.data.len() / self.stride
    }

    pub fn part(&self, rows: std::ops::Range<usize>) -> Rows<'a> {
        Rows { data: &self.data[rows.start * self.stride..rows.end * self.stride], ..*self }
    }
}

/// Largest unit of all types (Q8_0: 8 blocks of 34 bytes).
pub(super) const MAX_UNIT_BYTES: usize = 272;

/// Asks for a cache line that is needed soon.
#[inline(always)]
pub(super) fn prefetch(line: *const u8) {
    use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    // SAFETY: a prefetch touches no memory as far as the language is concerned; any address will do.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) };
}
