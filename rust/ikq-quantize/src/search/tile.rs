//! [`Tile`]: sixteen sub-blocks side by side, one per lane, which is how scales are searched.
//!
//! ```text
//! row:  | sub-block 0: N floats | sub-block 1 | ... | sub-block 15 |
//! tile: x[i] = element i of the sixteen sub-blocks
//! ```
//! A search over scales is then the same arithmetic in every lane, whatever the sub-blocks hold.

use ikq_simd::Isa;

use crate::encode::weights::normalizer;

/// Sub-blocks per tile.
pub const LANES: usize = 16;

/// Sixteen sub-blocks of `N` elements.
pub struct Tile<const N: usize> {
    /// `x[i][lane]`, normalised: the largest magnitude of a group of lanes is in [1, 2).
    pub x: [[f32; LANES]; N],
    /// Weights (1 in lanes without data).
    pub w: [[f32; LANES]; N],
    /// `w * x`.
    pub wx: [[f32; LANES]; N],
    /// What `x` was multiplied by, and what scales of it must be multiplied by.
    pub down: [f32; LANES],
    pub up: [f32; LANES],
}

impl<const N: usize> Default for Tile<N> {
    fn default() -> Self {
        Tile {
            x: [[0.0; LANES]; N],
            w: [[1.0; LANES]; N],
            wx: [[0.0; LANES]; N],
            down: [1.0; LANES],
            up: [1.0; LANES],
        }
    }
}

impl<const N: usize> Tile<N> {
    /// Loads up to sixteen sub-blocks of a row; `x` and `w` are their elements. Every `group`
    /// neighbours (a power of two) are normalised together. Lanes without data are zeros.
    #[inline(always)]
    pub fn load<I: Isa>(&mut self, isa: I, x: &[f32], w: &[f32], group: usize) {
        (self.down, self.up) = ([1.0; LANES], [1.0; LANES]);
        for (k, x) in x.chunks(group * N).enumerate() {
            let (down, up) = normalizer(x);
            self.down[k * group..(k + 1) * group].fill(down);
            self.up[k * group..(k + 1) * group].fill(up);
        }
        self.fill(isa, x, w);
    }

    /// Loads sub-blocks of a row that has been normalised as a whole with these factors.
    #[inline(always)]
    pub fn load_row<I: Isa>(&mut self, isa: I, x: &[f32], w: &[f32], (down, up): (f32, f32)) {
        (self.down, self.up) = ([down; LANES], [up; LANES]);
        self.fill(isa, x, w);
    }

    #[inline(always)]
    fn fill<I: Isa>(&mut self, isa: I, x: &[f32], w: &[f32]) {
        if x.len() < LANES * N {
            self.x = [[0.0; LANES]; N];
            self.w = [[1.0; LANES]; N];
        }
        let (blocks, _) = x.as_chunks::<N>();
        let (weights, _) = w.as_chunks::<N>();
        for (lane, (x, w)) in blocks.iter().zip(weights).enumerate() {
            for i in 0..N {
                self.x[i][lane] = x[i];
                self.w[i][lane] = w[i];
            }
        }
        let down = isa.load_f(&self.down);
        for i in 0..N {
            let x = isa.mul_f(isa.load_f(&self.x[i]), down);
            isa.store_f(x, &mut self.x[i]);
            isa.store_f(isa.mul_f(isa.load_f(&self.w[i]), x), &mut self.wx[i]);
        }
    }

    /// The element of the largest magnitude of each sub-block, with its sign.
    #[inline(always)]
    pub fn peak<I: Isa>(&self, isa: I) -> I::F {
        let zero = isa.splat_f(0.0);
        let (lo, hi) = self.x.iter().fold((zero, zero), |(lo, hi), x| {
            let x = isa.load_f(x);
            (isa.min_f(x, lo), isa.max_f(x, hi))
        });
        isa.if_gt(isa.sub_f(zero, lo), hi, lo, hi)
    }

    /// `sum w x^2` of each sub-block.
    #[inline(always)]
    pub fn energy<I: Isa>(&self, isa: I) -> I::F {
        let mut sum = isa.splat_f(0.0);
        for i in 0..N {
            sum = isa.mul_add_f(isa.load_f(&self.wx[i]), isa.load_f(&self.x[i]), sum);
        }
        sum
    }
}

/// Sixteen blocks' codes: `codes[i][lane]`, integers as [`ikq_simd::Lanes::slot`] makes them.
pub type Codes<const N: usize> = [[f32; LANES]; N];

/// The codes of one lane as numbers for [`ikq_formats::Layout::pack`]: their low byte, which is the
/// two's complement of negative ones.
#[inline(always)]
pub fn lane_codes<const N: usize>(codes: &Codes<N>, lane: usize, out: &mut [u32]) {
    for (out, codes) in out.iter_mut().zip(codes) {
        *out = codes[lane].to_bits() & 0xff;
    }
}
