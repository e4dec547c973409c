//! Weights as products read them: bands of sixteen rows side by side (`ikq_formats::lanes`).

use ikq_decode::{Decode, LaneUnit, UNIT};
use ikq_formats::{LANES, LaneForm};
use ikq_simd::Isa;

/// Rows of a band.
pub(super) const BAND: usize = LANES;

/// Some bands of a matrix.
#[derive(Clone, Copy)]
pub(super) struct Bands<'a> {
    pub data: &'a [u8],
    /// Rows, of which the last band may lack some.
    pub n_rows: usize,
    /// Elements of a row.
    pub k: usize,
    pub form: LaneForm,
    /// The float scale that the rows' headers would hold, where it stands elsewhere (I2_S).
    pub header: Option<f32>,
    /// The matrix is too large to be in the cache: lines are asked for ahead.
    pub ask_ahead: bool,
}

/// Sixteen rows.
#[derive(Clone, Copy)]
pub(super) struct Band<'a> {
    pub words: &'a [[u8; 64]],
    pub smalls: &'a [u8],
    pub headers: &'a [u8],
}

impl<'a> Bands<'a> {
    pub fn n(&self) -> usize {
        self.n_rows.div_ceil(BAND)
    }

    pub fn band(&self, i: usize) -> Band<'a> {
        let bytes = self.form.band_bytes(self.k);
        let data = &self.data[i * bytes..(i + 1) * bytes];
        let [smalls, headers] = self.form.regions(self.k);
        Band {
            words: data[..smalls].as_chunks().0,
            smalls: &data[smalls..headers],
            headers: &data[headers..],
        }
    }
}

/// Words and smaller bytes of the largest units of small blocks: what a row that ends inside a unit is padded to.
const MAX_WORDS: usize = 64;
const MAX_SMALLS: usize = 24 * BAND;

/// A unit of small blocks, some of which a row lacks: zeros stand for them.
pub(super) struct Tail {
    words: [[u8; 64]; MAX_WORDS],
    smalls: [u8; MAX_SMALLS],
}

impl Tail {
    pub const fn new() -> Tail {
        Tail { words: [[0; 64]; MAX_WORDS], smalls: [0; MAX_SMALLS] }
    }

    /// The end of a band whose rows end inside a unit. All bands that a tail is used for have rows of one length
    /// and type, so what is zero stays zero.
    #[inline(always)]
    pub fn fill<I: Isa, D: Decode<I>>(&mut self, band: &Band<'_>) {
        if D::UNIT_BYTES == D::BLOCK_BYTES {
            return;
        }
        let words = &band.words[band.words.len() / D::UNIT_WORDS * D::UNIT_WORDS..];
        self.words[..words.len()].copy_from_slice(words);
        if let Some(n_units) = band.smalls.len().checked_div(BAND * D::UNIT_SMALLS) {
            let smalls = &band.smalls[n_units * BAND * D::UNIT_SMALLS..];
            self.smalls[..smalls.len()].copy_from_slice(smalls);
        }
    }
}

impl<'a> Band<'a> {
    /// Asks for the lines some units behind unit `u`, and for the smaller pieces and headers of the next band: the machine
    /// fetches ahead by itself only where lines are read in order, which few types do inside a unit.
    ///
    /// They are brought to the second cache. The first takes so few requests at a time that asking for it there
    /// is slower than not asking (figures in docs/kernels.md).
    #[inline(always)]
    pub fn ask_ahead<I: Isa, D: Decode<I>>(&self, u: usize, band_bytes: usize) {
        if D::ASKS_AHEAD {
            let words = self.words.as_ptr().wrapping_add(u * D::UNIT_WORDS + AHEAD_LINES);
            for line in 0..D::UNIT_WORDS {
                prefetch(words.wrapping_add(line).cast());
            }
        }
        let next = |part: *const u8, line: usize| part.wrapping_add(band_bytes + 64 * line);
        if u == 0 {
            prefetch(next(self.headers.as_ptr(), 0));
        }
        let smalls = BAND * D::UNIT_SMALLS;
        for line in 0..smalls.div_ceil(64) {
            prefetch(next(self.smalls.as_ptr().wrapping_add(u * smalls), line));
        }
    }

    /// Unit `u`, which is in `tail` where rows end inside it.
    #[inline(always)]
    pub fn unit<'b, I: Isa, D: Decode<I>>(&self, u: usize, tail: &'b Tail) -> LaneUnit<'b>
    where
        'a: 'b,
    {
        let (words, smalls) = (D::UNIT_WORDS, BAND * D::UNIT_SMALLS);
        if D::UNIT_BYTES != D::BLOCK_BYTES && (u + 1) * words > self.words.len() {
            return LaneUnit { words: &tail.words[..words], smalls: &tail.smalls[..smalls] };
        }
        LaneUnit {
            words: &self.words[u * words..(u + 1) * words],
            smalls: &self.smalls[u * smalls..(u + 1) * smalls],
        }
    }
}

/// Lines from a line of a band to the one that is asked for meanwhile; bands follow one another.
const AHEAD_LINES: usize = 64;

/// Asks for a cache line that is needed soon, for the second cache.
#[inline(always)]
fn prefetch(line: *const u8) {
    use core::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
    // SAFETY: a prefetch touches no memory as far as the language is concerned; any address will do.
    unsafe { _mm_prefetch::<_MM_HINT_T1>(line.cast()) };
}

/// Units of a row of `k` elements.
pub(super) fn n_units(k: usize) -> usize {
    k.div_ceil(UNIT)
}
