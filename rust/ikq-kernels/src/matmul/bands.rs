//! Weights as products read them: bands of sixteen rows side by side (`ikq_formats::lanes`).

use core::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};

use ikq_decode::lanes::lane_header;
use ikq_decode::{Decode, LaneUnit, UNIT};
use ikq_formats::{LANES, LaneForm};
use ikq_simd::Isa;

use crate::act::Activations;

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

/// The operands of a product of some bands with columns of activations, and where it goes:
/// `out[c * stride + r] = row r . column columns[c]`.
pub(super) struct Product<'a> {
    pub bands: &'a Bands<'a>,
    pub acts: &'a Activations,
    pub columns: &'a [u32],
    pub out: &'a mut [f32],
    pub stride: usize,
}

/// One band: sixteen rows.
#[derive(Clone, Copy)]
pub(super) struct Band<'a> {
    /// Words and smaller pieces of the rows.
    data: &'a [u8],
    /// Where the smaller pieces begin, if all of them stand together.
    smalls_at: usize,
    pub headers: &'a [u8],
}

impl<'a> Bands<'a> {
    pub fn n(&self) -> usize {
        self.n_rows.div_ceil(BAND)
    }

    pub fn band(&self, i: usize) -> Band<'a> {
        let bytes = self.form.band_bytes(self.k);
        let data = &self.data[i * bytes..(i + 1) * bytes];
        let (data, headers) = data.split_at(self.form.headers_at(self.k));
        Band { data, smalls_at: LANES * 4 * self.form.n_words() * (self.k / self.form.block_size), headers }
    }

    /// What sums of products of the rows of `band` are multiplied by at the end: the scale that a row has as a whole, and
    /// the factor that products have. Scales inside the row are used as if the row's were 1, which spares a
    /// multiplication for each of them.
    #[inline(always)]
    pub fn row_scales<I: Isa, D: Decode<I>>(&self, isa: I, band: &Band<'_>) -> I::F {
        let header = match self.header {
            Some(header) => isa.splat_f(header),
            None => lane_header::<I, D>(isa, band.headers),
        };
        isa.mul_f(header, isa.splat_f(D::PRODUCT_FACTOR))
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
        let (words, smalls) = match D::BY_UNIT {
            true => {
                let rest = band.data.chunks_exact(unit_bytes::<I, D>()).remainder();
                let n_blocks = rest.len() / (BAND * D::BLOCK_BYTES);
                let (smalls, words) = rest.split_at(BAND * D::BLOCK_SMALLS * n_blocks);
                (words, smalls)
            }
            false => {
                let (words, smalls) = band.data.split_at(band.smalls_at);
                let n_units = words.len() / (64 * D::UNIT_WORDS);
                (&words[n_units * 64 * D::UNIT_WORDS..], &smalls[n_units * BAND * D::UNIT_SMALLS..])
            }
        };
        self.words.as_flattened_mut()[..words.len()].copy_from_slice(words);
        self.smalls[..smalls.len()].copy_from_slice(smalls);
    }
}

/// Bytes of a unit of sixteen rows.
const fn unit_bytes<I: Isa, D: Decode<I>>() -> usize {
    64 * D::UNIT_WORDS + BAND * D::UNIT_SMALLS
}

impl<'a> Band<'a> {
    /// The bytes of the rows' elements, for types that store floats.
    pub fn floats(&self) -> &'a [u8] {
        self.data
    }

    /// Asks for the smaller pieces that unit `u` of the band `ahead` bytes behind this one has, and for its headers, which
    /// are in no line of words.
    #[inline(always)]
    pub fn ask_smalls<I: Isa, D: Decode<I>>(&self, u: usize, ahead: usize) {
        let next = |part: *const u8, line: usize| part.wrapping_add(ahead + 64 * line);
        if u == 0 {
            prefetch::<_MM_HINT_T1>(next(self.headers.as_ptr(), 0));
        }
        if D::BY_UNIT {
            return;
        }
        let smalls = BAND * D::UNIT_SMALLS;
        for line in 0..smalls.div_ceil(64) {
            prefetch::<_MM_HINT_T1>(next(self.data.as_ptr().wrapping_add(self.smalls_at + u * smalls), line));
        }
    }

    /// Asks for an eighth of the lines that stand `ahead` bytes behind unit `u`: the machine fetches ahead by itself only
    /// where lines are read in order and soon one after another. An eighth at a time, since more requests at once
    /// than the machine keeps make it wait.
    ///
    /// They are brought to the second cache. The first takes so few requests at a time that asking for it there
    /// is slower than not asking (figures in docs/kernels.md).
    #[inline(always)]
    pub fn ask_words<I: Isa, D: Decode<I>>(&self, u: usize, eighth: Eighth, ahead: usize) {
        self.ask_eighth::<I, D, _MM_HINT_T1>(u, eighth, ahead);
    }

    /// Asks for an eighth of the next unit's lines, which [`Band::ask_words`] has brought to the second cache, for the first: where
    /// there is one column, products otherwise wait for lines that they do not read in order.
    #[inline(always)]
    pub fn take_words<I: Isa, D: Decode<I>>(&self, u: usize, eighth: Eighth) {
        self.ask_eighth::<I, D, _MM_HINT_T0>(u + 1, eighth, 0);
    }

    /// Asks for an eighth of the lines that stand `ahead` bytes behind unit `u`, in their order, since the machine goes on by itself.
    #[inline(always)]
    fn ask_eighth<I: Isa, D: Decode<I>, const HINT: i32>(&self, u: usize, eighth: Eighth, ahead: usize) {
        let n = if D::BY_UNIT { unit_bytes::<I, D>() / 64 } else { D::UNIT_WORDS };
        let (i, each, rest) = (eighth.index, n / 8, n % 8);
        let lines = self.data.as_ptr().wrapping_add(64 * (u * n + i * each + i.min(rest)) + ahead);
        // No loop whose length the compiler does not know, and no branch: where lines do not divide by eight, an eighth in a loop may
        // ask for the first line of the next one, too.
        let n_asked = if eighth.is_constant && i >= rest { each } else { n.div_ceil(8) };
        for line in 0..n_asked {
            prefetch::<HINT>(lines.wrapping_add(64 * line));
        }
    }

    /// Unit `u`, which is in `tail` where rows end inside it.
    #[inline(always)]
    pub fn unit<'b, I: Isa, D: Decode<I>>(&self, u: usize, tail: &'b Tail) -> LaneUnit<'b>
    where
        'a: 'b,
    {
        let (words, smalls) = (64 * D::UNIT_WORDS, BAND * D::UNIT_SMALLS);
        let end = if D::BY_UNIT { self.data.len() } else { self.smalls_at };
        let step = if D::BY_UNIT { unit_bytes::<I, D>() } else { words };
        if D::UNIT_BYTES != D::BLOCK_BYTES && (u + 1) * step > end {
            return LaneUnit { words: &tail.words[..D::UNIT_WORDS], smalls: &tail.smalls[..smalls] };
        }
        let (words_at, smalls_at) = match D::BY_UNIT {
            true => (u * step + smalls, u * step),
            false => (u * step, self.smalls_at + u * smalls),
        };
        LaneUnit {
            words: self.data[words_at..words_at + words].as_chunks().0,
            smalls: &self.data[smalls_at..smalls_at + smalls],
        }
    }
}

/// Bytes from a line of a band to the one that is asked for meanwhile; bands follow one another.
pub(super) const AHEAD: usize = 64 * 128;

/// An eighth of a unit's lines.
#[derive(Clone, Copy)]
pub(super) struct Eighth {
    pub index: usize,
    /// Whether the compiler knows the index, as it does where parts of a unit are written out.
    pub is_constant: bool,
}

/// Asks for a cache line that is needed soon; the hint says for which cache.
#[inline(always)]
fn prefetch<const HINT: i32>(line: *const u8) {
    // SAFETY: a prefetch touches no memory as far as the language is concerned; any address will do.
    unsafe { _mm_prefetch::<HINT>(line.cast()) };
}

/// Units of a row of `k` elements.
pub(super) fn n_units(k: usize) -> usize {
    k.div_ceil(UNIT)
}
