//! What needs a chunk's tokens one after another: each row of V' is made of those before it.

use ikq_simd::{Isa, IsaOp};

use super::CHUNK;
use crate::ops::math;

/// Rows of a chunk, in the terms of [`super::advance`]: V' by forward substitution, and O. Tokens `first..` of the
/// chunk, as many as there are `beta`.
pub(super) struct Rows<'a> {
    pub first: usize,
    pub beta: &'a [f32],
    /// Sums of the logarithms of decays, of all the chunk's tokens so far.
    pub g: &'a [f64; CHUNK],
    /// K K^T and Q K^T without decays: two rows of [`CHUNK`] per token; used up.
    pub pairs: &'a mut [f32],
    /// K S and Q S: two rows of `width` per token. The second becomes O.
    pub seen: &'a mut [f32],
    /// All rows of the chunk, V' of tokens before, V of these, which becomes V'.
    pub values: &'a mut [f32],
    pub width: usize,
}

impl IsaOp for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Rows { first, beta, g, pairs, seen, values, width } = self;
        let pairs = pairs.chunks_exact_mut(2 * CHUNK);
        for (t, ((pairs, seen), beta)) in pairs.zip(seen.chunks_exact_mut(2 * width)).zip(beta).enumerate() {
            let i = first + t;
            let (of_key, of_query) = pairs.split_at_mut(CHUNK);
            weigh(isa, i, *beta, g, of_key, of_query);
            let (before, row) = values.split_at_mut(i * width);
            let (seen, out) = seen.split_at_mut(width);
            let decay = math::exp(isa, isa.splat_f(g[i] as f32));
            let mut row = Row {
                of_key: &of_key[..i],
                of_query: &of_query[..i],
                of_itself: of_query[i],
                beta: isa.splat_f(*beta),
                decay,
                before,
                seen,
                value: &mut row[..width],
                out,
            };
            let mut at = 0;
            if I::N_REGISTERS >= 32 {
                while at + 128 <= width {
                    row.columns::<I, 8>(isa, at);
                    at += 128;
                }
                while at + 64 <= width {
                    row.columns::<I, 4>(isa, at);
                    at += 64;
                }
            }
            while at + 32 <= width {
                row.columns::<I, 2>(isa, at);
                at += 32;
            }
            if at < width {
                row.columns::<I, 1>(isa, at);
            }
        }
    }
}

/// Gives products of pairs their factors: `-beta D` to those of keys, `D` to those of queries and keys. Elements
/// behind token `i` become anything.
#[inline(always)]
fn weigh<I: Isa>(isa: I, i: usize, beta: f32, g: &[f64; CHUNK], of_key: &mut [f32], of_query: &mut [f32]) {
    let factor = isa.splat_f(-beta);
    let of_key = of_key.as_chunks_mut::<16>().0;
    let of_query = of_query.as_chunks_mut::<16>().0;
    for ((g_j, k), q) in g.as_chunks::<16>().0.iter().zip(of_key).zip(of_query).take(i / 16 + 1) {
        let mut logs = [0.0; 16];
        logs.iter_mut().zip(g_j).for_each(|(log, g_j)| *log = (g[i] - g_j) as f32);
        let decay = math::exp(isa, isa.load_f(&logs));
        isa.store_f(isa.mul_f(isa.load_f(k), isa.mul_f(factor, decay)), k);
        isa.store_f(isa.mul_f(isa.load_f(q), decay), q);
    }
}

/// One token's rows.
struct Row<'a, F> {
    /// -T and Q K^T o D, of the tokens before this one.
    of_key: &'a [f32],
    of_query: &'a [f32],
    of_itself: f32,
    beta: F,
    decay: F,
    /// V' of the tokens before this one.
    before: &'a [f32],
    /// This token's row of K S.
    seen: &'a [f32],
    /// V, then V'.
    value: &'a mut [f32],
    /// Q S, then O.
    out: &'a mut [f32],
}

impl<F: Copy> Row<'_, F> {
    /// Computes columns `at..at + 16 N`.
    #[inline(always)]
    fn columns<I: Isa<F = F>, const N: usize>(&mut self, isa: I, at: usize) {
        let (columns, width) = (at..at + 16 * N, self.value.len());
        let value = self.value[columns.clone()].as_chunks_mut::<16>().0;
        let out = self.out[columns.clone()].as_chunks_mut::<16>().0;
        let mut v = [isa.splat_f(0.0); N];
        for ((v, x), seen) in v.iter_mut().zip(&*value).zip(self.seen[columns.clone()].as_chunks::<16>().0) {
            let seen = isa.mul_f(self.decay, isa.load_f(seen));
            *v = isa.mul_f(self.beta, isa.sub_f(isa.load_f(x), seen));
        }
        let mut o = [isa.splat_f(0.0); N];
        for (o, seen) in o.iter_mut().zip(&*out) {
            *o = isa.mul_f(self.decay, isa.load_f(seen));
        }
        let rows = self.before.chunks_exact(width);
        for ((row, t), p) in rows.zip(self.of_key).zip(self.of_query) {
            let (t, p) = (isa.splat_f(*t), isa.splat_f(*p));
            let row = row[columns.clone()].as_chunks::<16>().0;
            for ((v, o), x) in v.iter_mut().zip(&mut o).zip(row) {
                let x = isa.load_f(x);
                *v = isa.fma(t, x, *v);
                *o = isa.fma(p, x, *o);
            }
        }
        let p = isa.splat_f(self.of_itself);
        for (((v, o), value), out) in v.into_iter().zip(o).zip(value).zip(out) {
            isa.store_f(isa.fma(p, v, o), out);
            isa.store_f(v, value);
        }
    }
}
