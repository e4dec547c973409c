//! Codebooks whose entries are groups of magnitudes (grids). Finds the entry that is nearest to a group under
//! weights, exactly, or an entry near the rounded group, quickly.
//!
//! An entry has 4 elements of up to 8 levels or 8 elements of 3 levels. Either way it is written as
//! four *digits* below 16 (one element, or two elements together), so that the cost of an entry is
//! the sum of four look-ups in tables of 16 costs. A table fills a vector register, and comparing a
//! group with sixteen entries takes four permutations and three additions. Levels and weights only enter the
//! cost tables, so callers choose true values, shifts and signs.
//!
//! | signs | search |
//! |---|---|
//! | free, or part of the levels | [`Grid::nearest`] |
//! | the number of minus signs is even (7-bit sign codes) | [`Grid::nearest_even`] |

use ikq_simd::{Isa, IsaOp, Lanes, best, run};

use super::argmin::{LANE_NUMBERS, first_least};
use super::grid_prefixes::Prefixes;

/// How much more the squared deviation of a heavy element counts than that of a light one when [`Grid::rounded`]
/// moves a group to an entry.
const HEAVY: f32 = 8.0;

/// The weight of a digit, as a share of the group's largest, from which its elements count as heavy.
const HEAVY_SHARE: f32 = 0.25;

/// Number of entries from which searching by prefix pays.
const BY_PREFIX: usize = 1024;

/// Tables of the cost of each value that the four digits of an entry may have.
pub type Costs<I> = [<I as Lanes>::F; 4];

/// A codebook prepared for searching.
pub struct Grid {
    /// Elements of an entry: 4 or 8.
    dims: usize,
    levels: Vec<i8>,
    /// For each digit the element that it stands for, and the second one where it stands for two.
    digits: [[f32; 16]; 2],
    /// Digits of sixteen entries at a time.
    chunks: Vec<[[i32; 16]; 4]>,
    /// The entries sorted by prefix, for large grids.
    prefixes: Option<Prefixes>,
    /// Entries as integers whose byte j is element j.
    entries: Vec<u64>,
    /// For each pattern of heavy digits and each key (see [`Grid::rounded`]) the entry near the key: its elements
    /// 0..4 and 4..8.
    near: [Vec<u32>; 2],
}

/// Sixteen groups side by side for [`Grid::rounded`], indexed by element, then lane.
pub type Transposed = [[f32; 16]; 8];

impl Grid {
    /// A grid of entries as `ikq_formats::codebook` has them: byte j (as i8) is element j, one of
    /// `levels`, which ascend. The number of entries must be a multiple of 16.
    pub fn new(dims: usize, levels: &[i8], entries: impl IntoIterator<Item = u64>) -> Grid {
        let entries: Vec<u64> = entries.into_iter().collect();
        let n_levels = levels.len();
        assert!(dims == 4 && n_levels <= 8 || dims == 8 && n_levels <= 3, "no four digits below 16");
        let mut grid = Grid {
            dims,
            levels: levels.to_vec(),
            digits: [[0.0; 16]; 2],
            chunks: Vec::new(),
            prefixes: None,
            entries,
            near: Default::default(),
        };
        assert_eq!(grid.entries.len() % 16, 0, "a chunk would be incomplete");
        for digit in 0..16 {
            let elements = if dims == 4 { [digit, digit] } else { [digit / n_levels, digit % n_levels] };
            for (slots, element) in grid.digits.iter_mut().zip(elements) {
                // the cost of digits that no entry has does not matter
                slots[digit] = f32::from(levels[element.min(n_levels - 1)]);
            }
        }
        let codes: Vec<[usize; 8]> = (0..grid.n_entries()).map(|e| grid.codes(e)).collect();
        for chunk in codes.chunks_exact(16) {
            let mut digits = [[0; 16]; 4];
            for (lane, code) in chunk.iter().enumerate() {
                for (t, digit) in digits.iter_mut().enumerate() {
                    digit[lane] = match dims {
                        4 => code[t] as i32,
                        _ => (code[2 * t] * n_levels + code[2 * t + 1]) as i32,
                    };
                }
            }
            grid.chunks.push(digits);
        }
        if grid.dims == 8 && grid.n_entries() >= BY_PREFIX {
            grid.prefixes = Some(Prefixes::new(&grid.chunks));
        }
        grid.near = run(best(), FillNear(&grid));
        grid
    }

    fn n_keys(&self) -> usize {
        self.levels.len().pow(self.dims as u32)
    }

    /// Where the keys of groups with these weights begin, for [`Grid::rounded`].
    pub fn first_key(&self, w: &[f32]) -> f32 {
        let per_digit = self.dims / 4;
        let digit = |t: usize| w[t * per_digit..][..per_digit].iter().sum::<f32>();
        let w: [f32; 4] = [digit(0), digit(1), digit(2), digit(3)];
        let least = HEAVY_SHARE * w[0].max(w[1]).max(w[2].max(w[3]));
        let pattern: usize = (0..4).map(|t| usize::from(w[t] >= least) << t).sum();
        (pattern * self.n_keys()) as f32
    }

    /// Number of entries.
    pub fn n_entries(&self) -> usize {
        self.entries.len()
    }

    /// Elements of an entry.
    pub fn dims(&self) -> usize {
        self.dims
    }

    /// The highest level.
    pub fn top_level(&self) -> f32 {
        f32::from(self.levels[self.levels.len() - 1])
    }

    /// The elements of an entry (zeros from `dims` on).
    #[inline(always)]
    pub fn values(&self, entry: usize) -> [f32; 8] {
        let bytes = self.entries[entry].to_le_bytes();
        bytes.map(|b| f32::from(b as i8))
    }

    /// Level numbers of an entry's elements.
    fn codes(&self, entry: usize) -> [usize; 8] {
        let bytes = self.entries[entry].to_le_bytes();
        std::array::from_fn(|j| match j < self.dims {
            true => self.levels.iter().position(|l| *l == bytes[j] as i8).expect("entries consist of levels"),
            false => 0,
        })
    }

    /// Digit costs of a group: `w (x - scale (g + shift))^2` summed over the elements of a digit.
    #[inline(always)]
    pub fn costs<I: Isa>(&self, isa: I, x: &[f32], w: &[f32], scale: f32, shift: f32) -> Costs<I> {
        let (scale, shift) = (isa.splat_f(scale), isa.splat_f(shift));
        let [first, second] = self.digits.each_ref();
        let first = isa.mul_f(isa.add_f(isa.load_f(first), shift), scale);
        let second = isa.mul_f(isa.add_f(isa.load_f(second), shift), scale);
        let mut tables = [isa.splat_f(0.0); 4];
        for (t, table) in tables.iter_mut().enumerate() {
            *table = if self.dims == 4 {
                weighted_square(isa, x[t], w[t], first)
            } else {
                let (a, b) = (2 * t, 2 * t + 1);
                isa.add_f(weighted_square(isa, x[a], w[a], first), weighted_square(isa, x[b], w[b], second))
            };
        }
        tables
    }

    /// What it adds to [`Grid::costs`] to store one element of a digit with the wrong sign, the element for which
    /// that costs least: the least of `4 scale w x g`.
    #[inline(always)]
    pub fn flips<I: Isa>(&self, isa: I, x: &[f32], w: &[f32], scale: f32) -> Costs<I> {
        let [first, second] = self.digits.each_ref();
        let (first, second) = (isa.load_f(first), isa.load_f(second));
        let mut tables = [isa.splat_f(0.0); 4];
        for (t, table) in tables.iter_mut().enumerate() {
            *table = if self.dims == 4 {
                isa.mul_f(isa.splat_f(4.0 * scale * w[t] * x[t]), first)
            } else {
                let slope = |j: usize| 4.0 * scale * w[j] * x[j];
                let (a, b) = (isa.splat_f(slope(2 * t)), isa.splat_f(slope(2 * t + 1)));
                isa.min_f(isa.mul_f(a, first), isa.mul_f(b, second))
            };
        }
        tables
    }

    /// The entry of least cost and its cost. If no cost is below `limit`, the result may be any entry at an
    /// infinite cost.
    #[inline(always)]
    pub fn nearest<I: Isa>(&self, isa: I, costs: &Costs<I>, limit: f32) -> (usize, f32) {
        match (&self.prefixes, self.dims) {
            (Some(prefixes), _) => prefixes.nearest(isa, costs, limit),
            (None, 4) => self.scan::<I, true, false>(isa, costs, costs),
            (None, _) => self.scan::<I, false, false>(isa, costs, costs),
        }
    }

    /// The entry of least `costs + flips`, where `flips` adds the least of its four digits. This is for
    /// groups with an odd number of minus signs where only even numbers can be stored.
    #[inline(always)]
    pub fn nearest_even<I: Isa>(&self, isa: I, costs: &Costs<I>, flips: &Costs<I>) -> (usize, f32) {
        match self.dims {
            4 => self.scan::<I, true, true>(isa, costs, flips),
            _ => self.scan::<I, false, true>(isa, costs, flips),
        }
    }

    /// Compares all entries. It has no closures: one that is not inlined would be compiled without the instructions
    /// of `I`.
    #[inline(always)]
    fn scan<I: Isa, const BELOW_8: bool, const FLIPS: bool>(
        &self,
        isa: I,
        costs: &Costs<I>,
        flips: &Costs<I>,
    ) -> (usize, f32) {
        let sixteen = isa.splat_f(16.0);
        let mut least = isa.splat_f(f32::INFINITY);
        let mut entry = isa.load_f(&LANE_NUMBERS);
        let mut at = entry;
        for chunk in &self.chunks {
            let mut parts = *costs;
            for (part, digits) in parts.iter_mut().zip(chunk) {
                let digits = isa.load_i(digits);
                *part = if BELOW_8 { isa.lut8_f(*part, digits) } else { isa.lut16_f(*part, digits) };
            }
            let mut cost = isa.add_f(isa.add_f(parts[0], parts[1]), isa.add_f(parts[2], parts[3]));
            if FLIPS {
                let mut parts = *flips;
                for (part, digits) in parts.iter_mut().zip(chunk) {
                    let digits = isa.load_i(digits);
                    *part = if BELOW_8 { isa.lut8_f(*part, digits) } else { isa.lut16_f(*part, digits) };
                }
                let flip = isa.min_f(isa.min_f(parts[0], parts[1]), isa.min_f(parts[2], parts[3]));
                cost = isa.add_f(cost, flip);
            }
            at = isa.if_gt(least, cost, entry, at);
            least = isa.min_f(cost, least);
            entry = isa.add_f(entry, sixteen);
        }
        first_least(isa, least, at)
    }

    /// Rounds sixteen groups at once, each element by element to levels and then to an entry near that, with heavy
    /// digits counting more. Returns per lane `sum wx * g` and `sum w * g^2` over the entry's elements g with
    /// `shift` added. `x` times `inverse` is in units of levels. For rounding, levels are taken as equidistant.
    #[inline(always)]
    pub fn rounded<I: Isa>(
        &self,
        isa: I,
        x: &[[f32; 16]],
        wx: &[[f32; 16]],
        w: &[[f32; 16]],
        (inverse, shift): (I::F, f32),
        first_key: &[f32; 16],
    ) -> (I::F, I::F) {
        match self.dims {
            4 => self.rounded_by::<I, 4>(isa, x, wx, w, (inverse, shift), first_key),
            _ => self.rounded_by::<I, 8>(isa, x, wx, w, (inverse, shift), first_key),
        }
    }

    #[inline(always)]
    fn rounded_by<I: Isa, const DIMS: usize>(
        &self,
        isa: I,
        x: &[[f32; 16]],
        wx: &[[f32; 16]],
        w: &[[f32; 16]],
        (inverse, shift): (I::F, f32),
        first_key: &[f32; 16],
    ) -> (I::F, I::F) {
        let n_levels = self.levels.len();
        let first = f32::from(self.levels[0]);
        let last = f32::from(self.levels[n_levels - 1]);
        let per_level = (n_levels - 1) as f32 / (last - first);
        let (zero, top) = (isa.splat_f(0.0), isa.splat_f((n_levels - 1) as f32));
        let slope = isa.mul_f(inverse, isa.splat_f(per_level));
        let origin = isa.splat_f(-(first + shift) * per_level);
        let mut key = zero;
        for x in x[..DIMS].iter().rev() {
            let level = isa.mul_add_f(isa.load_f(x), slope, origin);
            // clamped first, because rounding only works for small numbers
            let digit = isa.round(isa.min_f(isa.max_f(level, zero), top));
            key = isa.mul_add_f(key, isa.splat_f(n_levels as f32), digit);
        }
        let key = isa.add_f(key, isa.load_f(first_key));
        // adding 2^23 puts the integer into the low bits
        let key = isa.array(isa.add_f(key, isa.splat_f(8_388_608.0))).map(f32::to_bits);
        let shift = isa.splat_f(shift);
        let (mut sum_wxg, mut sum_wgg) = (zero, zero);
        for half in 0..DIMS / 4 {
            let near: [u32; 16] = std::array::from_fn(|i| self.near[half][(key[i] & 0x7f_ffff) as usize]);
            for j in 0..4 {
                let g = isa.add_f(isa.load_f(&near.map(|v| f32::from((v >> (8 * j)) as i8))), shift);
                let j = 4 * half + j;
                sum_wxg = isa.add_f(sum_wxg, isa.mul_f(isa.load_f(&wx[j]), g));
                sum_wgg = isa.add_f(sum_wgg, isa.mul_f(isa.load_f(&w[j]), isa.mul_f(g, g)));
            }
        }
        (sum_wxg, sum_wgg)
    }
}

/// Finds the entries near all keys under all patterns of heavy digits. Costs are integers below 2^24, so
/// every instruction set finds the same.
struct FillNear<'a>(&'a Grid);

impl IsaOp for FillNear<'_> {
    type Output = [Vec<u32>; 2];

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Self::Output {
        let grid = self.0;
        let n_levels = grid.levels.len();
        let mut near = [Vec::new(), Vec::new()];
        for pattern in 0..16 {
            let mut w = [1.0; 8];
            for (j, w) in w.iter_mut().enumerate().take(grid.dims) {
                if pattern >> (4 * j / grid.dims) & 1 == 1 {
                    *w = HEAVY;
                }
            }
            for key in 0..grid.n_keys() {
                let mut x = [0.0; 8];
                let mut rest = key;
                for x in &mut x[..grid.dims] {
                    *x = f32::from(grid.levels[rest % n_levels]);
                    rest /= n_levels;
                }
                let entry =
                    grid.entries[grid.nearest(isa, &grid.costs(isa, &x, &w, 1.0, 0.0), f32::INFINITY).0];
                near[0].push(entry as u32);
                near[1].push((entry >> 32) as u32);
            }
        }
        near
    }
}

/// `w (x - y)^2`.
#[inline(always)]
fn weighted_square<I: Isa>(isa: I, x: f32, w: f32, y: I::F) -> I::F {
    let miss = isa.sub_f(isa.splat_f(x), y);
    isa.mul_f(isa.mul_f(isa.splat_f(w), miss), miss)
}

#[cfg(test)]
mod tests {
    use ikq_formats::codebook::*;
    use ikq_simd::available;

    use super::*;

    /// Numbers in -1..1, the same everywhere.
    fn noise(seed: u32, n: usize) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / 8_388_608.0 - 1.0
        };
        (0..n).map(|_| next()).collect()
    }

    fn grids() -> Vec<(&'static str, Grid)> {
        let bytes = |levels: [u8; 3]| levels.map(|l| l as i8);
        let ints = |levels: [u8; 8]| levels.map(|l| l as i8);
        let wide = |g: &[u32]| g.iter().map(|e| u64::from(*e)).collect::<Vec<_>>();
        vec![
            ("IQ2_XXS", Grid::new(8, &bytes(IQ2XXS_LEVELS), IQ2XXS_GRID)),
            ("IQ2_S", Grid::new(8, &bytes(IQ2S_LEVELS), IQ2S_GRID)),
            ("IQ1_S", Grid::new(8, &IQ1S_LEVELS, IQ1S_GRID)),
            ("IQ3_XXS", Grid::new(4, &ints(IQ3XXS_LEVELS), wide(&IQ3XXS_GRID))),
            ("IQ3_S", Grid::new(4, &ints(IQ3S_LEVELS), wide(&IQ3S_GRID))),
        ]
    }

    struct Nearest<'a> {
        grid: &'a Grid,
        x: &'a [f32],
        w: &'a [f32],
        scale: f32,
    }

    impl IsaOp for Nearest<'_> {
        type Output = [(usize, f32); 2];

        #[inline(always)]
        fn run<I: Isa>(self, isa: I) -> Self::Output {
            let costs = self.grid.costs(isa, self.x, self.w, self.scale, 0.0);
            let flips = self.grid.flips(isa, self.x, self.w, self.scale);
            [self.grid.nearest(isa, &costs, f32::INFINITY), self.grid.nearest_even(isa, &costs, &flips)]
        }
    }

    #[test]
    fn the_nearest_entry_is_that_of_a_search_through_all() {
        for (name, grid) in grids() {
            let dims = grid.dims();
            let signed = grid.levels[0] < 0;
            for seed in 0..60 {
                let mut x = noise(seed, dims);
                if !signed {
                    x.iter_mut().for_each(|x| *x = x.abs());
                }
                // three decades
                let w: Vec<f32> = noise(seed + 1000, dims).iter().map(|e| 10f32.powf(1.5 * e)).collect();
                let scale = 0.9 / grid.top_level();
                let error = |entry: usize, flipped: Option<usize>| -> f64 {
                    let g = grid.values(entry);
                    (0..dims)
                        .map(|j| {
                            let y = f64::from(scale)
                                * f64::from(g[j])
                                * if flipped == Some(j) { -1.0 } else { 1.0 };
                            f64::from(w[j]) * (f64::from(x[j]) - y).powi(2)
                        })
                        .sum()
                };
                let flip_error =
                    |e: usize| (0..dims).map(|j| error(e, Some(j))).fold(f64::INFINITY, f64::min);
                let least = (0..grid.n_entries()).map(|e| error(e, None)).fold(f64::INFINITY, f64::min);
                let least_even = (0..grid.n_entries()).map(flip_error).fold(f64::INFINITY, f64::min);
                let mut first = None;
                for kind in available() {
                    let found = run(kind, Nearest { grid: &grid, x: &x, w: &w, scale });
                    assert_eq!(found, *first.get_or_insert(found), "{name} on {}", kind.name());
                }
                let [free, even] = first.expect("there is a scalar set");
                // eight terms of single precision
                let close = |a: f64, b: f64| (a - b).abs() <= 1e-5 * (b + 1e-3);
                assert!(close(error(free.0, None), least), "{name} seed {seed}");
                assert!(close(f64::from(free.1), least), "{name} seed {seed}");
                if !signed {
                    assert!(close(flip_error(even.0), least_even), "{name} seed {seed}");
                    assert!(close(f64::from(even.1), least_even), "{name} seed {seed}");
                }
            }
        }
    }

    struct Rounded<'a>(&'a Grid, &'a [[f32; 16]], &'a [[f32; 16]], f32);

    impl IsaOp for Rounded<'_> {
        type Output = [[f32; 16]; 2];

        #[inline(always)]
        fn run<I: Isa>(self, isa: I) -> Self::Output {
            let Rounded(grid, x, w, inverse) = self;
            let mut wx = [[0.0; 16]; 8];
            for (wx, (x, w)) in wx.iter_mut().zip(x.iter().zip(w)) {
                *wx = std::array::from_fn(|lane| w[lane] * x[lane]);
            }
            let mut first_key = [0.0; 16];
            for (lane, key) in first_key.iter_mut().enumerate() {
                let w: Vec<f32> = w.iter().map(|w| w[lane]).collect();
                *key = grid.first_key(&w);
            }
            let (a, b) = grid.rounded(isa, x, &wx, w, (isa.splat_f(inverse), 0.0), &first_key);
            [isa.array(a), isa.array(b)]
        }
    }

    #[test]
    fn entries_round_to_themselves() {
        for (name, grid) in grids() {
            let dims = grid.dims();
            for chunk in 0..grid.n_entries() / 16 {
                let mut x = [[0.0; 16]; 8];
                for (j, x) in x.iter_mut().enumerate().take(dims) {
                    *x = std::array::from_fn(|lane| {
                        let values = grid.values(16 * chunk + lane);
                        // well within half the distance of two levels
                        0.25 * (values[j] + 0.2 * (values[1] - values[j]).signum())
                    });
                }
                let w = [[1.0; 16]; 8];
                for kind in available() {
                    let [_, b] = run(kind, Rounded(&grid, &x[..dims], &w[..dims], 4.0));
                    for (lane, b) in b.iter().enumerate() {
                        let norm: f32 = grid.values(16 * chunk + lane).iter().map(|g| g * g).sum();
                        assert_eq!(*b, norm, "{name}, entry {}", 16 * chunk + lane);
                    }
                }
            }
        }
    }
}
