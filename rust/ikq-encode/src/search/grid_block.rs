//! Scales and codebook entries where sub-blocks have integer scales: `y = d * multiplier * (g + shift)`, where d is
//! stored as f16 for a super-block or a row, and g is an element of an entry with its sign.
//!
//! Objective: `sum w (x - y)^2`.
//!
//! 1. For candidate scales of every sub-block ([`super::grid_candidates`]), groups are rounded quickly. Each
//!    candidate gives a parabola of the error over the scale.
//! 2. For a range of d, each sub-block takes the integer scale at which the lowest of its parabolas is least. The d
//!    with the least sum over all sub-blocks is kept.
//! 3. At the two or three integers that the parabolas leave in question, every group is searched exactly with its
//!    weights; then d is refitted.

use ikq_simd::{Isa, IsaOp, Lanes};

use super::block_scales::{COARSE_HALF, HALF_STEP};
use super::gain::Scales;
use super::grid::Grid;
use super::grid_candidates::{Ladder, N_CANDIDATES, Parabolas};

/// Elements searched together: a super-block, or that much of a row.
pub const CHUNK: usize = 256;

/// How a type stores signs besides the entries.
#[derive(Clone, Copy)]
pub enum Signs {
    /// There are none, because levels are negative and positive.
    InLevels,
    /// One bit per element.
    Free,
    /// Seven bits per 8 elements, whose number of minus signs must be even.
    Even,
}

/// What is added to all elements of an entry: plus or minus this number of levels.
#[derive(Clone, Copy)]
pub enum Shifts {
    None,
    /// With one sign for a sub-block.
    SubBlock(f32),
    /// With a sign for each group of 8 elements.
    Group(f32),
}

/// What integer scales stand for: number n is `unit * (first + step * n)`.
#[derive(Clone, Copy)]
pub struct Numbers {
    pub n: usize,
    pub first: f32,
    pub step: f32,
    pub unit: f32,
}

/// The properties by which codebook types differ.
pub struct GridSearch<'a> {
    pub grid: &'a Grid,
    /// Elements per scale: 16 or 32.
    pub sub_block: usize,
    pub numbers: Numbers,
    pub signs: Signs,
    pub shifts: Shifts,
    pub ladder: Ladder,
    /// Where scales are [`Scales::LeastSquares`], the stored d is the fitted one times this.
    pub scale_bias: f32,
}

/// The codes that were found for a chunk of 256 elements.
#[derive(Clone, Debug)]
pub struct Codes {
    pub scales: [u8; 16],
    /// The entry of each group.
    pub entries: [u16; 64],
    /// Sign bits of 8 elements each.
    pub signs: [u8; 32],
    /// Whether the shift of each 8 elements is negative.
    pub shifts: [u8; 32],
    pub sums: Sums,
}

/// `sum w x y`, `sum w y^2` (with y in units of d) and `sum w x^2`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sums {
    xy: f32,
    yy: f32,
    xx: f32,
}

impl Sums {
    /// Adds the sums of other elements.
    #[inline(always)]
    pub fn add(&mut self, other: &Sums) {
        self.xy += other.xy;
        self.yy += other.yy;
        self.xx += other.xx;
    }
}

/// The entry or entries found for eight elements, with the error, and `sum w x y` and `sum w y^2` (with y in units
/// of the scale).
#[derive(Clone, Copy)]
struct Eight {
    error: f32,
    xy: f32,
    yy: f32,
    entries: [u16; 2],
    /// The bit of the element that is stored with the wrong sign, or 0.
    flip: u8,
    shift: u8,
}

/// The codes of eight elements: entries, signs and shift as formats store them, and the values that they decode to,
/// in units of the scale.
#[derive(Clone, Copy, Debug, Default)]
pub struct EightCodes {
    pub entries: [u16; 2],
    /// Bit j: element j is negative.
    pub signs: u8,
    /// Whether the shift is negative.
    pub shift: u8,
    pub values: [f32; 8],
}

/// Super-scales tried: the one that puts the largest sub-block scale on the highest number, times
/// `D_FIRST * D_RATIO^k`.
const N_D: usize = 32;
const D_FIRST: f32 = 2.0;
const D_RATIO: f32 = 0.957;

/// Most pairs of scale number and shift that are tried exactly for each sub-block.
const TRIES: usize = 3;

/// Whether an odd number of elements is negative.
#[inline(always)]
pub(super) fn odd_number_of_signs(x: &[f32]) -> bool {
    x.iter().fold(false, |odd, x| odd ^ (*x < 0.0))
}

/// The scale numbers that each sub-block chooses from, and their estimated errors (up to a constant).
struct Options<I: Lanes> {
    /// The numbers below and above the wanted scale.
    numbers: [I::F; 2],
    /// The errors of both numbers with the shift, then with the negative shift.
    errors: [I::F; 4],
}

impl Numbers {
    #[inline(always)]
    fn multiplier(self, n: u8) -> f32 {
        self.unit * (self.first + self.step * f32::from(n))
    }

    /// The numbers whose scales, in units of `d * unit`, are next to `wanted`: below and above.
    #[inline(always)]
    fn around<I: Isa>(self, isa: I, wanted: I::F) -> (I::F, I::F) {
        let one = isa.splat_f(1.0);
        let top = isa.splat_f((self.n - 1) as f32);
        let number = isa.mul_f(isa.sub_f(wanted, isa.splat_f(self.first)), isa.splat_f(1.0 / self.step));
        let number = isa.min_f(isa.max_f(number, isa.splat_f(0.0)), top);
        let low = isa.round(isa.sub_f(number, isa.splat_f(0.5)));
        (isa.max_f(low, isa.splat_f(0.0)), isa.min_f(isa.add_f(low, one), top))
    }

    /// The scale of number n, where `unit` includes d.
    #[inline(always)]
    fn scale<I: Isa>(self, isa: I, n: I::F, unit: I::F) -> I::F {
        isa.mul_f(isa.mul_add_f(n, isa.splat_f(self.step), isa.splat_f(self.first)), unit)
    }
}

impl GridSearch<'_> {
    pub(super) fn n_sub(&self) -> usize {
        CHUNK / self.sub_block
    }

    /// The scale numbers that each sub-block chooses from at d, with their errors by the parabolas.
    #[inline(always)]
    fn options<I: Isa>(&self, isa: I, parabolas: &Parabolas, d: f32) -> Options<I> {
        let unit = isa.splat_f(d * self.numbers.unit);
        let wanted = isa.div_f(isa.load_f(&parabolas.best), unit);
        let (low, high) = self.numbers.around(isa, wanted);
        let scales = [self.numbers.scale(isa, low, unit), self.numbers.scale(isa, high, unit)];
        let mut out = Options { numbers: [low, high], errors: [isa.splat_f(f32::INFINITY); 4] };
        for (run, errors) in out.errors.as_chunks_mut::<2>().0.iter_mut().enumerate() {
            let candidates = run * N_CANDIDATES..(run + 1) * N_CANDIDATES;
            if candidates.end > parabolas.n {
                break;
            }
            for (a, b) in parabolas.a[candidates.clone()].iter().zip(&parabolas.b[candidates]) {
                let (a, b) = (isa.load_f(a), isa.load_f(b));
                errors[0] = isa.min_f(parabola(isa, a, b, scales[0]), errors[0]);
                errors[1] = isa.min_f(parabola(isa, a, b, scales[1]), errors[1]);
            }
        }
        out
    }

    /// See [`Joint`].
    #[inline(always)]
    fn joint<I: Isa>(&self, isa: I, parabolas: &[Parabolas], up: f32) -> f32 {
        let largest = parabolas.iter().flat_map(|p| p.best).fold(0.0f32, |m, v| m.max(v));
        let top = largest / self.numbers.multiplier(self.numbers.n as u8 - 1);
        let mut ds = [0.0; N_D];
        let mut factor = D_FIRST;
        for d in &mut ds {
            *d = top * factor;
            factor *= D_RATIO;
        }
        if (top * up).abs() < COARSE_HALF {
            // so small a d has few halves in the range of ratios, or none
            for (n, d) in ds.iter_mut().enumerate() {
                *d = (n + 1) as f32 * HALF_STEP / up;
            }
        }
        for ds in ds.as_chunks_mut::<16>().0 {
            let halves = isa.f16_round(isa.mul_f(isa.load_f(ds), isa.splat_f(up)));
            isa.store_f(isa.div_f(halves, isa.splat_f(up)), ds);
        }
        // errors are relative to those of zeros, so d stays 0 where no half is better than zeros
        let mut found = (0.0, 0.0);
        for d in ds {
            if d == 0.0 {
                continue;
            }
            let mut error = 0.0;
            for parabolas in parabolas {
                let [a, b, c, d] = self.options(isa, parabolas, d).errors;
                error += isa.sum(isa.min_f(isa.min_f(a, b), isa.min_f(c, d)));
            }
            if error < found.0 {
                found = (error, d);
            }
        }
        found.1
    }

    /// The best entries of eight elements at a scale; the error may be infinite if it is not below `limit`.
    #[inline(always)]
    fn eight<I: Isa>(&self, isa: I, x: &[f32], w: &[f32], (scale, shift): (f32, f32), limit: f32) -> Eight {
        let dims = self.grid.dims();
        let mut t = [0.0; 8];
        t.copy_from_slice(x);
        let mut odd = false;
        if !matches!(self.signs, Signs::InLevels) {
            for t in &mut t {
                *t = t.abs();
            }
            odd = matches!(self.signs, Signs::Even) && odd_number_of_signs(x);
        }
        let mut out =
            Eight { error: 0.0, xy: 0.0, yy: 0.0, entries: [0; 2], flip: 0, shift: u8::from(shift < 0.0) };
        // what the cheapest wrong sign adds, its group, and the group's entry
        let mut flip = (f32::INFINITY, 0, 0);
        for (k, (t, w)) in t.chunks_exact(dims).zip(w.chunks_exact(dims)).enumerate() {
            let costs = self.grid.costs(isa, t, w, scale, shift);
            let (mut entry, mut error) = (0, 0.0);
            // where one entry has all eight elements, one of its elements has to have the wrong sign
            if !odd || dims < 8 {
                (entry, error) = self.grid.nearest(isa, &costs, limit);
            }
            out.error += error;
            out.entries[k] = entry as u16;
            if odd {
                let flips = self.grid.flips(isa, t, w, scale);
                let (entry, flipped) = self.grid.nearest_even(isa, &costs, &flips);
                if flipped - error < flip.0 {
                    flip = (flipped - error, k, entry);
                }
            }
        }
        let mut y = [0.0; 8];
        if odd {
            out.error += flip.0;
            out.entries[flip.1] = flip.2 as u16;
        }
        for (entry, y) in out.entries.iter().zip(y.chunks_exact_mut(dims)) {
            y.copy_from_slice(&self.grid.values(usize::from(*entry))[..dims]);
        }
        if odd {
            let mut least = (f32::INFINITY, 0);
            for j in flip.1 * dims..(flip.1 + 1) * dims {
                let cost = w[j] * t[j] * y[j];
                if cost < least.0 {
                    least = (cost, j);
                }
            }
            y[least.1] = -y[least.1];
            out.flip = 1 << least.1;
        }
        for j in 0..8 {
            let y = y[j] + shift;
            out.xy += w[j] * t[j] * y;
            out.yy += w[j] * y * y;
        }
        out
    }

    /// The codes nearest to eight elements at a positive scale, weighed by `w`. The shift is the one given, or the
    /// better of its two signs where groups have shifts of their own.
    #[inline(always)]
    pub fn codes_of_eight<I: Isa>(
        &self,
        isa: I,
        x: &[f32; 8],
        w: &[f32; 8],
        (scale, shift): (f32, f32),
    ) -> EightCodes {
        let mut found = self.eight(isa, x, w, (scale, shift), f32::INFINITY);
        let mut kept = shift;
        if matches!(self.shifts, Shifts::Group(_)) {
            let other = self.eight(isa, x, w, (scale, -shift), found.error);
            if other.error < found.error {
                (found, kept) = (other, -shift);
            }
        }
        let dims = self.grid.dims();
        let mut out = EightCodes { entries: found.entries, shift: found.shift, ..Default::default() };
        for (entry, y) in found.entries.iter().zip(out.values.chunks_exact_mut(dims)) {
            y.copy_from_slice(&self.grid.values(usize::from(*entry))[..dims]);
        }
        if !matches!(self.signs, Signs::InLevels) {
            out.signs = minus_signs(x) ^ found.flip;
        }
        for (j, y) in out.values.iter_mut().enumerate() {
            *y = kept + if out.signs >> j & 1 == 1 { -*y } else { *y };
        }
        out
    }

    /// The best entries of a sub-block at a scale, with their error and sums; `None` as soon as the
    /// error reaches `limit`.
    #[inline(always)]
    fn exact<I: Isa>(
        &self,
        isa: I,
        (x, w): (&[f32], &[f32]),
        (scale, shift): (f32, f32),
        limit: f32,
        out: &mut [Eight; 4],
    ) -> Option<[f32; 3]> {
        let mut sums = [0.0; 3];
        for ((x, w), out) in x.chunks_exact(8).zip(w.chunks_exact(8)).zip(out) {
            out.error = f32::INFINITY;
            let n_shifts = if matches!(self.shifts, Shifts::Group(_)) { 2 } else { 1 };
            for shift in [shift, -shift].into_iter().take(n_shifts) {
                let found = self.eight(isa, x, w, (scale, shift), (limit - sums[0]).min(out.error));
                if found.error < out.error {
                    *out = found;
                }
            }
            sums[0] += out.error;
            if sums[0] >= limit {
                return None;
            }
            sums[1] += out.xy;
            sums[2] += out.yy;
        }
        Some(sums)
    }

    /// See [`Settle`].
    #[inline(always)]
    fn settle<I: Isa>(
        &self,
        isa: I,
        (x, w, n): (&[f32; CHUNK], &[f32; CHUNK], usize),
        parabolas: &Parabolas,
        d: f32,
    ) -> Codes {
        let mut codes = Codes {
            scales: [0; 16],
            entries: [0; 64],
            signs: [0; 32],
            shifts: [0; 32],
            sums: Sums::default(),
        };
        let options = self.options(isa, parabolas, d);
        let numbers = options.numbers.map(|n| isa.array(n));
        let errors = options.errors.map(|e| isa.array(e));
        let per_eight = 8 / self.grid.dims();
        let shift = match self.shifts {
            Shifts::None => 0.0,
            Shifts::Group(shift) | Shifts::SubBlock(shift) => shift,
        };
        for sub in 0..n / self.sub_block {
            let elements = sub * self.sub_block..(sub + 1) * self.sub_block;
            let values = (&x[elements.clone()], &w[elements.clone()]);
            let nothing = Eight { error: 0.0, xy: 0.0, yy: 0.0, entries: [0; 2], flip: 0, shift: 0 };
            let mut best = [f32::INFINITY, 0.0, 0.0];
            let mut eights = [nothing; 4];
            let mut left = [errors[0][sub], errors[1][sub], errors[2][sub], errors[3][sub]];
            let energy: f32 = values.0.iter().zip(values.1).map(|(x, w)| w * x * x).sum();
            let mut limit = f32::INFINITY;
            for _ in 0..TRIES {
                let mut k = 0;
                for other in 1..4 {
                    if left[other] < left[k] {
                        k = other;
                    }
                }
                if left[k] >= limit {
                    break;
                }
                limit = limit.min(left[k] + self.ladder.close * (energy + left[k]));
                left[k] = f32::INFINITY;
                let number = numbers[k % 2][sub] as u8;
                let shift = if k < 2 { shift } else { -shift };
                let scale = d * self.numbers.multiplier(number);
                let mut found = [nothing; 4];
                if let Some(sums) = self.exact(isa, values, (scale, shift), best[0], &mut found) {
                    best = sums;
                    eights = found;
                    codes.scales[sub] = number;
                }
            }
            for (k, (eight, x)) in eights.iter().zip(values.0.as_chunks::<8>().0).enumerate() {
                let at = elements.start / 8 + k;
                codes.entries[at * per_eight..][..per_eight].copy_from_slice(&eight.entries[..per_eight]);
                codes.signs[at] = minus_signs(x) ^ eight.flip;
                codes.shifts[at] = eight.shift;
            }
            let multiplier = self.numbers.multiplier(codes.scales[sub]);
            codes.sums.add(&Sums {
                xy: multiplier * best[1],
                yy: multiplier * multiplier * best[2],
                xx: energy,
            });
        }
        codes
    }

    /// The d to store for codes with these sums; times `up` it is what the file holds.
    #[inline(always)]
    pub fn refit(&self, scales: Scales, sums: &Sums, up: f32) -> f32 {
        if sums.yy <= 0.0 {
            return 0.0;
        }
        let fitted = sums.xy / sums.yy;
        match scales {
            // among the smallest halves, a step is more than bias and gain
            _ if (fitted * up).abs() < COARSE_HALF => fitted,
            Scales::LeastSquares | Scales::Only => self.scale_bias * sums.xy / sums.yy,
            Scales::Unbiased => fitted * scales.factor(fitted * sums.xy, sums.xx),
        }
    }
}

/// [`GridSearch::parabolas`] of the elements of a chunk and their weights, as an operation for an instruction set;
/// elements behind a row's end have weight 0.
pub struct FindParabolas<'a>(pub &'a GridSearch<'a>, pub &'a [f32; CHUNK], pub &'a [f32; CHUNK]);

impl IsaOp for FindParabolas<'_> {
    type Output = Parabolas;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Parabolas {
        self.0.parabolas(isa, self.1, self.2)
    }
}

/// Finds the d, of those that a half can store, with the least error by the parabolas of a super-block or row, as
/// an operation for an instruction set. The float is the factor from normalised elements to those of the file. The
/// result is 0 where no half is better than zeros.
pub struct Joint<'a>(pub &'a GridSearch<'a>, pub &'a [Parabolas], pub f32);

impl IsaOp for Joint<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> f32 {
        self.0.joint(isa, self.1, self.2)
    }
}

/// Finds the codes of a chunk at a given d, as an operation for an instruction set.
pub struct Settle<'a> {
    pub search: &'a GridSearch<'a>,
    /// Elements of the normalised row.
    pub x: &'a [f32; CHUNK],
    pub w: &'a [f32; CHUNK],
    /// How many of the elements belong to the row.
    pub n: usize,
    pub parabolas: &'a Parabolas,
    pub d: f32,
}

impl IsaOp for Settle<'_> {
    type Output = Codes;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Codes {
        self.search.settle(isa, (self.x, self.w, self.n), self.parabolas, self.d)
    }
}

/// Bit j is set where element j is negative.
#[inline(always)]
fn minus_signs(x: &[f32; 8]) -> u8 {
    x.iter().enumerate().map(|(j, x)| u8::from(*x < 0.0) << j).sum()
}

/// The value `s^2 b - s a` of a parabola at scale s.
#[inline(always)]
fn parabola<I: Isa>(isa: I, a: I::F, b: I::F, s: I::F) -> I::F {
    isa.mul_f(s, isa.sub_f(isa.mul_f(s, b), a))
}
