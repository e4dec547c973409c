//! [`Panel`]: some units of one or two bands, decoded once for many columns.
//!
//! ```text
//! codes    line (64 unit + i) * n_bands + band     codes 4 i..4 i + 4 of the unit, of each of 16 rows
//! scales   line (S unit + g) * n_bands + band      scale of sub-block g of each of 16 rows
//! mins     likewise
//! wide     line (128 unit + 2 i + h) * n_bands + band   codes as 16-bit numbers, instead of `codes`: `Products::widened`
//! rows     line band                               what sums of the rows are multiplied by at the end
//! ```
//! One or two bands stand side by side. S is 16 or 8: scales belong to 16 or 32 elements.

use std::marker::PhantomData;
use std::ops::Range;

use ikq_decode::{BlockType, Decode, LaneCodes, LaneScales};
use ikq_simd::{Isa, IsaKind, IsaOp, run};

use super::bands::{Bands, Tail};

/// Sixty-four bytes that start a cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Line<T>(pub T);

pub(super) type Codes = Line<[u8; 64]>;
pub(super) type Floats = Line<[f32; 16]>;

/// Memory of a panel.
#[derive(Default)]
pub(super) struct Panel {
    pub codes: Vec<Codes>,
    pub scales: Vec<Floats>,
    pub mins: Vec<Floats>,
    pub row_scales: Vec<Floats>,
}

/// Whether panels of these weights hold 16-bit numbers: signed codes, where that is faster.
pub(super) fn is_wide<I: Isa>(codes: LaneCodes) -> bool {
    I::IS_FAST_WIDE && codes == LaneCodes::Biased
}

impl Panel {
    /// Makes room for `n_units` units of `n_bands` bands.
    pub fn reserve(&mut self, n_units: usize, n_bands: usize) {
        // codes may be 16-bit numbers
        let n_codes = 2 * 64 * n_units * n_bands;
        let grow = |v: &mut Vec<Floats>, n| {
            if v.len() < n {
                v.resize(n, Line([0.0; 16]));
            }
        };
        grow(&mut self.scales, 16 * n_units * n_bands);
        grow(&mut self.mins, 16 * n_units * n_bands);
        grow(&mut self.row_scales, n_bands);
        if self.codes.len() < n_codes {
            self.codes.resize(n_codes, Line([0; 64]));
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
    let n_scales = if D::PER_16 { 16 } else { 8 };
    let first = op.units.start;
    for u in op.units {
        let unit = band.unit::<I, D>(u, &tail);
        if op.bands.ask_ahead {
            band.ask_smalls::<I, D>(u, ahead);
        }
        D::lane_scales(isa, isa.splat_f(1.0), &unit, &mut scales);
        let lines = n_scales * (u - first) * op.n_bands + op.band;
        for k in 0..n_scales {
            isa.store_f(scales.scale[k], &mut op.panel.scales[lines + k * op.n_bands].0);
            if D::HAS_MIN {
                isa.store_f(scales.min[k], &mut op.panel.mins[lines + k * op.n_bands].0);
            }
        }
        for b in 0..8 {
            if op.bands.ask_ahead {
                band.ask_words::<I, D>(u, b, ahead);
            }
            let codes = D::lanes(isa, &unit, b);
            if is_wide::<I>(D::LANE_CODES) {
                let lines = 2 * (64 * (u - first) + 8 * b) * op.n_bands + op.band;
                for (i, codes) in codes.into_iter().enumerate() {
                    for (h, codes) in isa.widened(codes).into_iter().enumerate() {
                        isa.store(codes, &mut op.panel.codes[lines + (2 * i + h) * op.n_bands].0);
                    }
                }
                continue;
            }
            let lines = (64 * (u - first) + 8 * b) * op.n_bands + op.band;
            for (i, codes) in codes.into_iter().enumerate() {
                // one form of codes where the dot instruction takes them with the bias
                let codes = match D::LANE_CODES {
                    LaneCodes::Plain if I::CODE_BIAS != 0 => isa.biased(codes),
                    LaneCodes::Offset(n) if I::CODE_BIAS != 0 => {
                        isa.add(codes, isa.splat(I::CODE_BIAS as u8 - (1 << n)))
                    }
                    _ => codes,
                };
                isa.store(codes, &mut op.panel.codes[lines + i * op.n_bands].0);
            }
        }
    }
}
