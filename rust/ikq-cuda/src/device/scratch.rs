//! [`Scratch`]: memory for the values of a step, which is as large as the largest batch so far needs.

use ikq_model::network::{self, Network};
use ikq_model::results::MOST_BEST;

use super::parts::{Ffn, Kind, Parts, latent_row};
use crate::blas::{Blas, Room, RoomBytes};
use crate::blas_table::Table;
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
    /// Results of an FFN, and of pairs, that are weighed before they are added.
    slots: usize,
    scores: usize,
    used: usize,
    /// Experts of a column in a part of them.
    part_ids: usize,
    /// The most experts of a layer; this one is not per column.
    experts: usize,
    q: usize,
    k: usize,
    v: usize,
    queries: usize,
    inner: usize,
    outer: usize,
    vocab: usize,
    /// What products by cuBLAS need, in bytes of all columns.
    blas: RoomBytes,
}

impl Sizes {
    fn new(network: &Network, parts: &Parts, blas: Option<&Table>, n_columns: usize) -> Sizes {
        let mut s = Sizes { used: parts.most_used, ..Sizes::default() };
        let dense = parts.dense.iter().flatten().map(|dense| &dense.ffn);
        for ffn in dense.chain(parts.shared.iter().flatten()) {
            s.add_ffn(ffn, None);
            if blas.is_some_and(|table| ffn.is_apart_for(table, n_columns)) {
                s.apart = s.apart.max(ffn.up.n_rows());
            }
        }
        if let Some(table) = blas {
            s.blas = RoomBytes::of(table, parts.multiplied(), n_columns);
        }
        parts.experts.iter().flatten().for_each(|ffn| s.add_ffn(ffn, Some(parts.most_used)));
        for borrowed in parts.borrowed_of(n_columns) {
            s.add_ffn(&borrowed.ffn, Some(parts.most_used));
            s.part_ids = s.part_ids.max(if borrowed.ffn.is_apart_in_tiles() { parts.most_used } else { 0 });
        }
        for router in parts.router.iter().flatten() {
            s.scores = s.scores.max(router.weight.n_rows());
        }
        for (attention, layer) in parts.attention.iter().zip(&network.layers) {
            if let Some(attention) = attention {
                s.add_attention(&layer.attention, &attention.kind);
            }
        }
        s.vocab = parts.head.and_then(|h| h.output).map_or(0, |w| w.n_rows());
        s
    }

    /// Adds what an FFN needs, or experts of which a token has `used`.
    fn add_ffn(&mut self, ffn: &Ffn, used: Option<usize>) {
        let n_used = used.unwrap_or(1);
        let n = ffn.up.n_rows() * n_used;
        self.ff = self.ff.max(n);
        self.apart = self.apart.max(if ffn.is_apart_in_tiles() { n } else { 0 });
        if used.is_some() || ffn.input_gate.is_some() {
            self.slots = self.slots.max(ffn.down.n_rows() * n_used);
        }
        self.experts = self.experts.max(ffn.n_experts);
    }

    fn add_attention(&mut self, attention: &network::Attention, kind: &Kind) {
        let (q, k, v, queries, inner, outer) = match (attention, kind) {
            (network::Attention::Gqa(a), _) => {
                let queries = a.n_head * a.head_dim;
                let (k, v) = a.kv.as_ref().map_or((0, 0), |(k, v)| (k.n_rows, v.n_rows));
                (a.q.n_rows, k, v, queries, 0, a.n_head * a.head_dim_v)
            }
            (network::Attention::Mla(a), _) => {
                let compressed = a.q_a.as_ref().map_or(0, |(q_a, _)| q_a.n_rows);
                let inner = (a.n_head * a.n_nope.max(a.kv_rank)).max(compressed);
                let row = latent_row(a);
                (a.q.n_rows, row, compressed, a.n_head * row, inner, a.n_head * a.head_dim_v)
            }
            // places of `delta_net.rs`
            (_, Kind::DeltaNet(a)) => {
                let (inputs, values) = (a.sizes.n_channels(), a.sizes.n_values());
                (a.qkv.n_rows(), inputs, a.gates(), a.sizes.n_pairs(), values, values)
            }
            (network::Attention::DeltaNet(_), _) => unreachable!("weights are loaded by the network"),
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
    _arena: Option<Arena>,
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
    /// Scores of experts, and gates of an FFN's result.
    pub scores: Address,
    pub input_gates: Address,
    /// Ids and weights of the experts that are chosen; see [`Scratch::choices`].
    choices: Address,
    /// Pairs of a column and an expert by expert, where each expert's begin, and what each pair's expert made.
    pub list: Address,
    pub bounds: Address,
    pub slots: Address,
    /// Ids of chosen experts, or -1 where they are not in the part that is computed.
    pub part_ids: Address,
    /// Products of attention, prepared queries, and inputs of later products.
    pub q: Address,
    pub k: Address,
    pub v: Address,
    pub queries: Address,
    pub inner: Wide,
    pub outer: Wide,
    pub logits: Address,
    /// The largest logits of columns: ids, then values; see [`Scratch::best`].
    best: Address,
    /// Memory of products by cuBLAS.
    pub blas: Room,
}

impl Scratch {
    /// # Errors
    /// Errors of the driver, such as too little memory.
    pub fn new(gpu: &Gpu, network: &Network, parts: &Parts, n_columns: usize) -> Result<Scratch, Error> {
        let table = gpu.blas().and_then(Blas::table);
        let size = Scratch::bytes(network, parts, table, n_columns);
        let mut arena = Arena::new(gpu.context(), "a step", size)?;
        let scratch = Scratch::placed((network, parts, table), n_columns, |bytes| arena.take(bytes))?;
        Ok(Scratch { _arena: Some(arena), ..scratch })
    }

    /// Bytes that [`Scratch::new`] allocates, where products are cuBLAS's by this table.
    pub fn bytes(network: &Network, parts: &Parts, blas: Option<&Table>, n_columns: usize) -> usize {
        let mut size = 0;
        let counted = Scratch::placed((network, parts, blas), n_columns, |bytes| {
            size += arena_bytes([bytes]);
            Ok(Address::default())
        });
        counted.map_or(usize::MAX, |_| size)
    }

    /// The values at places that `take` gives for their bytes.
    fn placed(
        (network, parts, blas): (&Network, &Parts, Option<&Table>),
        n_columns: usize,
        mut take: impl FnMut(usize) -> Result<Address, Error>,
    ) -> Result<Scratch, Error> {
        let (s, n_embd) = (Sizes::new(network, parts, blas, n_columns), network.spec.n_embd);
        let mut wide = |n: usize| {
            let [codes, scales] = code_bytes(n.next_multiple_of(32), n_columns);
            Ok::<_, Error>(Wide { floats: take(4 * n * n_columns)?, codes: (take(codes)?, take(scales)?) })
        };
        let (normed, input, activated) = (wide(n_embd)?, wide(n_embd)?, wide(s.ff)?);
        let (inner, outer) = (wide(s.inner)?, wide(s.outer)?);
        let mut floats = |n: usize| take(4 * n * n_columns);
        Ok(Scratch {
            n_columns,
            _arena: None,
            hidden: floats(n_embd)?,
            chosen: floats(n_embd)?,
            branch: floats(n_embd)?,
            sum: floats(n_embd)?,
            shared: floats(n_embd)?,
            normed,
            input,
            activated,
            up: floats(s.apart)?,
            gate: floats(s.apart)?,
            scores: floats(s.scores)?,
            input_gates: floats(1)?,
            choices: floats(2 * s.used)?,
            list: floats(s.used)?,
            slots: floats(s.slots)?,
            part_ids: floats(s.part_ids)?,
            best: floats(if s.vocab > 0 { 2 * MOST_BEST } else { 0 })?,
            q: floats(s.q)?,
            k: floats(s.k)?,
            v: floats(s.v)?,
            queries: floats(s.queries)?,
            inner,
            outer,
            bounds: take(4 * (s.experts + 1))?,
            logits: take(4 * s.vocab * MOST_COLUMNS)?,
            blas: Room {
                bytes: s.blas,
                workspace: take(s.blas.workspace)?,
                weights: take(s.blas.weights)?,
                columns: take(s.blas.columns)?,
            },
        })
    }

    /// The places of the ids and of the weights of `n_pairs` chosen experts. They follow one another, so that one copy
    /// moves both.
    pub fn choices(&self, n_pairs: usize) -> (Address, Address) {
        (self.choices, self.choices.offset(4 * n_pairs))
    }

    /// The places of the ids and of the values of `n` logits, which follow one another, too.
    pub fn best(&self, n: usize) -> (Address, Address) {
        (self.best, self.best.offset(4 * n))
    }
}
