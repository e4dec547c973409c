//! [`Tile`]: sixteen sub-blocks side by side, one per lane of a vector, so that their scales are searched together.
//!
//! ```text
//! row:  | sub-block 0: N floats | sub-block 1 | ... | sub-block 15 |
//! tile: x[i] = element i of the sixteen sub-blocks
//! ```
//! A search over scales does the same arithmetic in every lane, whatever the sub-blocks hold.

use ikq_simd::Isa;

use crate::encode::weights::normalizer;

/// Sub-blocks per tile.
pub const LANES: usize = 16;

/// Sixteen sub-blocks of `N` elements.
pub struct Tile<const N: usize> {
    /// `x[i][lane]`, normalised: the largest magnitude of a group of lanes is in [1, 2).
    pub x: [[f32; LANES]; N],
    /// Weights; 1 in lanes without data.
    pub w: [[f32; LANES]; N],
    /// `w * x`.
    pub wx: [[f32; LANES]; N],
    /// Whether `w` has weights that were loaded; otherwise all are 1.
    weighted: bool,
    /// The factor by which `x` was multiplied, and the one by which its scales must be multiplied.
    pub down: [f32; LANES],
    pub up: [f32; LANES],
}

impl<const N: usize> Default for Tile<N> {
    fn default() -> Self {
        Tile {
            x: [[0.0; LANES]; N],
            w: [[1.0; LANES]; N],
            wx: [[0.0; LANES]; N],
            weighted: false,
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
        transpose(isa, x, &[0.0; N], &mut self.x);
        self.normalize(isa, group);
        self.weigh(isa, w);
    }

    /// Loads sub-blocks of a row that has been normalised as a whole with these factors.
    #[inline(always)]
    pub fn load_row<I: Isa>(&mut self, isa: I, x: &[f32], w: &[f32], (down, up): (f32, f32)) {
        transpose(isa, x, &[0.0; N], &mut self.x);
        (self.down, self.up) = ([down; LANES], [up; LANES]);
        self.scale_down(isa);
        self.weigh(isa, w);
    }

    /// [`Tile::load`] with weights 1, for searches that do not use weights ([`Plain`]); `wx` is not updated.
    #[inline(always)]
    pub fn load_plain<I: Isa>(&mut self, isa: I, x: &[f32], group: usize) {
        transpose(isa, x, &[0.0; N], &mut self.x);
        self.normalize(isa, group);
        if self.weighted {
            (self.w, self.weighted) = ([[1.0; LANES]; N], false);
        }
    }

    /// Normalises every `group` lanes together.
    #[inline(always)]
    fn normalize<I: Isa>(&mut self, isa: I, group: usize) {
        let mut amax = isa.splat_f(0.0);
        for x in &self.x {
            amax = isa.max_f(isa.abs_f(isa.load_f(x)), amax);
        }
        let mut amax = isa.array(amax);
        for group in amax.chunks_mut(group) {
            let largest = group.iter().fold(0.0f32, |m, v| m.max(*v));
            group.fill(largest);
        }
        for (lane, amax) in amax.iter().enumerate() {
            (self.down[lane], self.up[lane]) = normalizer(&[*amax]);
        }
        self.scale_down(isa);
    }

    #[inline(always)]
    fn scale_down<I: Isa>(&mut self, isa: I) {
        let down = isa.load_f(&self.down);
        for x in &mut self.x {
            isa.store_f(isa.mul_f(isa.load_f(x), down), x);
        }
    }

    #[inline(always)]
    fn weigh<I: Isa>(&mut self, isa: I, w: &[f32]) {
        self.weighted = true;
        transpose(isa, w, &[1.0; N], &mut self.w);
        for i in 0..N {
            isa.store_f(isa.mul_f(isa.load_f(&self.w[i]), isa.load_f(&self.x[i])), &mut self.wx[i]);
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
            let x = isa.load_f(&self.x[i]);
            sum = isa.mul_add_f(isa.mul_f(isa.load_f(&self.w[i]), x), x, sum);
        }
        sum
    }
}

/// Puts sub-blocks side by side; lanes without one hold `missing`.
#[inline(always)]
fn transpose<I: Isa, const N: usize>(isa: I, x: &[f32], missing: &[f32; N], out: &mut [[f32; LANES]; N]) {
    const { assert!(N.is_multiple_of(16), "transposed in squares") };
    let (blocks, _) = x.as_chunks::<N>();
    for (k, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let mut rows = [&missing.as_chunks().0[k]; LANES];
        for (row, block) in rows.iter_mut().zip(blocks) {
            *row = &block.as_chunks().0[k];
        }
        for (column, out) in isa.transpose(rows).into_iter().zip(out) {
            isa.store_f(column, out);
        }
    }
}

/// How elements are weighed in sums over a tile.
pub trait Weighing: Copy {
    /// Whether the elements' weights may differ.
    const WEIGHTED: bool;

    /// `w_i v`.
    fn times<I: Isa, const N: usize>(self, isa: I, tile: &Tile<N>, i: usize, v: I::F) -> I::F;

    /// `w_i x_i`.
    fn wx<I: Isa, const N: usize>(self, isa: I, tile: &Tile<N>, i: usize) -> I::F;
}

/// Elements have the weights of the tile.
#[derive(Clone, Copy, Debug)]
pub struct Weighted;

/// All elements have weight 1; only `x` of the tile is read, so [`Tile::load_plain`] is enough.
#[derive(Clone, Copy, Debug)]
pub struct Plain;

impl Weighing for Weighted {
    const WEIGHTED: bool = true;

    #[inline(always)]
    fn times<I: Isa, const N: usize>(self, isa: I, tile: &Tile<N>, i: usize, v: I::F) -> I::F {
        isa.mul_f(isa.load_f(&tile.w[i]), v)
    }

    #[inline(always)]
    fn wx<I: Isa, const N: usize>(self, isa: I, tile: &Tile<N>, i: usize) -> I::F {
        isa.load_f(&tile.wx[i])
    }
}

impl Weighing for Plain {
    const WEIGHTED: bool = false;

    #[inline(always)]
    fn times<I: Isa, const N: usize>(self, _: I, _: &Tile<N>, _: usize, v: I::F) -> I::F {
        v
    }

    #[inline(always)]
    fn wx<I: Isa, const N: usize>(self, isa: I, tile: &Tile<N>, i: usize) -> I::F {
        isa.load_f(&tile.x[i])
    }
}

/// The codes of sixteen blocks: `codes[i][lane]`, as slots ([`ikq_simd::Lanes::slot`]).
pub type Codes<const N: usize> = [[f32; LANES]; N];

/// The codes of one lane as numbers for [`ikq_formats::Layout::pack`]: the low byte of each, in which negative
/// codes are in two's complement.
#[inline(always)]
pub fn lane_codes<const N: usize>(codes: &Codes<N>, lane: usize, out: &mut [u32]) {
    for (out, codes) in out.iter_mut().zip(codes) {
        *out = codes[lane].to_bits() & 0xff;
    }
}
