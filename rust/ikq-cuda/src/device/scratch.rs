//! [`Scratch`]: memory for the values of a step, which is as large as the largest batch so far needs.

use super::parts::{Attention, Ffn, Kind, Parts};
use crate::error::Error;
use crate::gpu::Gpu;
use crate::memory::{Address, Arena, arena_bytes};
use crate::plan::MOST_COLUMNS;
use crate::products::{Columns, code_bytes};

/// A place for columns and their codes, of any width up to the one that it was made for.
#[derive(Clone, Copy, Debug)]
pub struct Wide {
    floats: Address,
    codes: (Address, Address),
}

impl Wide {
    /// This place as columns of `n` elements. They only have codes if `n` is a multiple of 32.
    pub fn columns(self, n: usize, n_columns: usize) -> Columns {
        let codes = n.is_multiple_of(32).then_some(self.codes);
        Columns { n, n_columns, floats: self.floats, codes }
    }

    pub fn floats(self) -> Address {
        self.floats
    }
}

/// How many elements per column the values of a step have.
#[derive(Clone, Copy, Debug, Default)]
struct Sizes {
    /// Activations of FFNs, and those of FFNs whose gate and up are computed separately.
    ff: usize,
    apart: usize,
    scores: usize,
    used: usize,
    q: usize,
    k: usize,
    v: usize,
    queries: usize,
    inner: usize,
    outer: usize,
    vocab: usize,
}

impl Sizes {
    fn new(parts: &Parts) -> Sizes {
        let mut s = Sizes { used: parts.most_used, ..Sizes::default() };
        for dense in parts.dense.iter().flatten() {
            s.add_ffn(&dense.ffn, 1);
        }
        parts.shared.iter().flatten().for_each(|ffn| s.add_ffn(ffn, 1));
        parts.experts.iter().flatten().for_each(|ffn| s.add_ffn(ffn, parts.most_used));
        for router in parts.router.iter().flatten() {
            s.scores = s.scores.max(router.weight.n_rows());
        }
        parts.attention.iter().flatten().for_each(|a| s.add_attention(a));
        s.vocab = parts.head.map_or(0, |h| h.output.n_rows());
        s
    }

    fn add_ffn(&mut self, ffn: &Ffn, n_used: usize) {
        let n = ffn.up.n_rows() * n_used;
        self.ff = self.ff.max(n);
        self.apart = self.apart.max(if ffn.apart { n } else { 0 });
    }

    fn add_attention(&mut self, attention: &Attention) {
        let (q, k, v, queries, inner, outer) = match &attention.kind {
            Kind::Gqa(a) => {
                let queries = a.n_head * a.head_dim;
                (a.q.n_rows(), a.k.n_rows(), a.v.n_rows(), queries, 0, a.n_head * a.head_dim_v)
            }
            Kind::Mla(a) => {
                let compressed = a.q_a.map_or(0, |(q_a, _)| q_a.n_rows());
                let inner = (a.n_head * a.n_nope.max(a.kv_rank)).max(compressed);
                (a.q.n_rows(), a.row(), compressed, a.n_head * a.row(), inner, a.n_head * a.head_dim_v)
            }
            // places of `delta_net.rs`
            Kind::DeltaNet(a) => {
                let (inputs, values) = (a.sizes.n_channels(), a.sizes.n_values());
                (a.qkv.n_rows(), inputs, a.gates(), a.sizes.n_pairs(), values, values)
            }
        };
        self.q = self.q.max(q);
        self.k = self.k.max(k);
        self.v = self.v.max(v);
        self.queries = self.queries.max(queries);
        self.inner = self.inner.max(inner);
        self.outer = self.outer.max(outer);
    }
}

/// The places of a step's values, for batches of at most `n_columns` columns.
pub struct Scratch {
    pub n_columns: usize,
    _arena: Arena,
    /// `n_embd` floats per column each: the residual stream, columns whose output is wanted, a branch before it is
    /// added, the sum of experts, and the result of the shared expert.
    pub hidden: Address,
    pub chosen: Address,
    pub branch: Address,
    pub sum: Address,
    pub shared: Address,
    /// Columns after a norm: those that other stages read, and those that a mixture of experts reads.
    pub normed: Wide,
    pub input: Wide,
    /// Activations of FFNs, and up and gate where they are computed separately.
    pub activated: Wide,
    pub up: Address,
    pub gate: Address,
    /// Scores of experts, ids and weights of those that are chosen, and gates of an FFN's result.
    pub scores: Address,
    pub ids: Address,
    pub weights: Address,
    pub input_gates: Address,
    /// Products of attention, prepared queries, and inputs of later products.
    pub q: Address,
    pub k: Address,
    pub v: Address,
    pub queries: Address,
    pub inner: Wide,
    pub outer: Wide,
    pub logits: Address,
}

impl Scratch {
    /// # Errors
    /// Errors of the driver, such as too little memory.
    pub fn new(gpu: &Gpu, parts: &Parts, n_embd: usize, n_columns: usize) -> Result<Scratch, Error> {
        let s = Sizes::new(parts);
        let floats = |n: usize| 4 * n * n_columns;
        let embd = floats(n_embd);
        let wide = |n: usize| {
            let [codes, scales] = code_bytes(n.next_multiple_of(32), n_columns);
            [floats(n), codes, scales]
        };
        let single = [
            embd,
            embd,
            embd,
            embd,
            embd,
            floats(s.apart),
            floats(s.apart),
            floats(s.scores),
            floats(s.used),
            floats(s.used),
            floats(1),
            floats(s.q),
            floats(s.k),
            floats(s.v),
            floats(s.queries),
            4 * s.vocab * MOST_COLUMNS,
        ];
        let wides = [n_embd, n_embd, s.ff, s.inner, s.outer].map(wide);
        let mut arena =
            Arena::new(gpu.context(), "a step", arena_bytes(single.into_iter().chain(wides.concat())))?;
        let mut places = [Address::default(); 16];
        for (place, size) in places.iter_mut().zip(single) {
            *place = arena.take(size)?;
        }
        let mut wide = |[floats, codes, scales]: [usize; 3]| {
            let floats = arena.take(floats)?;
            Ok::<_, Error>(Wide { floats, codes: (arena.take(codes)?, arena.take(scales)?) })
        };
        let [normed, input, activated, inner, outer] = wides;
        let (normed, input, activated) = (wide(normed)?, wide(input)?, wide(activated)?);
        let (inner, outer) = (wide(inner)?, wide(outer)?);
        let [
            hidden,
            chosen,
            branch,
            sum,
            shared,
            up,
            gate,
            scores,
            ids,
            weights,
            input_gates,
            q,
            k,
            v,
            queries,
            logits,
        ] = places;
        Ok(Scratch {
            n_columns,
            _arena: arena,
            hidden,
            chosen,
            branch,
            sum,
            shared,
            normed,
            input,
            activated,
            up,
            gate,
            scores,
            ids,
            weights,
            input_gates,
            q,
            k,
            v,
            queries,
            inner,
            outer,
            logits,
        })
    }
}
