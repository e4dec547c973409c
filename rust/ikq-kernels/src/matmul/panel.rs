//! The panel: some units of sixteen rows, decoded once for many columns, lanes being rows.
//!
//! ```text
//! codes    line (64 unit + i) * n_bands + band     codes 4 i..4 i + 4 of the unit, of each of 16 rows
//! scales   line (S unit + g) * n_bands + band      scale of sub-block g of each of 16 rows
//! mins     likewise
//! ```
//! Sixteen rows are a *band*; one or two bands stand side by side. S is 16 or 8: scales belong to 16 or 32
//! elements.

use std::marker::PhantomData;
use std::ops::Range;

use ikq_decode::{BlockType, Decode, UNIT};
use ikq_simd::{Isa, IsaKind, IsaOp, run};

use super::stored::{MAX_UNIT_BYTES, Rows};

/// Rows of a band.
pub(super) const BAND: usize = 16;

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
}

impl Panel {
    /// Makes room for `n_units` units of `n_bands` bands; `per_16`: scales of 16 elements.
    pub fn reserve(&mut self, n_units: usize, n_bands: usize) {
        let grow = |v: &mut Vec<Floats>, n| {
            if v.len() < n {
                v.resize(n, Line([0.0; 16]));
            }
        };
        grow(&mut self.scales, 16 * n_units * n_bands);
        grow(&mut self.mins, 16 * n_units * n_bands);
        if self.codes.len() < 64 * n_units * n_bands {
            self.codes.resize(64 * n_units * n_bands, Line([0; 64]));
        }
    }
}

/// Whether a type has scales of 16 elements.
pub(super) const fn per_16(sub_block: usize, n_float_scales: usize) -> bool {
    sub_block == 16 || n_float_scales == 16
}

/// Decodes units `units` of at most sixteen rows as band `band` of `n_bands`.
pub(super) fn fill<T: BlockType>(
    kind: IsaKind,
    rows: &Rows<'_>,
    units: Range<usize>,
    panel: &mut Panel,
    (band, n_bands): (usize, usize),
) {
    run(kind, Fill::<T> { rows, units, panel, band, n_bands, ty: PhantomData });
}

struct Fill<'a, T> {
    rows: &'a Rows<'a>,
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
        fill_band::<I, T::Decoder<I>>(isa, self.rows, self.units, self.panel, self.band, self.n_bands);
    }
}

/// A unit of sixteen rows, rows apart; those that are missing stay zero.
struct Unit {
    codes: [[Line<[u8; 64]>; 4]; BAND],
    scales: [Line<[f32; 16]>; BAND],
    mins: [Line<[f32; 16]>; BAND],
}

#[inline(always)]
fn fill_band<I: Isa, D: Decode<I>>(
    isa: I,
    rows: &Rows<'_>,
    units: Range<usize>,
    panel: &mut Panel,
    band: usize,
    n_bands: usize,
) {
    let mut apart = Unit {
        codes: [[Line([0; 64]); 4]; BAND],
        scales: [Line([0.0; 16]); BAND],
        mins: [Line([0.0; 16]); BAND],
    };
    let mut padded = [0; MAX_UNIT_BYTES];
    let first = units.start;
    for u in units {
        let at = D::HEADER_BYTES + u * D::UNIT_BYTES;
        for (r, row) in rows.data.chunks_exact(rows.stride).take(BAND).enumerate() {
            let header = rows.header.unwrap_or_else(|| D::header(&row[..D::HEADER_BYTES]));
            let unit = match row.get(at..at + D::UNIT_BYTES) {
                Some(unit) => unit,
                None => {
                    padded[..row.len() - at].copy_from_slice(&row[at..]);
                    &padded[..D::UNIT_BYTES]
                }
            };
            decode::<I, D>(isa, header, unit, r, &mut apart);
        }
        let u = u - first;
        let lines = panel.codes[64 * u * n_bands..64 * (u + 1) * n_bands].chunks_exact_mut(16 * n_bands);
        for (j, lines) in lines.enumerate() {
            let mut quarter = [&apart.codes[0][j].0; BAND];
            for (q, row) in quarter.iter_mut().zip(&apart.codes) {
                *q = &row[j].0;
            }
            let turned = isa.transpose_fours(quarter);
            for (line, v) in lines.iter_mut().skip(band).step_by(n_bands).zip(turned) {
                isa.store(v, &mut line.0);
            }
        }
        let per_16 = per_16(D::SUB_BLOCK, D::N_FLOAT_SCALES);
        let step = if per_16 { 1 } else { 2 };
        let n = 16 / step;
        let range = n * u * n_bands..n * (u + 1) * n_bands;
        turn_scales(isa, &apart.scales, step, band, n_bands, &mut panel.scales[range.clone()]);
        if D::HAS_MIN {
            turn_scales(isa, &apart.mins, step, band, n_bands, &mut panel.mins[range]);
        }
    }
}

#[inline(always)]
fn decode<I: Isa, D: Decode<I>>(isa: I, header: f32, unit: &[u8], r: usize, apart: &mut Unit) {
    let codes = &mut apart.codes[r];
    isa.store(isa.biased(D::codes(isa, unit, 0)), &mut codes[0].0);
    isa.store(isa.biased(D::codes(isa, unit, 1)), &mut codes[1].0);
    isa.store(isa.biased(D::codes(isa, unit, 2)), &mut codes[2].0);
    isa.store(isa.biased(D::codes(isa, unit, 3)), &mut codes[3].0);
    let (mut scale, min) = D::factors(isa, header, unit);
    if D::PRODUCT_FACTOR != 1.0 {
        scale = isa.mul_f(scale, isa.splat_f(D::PRODUCT_FACTOR));
    }
    isa.store_f(scale, &mut apart.scales[r].0);
    if D::HAS_MIN {
        isa.store_f(min, &mut apart.mins[r].0);
    }
}

/// Every `step`th scale of the rows, rows as lanes.
#[inline(always)]
fn turn_scales<I: Isa>(
    isa: I,
    rows: &[Line<[f32; 16]>; BAND],
    step: usize,
    band: usize,
    n_bands: usize,
    out: &mut [Floats],
) {
    let mut refs = [&rows[0].0; BAND];
    for (a, row) in refs.iter_mut().zip(rows) {
        *a = &row.0;
    }
    let turned = isa.transpose(refs);
    for (line, v) in out.iter_mut().skip(band).step_by(n_bands).zip(turned.into_iter().step_by(step)) {
        isa.store_f(v, &mut line.0);
    }
}

/// Units of a row of `k` elements.
pub(super) fn n_units(k: usize) -> usize {
    k.div_ceil(UNIT)
}
