//! Codes that stand for one or two columns. They are found for sixteen rows at a time, one row per lane.

use ikq_covariance::UNIT;
use ikq_encode::search::levels::{Levels, Table4};
use ikq_formats::codebook::{IQ2KL_VALUES, IQ4K_VALUES};
use ikq_simd::Isa;

use crate::coder::{Coded, Coder, MOST_SUB, SubBlock};
use crate::descent::{Replaces, Unit, descend_in_columns};
use crate::form::{Choice, MOST_CHOICES};
use crate::passes::{LANES, Lane, SIDE_BY_SIDE};

/// Quotients are clamped to this: beyond it, every type has its last level, and rounding only works for small
/// numbers.
const LARGE: f32 = 65536.0;

/// a, b and 1 / a (0 where a is 0) of a choice, for each lane.
#[derive(Clone, Copy)]
pub(crate) struct Scales<F> {
    a: F,
    b: F,
    inverse: F,
}

impl<F: Copy> Scales<F> {
    #[inline(always)]
    pub fn new<I: Isa<F = F>>(isa: I, choices: &[Choice; LANES]) -> Self {
        let a = isa.load_f(&choices.map(|c| c.a));
        let b = isa.load_f(&choices.map(|c| c.b));
        let (zero, least) = (isa.splat_f(0.0), isa.splat_f(f32::MIN_POSITIVE));
        let inverse = isa.if_gt(isa.abs_f(a), least, isa.div_f(isa.splat_f(1.0), a), zero);
        Scales { a, b, inverse }
    }

    /// The same choice in all lanes.
    #[inline(always)]
    pub fn splat<I: Isa<F = F>>(isa: I, choice: &Choice) -> Self {
        let inverse = if choice.a.abs() > f32::MIN_POSITIVE { 1.0 / choice.a } else { 0.0 };
        Scales { a: isa.splat_f(choice.a), b: isa.splat_f(choice.b), inverse: isa.splat_f(inverse) }
    }

    /// `x` in units of the scale, clamped for rounding.
    #[inline(always)]
    pub fn target<I: Isa<F = F>>(self, isa: I, x: F) -> F {
        let t = isa.mul_f(isa.sub_f(x, self.b), self.inverse);
        isa.max_f(isa.min_f(t, isa.splat_f(LARGE)), isa.splat_f(-LARGE))
    }

    /// The number that a level decodes to.
    #[inline(always)]
    pub fn value<I: Isa<F = F>>(self, isa: I, level: F) -> F {
        isa.mul_add_f(self.a, level, self.b)
    }
}

/// `N` neighbouring columns for which codes are to be found.
#[derive(Clone, Copy)]
pub(crate) struct Target<F, const N: usize> {
    /// The columns, adjusted for the errors of all earlier ones, and their weights.
    x: [F; N],
    w: [F; N],
    /// Of two columns: the factor with which the error of the first is subtracted from the second.
    spread: F,
    /// The columns [`InLanes::AHEAD`] after these, adjusted for errors that are known by now, and their weights.
    ahead: [F; N],
    ahead_w: [F; N],
}

/// Finds codes of `N` neighbouring columns.
pub(crate) trait InLanes<I: Isa, const N: usize>: Copy {
    /// What must be remembered of a sub-block's earlier codes.
    type Seen: Copy;
    /// Whether there is a code for each column, or one for all of them.
    const PER_COLUMN: bool = true;
    /// How far ahead the columns are whose choice is restricted by codes of the first half of a sub-block; 0 if
    /// there are none.
    const AHEAD: usize = 0;
    /// Whether every column has a level of its own, which [`InLanes::level`] finds.
    const FREE: bool = false;

    fn nothing_seen(self, isa: I) -> Self::Seen;

    /// Errors (of columns that are adjusted for those before them) and codes (as slots) of columns `at..at + N` of
    /// the sub-block.
    fn nearest(
        self,
        isa: I,
        target: Target<I::F, N>,
        scales: Scales<I::F>,
        at: usize,
        seen: &mut Self::Seen,
    ) -> ([I::F; N], [I::F; N]);

    /// The level nearest to `t`, and its code as a slot, where levels are [free](InLanes::FREE).
    #[inline(always)]
    fn level(self, _: I, t: I::F) -> (I::F, I::F) {
        (t, t)
    }
}

/// Makes [`InLanes`] a [`Coder`].
#[derive(Clone, Copy)]
pub(crate) struct BesideEachOther<C, const N: usize>(pub C);

impl<I: Isa, C: InLanes<I, N>, const N: usize> Coder<I> for BesideEachOther<C, N> {
    #[inline(always)]
    fn code(&self, isa: I, sub: &SubBlock<'_>, out: &mut Coded<'_>) {
        let mut scales = [Scales::new(isa, &sub.choices[0]); MOST_CHOICES];
        for (scales, choices) in scales.iter_mut().zip(sub.choices) {
            *scales = Scales::new(isa, choices);
        }
        let mut losses = [isa.splat_f(0.0); MOST_CHOICES];
        column_by_column(isa, self.0, sub, &scales[..sub.choices.len()], |choice, at, _, errors, _| {
            for (j, e) in errors.into_iter().enumerate() {
                let w = isa.splat_f(sub.factors.weights[sub.at + at + j]);
                losses[choice] = isa.mul_add_f(isa.mul_f(e, e), w, losses[choice]);
            }
        });
        out.kept = sub.choices[0];
        let mut least = isa.splat_f(f32::MAX);
        for (choices, loss) in sub.choices.iter().zip(losses) {
            let better = isa.bits_gt(least, loss);
            least = isa.min_f(loss, least);
            for (lane, (kept, choice)) in out.kept.iter_mut().zip(choices).enumerate() {
                if better >> lane & 1 == 1 {
                    *kept = *choice;
                }
            }
        }
        let scales = Scales::new(isa, &out.kept);
        let (errors, decoded, codes) = (&mut *out.errors, &mut *out.decoded, &mut out.codes);
        column_by_column(isa, self.0, sub, &[scales], |_, at, x, e, found| {
            for (j, (x, e)) in x.into_iter().zip(e).enumerate() {
                isa.store_f(e, &mut errors[at + j]);
                isa.store_f(isa.sub_f(x, e), &mut decoded[at + j]);
            }
            for (j, code) in found.into_iter().enumerate() {
                let place = if C::PER_COLUMN { at + j } else { at / N };
                codes[place] = isa.slot_bytes(code).map(u16::from);
                if !C::PER_COLUMN {
                    break;
                }
            }
        });
    }

    #[inline(always)]
    fn replaces(&self) -> Option<Replaces> {
        C::FREE.then_some(Replaces { columns: 1, codes: 1, beside: 0 })
    }

    #[inline(always)]
    fn descend(&self, isa: I, unit: Unit<'_>) {
        descend_in_columns(isa, unit, self.0);
    }
}

/// Goes through the columns of a sub-block, `N` at a time, with several scales in turn, so that their chains of
/// operations overlap. `found` is given the number of the scale, the first column, targets, errors and codes.
#[inline(always)]
fn column_by_column<I: Isa, C: InLanes<I, N>, const N: usize>(
    isa: I,
    coder: C,
    sub: &SubBlock<'_>,
    scales: &[Scales<I::F>],
    mut found: impl FnMut(usize, usize, [I::F; N], [I::F; N], [I::F; N]),
) {
    let spread = &sub.factors.spread;
    let mut errors = [[[0.0; LANES]; MOST_SUB]; MOST_CHOICES];
    let mut eight = [[[0.0; LANES]; SIDE_BY_SIDE]; MOST_CHOICES];
    let mut seen = [coder.nothing_seen(isa); MOST_CHOICES];
    for start in (0..sub.x.len()).step_by(SIDE_BY_SIDE) {
        let column = sub.at + start;
        // the factors of these columns: rows of the sub-block up to and with them
        let half = column % LANES / SIDE_BY_SIDE;
        let strip = &spread.strip(column / LANES)[sub.at % UNIT..];
        let factors = |row: usize| &strip[row].as_chunks::<SIDE_BY_SIDE>().0[half];
        // first, all are adjusted for the errors of columns before these
        for (errors, eight) in errors.iter().zip(&mut eight).take(scales.len()) {
            let mut x: [I::F; SIDE_BY_SIDE] = std::array::from_fn(|i| isa.load_f(&sub.x[start + i]));
            for (p, e) in errors[..start].iter().enumerate() {
                let e = isa.load_f(e);
                for (x, factor) in x.iter_mut().zip(factors(p)) {
                    *x = isa.sub_f(*x, isa.mul_f(e, isa.splat_f(*factor)));
                }
            }
            x.into_iter().zip(eight).for_each(|(x, out)| isa.store_f(x, out));
        }
        for i in (0..SIDE_BY_SIDE).step_by(N) {
            let j = start + i;
            let mut w = [isa.splat_f(0.0); N];
            for (w, weight) in w.iter_mut().zip(&sub.factors.weights[sub.at + j..]) {
                *w = isa.splat_f(*weight);
            }
            let to_other = isa.splat_f(if N > 1 { factors(j)[i + 1] } else { 0.0 });
            for (choice, scales) in scales.iter().enumerate() {
                let (errors, seen) = (&mut errors[choice], &mut seen[choice]);
                let mut x = [isa.splat_f(0.0); N];
                for n in 0..N {
                    x[n] = isa.load_f(&eight[choice][i + n]);
                    for (p, e) in errors[start..j].iter().enumerate() {
                        let factor = isa.splat_f(factors(start + p)[i + n]);
                        x[n] = isa.sub_f(x[n], isa.mul_f(isa.load_f(e), factor));
                    }
                }
                let (ahead, ahead_w) = if C::AHEAD > 0 && j < C::AHEAD {
                    columns(isa, sub, &errors[..j], j + C::AHEAD)
                } else {
                    (x, w)
                };
                let target = Target { x, w, spread: to_other, ahead, ahead_w };
                let (e, codes) = coder.nearest(isa, target, *scales, j, seen);
                for (n, e) in e.into_iter().enumerate() {
                    isa.store_f(e, &mut errors[j + n]);
                    if n > 0 {
                        // the error of the first is part of what the second was chosen for
                        x[n] = isa.sub_f(x[n], isa.mul_f(isa.load_f(&errors[j]), to_other));
                    }
                }
                found(choice, j, x, e, codes);
            }
        }
    }
}

/// `N` columns of a sub-block, adjusted for `errors`, which are those of its first columns; and their weights.
#[inline(always)]
fn columns<I: Isa, const N: usize>(
    isa: I,
    sub: &SubBlock<'_>,
    errors: &[Lane],
    first: usize,
) -> ([I::F; N], [I::F; N]) {
    let (mut x, mut w) = ([isa.splat_f(0.0); N], [isa.splat_f(0.0); N]);
    for i in 0..N {
        let column = sub.at + first + i;
        x[i] = isa.load_f(&sub.x[first + i]);
        let strip = &sub.factors.spread.strip(column / LANES)[sub.at % UNIT..][..errors.len()];
        for (e, row) in errors.iter().zip(strip) {
            x[i] = isa.sub_f(x[i], isa.mul_f(isa.load_f(e), isa.splat_f(row[column % LANES])));
        }
        w[i] = isa.splat_f(sub.factors.weights[column]);
    }
    (x, w)
}

/// The codes of types in which every column has a level of its own.
#[derive(Clone, Copy)]
pub(crate) struct Each<L>(pub L);

impl<I: Isa, L: Levels<I>> InLanes<I, 1> for Each<L> {
    type Seen = ();
    const FREE: bool = true;

    #[inline(always)]
    fn nothing_seen(self, _: I) {}

    #[inline(always)]
    fn level(self, isa: I, t: I::F) -> (I::F, I::F) {
        (self.0.nearest(isa, t), self.0.code(isa, t))
    }

    #[inline(always)]
    fn nearest(
        self,
        isa: I,
        Target { x: [x], .. }: Target<I::F, 1>,
        scales: Scales<I::F>,
        _: usize,
        (): &mut (),
    ) -> ([I::F; 1], [I::F; 1]) {
        let t = scales.target(isa, x);
        let e = isa.sub_f(x, scales.value(isa, self.0.nearest(isa, t)));
        ([e], [self.0.code(isa, t)])
    }
}

/// The codes of IQ2_KL, each of which stands for two columns.
#[derive(Clone, Copy)]
pub(crate) struct Pairs;

impl<I: Isa> InLanes<I, 2> for Pairs {
    type Seen = ();
    const PER_COLUMN: bool = false;

    #[inline(always)]
    fn nothing_seen(self, _: I) {}

    #[inline(always)]
    fn nearest(
        self,
        isa: I,
        Target { x, w, spread, .. }: Target<I::F, 2>,
        scales: Scales<I::F>,
        _: usize,
        (): &mut (),
    ) -> ([I::F; 2], [I::F; 2]) {
        let mut best = ([isa.splat_f(0.0); 2], isa.splat_f(0.0));
        let mut least = isa.splat_f(f32::INFINITY);
        for (code, [first, second]) in IQ2KL_VALUES.iter().enumerate() {
            let e = isa.sub_f(x[0], scales.value(isa, isa.splat_f(f32::from(*first))));
            let other = isa.sub_f(x[1], isa.mul_f(e, spread));
            let f = isa.sub_f(other, scales.value(isa, isa.splat_f(f32::from(*second))));
            let loss = loss(isa, [e, f], w);
            best.0 = [isa.if_gt(least, loss, e, best.0[0]), isa.if_gt(least, loss, f, best.0[1])];
            best.1 = isa.if_gt(least, loss, isa.splat_f(code as f32), best.1);
            least = isa.min_f(loss, least);
        }
        let code = isa.slot(best.1);
        (best.0, [code, code])
    }
}

#[inline(always)]
fn loss<I: Isa>(isa: I, e: [I::F; 2], w: [I::F; 2]) -> I::F {
    let first = isa.mul_f(isa.mul_f(e[0], e[0]), w[0]);
    isa.mul_add_f(isa.mul_f(e[1], e[1]), w[1], first)
}

/// The codes of IQ4_KSS: those of columns 2t, 2t + 1, 16 + 2t and 17 + 2t of a sub-block of 32 must have an even
/// number of one bits together. Normally the pair in the second half takes codes that make it even; where that pair
/// would have to leave its nearest levels and changing the first pair costs less, the first pair does.
pub(crate) struct EvenFours<I: Isa> {
    table: Table4<I>,
    /// For each code: -1 where it has an odd number of one bits, else 1; and the next values above and below whose
    /// codes have the other parity.
    signs: I::F,
    above: I::F,
    below: I::F,
}

impl<I: Isa> Clone for EvenFours<I> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<I: Isa> Copy for EvenFours<I> {}

/// A column's nearest level, the sign of its code (-1 for an odd number of one bits), and the nearest level of the
/// other sign.
#[derive(Clone, Copy)]
struct Near<F> {
    level: F,
    sign: F,
    other: F,
}

impl<I: Isa> EvenFours<I> {
    #[inline(always)]
    pub fn new(isa: I) -> Self {
        let values = IQ4K_VALUES[0].map(f32::from);
        let odd = |code: usize| code.count_ones() % 2;
        let (mut signs, mut above, mut below) = ([0.0; 16], [0.0; 16], [0.0; 16]);
        for code in 0..16 {
            let up = (code + 1..16).find(|c| odd(*c) != odd(code));
            let down = (0..code).rev().find(|c| odd(*c) != odd(code));
            signs[code] = 1.0 - 2.0 * odd(code) as f32;
            above[code] = values[up.or(down).unwrap_or(code)];
            below[code] = values[down.or(up).unwrap_or(code)];
        }
        EvenFours {
            table: Table4::new(isa, &IQ4K_VALUES[0]),
            signs: isa.load_f(&signs),
            above: isa.load_f(&above),
            below: isa.load_f(&below),
        }
    }

    #[inline(always)]
    fn near(self, isa: I, t: I::F) -> Near<I::F> {
        let code = self.table.code(isa, t);
        let (above, below) = (isa.lut16_slot(self.above, code), isa.lut16_slot(self.below, code));
        let other = isa.if_gt(isa.add_f(t, t), isa.add_f(above, below), above, below);
        Near { level: self.table.nearest(isa, t), sign: isa.lut16_slot(self.signs, code), other }
    }

    /// The best pair of levels such that the product of their signs and `before` is positive; any pair is allowed
    /// where `before` is 0.
    #[inline(always)]
    fn pair(self, isa: I, target: &Target<I::F, 2>, scales: Scales<I::F>, before: I::F) -> Pair<I::F> {
        let Target { x, w, spread, .. } = *target;
        let zero = isa.splat_f(0.0);
        let first = self.near(isa, scales.target(isa, x[0]));
        let mut best =
            Pair { errors: [zero; 2], levels: [zero; 2], sign: zero, loss: isa.splat_f(f32::INFINITY) };
        for (level, sign) in [(first.level, first.sign), (first.other, isa.sub_f(zero, first.sign))] {
            let e = isa.sub_f(x[0], scales.value(isa, level));
            let other = isa.sub_f(x[1], isa.mul_f(e, spread));
            let second = self.near(isa, scales.target(isa, other));
            let all = isa.mul_f(isa.mul_f(before, sign), second.sign);
            let taken = isa.if_gt(zero, all, second.other, second.level);
            let f = isa.sub_f(other, scales.value(isa, taken));
            let loss = loss(isa, [e, f], w);
            // the sign of what was taken
            let signs = isa.mul_f(sign, isa.if_gt(zero, all, isa.sub_f(zero, second.sign), second.sign));
            let better = |a: I::F, b: I::F| isa.if_gt(best.loss, loss, a, b);
            best = Pair {
                errors: [better(e, best.errors[0]), better(f, best.errors[1])],
                levels: [better(level, best.levels[0]), better(taken, best.levels[1])],
                sign: better(signs, best.sign),
                loss: isa.min_f(loss, best.loss),
            };
        }
        best
    }

    /// The product of the signs of the nearest levels of the pair ahead, and the least that it would cost to have
    /// the other sign.
    #[inline(always)]
    fn ahead(self, isa: I, target: &Target<I::F, 2>, scales: Scales<I::F>) -> (I::F, I::F) {
        let mut sign = isa.splat_f(1.0);
        let mut least = isa.splat_f(f32::INFINITY);
        for (x, w) in target.ahead.into_iter().zip(target.ahead_w) {
            let near = self.near(isa, scales.target(isa, x));
            let square = |level: I::F| {
                let e = isa.sub_f(x, scales.value(isa, level));
                isa.mul_f(e, e)
            };
            sign = isa.mul_f(sign, near.sign);
            least = isa.min_f(isa.mul_f(isa.sub_f(square(near.other), square(near.level)), w), least);
        }
        (sign, least)
    }
}

/// Errors, levels, sign and loss of a pair.
#[derive(Clone, Copy)]
struct Pair<F> {
    errors: [F; 2],
    levels: [F; 2],
    sign: F,
    loss: F,
}

impl<I: Isa> InLanes<I, 2> for EvenFours<I> {
    /// The sign of each pair of the first half.
    type Seen = [I::F; 8];
    const AHEAD: usize = MOST_SUB / 2;

    #[inline(always)]
    fn nothing_seen(self, isa: I) -> [I::F; 8] {
        [isa.splat_f(1.0); 8]
    }

    #[inline(always)]
    fn nearest(
        self,
        isa: I,
        target: Target<I::F, 2>,
        scales: Scales<I::F>,
        at: usize,
        seen: &mut [I::F; 8],
    ) -> ([I::F; 2], [I::F; 2]) {
        let seen = &mut seen[at / 2 % 8];
        let best = if at < MOST_SUB / 2 {
            let (sign, least) = self.ahead(isa, &target, scales);
            let free = self.pair(isa, &target, scales, isa.splat_f(0.0));
            let even = self.pair(isa, &target, scales, sign);
            // both are the same where the signs of the free pair fit the pair ahead
            let cost = isa.sub_f(even.loss, free.loss);
            let choose = |a: I::F, b: I::F| isa.if_gt(cost, least, a, b);
            *seen = choose(free.sign, even.sign);
            Pair {
                errors: std::array::from_fn(|i| choose(free.errors[i], even.errors[i])),
                levels: std::array::from_fn(|i| choose(free.levels[i], even.levels[i])),
                ..free
            }
        } else {
            self.pair(isa, &target, scales, *seen)
        };
        (best.errors, best.levels.map(|level| self.table.code(isa, level)))
    }
}
