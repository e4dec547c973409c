//! Finds the best code of a group of a trellis type. Each of 2^13 to 2^16 codes yields a point in 8 (or 4)
//! dimensions; the one that is nearest to the group's elements under their weights is searched.
//!
//! The points lie in 256 *cells*: each dimension is cut into 2 ranges (4 with four dimensions) of about equal
//! numbers of points. The weighted distance to a cell's ranges is a lower bound of the distance to its points. A
//! search visits the cell with the least bound first, then those whose bounds are below the distance found so far.
//! Inside a cell all points are compared, sixteen at a time, in 16-bit integers: points and target have 8 bits of
//! fraction, square roots of weights have 14 bits, and differences times roots are rounded to 1/125. Sums that
//! decide scales are computed from the true values afterwards.

use ikq_simd::{Isa, Lanes, pair};

use super::argmin::{LANE_NUMBERS, first_least};

/// Square roots of weights are scaled so that the largest is this. Times a difference of 16 bits, with 15 bits
/// dropped from the product, it gives numbers of which 8 squares fit an i32 together.
const TOP_ROOT: f32 = 16_000.0;

/// Fraction bits of points and targets.
const ONE: f32 = 256.0;

/// Targets are clamped to this magnitude, beyond which there are no points.
const FARTHEST: f32 = 127.0;

/// What a difference of 1 becomes in fixed point after it was multiplied by [`TOP_ROOT`].
const UNIT: f32 = ONE * TOP_ROOT / 32_768.0;

/// Sixteen points: for each pair of dimensions, the two coordinates of every point, one point after another.
type Chunk<const PAIRS: usize> = [[i16; 32]; PAIRS];

/// Points prepared for searching; `PAIRS` is half the dimensions.
pub struct Trellis<const PAIRS: usize> {
    /// The chunks of cell c are `starts[c]..starts[c + 1]`; its last one is filled up with copies of its last
    /// point.
    starts: Vec<u32>,
    chunks: Vec<Chunk<PAIRS>>,
    /// The code of each point, by chunk and lane.
    codes: Vec<[u16; 16]>,
    rms: f32,
    /// For the sixteen pairs of a dimension and one of its ranges: the dimension, and the least and the largest
    /// value that points have in the range.
    dimension: [i32; 16],
    lowest: [f32; 16],
    highest: [f32; 16],
    /// A cell's number has two halves of four bits. For each half, and each dimension that it covers: the pair of
    /// dimension and range that each of its 16 values stands for.
    ranges: [[[i32; 16]; PAIRS]; 2],
}

impl<const PAIRS: usize> Trellis<PAIRS> {
    const DIMS: usize = 2 * PAIRS;
    /// Bits of a cell number per dimension.
    const BITS: usize = 8 / Self::DIMS;

    /// The points of codes `0..n`; `point(code)` has values within -127..=127.
    pub fn new(n: usize, point: impl Fn(u32) -> [i32; 8]) -> Self {
        let n_ranges = 1 << Self::BITS;
        let points: Vec<[i32; 8]> = (0..n as u32).map(point).collect();
        let squares: i64 = points.iter().flat_map(|p| &p[..Self::DIMS]).map(|v| i64::from(v * v)).sum();
        let mut cell_of = vec![0usize; n];
        let (mut lowest, mut highest) = ([0.0; 16], [0.0; 16]);
        for j in 0..Self::DIMS {
            let mut sorted: Vec<i32> = points.iter().map(|p| p[j]).collect();
            sorted.sort_unstable();
            let cuts: Vec<i32> = (1..n_ranges).map(|r| sorted[r * n / n_ranges]).collect();
            let range_of = |v: i32| cuts.iter().filter(|c| v >= **c).count();
            for (p, cell) in points.iter().zip(&mut cell_of) {
                *cell |= range_of(p[j]) << (Self::BITS * j);
            }
            for r in 0..n_ranges {
                let mut inside = sorted.iter().filter(|v| range_of(**v) == r);
                let lo = *inside.next().expect("cuts lie between points");
                let hi = *inside.next_back().unwrap_or(&lo);
                lowest[n_ranges * j + r] = lo as f32;
                highest[n_ranges * j + r] = hi as f32;
            }
        }
        let half = |half: usize, j: usize| {
            let range = |n: usize| n >> (Self::BITS * j) & (n_ranges - 1);
            std::array::from_fn(|n| (n_ranges * (PAIRS * half + j) + range(n)) as i32)
        };
        let mut out = Trellis {
            starts: vec![0],
            chunks: Vec::new(),
            codes: Vec::new(),
            rms: (squares as f64 / (n * Self::DIMS) as f64).sqrt() as f32,
            dimension: std::array::from_fn(|i| (i / n_ranges) as i32),
            lowest,
            highest,
            ranges: std::array::from_fn(|h| std::array::from_fn(|j| half(h, j))),
        };
        for cell in 0..256 {
            let members: Vec<usize> = (0..n).filter(|c| cell_of[*c] == cell).collect();
            for sixteen in members.chunks(16) {
                let mut chunk = [[0; 32]; PAIRS];
                let mut codes = [0; 16];
                for lane in 0..16 {
                    let code = sixteen[lane.min(sixteen.len() - 1)];
                    codes[lane] = code as u16;
                    for (pair, halves) in chunk.iter_mut().enumerate() {
                        for k in 0..2 {
                            halves[2 * lane + k] = (points[code][2 * pair + k] * ONE as i32) as i16;
                        }
                    }
                }
                out.chunks.push(chunk);
                out.codes.push(codes);
            }
            out.starts.push(out.chunks.len() as u32);
        }
        out
    }

    /// Root mean square of the values.
    pub fn rms(&self) -> f32 {
        self.rms
    }

    /// The point nearest to `target` (in units of the values).
    /// `patience`: a cell is only visited if its lower bound is below this share of the best distance
    /// found so far; 1 finds the nearest of all points, 0 looks at one cell.
    #[inline(always)]
    pub fn nearest<I: Isa>(&self, isa: I, target: &[f32], weights: &Weights<PAIRS>, patience: f32) -> Found {
        let mut padded = [0.0; 16];
        for (padded, target) in padded.iter_mut().zip(&target[..Self::DIMS]) {
            *padded = target.clamp(-FARTHEST, FARTHEST);
        }
        let mut pairs = [isa.splat_i(0); PAIRS];
        let mut roots = [isa.splat_i(0); PAIRS];
        for p in 0..PAIRS {
            pairs[p] = pair(isa, [fixed(padded[2 * p]), fixed(padded[2 * p + 1])]);
            roots[p] = pair(isa, weights.roots[p]);
        }
        // the least cost of every range of every dimension, then of every half of a cell's number
        let spread = isa.lut16_f(isa.load_f(&padded), isa.load_i(&self.dimension));
        let below = isa.sub_f(isa.load_f(&self.lowest), spread);
        let above = isa.sub_f(spread, isa.load_f(&self.highest));
        let away = isa.max_f(isa.max_f(below, above), isa.splat_f(0.0));
        let costs = isa.mul_f(isa.mul_f(away, away), isa.load_f(&weights.spread));
        let mut halves = [isa.splat_f(0.0); 2];
        for (half, ranges) in halves.iter_mut().zip(&self.ranges) {
            for ranges in ranges {
                *half = isa.add_f(*half, isa.lut16_f(costs, isa.load_i(ranges)));
            }
        }
        let [low, high] = halves;
        let (least_low, least_high) = (isa.least(low), isa.least(high));
        let not_above = |v: I::F, least: f32| !isa.bits_gt(v, isa.splat_f(least)) & 0xffff;
        let first =
            16 * not_above(high, least_high).trailing_zeros() + not_above(low, least_low).trailing_zeros();
        let mut nearest = Nearest { distance: isa.splat_f(f32::INFINITY), point: isa.splat_f(0.0) };
        self.scan(isa, first as usize, &pairs, &roots, &mut nearest);
        let mut limit = patience * isa.least(nearest.distance);
        if least_low + least_high < limit {
            let high_costs = isa.array(high);
            // the limit falls while cells are visited, so each cell's bound is compared again
            let mut highs = isa.bits_gt(isa.splat_f(limit - least_low), high);
            while highs != 0 {
                let h = highs.trailing_zeros();
                highs &= highs - 1;
                let room = limit - high_costs[h as usize & 15];
                let mut lows = isa.bits_gt(isa.splat_f(room), low);
                while lows != 0 {
                    let cell = 16 * h + lows.trailing_zeros();
                    lows &= lows - 1;
                    if cell != first {
                        self.scan(isa, cell as usize, &pairs, &roots, &mut nearest);
                    }
                }
                limit = patience * isa.least(nearest.distance);
            }
        }
        let (point, _) = first_least(isa, nearest.distance, nearest.point);
        let (chunk, lane) = (point / 16, point % 16);
        let mut values = [0.0; 8];
        for (p, halves) in self.chunks[chunk].iter().enumerate() {
            for k in 0..2 {
                values[2 * p + k] = f32::from(halves[2 * lane + k]) / ONE;
            }
        }
        Found { code: self.codes[chunk][lane], values }
    }

    /// Compares the points of a cell with the target.
    #[inline(always)]
    fn scan<I: Isa>(
        &self,
        isa: I,
        cell: usize,
        target: &[I::I; PAIRS],
        roots: &[I::I; PAIRS],
        nearest: &mut Nearest<I>,
    ) {
        let (start, end) = (self.starts[cell] as usize, self.starts[cell + 1] as usize);
        let sixteen = isa.splat_f(16.0);
        let mut point = isa.add_f(isa.load_f(&LANE_NUMBERS), isa.splat_f(16.0 * start as f32));
        let Nearest { distance: mut least, point: mut at } = *nearest;
        for chunk in &self.chunks[start..end] {
            let mut sum = isa.splat_i(0);
            for p in 0..PAIRS {
                sum = isa.add_square_2(sum, &chunk[p], target[p], roots[p]);
            }
            let distance = isa.float_i(sum);
            at = isa.if_gt(least, distance, point, at);
            least = isa.min_f(distance, least);
            point = isa.add_f(point, sixteen);
        }
        *nearest = Nearest { distance: least, point: at };
    }
}

/// Weights of a group, prepared for any number of searches in any [`Trellis`] with as many dimensions.
#[derive(Clone, Copy)]
pub struct Weights<const PAIRS: usize> {
    /// Square roots of the weights, scaled so that the largest is [`TOP_ROOT`].
    roots: [[i16; 2]; PAIRS],
    /// The weight for each pair of dimension and range.
    spread: [f32; 16],
}

impl<const PAIRS: usize> Weights<PAIRS> {
    pub const EMPTY: Self = Weights { roots: [[0; 2]; PAIRS], spread: [0.0; 16] };

    /// Prepares weights, which must be positive, one per dimension.
    #[inline(always)]
    pub fn new<I: Isa>(isa: I, w: &[f32]) -> Self {
        let dims = 2 * PAIRS;
        let mut padded = [0.0; 16];
        padded[..dims].copy_from_slice(&w[..dims]);
        let mut top = 0.0f32;
        for w in &padded[..dims] {
            top = top.max(*w);
        }
        let shares = isa.mul_f(isa.load_f(&padded), isa.splat_f(1.0 / top));
        let rounded = isa.array(isa.round(isa.mul_f(isa.sqrt_f(shares), isa.splat_f(TOP_ROOT))));
        let costs = isa.array(isa.mul_f(shares, isa.splat_f(UNIT * UNIT)));
        let mut out = Self::EMPTY;
        for (p, roots) in out.roots.iter_mut().enumerate() {
            *roots = [rounded[2 * p] as i16, rounded[2 * p + 1] as i16];
        }
        for (i, spread) in out.spread.iter_mut().enumerate() {
            *spread = costs[i * dims / 16];
        }
        out
    }
}

/// The nearest points so far, lane by lane.
struct Nearest<I: Lanes> {
    distance: I::F,
    point: I::F,
}

/// The code that was found, and the point that it yields.
pub struct Found {
    pub code: u16,
    pub values: [f32; 8],
}

/// The fixed-point form of a clamped target.
#[inline(always)]
fn fixed(target: f32) -> i16 {
    // adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the low bits
    (target * ONE + 12_582_912.0).to_bits() as i16
}

#[cfg(test)]
mod tests {
    use ikq_formats::codebook::{KT_OFFSET, kt_values};
    use ikq_simd::{IsaOp, available, run};

    use super::*;

    /// Numbers in -1..1, the same everywhere.
    fn noise(seed: u32, n: usize) -> Vec<f32> {
        let mut state = seed.wrapping_mul(2_654_435_761);
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / 8_388_608.0 - 1.0
        };
        (0..n).map(|_| next()).collect()
    }

    /// Targets that are sums of three numbers, which are spread about as the points are.
    fn targets(seed: u32, n: usize) -> Vec<f32> {
        noise(seed, 3 * n).chunks(3).map(|c| 37.0 * c.iter().sum::<f32>()).collect()
    }

    /// The codes found with patience 0, 0.2 and 1.
    struct Find<'a, const PAIRS: usize>(&'a Trellis<PAIRS>, &'a [f32], &'a [f32]);

    impl<const PAIRS: usize> IsaOp for Find<'_, PAIRS> {
        type Output = [u16; 3];

        #[inline(always)]
        fn run<I: Isa>(self, isa: I) -> [u16; 3] {
            let Find(trellis, target, w) = self;
            let weights = Weights::new(isa, w);
            let mut codes = [0; 3];
            for (code, patience) in codes.iter_mut().zip([0.0, 0.2, 1.0]) {
                *code = trellis.nearest(isa, target, &weights, patience).code;
            }
            codes
        }
    }

    fn check<const PAIRS: usize>(trellis: &Trellis<PAIRS>, n: u32, point: fn(u32) -> [i32; 8]) {
        let dims = 2 * PAIRS;
        let mut sums = [0.0; 4];
        for seed in 0..100 {
            let target = targets(seed, dims);
            // weights that span three decades, or are all alike
            let w: Vec<f32> = noise(seed + 1000, dims)
                .iter()
                .map(|e| if seed % 2 == 0 { 10f32.powf(1.5 * e) } else { 1.0 })
                .collect();
            let distance = |code: u32| -> f64 {
                let t = point(code);
                (0..dims).map(|j| f64::from(w[j]) * (f64::from(target[j]) - f64::from(t[j])).powi(2)).sum()
            };
            let top = w.iter().fold(0.0f32, |m, w| m.max(*w));
            let least = (0..n).map(distance).fold(f64::INFINITY, f64::min);
            let mut first = None;
            for kind in available() {
                let found = run(kind, Find(trellis, &target, &w));
                assert_eq!(found, *first.get_or_insert(found), "seed {seed} on {}", kind.name());
            }
            let found = first.expect("there is a scalar set").map(|code| distance(u32::from(code)));
            // Per dimension, in units of the values and of the top weight: a difference of up to 128 times its
            // root is rounded to 1/125, squared: 128/125; it is off by 1/512 before: 128/256; a root is off by
            // 1/32000, for squares up to 2^14: 1.02. For the point found and the best.
            let slack = 2.0 * dims as f64 * f64::from(top) * (1.03 + 0.5 + 1.03);
            assert!(found[2] <= least + slack, "seed {seed}: {} for {least}", found[2]);
            assert!(found[1] <= found[0] + slack, "seed {seed}: looked at more and found less");
            for (sum, distance) in sums.iter_mut().zip(found.into_iter().chain([least])) {
                *sum += distance / f64::from(top);
            }
        }
        // these bounds are measured, because no bound on the value of patience follows from theory
        assert!(sums[2] <= 1.002 * sums[3], "{sums:?}");
        assert!(sums[1] <= 1.05 * sums[3], "{sums:?}");
        assert!(sums[0] <= 2.5 * sums[3], "{sums:?}");
    }

    #[test]
    fn the_code_found_is_nearly_the_best_of_all() {
        let point: fn(u32) -> [i32; 8] = |code| kt_values(code, KT_OFFSET);
        check(&Trellis::<4>::new(1 << 16, point), 1 << 16, point);
        check(&Trellis::<4>::new(1 << 13, point), 1 << 13, point);
    }

    #[test]
    fn four_dimensions_are_searched_by_the_same_code() {
        let point: fn(u32) -> [i32; 8] = |code| kt_values(code, KT_OFFSET);
        check(&Trellis::<2>::new(1 << 15, point), 1 << 15, point);
    }

    #[test]
    fn a_point_finds_itself() {
        let point: fn(u32) -> [i32; 8] = |code| kt_values(code, KT_OFFSET);
        let trellis = Trellis::<4>::new(1 << 16, point);
        for code in (0..1 << 16).step_by(997) {
            let target = point(code).map(|v| v as f32);
            for kind in available() {
                let [found, ..] = run(kind, Find(&trellis, &target, &[1.0; 8]));
                assert_eq!(point(u32::from(found)), point(code), "{code} on {}", kind.name());
            }
        }
    }
}
