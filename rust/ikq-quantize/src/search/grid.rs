//! Codebooks of magnitude groups (grids): the entry nearest to a group under weights, exactly, and the
//! entry near a rounded group, quickly.
//!
//! An entry has 4 elements of up to 8 levels or 8 elements of 3 levels. Either way it is written as
//! four *digits* below 16 (one element, or two elements together), so that the cost of an entry is
//! the sum of four look-ups in tables of 16 costs. A table fills a vector register, and comparing a
//! group with sixteen entries takes four permutations and three additions. Levels and weights are in
//! the cost tables only: true values, shifts and signs are the caller's choice.
//!
//! | signs | search |
//! |---|---|
//! | free, or part of the levels | [`Grid::nearest`] |
//! | the number of minus signs is even (7-bit sign codes) | [`Grid::nearest_even`] |

use ikq_simd::{Isa, Lanes};

/// Largest number of keys of [`Grid::rounded`]: 8^4 and 3^8 fit.
const MAX_KEYS: usize = 8192;

/// What each value of the four digits of an entry costs.
pub type Costs = [[f32; 16]; 4];

/// A codebook prepared for searching.
pub struct Grid {
    /// Elements of an entry: 4 or 8.
    dims: usize,
    levels: Vec<i8>,
    /// Digits of sixteen entries at a time.
    chunks: Vec<[[i32; 16]; 4]>,
    /// Entries as integers whose byte j is element j.
    entries: Vec<u64>,
    /// By key (see [`Grid::rounded`]): the unweighted nearest entry, elements 0..4 and 4..8.
    near: [Box<[u32; MAX_KEYS]>; 2],
}

/// Groups side by side for [`Grid::rounded`]: element, then lane.
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
            chunks: Vec::new(),
            entries,
            near: std::array::from_fn(|_| vec![0; MAX_KEYS].try_into().expect("the length is MAX_KEYS")),
        };
        assert_eq!(grid.entries.len() % 16, 0, "a chunk would be incomplete");
        let codes: Vec<[usize; 8]> = (0..grid.len()).map(|e| grid.codes(e)).collect();
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
        grid.fill_near(&codes);
        grid
    }

    fn fill_near(&mut self, codes: &[[usize; 8]]) {
        let n_levels = self.levels.len();
        // squared distance of two levels; integers, so ties go to the first entry everywhere
        let gap = |a: usize, b: usize| (i32::from(self.levels[a]) - i32::from(self.levels[b])).pow(2);
        for key in 0..n_levels.pow(self.dims as u32) {
            let mut rest = key;
            // what each level of each element is away from the key
            let mut away = [[0; 8]; 8];
            for element in away.iter_mut().take(self.dims) {
                for (level, d) in element.iter_mut().enumerate().take(n_levels) {
                    *d = gap(rest % n_levels, level);
                }
                rest /= n_levels;
            }
            let distance = |code: &[usize; 8]| -> i32 { (0..self.dims).map(|j| away[j][code[j]]).sum() };
            let nearest = (0..codes.len()).min_by_key(|e| distance(&codes[*e])).expect("a grid has entries");
            self.near[0][key] = self.entries[nearest] as u32;
            self.near[1][key] = (self.entries[nearest] >> 32) as u32;
        }
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
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

    /// Digit costs from the cost of each element at each level number; `cost(j, level)`.
    #[inline(always)]
    pub fn costs(&self, cost: impl Fn(usize, f32) -> f32) -> Costs {
        self.tables(cost, |a, b| a + b)
    }

    /// As [`Grid::costs`] for what is the least over an entry's elements, see [`Grid::nearest_even`].
    #[inline(always)]
    pub fn least(&self, cost: impl Fn(usize, f32) -> f32) -> Costs {
        self.tables(cost, f32::min)
    }

    #[inline(always)]
    fn tables(&self, cost: impl Fn(usize, f32) -> f32, join: impl Fn(f32, f32) -> f32) -> Costs {
        let mut tables = [[0.0; 16]; 4];
        for (t, table) in tables.iter_mut().enumerate() {
            if self.dims == 4 {
                for (slot, level) in table.iter_mut().zip(&self.levels) {
                    *slot = cost(t, f32::from(*level));
                }
            } else {
                let mut slots = table.iter_mut();
                for a in &self.levels {
                    for b in &self.levels {
                        let (a, b) = (f32::from(*a), f32::from(*b));
                        if let Some(slot) = slots.next() {
                            *slot = join(cost(2 * t, a), cost(2 * t + 1, b));
                        }
                    }
                }
            }
        }
        tables
    }

    /// The entry of least cost (the first of equals) and its cost.
    #[inline(always)]
    pub fn nearest<I: Isa>(&self, isa: I, costs: &Costs) -> (usize, f32) {
        if self.dims == 4 {
            self.scan(isa, |chunk| digit_sum(isa, costs, chunk, I::lut8_f))
        } else {
            self.scan(isa, |chunk| digit_sum(isa, costs, chunk, I::lut16_f))
        }
    }

    /// The entry of least `costs + flips`, where `flips` counts with the least of its four digits: what
    /// giving the cheapest element the wrong sign adds. For groups whose true signs are odd in number
    /// where only even ones can be stored.
    #[inline(always)]
    pub fn nearest_even<I: Isa>(&self, isa: I, costs: &Costs, flips: &Costs) -> (usize, f32) {
        let flip = |chunk: &[[i32; 16]; 4]| {
            let part = |t: usize| isa.lut16_f(isa.load_f(&flips[t]), isa.load_i(&chunk[t]));
            isa.min_f(isa.min_f(part(0), part(1)), isa.min_f(part(2), part(3)))
        };
        self.scan(isa, |chunk| isa.add_f(digit_sum(isa, costs, chunk, I::lut16_f), flip(chunk)))
    }

    /// The least of `cost` over all chunks and lanes.
    #[inline(always)]
    fn scan<I: Isa>(&self, isa: I, cost: impl Fn(&[[i32; 16]; 4]) -> I::F) -> (usize, f32) {
        let mut least = isa.splat_f(f32::INFINITY);
        let mut at = isa.splat_f(0.0);
        for (c, chunk) in self.chunks.iter().enumerate() {
            let cost = cost(chunk);
            at = isa.if_gt(least, cost, isa.splat_f(c as f32), at);
            least = isa.min_f(cost, least);
        }
        let (least, at) = (isa.array(least), isa.array(at));
        let mut best = (0, f32::INFINITY);
        for lane in 0..16 {
            let entry = 16 * at[lane] as usize + lane;
            if least[lane] < best.1 || least[lane] == best.1 && entry < best.0 {
                best = (entry, least[lane]);
            }
        }
        best
    }

    /// Sixteen groups at once, each rounded to levels element by element and moved to the unweighted
    /// nearest entry: per lane `sum wx * g` and `sum w * g^2` over the entry's elements g. `x` is in
    /// units of levels once multiplied by `inverse`; levels are taken as equidistant for rounding.
    #[inline(always)]
    pub fn rounded<I: Isa>(
        &self,
        isa: I,
        x: &[[f32; 16]],
        wx: &[[f32; 16]],
        w: &[[f32; 16]],
        inverse: I::F,
    ) -> (I::F, I::F) {
        let n_levels = self.levels.len();
        let first = f32::from(self.levels[0]);
        let last = f32::from(self.levels[n_levels - 1]);
        let per_level = (n_levels - 1) as f32 / (last - first);
        let (zero, top) = (isa.splat_f(0.0), isa.splat_f((n_levels - 1) as f32));
        let (slope, shift) = (isa.mul_f(inverse, isa.splat_f(per_level)), isa.splat_f(-first * per_level));
        let mut key = zero;
        for x in x.iter().take(self.dims).rev() {
            let level = isa.mul_add_f(isa.load_f(x), slope, shift);
            // clamped before rounding, which is for small numbers only
            let digit = isa.round(isa.min_f(isa.max_f(level, zero), top));
            key = isa.mul_add_f(key, isa.splat_f(n_levels as f32), digit);
        }
        // adding 2^23 puts the integer into the low bits
        let key = isa.array(isa.add_f(key, isa.splat_f(8_388_608.0))).map(f32::to_bits);
        let (mut sum_wxg, mut sum_wgg) = (zero, zero);
        for half in 0..self.dims / 4 {
            let near: [u32; 16] = std::array::from_fn(|i| self.near[half][key[i] as usize % MAX_KEYS]);
            for j in 0..4 {
                let g = isa.load_f(&near.map(|v| f32::from((v >> (8 * j)) as i8)));
                let j = 4 * half + j;
                sum_wxg = isa.add_f(sum_wxg, isa.mul_f(isa.load_f(&wx[j]), g));
                sum_wgg = isa.add_f(sum_wgg, isa.mul_f(isa.load_f(&w[j]), isa.mul_f(g, g)));
            }
        }
        (sum_wxg, sum_wgg)
    }
}

#[inline(always)]
fn digit_sum<I: Isa>(
    isa: I,
    costs: &Costs,
    chunk: &[[i32; 16]; 4],
    lut: impl Fn(I, I::F, I::I) -> I::F,
) -> I::F {
    let part = |t: usize| lut(isa, isa.load_f(&costs[t]), isa.load_i(&chunk[t]));
    isa.add_f(isa.add_f(part(0), part(1)), isa.add_f(part(2), part(3)))
}
