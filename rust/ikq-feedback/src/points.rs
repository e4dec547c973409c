//! Finding the nearest codebook entry or trellis point for a group of columns.

use ikq_encode::search::grid_block::GridSearch;
use ikq_encode::search::trellis::{Trellis, Weights};
use ikq_simd::{Isa, IsaOp};

use crate::form::Choice;
use crate::groups::{MOST, Point, Points};

/// Entries of a codebook: eight columns have `CODES` of them, and `BESIDE` numbers beside them, which are their
/// signs or their shift.
pub(crate) struct Entries<const CODES: usize, const BESIDE: usize> {
    pub search: GridSearch<'static>,
    pub beside: Beside,
    /// The shift that is added to all levels of an entry, in units of a level.
    pub shift: f32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Beside {
    Nothing,
    /// Signs of which only these bits are stored.
    Signs(u8),
    Shift,
}

impl<I: Isa, const CODES: usize, const BESIDE: usize> Points<I> for Entries<CODES, BESIDE> {
    const COLUMNS: usize = 8;
    const CODES: usize = CODES;
    const BESIDE: usize = BESIDE;
    type Weights = [f32; MOST];

    #[inline(always)]
    fn weights(&self, _: I, w: &[f32; MOST]) -> [f32; MOST] {
        *w
    }

    #[inline(always)]
    fn nearest(&self, isa: I, x: &[f32; MOST], weights: &[f32; MOST], choice: &Choice) -> Point {
        // a choice with the second table row means the negative shift
        let shift = if choice.stored[1] == 1 { -self.shift } else { self.shift };
        isa.apart(NearestEntries {
            search: &self.search,
            beside: self.beside,
            x,
            weights,
            scale: choice.a,
            shift,
        })
    }
}

/// Finds the nearest entries, as an operation that is compiled once for all codebooks.
struct NearestEntries<'a> {
    search: &'a GridSearch<'static>,
    beside: Beside,
    x: &'a [f32; MOST],
    weights: &'a [f32; MOST],
    scale: f32,
    shift: f32,
}

impl IsaOp for NearestEntries<'_> {
    type Output = Point;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Point {
        let found = self.search.codes_of_eight(isa, self.x, self.weights, (self.scale, self.shift));
        let mut out = Point { codes: found.entries, ..Point::default() };
        out.values.iter_mut().zip(found.values).for_each(|(y, v)| *y = self.scale * v);
        out.beside[0] = match self.beside {
            Beside::Nothing => 0,
            Beside::Signs(mask) => found.signs & mask,
            Beside::Shift => found.shift,
        };
        out
    }
}

/// Points of a trellis for `2 * PAIRS` columns, `SIGNS` of which have their signs stored separately (all or none).
pub(crate) struct Seeds<const PAIRS: usize, const SIGNS: usize> {
    pub sets: &'static [Trellis<PAIRS>],
}

/// The patience of searches: how many points they compare (see [`Trellis::nearest`]).
const PATIENCE: f32 = 0.2;

impl<I: Isa, const PAIRS: usize, const SIGNS: usize> Points<I> for Seeds<PAIRS, SIGNS> {
    const COLUMNS: usize = 2 * PAIRS;
    const CODES: usize = 1;
    const BESIDE: usize = SIGNS;
    type Weights = Weights<PAIRS>;

    #[inline(always)]
    fn weights(&self, isa: I, w: &[f32; MOST]) -> Weights<PAIRS> {
        Weights::new(isa, w)
    }

    #[inline(always)]
    fn nearest(&self, isa: I, x: &[f32; MOST], weights: &Weights<PAIRS>, choice: &Choice) -> Point {
        // a choice with the second table row means the other set of points
        let points = &self.sets[choice.stored[1] as usize];
        isa.apart(NearestSeed { points, x, weights, scale: choice.a, signs: SIGNS > 0 })
    }
}

/// Finds the nearest point, as an operation that is compiled once for all sets of points with as many dimensions.
struct NearestSeed<'a, const PAIRS: usize> {
    points: &'a Trellis<PAIRS>,
    x: &'a [f32; MOST],
    weights: &'a Weights<PAIRS>,
    scale: f32,
    signs: bool,
}

impl<const PAIRS: usize> IsaOp for NearestSeed<'_, PAIRS> {
    type Output = Point;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Point {
        let inverse = if self.scale.abs() < f32::MIN_POSITIVE { 0.0 } else { 1.0 / self.scale };
        let mut target = self.x.map(|x| x * inverse);
        let mut out = Point::default();
        if self.signs {
            for (x, beside) in self.x.iter().zip(&mut out.beside) {
                *beside = u8::from(*x < 0.0);
            }
            target = target.map(f32::abs);
        }
        let found = self.points.nearest(isa, &target, self.weights, PATIENCE);
        out.codes[0] = found.code;
        for j in 0..2 * PAIRS {
            let y = self.scale * found.values[j];
            out.values[j] = if out.beside[j] == 1 { -y } else { y };
        }
        out
    }
}
