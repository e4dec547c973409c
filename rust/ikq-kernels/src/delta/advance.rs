//! Tokens of a head: what is a chain of rank-one updates token by token are matrix products chunk by chunk.
//!
//! With rows Q, K, V of a chunk, S the state at its start, `G_i` the sum of the logarithms of its decays up to token
//! i, and `D[i, j] = exp(G_i - G_j)` for `j <= i`, else 0:
//!
//! ```text
//! T  = strictly lower part of diag(beta) (K K^T o D)
//! V' : (I + T) V' = diag(beta) (V - diag(exp G) K S)
//! O  = diag(exp G) Q S + (Q K^T o D) V'
//! S  = exp(G_last) S + (diag(exp(G_last - G)) K)^T V'     when the chunk is full
//! ```
//! Exponents are differences, at most 0: nothing overflows.
//!
//! A token's rows of all this depend on the tokens before it only, and are computed by operations whose order depends
//! on the token's place in the chunk only: products sum `dk` terms ascending whatever the number of rows, and the sums
//! over earlier tokens take those tokens and no others, ascending.

use std::marker::PhantomData;

use ikq_simd::{Isa, IsaKind, IsaOp, run};

use super::rows::Rows;
use super::see::See;
use super::state::{Head, Sizes};
use super::{BLOCK, CHUNK};
use crate::aligned::Aligned;
use crate::ops::math;
use crate::ops::matrix::{F32, Floats, Product, Shape, Stored, Transpose, bytes_of};

/// Logarithms of decays are cut off here, where their exponentials are 0.
const LOWEST: f64 = -1e4;

/// Memory that a thread's heads reuse.
#[derive(Default)]
pub struct Scratch {
    /// K and Q, a token's rows side by side.
    rows: Aligned,
    /// K transposed, with decays or without.
    columns: Aligned,
    /// K S and Q S, a token's rows side by side.
    seen: Aligned,
    /// K K^T and Q K^T, a token's rows side by side.
    pairs: Aligned,
}

/// Several tokens of one head.
#[derive(Clone, Copy)]
pub struct Tokens<'a> {
    /// Queries and keys: `dk` elements per token, of unit length, queries scaled.
    pub q: &'a [f32],
    pub k: &'a [f32],
    /// Values: `dv` elements per token.
    pub v: &'a [f32],
    pub beta: &'a [f32],
    /// Logarithms of the decays, at most 0.
    pub log_decay: &'a [f32],
}

impl<'a> Tokens<'a> {
    fn range(&self, from: usize, to: usize) -> Tokens<'a> {
        let n = self.beta.len();
        let part = |x: &'a [f32]| &x[x.len() / n * from..x.len() / n * to];
        Tokens {
            q: part(self.q),
            k: part(self.k),
            v: part(self.v),
            beta: part(self.beta),
            log_decay: part(self.log_decay),
        }
    }
}

/// The tokens one after another: the head moves on, `out` has `dv` per token. The result's bits do not depend on how
/// tokens are cut into calls; [`Head::rest`] at once is fastest. The head's own count of tokens in the chunk moves on
/// too, that of its [`super::State`] with [`super::State::finish`].
///
/// # Panics
/// When shapes do not fit together.
pub fn advance(
    kind: IsaKind,
    head: &mut Head<'_>,
    tokens: Tokens<'_>,
    scratch: &mut Scratch,
    out: &mut [f32],
) {
    let (n, dk, dv) = (tokens.beta.len(), head.dk, head.dv);
    let fits = tokens.q.len() == n * dk && tokens.k.len() == n * dk && tokens.v.len() == n * dv;
    assert!(fits && tokens.log_decay.len() == n && out.len() == n * dv, "shapes of {n} tokens differ");
    let mut from = 0;
    while from < n {
        let to = n.min(from + head.rest());
        let (tokens, out) = (tokens.range(from, to), &mut out[from * dv..to * dv]);
        run(kind, Part { head: &mut *head, tokens, scratch: &mut *scratch, out });
        from = to;
    }
}

/// Tokens of one chunk.
struct Part<'a, 'b> {
    head: &'a mut Head<'b>,
    tokens: Tokens<'a>,
    scratch: &'a mut Scratch,
    out: &'a mut [f32],
}

impl IsaOp for Part<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Part { head, tokens, scratch, out } = self;
        let (sizes, dv, n) = (head.sizes(), head.dv, tokens.beta.len());
        let Sizes { dk, width } = sizes;
        let (first, end) = (head.n, head.n + n);
        let parts = &mut head.parts;

        scratch.rows.reserve(2 * n * dk);
        scratch.columns.reserve(dk * CHUNK);
        scratch.seen.reserve(2 * n * width);
        scratch.pairs.reserve(2 * n * CHUNK);
        let rows = &mut scratch.rows.get_mut()[..2 * n * dk];
        let seen = &mut scratch.seen.get_mut()[..2 * n * width];
        let pairs = &mut scratch.pairs.get_mut()[..2 * n * CHUNK];

        let given =
            rows.chunks_exact_mut(2 * dk).zip(tokens.k.chunks_exact(dk)).zip(tokens.q.chunks_exact(dk));
        for ((rows, k), q) in given {
            rows[..dk].copy_from_slice(k);
            rows[dk..].copy_from_slice(q);
        }
        let values = parts.values.chunks_exact_mut(width).skip(first);
        for (row, v) in values.zip(tokens.v.chunks_exact(dv)) {
            row[..dv].copy_from_slice(v);
            row[dv..].fill(0.0);
        }
        parts.log_decays[first..end].copy_from_slice(tokens.log_decay);
        let g = sums(&parts.log_decays[..end]);
        keep_keys(isa, tokens.k, dk, first, parts.keys);

        let (matrix, keys) = (&*parts.matrix, &*parts.keys);
        if n == 1 {
            let next = &parts.values[..end * width];
            let (seen, pairs) = (&mut *seen, &mut *pairs);
            isa.apart(See { rows, matrix, keys, sizes, token: first, next, seen, pairs });
        } else {
            for (at, columns) in sizes.panels() {
                let panel = &matrix[at * dk..][..columns * dk];
                let shape = Shape { m: 2 * n, n: columns, k: dk };
                product(isa, rows, dk, panel, columns, &mut seen[at..], width, shape, false);
            }
            // tokens of the first block have nothing to do with keys of the second
            let split = BLOCK.saturating_sub(first).min(n);
            if split > 0 {
                let shape = Shape { m: 2 * split, n: BLOCK, k: dk };
                product(isa, rows, dk, keys, BLOCK, pairs, CHUNK, shape, false);
            }
            if split < n {
                let columns = &mut scratch.columns.get_mut()[..dk * CHUNK];
                isa.apart(Join { keys, factors: None, columns: &mut *columns });
                let shape = Shape { m: 2 * (n - split), n: CHUNK, k: dk };
                let pairs = &mut pairs[2 * split * CHUNK..];
                product(isa, &rows[2 * split * dk..], dk, columns, CHUNK, pairs, CHUNK, shape, false);
            }
        }
        let (beta, values) = (tokens.beta, &mut *parts.values);
        isa.apart(Rows { first, beta, g: &g, pairs, seen: &mut *seen, values, width });
        for (out, row) in out.chunks_exact_mut(dv).zip(seen.chunks_exact(2 * width)) {
            out.copy_from_slice(&row[width..width + dv]);
        }

        head.n = end;
        if end == CHUNK {
            head.n = 0;
            let (matrix, values) = (&mut *parts.matrix, &*parts.values);
            let columns = &mut scratch.columns.get_mut()[..dk * CHUNK];
            isa.apart(MoveOn { matrix, keys, values, g: &g, columns, sizes });
        }
    }
}

/// Sums of the logarithms up to each token; 0 behind the last.
#[inline(always)]
fn sums(log_decays: &[f32]) -> [f64; CHUNK] {
    let mut g = [0.0; CHUNK];
    let mut sum = 0.0;
    for (g, log) in g.iter_mut().zip(log_decays) {
        let log = f64::from(*log);
        // NaN stays
        sum += if log < LOWEST { LOWEST } else { log };
        *g = sum;
    }
    g
}

/// Writes the keys of tokens `first..` of the chunk as columns. Columns behind the last token's become anything.
#[inline(always)]
fn keep_keys<I: Isa>(isa: I, k: &[f32], dk: usize, first: usize, keys: &mut [f32]) {
    let n = k.len() / dk;
    let mut t = 0;
    while t < n {
        let at = first + t;
        // a square of sixteen is worth it for a few tokens already
        if at.is_multiple_of(BLOCK) && n - t >= 4 && dk.is_multiple_of(16) {
            let b = Stored { data: bytes_of(&k[t * dk..]), stride: 4 * dk };
            let n = BLOCK.min(n - t);
            let out = &mut keys[at * dk..];
            isa.apart(Transpose::<F32> { b, n, k: dk, out, stride: BLOCK, ty: PhantomData });
            t += n;
        } else {
            let block = &mut keys[at / BLOCK * BLOCK * dk..];
            for (row, k) in block.as_chunks_mut::<BLOCK>().0.iter_mut().zip(&k[t * dk..][..dk]) {
                row[at % BLOCK] = *k;
            }
            t += 1;
        }
    }
}

/// `c = a b` or `c += a b` of floats.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "the operands of a product")]
fn product<I: Isa>(
    isa: I,
    a: &[f32],
    a_stride: usize,
    b: &[f32],
    b_stride: usize,
    c: &mut [f32],
    c_stride: usize,
    shape: Shape,
    add: bool,
) {
    let a = Floats { data: a, stride: a_stride };
    let b = Stored { data: bytes_of(b), stride: 4 * b_stride };
    isa.apart(Product::<F32> { a, b, c, c_stride, shape, add, panel: &mut [], ty: PhantomData });
}

/// The keys of both blocks side by side: `dk` rows of [`CHUNK`], multiplied by a factor per token or as they are.
struct Join<'a> {
    keys: &'a [f32],
    factors: Option<&'a [f32; CHUNK]>,
    columns: &'a mut [f32],
}

impl IsaOp for Join<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let factors = self.factors.map(|f| f.as_chunks::<BLOCK>().0);
        for (b, block) in self.keys.chunks_exact(self.keys.len() * BLOCK / CHUNK).enumerate() {
            let factors = factors.map(|f| isa.load_f(&f[b]));
            let columns = self.columns.as_chunks_mut::<BLOCK>().0.iter_mut().skip(b).step_by(CHUNK / BLOCK);
            for (to, x) in columns.zip(block.as_chunks::<BLOCK>().0) {
                let x = isa.load_f(x);
                let x = if let Some(f) = factors { isa.mul_f(x, f) } else { x };
                isa.store_f(x, to);
            }
        }
    }
}

/// The state at the end of a full chunk.
struct MoveOn<'a> {
    matrix: &'a mut [f32],
    keys: &'a [f32],
    values: &'a [f32],
    g: &'a [f64; CHUNK],
    /// Room for keys with decays.
    columns: &'a mut [f32],
    sizes: Sizes,
}

impl IsaOp for MoveOn<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let MoveOn { matrix, keys, values, g, columns, sizes: sizes @ Sizes { dk, width } } = self;
        let last = g[CHUNK - 1];
        let mut factors = [0.0; CHUNK];
        factors.iter_mut().zip(g).for_each(|(f, g)| *f = (last - g) as f32);
        for f in factors.as_chunks_mut::<16>().0 {
            isa.store_f(math::exp(isa, isa.load_f(f)), f);
        }
        Join { keys, factors: Some(&factors), columns: &mut *columns }.run(isa);
        let decay = math::exp(isa, isa.splat_f(last as f32));
        for s in matrix.as_chunks_mut::<16>().0 {
            isa.store_f(isa.mul_f(isa.load_f(s), decay), s);
        }
        for (at, n) in sizes.panels() {
            let panel = &mut matrix[at * dk..][..n * dk];
            let shape = Shape { m: dk, n, k: CHUNK };
            product(isa, columns, CHUNK, &values[at..], width, panel, n, shape, true);
        }
    }
}
