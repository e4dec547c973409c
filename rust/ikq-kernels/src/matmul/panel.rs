//! [`Panel`]: some units of one or two bands, decoded once for many columns.
//!
//! A panel is a run of cache lines that products read from the first to the last. For each 32 elements, one after another:
//!
//! ```text
//! codes    eight lines per band: codes 4 i..4 i + 4 of each of 16 rows (sixteen lines if they are 16-bit numbers:
//!          `Products::widened`); line i of every band, then line i + 1
//! scales   one line per band, or two where scales belong to 16 elements
//! mins     as many, if the type has mins
//! ```
//! One or two bands stand side by side.
//!
//! Where sums are scaled while they are integers ([`super::integers`]), scales are 16-bit numbers, each twice, and there is one line of
//! mins, those of both halves. 16-bit codes are multiplied by their scales here, and no line has those. Float scales of units stand apart.

use std::marker::PhantomData;
use std::ops::Range;

use ikq_decode::{BlockType, Decode, LaneCodes, LaneScales};
use ikq_simd::{Isa, IsaKind, IsaOp, run};

use super::bands::{Bands, Eighth, Tail};
use super::integers::{Factors, scales_integers};

/// Sixty-four bytes that start a cache line: codes, four of each of sixteen rows, or a float of each.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Line(pub [u8; 64]);

/// A scale of each row of a band.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct RowScales(pub [f32; 16]);

/// Memory of a panel.
#[derive(Default)]
pub(super) struct Panel {
    pub lines: Vec<Line>,
    /// Of each band, what sums of the rows are multiplied by at the end.
    pub row_scales: Vec<RowScales>,
    /// Of each unit, and of each band, the float scale of the rows and that of their mins, where integer scales are apart from them.
    pub factors: Vec<[RowScales; 2]>,
}

/// Lines of one band for 32 elements.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub n_codes: usize,
    pub n_scales: usize,
    pub n_mins: usize,
}

impl Shape {
    pub const fn new(is_wide: bool, per_16: bool, has_min: bool, is_integer: bool) -> Shape {
        let n_scales = if per_16 { 2 } else { 1 };
        if is_integer {
            let n_scales = if is_wide { 0 } else { n_scales };
            return Shape {
                n_codes: if is_wide { 16 } else { 8 },
                n_scales,
                n_mins: if has_min { 1 } else { 0 },
            };
        }
        Shape { n_codes: if is_wide { 16 } else { 8 }, n_scales, n_mins: if has_min { n_scales } else { 0 } }
    }

    pub const fn n_lines(self) -> usize {
        self.n_codes + self.n_scales + self.n_mins
    }
}

/// Whether panels of these weights hold 16-bit numbers: signed codes, where that is faster.
pub(super) const fn is_wide<I: Isa>(codes: LaneCodes) -> bool {
    I::IS_FAST_WIDE && matches!(codes, LaneCodes::Biased)
}

impl Panel {
    /// Makes room for `n_units` units of `n_bands` bands of any type.
    pub fn reserve(&mut self, n_units: usize, n_bands: usize) {
        let n_lines = 8 * Shape::new(true, true, true, false).n_lines() * n_units * n_bands;
        if self.lines.len() < n_lines {
            self.lines.resize(n_lines, Line([0; 64]));
        }
        if self.row_scales.len() < n_bands {
            self.row_scales.resize(n_bands, RowScales([0.0; 16]));
        }
        if self.factors.len() < n_units * n_bands {
            self.factors.resize(n_units * n_bands, [RowScales([0.0; 16]); 2]);
        }
    }
}

/// Decodes units `units` of band `from` of `bands` as band `band` of the `n_bands` of a panel.
pub(super) fn fill<T: BlockType>(
    kind: IsaKind,
    bands: &Bands<'_>,
    from: usize,
    units: Range<usize>,
    panel: &mut Panel,
    (band, n_bands): (usize, usize),
) {
    run(kind, Fill::<T> { bands, from, units, panel, band, n_bands, ty: PhantomData });
}

struct Fill<'a, T> {
    bands: &'a Bands<'a>,
    from: usize,
    units: Range<usize>,
    panel: &'a mut Panel,
    band: usize,
    n_bands: usize,
    ty: PhantomData<T>,
}

impl<T: BlockType> IsaOp for Fill<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        fill_band::<I, T::Decoder<I>>(isa, self);
    }
}

#[inline(always)]
fn fill_band<I: Isa, D: Decode<I>>(isa: I, op: Fill<'_, impl BlockType>) {
    let band = op.bands.band(op.from);
    let mut tail = Tail::new();
    tail.fill::<I, D>(&band);
    isa.store_f(op.bands.row_scales::<I, D>(isa, &band), &mut op.panel.row_scales[op.band].0);
    // the bands that the panel holds next
    let ahead = op.n_bands * op.bands.form.band_bytes(op.bands.k);
    let mut scales = LaneScales::new(isa);
    let mut integers = Factors::new(isa);
    let shape =
        const { Shape::new(is_wide::<I>(D::LANE_CODES), D::PER_16, D::HAS_MIN, scales_integers::<I, D>()) };
    let first = op.units.start;
    for u in op.units {
        let unit = band.unit::<I, D>(u, &tail);
        if op.bands.ask_ahead {
            band.ask_smalls::<I, D>(u, ahead);
        }
        if scales_integers::<I, D>() {
            integers.set::<D>(isa, &unit);
            let [d, dmin] = &mut op.panel.factors[(u - first) * op.n_bands + op.band];
            isa.store_f(integers.d, &mut d.0);
            isa.store_f(integers.dmin, &mut dmin.0);
        } else {
            D::lane_scales(isa, isa.splat_f(1.0), &unit, &mut scales);
        }
        for b in 0..8 {
            if op.bands.ask_ahead {
                band.ask_words::<I, D>(u, Eighth { index: b, is_constant: false }, ahead);
            }
            let step = op.n_bands;
            let lines = &mut op.panel.lines[(8 * (u - first) + b) * shape.n_lines() * step + op.band..];
            let lines = &mut lines[..(shape.n_lines() - 1) * step + 1];
            for (i, codes) in D::lanes(isa, &unit, b).into_iter().enumerate() {
                if is_wide::<I>(D::LANE_CODES) {
                    let per = if D::PER_16 { 2 } else { 1 };
                    let scale = isa.of_ints(integers.scale[per * b + i * per / 8]);
                    for (h, mut codes) in isa.widened(codes).into_iter().enumerate() {
                        if scales_integers::<I, D>() {
                            codes = isa.mul_16(codes, scale);
                        }
                        isa.store(codes, &mut lines[(2 * i + h) * step].0);
                    }
                    continue;
                }
                // one form of codes where the dot instruction takes them with the bias
                let codes = match D::LANE_CODES {
                    LaneCodes::Plain if I::CODE_BIAS != 0 => isa.biased(codes),
                    LaneCodes::Offset(n) if I::CODE_BIAS != 0 => {
                        isa.add(codes, isa.splat(I::CODE_BIAS as u8 - (1 << n)))
                    }
                    _ => codes,
                };
                isa.store(codes, &mut lines[i * step].0);
            }
            if scales_integers::<I, D>() {
                for k in 0..shape.n_scales {
                    let scale = isa.of_ints(integers.scale[shape.n_scales * b + k]);
                    isa.store(scale, &mut lines[(shape.n_codes + k) * step].0);
                }
                if D::HAS_MIN {
                    let line = shape.n_codes + shape.n_scales;
                    isa.store(isa.of_ints(integers.min[b]), &mut lines[line * step].0);
                }
                continue;
            }
            let floats = |v| isa.of_ints(isa.bits_i(v));
            for k in 0..shape.n_scales {
                let at = shape.n_scales * b + k;
                isa.store(floats(scales.scale[at]), &mut lines[(shape.n_codes + k) * step].0);
                if D::HAS_MIN {
                    let line = shape.n_codes + shape.n_scales + k;
                    isa.store(floats(scales.min[at]), &mut lines[line * step].0);
                }
            }
        }
    }
}
