//! Scales and entries of a super-block whose sub-blocks have odd scales: `y = d * (2 s + 1) * g`, d
//! stored as f16, g an entry's elements with signs.
//!
//! 1. Candidate scales of every sub-block with quickly rounded groups; each leaves the sums
//!    `A = sum w x g`, `B = sum w g^2`, a parabola `s^2 B - 2 s A` of the error over the scale.
//! 2. For a range of d, the integer scales that take the lower envelopes of these parabolas lowest:
//!    the d for which all sub-blocks together do best.
//! 3. At scales that can be stored, exact weighted search of every group; d refitted; once more.

use ikq_simd::{Isa, Lanes};

use super::grid::Grid;

/// What distinguishes the types.
pub struct OddScales<'a> {
    pub grid: &'a Grid,
    /// Elements per scale: 16 or 32.
    pub sub_block: usize,
    /// Scales are `2 s + 1`, s below this.
    pub n_scales: usize,
    /// A decoded magnitude is `d * unit * (2 s + 1) * g`.
    pub unit: f32,
    /// The stored d is the fitted one times this.
    pub scale_bias: f32,
}

/// A super-block's codes.
#[derive(Clone, Debug)]
pub struct Fit {
    /// f16 bits.
    pub d: u16,
    pub scales: [u8; 16],
    /// Entries by group.
    pub entries: [u16; 64],
}

/// Scale candidates tried per sub-block.
const N_CANDIDATES: usize = 16;
/// Largest of them, as a multiple of the scale that puts the largest element on the highest level, and
/// their ratio.
const FIRST_CANDIDATE: f32 = 1.2;
const RATIO: f32 = 0.93;

/// Super-scales tried: those that put the largest sub-block scale at the highest number, times
/// `D_FIRST * D_RATIO^k`.
const N_D: usize = 32;
const D_FIRST: f32 = 2.0;
const D_RATIO: f32 = 0.957;

/// The super-block with groups side by side: 16 groups of different sub-blocks in a vector.
struct Sheets {
    n: usize,
    x: [[[f32; 16]; 8]; 4],
    wx: [[[f32; 16]; 8]; 4],
    w: [[[f32; 16]; 8]; 4],
    first_key: [[f32; 16]; 4],
}

/// Sub-blocks of a super-block with their candidates, sub-block per lane (lanes repeat when there
/// are 8).
struct Parabolas<I: Lanes> {
    a: [I::F; N_CANDIDATES],
    b: [I::F; N_CANDIDATES],
    /// The scale of the lowest vertex.
    best: I::F,
}

impl OddScales<'_> {
    fn n_sub(&self) -> usize {
        256 / self.sub_block
    }

    #[inline(always)]
    fn sheets(&self, x: &[f32; 256], w: &[f32; 256]) -> Sheets {
        let dims = self.grid.dims();
        let n = 256 / dims / 16;
        let zero = [[[0.0; 16]; 8]; 4];
        let mut out = Sheets { n, x: zero, wx: zero, w: zero, first_key: [[0.0; 16]; 4] };
        for v in 0..n {
            for lane in 0..16 {
                let (sub, half) = (lane % self.n_sub(), lane / self.n_sub());
                let start = sub * self.sub_block + dims * (v + n * half);
                out.first_key[v][lane] = self.grid.first_key(&w[start..][..dims]);
                for j in 0..dims {
                    let (x, w) = (x[start + j], w[start + j]);
                    out.x[v][j][lane] = x;
                    out.w[v][j][lane] = w;
                    out.wx[v][j][lane] = w * x;
                }
            }
        }
        out
    }

    /// Sums over the lanes of the same sub-block, in both of them.
    #[inline(always)]
    fn by_sub_block<I: Isa>(&self, isa: I, v: I::F) -> I::F {
        match self.n_sub() {
            16 => v,
            _ => {
                let v = isa.array(v);
                isa.load_f(&std::array::from_fn(|i| v[i % 8] + v[i % 8 + 8]))
            }
        }
    }

    #[inline(always)]
    fn parabolas<I: Isa>(&self, isa: I, x: &[f32; 256], sheets: &Sheets) -> Parabolas<I> {
        let n_sub = self.n_sub();
        let amax: [f32; 16] = std::array::from_fn(|i| {
            let sub = &x[i % n_sub * self.sub_block..][..self.sub_block];
            sub.iter().fold(0.0, |m: f32, v| m.max(v.abs()))
        });
        let zero = isa.splat_f(0.0);
        let amax = isa.load_f(&amax);
        // a sub-block of zeros: any finite inverse will do
        let top = isa.splat_f(self.grid.top_level());
        let inverse = isa.if_gt(amax, zero, isa.div_f(top, amax), isa.splat_f(1.0));
        let mut out = Parabolas { a: [zero; N_CANDIDATES], b: [zero; N_CANDIDATES], best: zero };
        let mut least = zero;
        let mut factor = 1.0 / FIRST_CANDIDATE;
        for c in 0..N_CANDIDATES {
            let (mut a, mut b) = (zero, zero);
            let inverse = isa.mul_f(inverse, isa.splat_f(factor));
            for v in 0..sheets.n {
                let (da, db) = self.grid.rounded(
                    isa,
                    &sheets.x[v],
                    &sheets.wx[v],
                    &sheets.w[v],
                    inverse,
                    &sheets.first_key[v],
                );
                a = isa.add_f(a, da);
                b = isa.add_f(b, db);
            }
            let (a, b) = (self.by_sub_block(isa, a), self.by_sub_block(isa, b));
            // entries have no zeros and weights none, so b is positive
            let scale = isa.div_f(a, b);
            let vertex = isa.sub_f(zero, isa.mul_f(a, scale));
            out.best = isa.if_gt(least, vertex, scale, out.best);
            least = isa.min_f(vertex, least);
            out.a[c] = isa.add_f(a, a);
            out.b[c] = b;
            factor /= RATIO;
        }
        out
    }

    /// Scale numbers whose scales in units of `d * unit` are around `wanted`: below, above.
    #[inline(always)]
    fn around<I: Isa>(&self, isa: I, wanted: I::F) -> (I::F, I::F) {
        let one = isa.splat_f(1.0);
        let top = isa.splat_f((self.n_scales - 1) as f32);
        let number = isa.mul_f(isa.sub_f(wanted, one), isa.splat_f(0.5));
        let number = isa.min_f(isa.max_f(number, isa.splat_f(0.0)), top);
        let low = isa.round(isa.sub_f(number, isa.splat_f(0.5)));
        (isa.max_f(low, isa.splat_f(0.0)), isa.min_f(isa.add_f(low, one), top))
    }

    /// The super-scale (as stored) and scale numbers of least error by the parabolas; `up` is the
    /// factor from the scale of `x` to that of the file.
    #[inline(always)]
    fn joint<I: Isa>(&self, isa: I, parabolas: &Parabolas<I>, up: f32) -> (f32, [f32; 16]) {
        let best = isa.array(parabolas.best);
        let top = best.iter().fold(0.0f32, |m, v| m.max(*v)) / (self.unit * (2 * self.n_scales - 1) as f32);
        let mut ds = [0.0; N_D];
        let mut factor = D_FIRST;
        for d in &mut ds {
            *d = top * factor;
            factor *= D_RATIO;
        }
        for ds in ds.as_chunks_mut::<16>().0 {
            let halves = isa.f16_round(isa.mul_f(isa.load_f(ds), isa.splat_f(up)));
            isa.store_f(isa.div_f(halves, isa.splat_f(up)), ds);
        }
        let mut found = (f32::INFINITY, 0.0, [0.0; 16]);
        for d in ds.into_iter().take(N_D) {
            if d == 0.0 {
                continue;
            }
            let unit = isa.splat_f(d * self.unit);
            let (low, high) = self.around(isa, isa.div_f(parabolas.best, unit));
            let (s_low, s_high) = (odd(isa, low, unit), odd(isa, high, unit));
            let infinity = isa.splat_f(f32::INFINITY);
            let (mut e_low, mut e_high) = (infinity, infinity);
            for (a, b) in parabolas.a.iter().zip(&parabolas.b) {
                e_low = isa.min_f(parabola(isa, *a, *b, s_low), e_low);
                e_high = isa.min_f(parabola(isa, *a, *b, s_high), e_high);
            }
            let error = isa.sum(isa.min_f(e_low, e_high));
            if error < found.0 {
                found = (error, d, isa.array(isa.if_gt(e_low, e_high, high, low)));
            }
        }
        (found.1, found.2)
    }

    /// The best entry of every group of a sub-block at a scale: error, `sum w x g`, `sum w g^2`.
    /// Gives up (infinite error) as soon as the error reaches `limit`.
    #[inline(always)]
    fn exact<I: Isa>(
        &self,
        isa: I,
        (x, w): (&[f32], &[f32]),
        scale: f32,
        limit: f32,
        entries: &mut [u16],
    ) -> [f32; 3] {
        let dims = self.grid.dims();
        let mut sums = [0.0; 3];
        for ((x, w), entry) in x.chunks_exact(dims).zip(w.chunks_exact(dims)).zip(entries) {
            let costs = self.grid.costs(isa, x, w, scale);
            let (found, error) = self.grid.nearest(isa, &costs);
            let g = self.grid.values(found);
            *entry = found as u16;
            sums[0] += error;
            if sums[0] >= limit {
                return [f32::INFINITY; 3];
            }
            for j in 0..dims {
                sums[1] += w[j] * x[j] * g[j];
                sums[2] += w[j] * g[j] * g[j];
            }
        }
        sums
    }

    /// Fits a super-block; `x` are magnitudes in the scale of the normalised row, `up` the factor from
    /// there to the file's.
    #[inline(always)]
    pub fn fit<I: Isa>(&self, isa: I, x: &[f32; 256], w: &[f32; 256], up: f32) -> Fit {
        let mut fit = Fit { d: 0, scales: [0; 16], entries: [0; 64] };
        if x.iter().all(|v| *v == 0.0) {
            return fit;
        }
        let sheets = self.sheets(x, w);
        let parabolas = self.parabolas(isa, x, &sheets);
        let (d, numbers) = self.joint(isa, &parabolas, up);
        let per_sub = self.sub_block / self.grid.dims();
        let top = self.n_scales as u8 - 1;
        let (mut sum_mwxg, mut sum_mmwgg) = (0.0, 0.0);
        for (sub, number) in numbers.into_iter().enumerate().take(self.n_sub()) {
            let values =
                (&x[sub * self.sub_block..][..self.sub_block], &w[sub * self.sub_block..][..self.sub_block]);
            let number = number as u8;
            let mut best = [f32::INFINITY; 3];
            for (k, n) in [number, number.saturating_sub(1), (number + 1).min(top)].into_iter().enumerate() {
                if k > 0 && n == number {
                    continue;
                }
                let mut entries = [0; 8];
                let scale = d * self.unit * f32::from(2 * n + 1);
                let sums = self.exact(isa, values, scale, best[0], &mut entries[..per_sub]);
                if sums[0] < best[0] {
                    best = sums;
                    fit.scales[sub] = n;
                    fit.entries[sub * per_sub..][..per_sub].copy_from_slice(&entries[..per_sub]);
                }
            }
            let multiplier = f32::from(2 * fit.scales[sub] + 1) * self.unit;
            sum_mwxg += multiplier * best[1];
            sum_mmwgg += multiplier * multiplier * best[2];
        }
        // entries have no zeros and weights are positive
        let d = self.scale_bias * sum_mwxg / sum_mmwgg;
        fit.d = isa.f16_bits(isa.splat_f(d * up))[0];
        fit
    }
}

/// `unit * (2 n + 1)`.
#[inline(always)]
fn odd<I: Isa>(isa: I, n: I::F, unit: I::F) -> I::F {
    isa.mul_f(isa.add_f(isa.add_f(n, n), isa.splat_f(1.0)), unit)
}

/// `s^2 b - s a`.
#[inline(always)]
fn parabola<I: Isa>(isa: I, a: I::F, b: I::F, s: I::F) -> I::F {
    isa.mul_f(s, isa.sub_f(isa.mul_f(s, b), a))
}
