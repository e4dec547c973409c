//! Attention on a GPU over the pages of the KV cache: with grouped heads (GQA), and latent attention (MLA,
//! absorbed).

use ikq_formats::QuantType;
use ikq_model::network::{self, RopeId};
use ikq_model::spec::Pairing;

use super::Cuda;
use super::cache::Rows;
use super::parts::{self, Gqa, Kind, Linear, Mla, latent_row};
use crate::error::Error;
use crate::memory::Address;
use crate::plan::{
    Attend, AttendTiles, Call, Combine, Grouped, HeadTile, Heads, Pairs, Runs, Turn, TurnRows, reads_codes,
};
use crate::products::{self, Chosen, Columns, Target, launch};

/// Sizes and options of attention over pages.
struct Sums {
    n_head: usize,
    n_v: usize,
    scale: f32,
    softcap: Option<f32>,
    sinks: Option<Address>,
    /// The gates of the results, and the floats from one head's gate to the next.
    gate: Option<(Address, usize)>,
}

/// How heads are prepared before they are used.
#[derive(Clone, Copy, Default)]
struct Ready {
    /// The weight of an RMS norm of the first elements, and how many these are.
    norm: Option<(Address, usize)>,
    /// A rotary embedding, and the first element that it rotates.
    rope: Option<(RopeId, usize)>,
    /// The turn by a Hadamard matrix that the cache's keys have, too.
    runs: Option<Runs>,
}

impl Cuda {
    /// Computes the attention of a layer, and adds it to the residual stream.
    pub(super) fn attention(&self, l: usize) -> Result<(), Error> {
        let attention = self.parts.attention[l].as_ref().expect("a stage of this device");
        let (n, scratch) = (self.batch.n(), self.scratch());
        let input = self.norm((scratch.hidden, None), attention.norm, scratch.normed, n)?;
        let (output, results) = match (&self.network().layers[l].attention, &attention.kind) {
            (network::Attention::Gqa(a), Kind::Gqa(w)) => (&w.output, self.gqa(l, a, w, &input)?),
            (network::Attention::Mla(a), Kind::Mla(w)) => (&w.output, self.mla(l, a, w, &input)?),
            (network::Attention::DeltaNet(_), Kind::DeltaNet(a)) => {
                (&a.output, self.delta_net(l, a, &input)?)
            }
            _ => unreachable!("weights are loaded by the network"),
        };
        self.observe(&[output_of(&self.network().layers[l].attention)], &results)?;
        self.add_attention(attention, output, &results)
    }

    /// Computes the output projection of the heads' results, and adds it to the residual stream.
    fn add_attention(
        &self,
        attention: &parts::Attention,
        output: &Linear,
        results: &Columns,
    ) -> Result<(), Error> {
        let scratch = self.scratch();
        let (y, residual) = match attention.post_norm {
            None => (scratch.hidden, Some(scratch.hidden)),
            Some(_) => (scratch.branch, None),
        };
        let to = Target { y, bias: output.bias, residual };
        // SAFETY: scratch memory has room for the batch's columns
        unsafe { products::multiply(&self.gpu, &output.matrix, results, &to) }?;
        match attention.post_norm {
            None => Ok(()),
            Some(norm) => self.add_branch((scratch.branch, None), Some(norm)),
        }
    }

    /// A layer whose cache is on another device, which parts those with grouped heads only.
    fn grouped(&self, l: usize) -> (&parts::Attention, &Gqa, &network::Gqa) {
        let attention = self.parts.attention[l].as_ref().expect("a stage of this device");
        match (&attention.kind, &self.network().layers[l].attention) {
            (Kind::Gqa(w), network::Attention::Gqa(a)) => (attention, w, a),
            _ => unreachable!("the placement parts layers with grouped heads only"),
        }
    }

    /// Floats per column of the queries, keys and values of a layer whose cache is on another device.
    pub(super) fn projected(&self, l: usize) -> Vec<usize> {
        let (_, w, _) = self.grouped(l);
        [w.q, w.k, w.v].map(|weight| weight.n_rows()).to_vec()
    }

    /// Computes queries, keys and values for the device that has the cache.
    pub(super) fn project_heads(&self, l: usize) -> Result<(), Error> {
        let ((attention, w, a), scratch) = (self.grouped(l), self.scratch());
        let input = self.norm((scratch.hidden, None), attention.norm, scratch.normed, self.batch.n())?;
        self.project(a, w, &input)
    }

    /// Adds the output projection of the results that the device with the cache gave.
    pub(super) fn attention_output(&self, l: usize) -> Result<(), Error> {
        let (attention, w, a) = self.grouped(l);
        let results = self.scratch().outer.columns(a.n_head * a.head_dim_v, self.batch.n());
        if reads_codes(w.output.ty()) {
            // SAFETY: the floats were copied before
            unsafe { products::quantize(&self.gpu, &results) }?;
        }
        self.observe(&[&a.output], &results)?;
        self.add_attention(attention, &w.output, &results)
    }

    fn project(&self, a: &network::Gqa, w: &Gqa, input: &Columns) -> Result<(), Error> {
        let scratch = self.scratch();
        if self.watched().is_some() {
            let keys_and_values = a.kv.iter().flat_map(|(k, v)| [k, v]);
            let weights: Vec<_> = std::iter::once(&a.q).chain(keys_and_values).collect();
            self.observe(&weights, input)?;
        }
        let products = [(&w.q, scratch.q), (&w.k, scratch.k), (&w.v, scratch.v)];
        products.into_iter().try_for_each(|(weight, y)| self.product(weight, input, y))
    }

    fn gqa(&self, l: usize, a: &network::Gqa, w: &Gqa, input: &Columns) -> Result<Columns, Error> {
        let scratch = self.scratch();
        let [keys, values] = self.rows(l) else { unreachable!("`LayerCache::new` made both") };
        self.project(a, w, input)?;
        // gates follow the queries of each head
        let d = a.head_dim;
        let q_stride = if a.output_gate { 2 * d } else { d };
        let ready = |norm: Option<Address>| Ready {
            norm: norm.map(|weight| (weight, d)),
            rope: a.rope.map(|rope| (rope, 0)),
            runs: None,
        };
        let turned = Ready { runs: keys.runs, ..ready(w.q_norm) };
        self.queries((scratch.q, q_stride), (a.n_head, d), turned, (scratch.queries, d))?;
        self.store(l, keys, scratch.k, ready(w.k_norm))?;
        self.store(l, values, scratch.v, Ready::default())?;
        let sums = Sums {
            n_head: a.n_head,
            n_v: a.head_dim_v,
            scale: a.scale,
            softcap: a.softcap,
            sinks: w.sinks,
            gate: a.output_gate.then(|| (scratch.q.offset(4 * d), q_stride)),
        };
        let results = scratch.outer.columns(a.n_head * a.head_dim_v, input.n_columns);
        self.attend(l, &sums, (keys, values), &results, w.output.ty())?;
        Ok(results)
    }

    fn mla(&self, l: usize, a: &network::Mla, w: &Mla, input: &Columns) -> Result<Columns, Error> {
        let (scratch, n) = (self.scratch(), input.n_columns);
        let [rows] = self.rows(l) else { unreachable!("`LayerCache::new` made one") };
        let first = a.q_a.as_ref().map_or(&a.q, |(q_a, _)| q_a);
        self.observe(&[first, &a.kv_a], input)?;
        match &w.q_a {
            None => self.product(&w.q, input, scratch.q)?,
            Some((q_a, norm)) => {
                self.product(q_a, input, scratch.v)?;
                let compressed = self.norm_of((scratch.v, None), *norm, scratch.inner, (q_a.n_rows(), n))?;
                self.observe(&[&a.q], &compressed)?;
                self.product(&w.q, &compressed, scratch.q)?;
            }
        }
        self.product(&w.kv_a, input, scratch.k)?;
        let rope = Some((a.rope, a.kv_rank));
        let norm = Some((w.kv_a_norm, a.kv_rank));
        self.store(l, rows, scratch.k, Ready { norm, rope, runs: None })?;
        if self.watched().is_some() {
            // the cache has them in its own type
            let compressed = scratch.inner.columns(a.kv_rank, n);
            let (from, to) = ((scratch.k, latent_row(a)), (compressed.floats, a.kv_rank));
            self.queries(from, (1, a.kv_rank), Ready { norm, ..Ready::default() }, to)?;
            self.observe_compressed(a, &compressed)?;
        }

        // queries of all heads for products with the compressed vectors: [k_b q | the rotated part]
        let (n_head, width) = (a.n_head, latent_row(a));
        let q_stride = a.n_nope + a.rope.n_rot;
        // where there are many columns, those of a head are computed together
        let pairs = Pairs { n_pairs: n * n_head, k: 1 };
        let by_head = self.columns.by_head();
        let is_tiled = |weight: &Linear| products::is_tiled(&self.gpu, weight.ty(), n);
        let sorted = (is_tiled(&w.k_b) || is_tiled(&w.v_b)).then_some(by_head);
        let sorted = sorted.filter(|_| Grouped { n_pairs: n * n_head, k: 1, n_experts: n_head }.fits());
        let chosen = Chosen { ids: self.columns.heads(), pairs, sorted };
        let plain = scratch.inner.columns(a.n_nope, n * n_head);
        self.queries((scratch.q, q_stride), (n_head, a.n_nope), Ready::default(), (plain.floats, a.n_nope))?;
        if !a.is_split() {
            self.observe_heads(&a.k_b, &plain, n_head)?;
        }
        self.by_head(&w.k_b, chosen, &plain, (scratch.queries, width))?;
        let (from, to) = (scratch.q.offset(4 * a.n_nope), scratch.queries.offset(4 * a.kv_rank));
        let turned = Ready { rope: Some((a.rope, 0)), ..Ready::default() };
        self.queries((from, q_stride), (n_head, a.rope.n_rot), turned, (to, width))?;
        if let Some(runs) = rows.runs {
            let turn = TurnRows { n_rows: n * n_head, n: width, runs, back: false };
            // SAFETY: the queries were made by the launches before
            unsafe { launch(&self.gpu, &Call::TurnRows(turn).plan()?, &[("x", scratch.queries)]) }?;
        }

        let (n_v, scale) = (a.kv_rank, a.scale);
        let sums = Sums { n_head, n_v, scale, softcap: None, sinks: None, gate: None };
        let compressed = scratch.inner.columns(n_v, n * n_head);
        self.attend(l, &sums, (rows, rows), &compressed, w.v_b.ty())?;
        if !a.is_split() {
            self.observe_heads(&a.v_b, &compressed, n_head)?;
        }
        let results = scratch.outer.columns(n_head * a.head_dim_v, n);
        let by_head = scratch.outer.columns(a.head_dim_v, n * n_head);
        self.multiply_by_head(&w.v_b, chosen, &compressed, (by_head.floats, a.head_dim_v))?;
        if reads_codes(w.output.ty()) {
            // SAFETY: the floats were made a moment ago
            unsafe { products::quantize(&self.gpu, &results) }?;
        }
        Ok(results)
    }

    fn rows(&self, l: usize) -> &[Rows] {
        &self.caches[l].as_ref().expect("a stage of this device").rows
    }

    pub(super) fn product(&self, weight: &Linear, input: &Columns, y: Address) -> Result<(), Error> {
        let to = Target { y, bias: weight.bias, residual: None };
        // SAFETY: scratch memory has room for the batch's columns
        unsafe { products::multiply(&self.gpu, &weight.matrix, input, &to) }
    }

    /// Multiplies columns, one per head, by the head's matrix; makes their codes first if products read them.
    fn by_head(
        &self,
        weight: &Linear,
        chosen: Chosen,
        columns: &Columns,
        to: (Address, usize),
    ) -> Result<(), Error> {
        if reads_codes(weight.ty()) {
            // SAFETY: the floats were made by an earlier launch
            unsafe { products::quantize(&self.gpu, columns) }?;
        }
        self.multiply_by_head(weight, chosen, columns, to)
    }

    fn multiply_by_head(
        &self,
        weight: &Linear,
        chosen: Chosen,
        columns: &Columns,
        to: (Address, usize),
    ) -> Result<(), Error> {
        // SAFETY: scratch memory has room for all heads of the batch's columns
        unsafe { products::multiply_chosen(&self.gpu, (&weight.matrix, weight.bias), chosen, columns, to) }
    }

    /// Adds the arguments and buffers of a norm and a rotary embedding to a launch.
    fn ready(&self, ready: Ready, heads: &mut Heads, buffers: &mut Vec<(&'static str, Address)>) {
        heads.norm = ready.norm.map(|(_, n)| n);
        heads.turn = ready.rope.map(|(rope, at)| turn(rope, at));
        heads.eps = self.network().spec.norm_eps;
        heads.runs = ready.runs.or(heads.runs);
        buffers.extend(ready.norm.map(|(weight, _)| ("weight", weight)));
        buffers.extend(ready.rope.map(|(rope, _)| ("cos_sin", self.columns.angles(rope.index))));
    }

    /// Prepares heads and writes them to another place. Both places come with the floats from one head to the next.
    fn queries(
        &self,
        (from, stride): (Address, usize),
        (n_heads, n): (usize, usize),
        ready: Ready,
        (to, to_stride): (Address, usize),
    ) -> Result<(), Error> {
        let mut heads = Heads {
            ty: QuantType::F32,
            n_columns: self.batch.n(),
            n_heads,
            n,
            stride: n_heads * stride,
            head_stride: stride,
            norm: None,
            eps: 0.0,
            turn: None,
            out: Some(to_stride),
            cached: false,
            runs: None,
        };
        let mut buffers = vec![("x", from), ("y", to)];
        self.ready(ready, &mut heads, &mut buffers);
        // SAFETY: scratch memory has room for all heads of the batch's columns
        unsafe { launch(&self.gpu, &Call::Heads(heads).plan()?, &buffers) }
    }

    /// Prepares heads and stores them in the cache.
    fn store(&self, l: usize, rows: &Rows, from: Address, ready: Ready) -> Result<(), Error> {
        let mut heads = Heads {
            ty: rows.ty,
            n_columns: self.batch.n(),
            n_heads: rows.n_heads,
            n: rows.n,
            stride: rows.n_heads * rows.n,
            head_stride: rows.n,
            norm: None,
            eps: 0.0,
            turn: None,
            out: None,
            cached: true,
            runs: rows.runs,
        };
        let slots = self.columns.group(self.group_of(l)).slots;
        let mut buffers = vec![("x", from), ("cache", rows.at()), ("slots", slots)];
        self.ready(ready, &mut heads, &mut buffers);
        // SAFETY: slots are in pages that were reserved
        unsafe { launch(&self.gpu, &Call::Heads(heads).plan()?, &buffers) }
    }

    fn group_of(&self, l: usize) -> usize {
        self.network().layers[l].group.expect("layers with keys belong to a group")
    }

    /// The tile in which attention is computed, if it is. Steps of many columns are, and so are heads that share their
    /// keys: each key is read once for all of them.
    fn tile(&self, attend: &Attend, latent: bool) -> Option<HeadTile> {
        let is_tiled = attend.n_columns >= self.gpu.tiles_from() || attend.n_heads > attend.n_kv;
        let (n_runs, shared_bytes) = (self.batch.runs.len(), self.gpu.facts().shared_bytes);
        HeadTile::of(attend, latent, n_runs, shared_bytes).filter(|_| is_tiled)
    }

    /// Computes the attention of `scratch.queries` over the pages, some columns at a time, in the form that
    /// products with type `reader` read.
    fn attend(
        &self,
        l: usize,
        sums: &Sums,
        (keys, values): (&Rows, &Rows),
        to: &Columns,
        reader: QuantType,
    ) -> Result<(), Error> {
        let (scratch, group) = (self.scratch(), self.columns.group(self.group_of(l)));
        let (n_head, n_v, n) = (sums.n_head, sums.n_v, self.batch.n());
        let all = Attend {
            keys: keys.ty,
            values: values.ty,
            n_columns: n,
            n_heads: n_head,
            n_kv: keys.n_heads,
            n_k: keys.n,
            n_v,
            n_v_row: values.n,
            max_pages: group.max_pages,
            span: super::columns::SPAN,
            n_splits: group.n_splits,
            scale: sums.scale,
            softcap: sums.softcap,
        };
        let tile = self.tile(&all, std::ptr::eq(keys, values));
        let all = match tile {
            Some(_) => Attend { span: group.tile_span, n_splits: group.tile_splits, ..all },
            None => all,
        };
        let (partial, at_once) = self.columns.partial(n_head, n_v, all.n_splits);
        let at_once = at_once.clamp(1, crate::plan::MOST_GRID);
        // the kernel makes codes in blocks of 32; heads of other sizes get theirs afterwards
        let codes = to.codes.filter(|_| reads_codes(reader) && n_v.is_multiple_of(32));
        for first in (0..n).step_by(at_once) {
            let n_columns = at_once.min(n - first);
            let attend = Attend { n_columns, ..all };
            let combine = Call::Combine(Combine {
                n_columns,
                n_heads: n_head,
                n_v,
                n_splits: all.n_splits,
                sinks: sums.sinks.is_some(),
                gate: sums.gate.map(|(_, stride)| stride),
                codes: codes.is_some(),
                runs: values.runs.map(|runs| if n_v < values.n { runs.first_part() } else { runs }),
            })
            .plan()?;
            let mut results = vec![("partial", partial), ("y", to.floats.offset(4 * first * n_head * n_v))];
            results.extend(sums.sinks.map(|a| ("sinks", a)));
            results.extend(sums.gate.map(|(a, stride)| ("gate", a.offset(4 * first * n_head * stride))));
            if let Some((q, ds)) = codes {
                let at = first * n_head * n_v;
                results.extend([("q", q.offset(at)), ("ds", ds.offset(at / 32 * 8))]);
            }
            let (call, at, runs) = match tile {
                Some(tile) => {
                    let (latent, n_runs) = (std::ptr::eq(keys, values), self.batch.runs.len());
                    let tiles = AttendTiles { attend, tile, latent, n_runs, first_column: first };
                    // this kernel finds the columns itself
                    (Call::AttendTiles(tiles), 0, Some(("runs", self.columns.runs())))
                }
                None => (Call::Attend(attend), first, None),
            };
            let mut seen = vec![
                ("q", scratch.queries.offset(4 * at * n_head * keys.n)),
                ("k", keys.at()),
                ("v", values.at()),
                ("pages", group.pages.offset(4 * at * group.max_pages)),
                ("first", group.first.offset(4 * at)),
                ("end", group.end.offset(4 * at)),
                ("partial", partial),
            ];
            seen.extend(runs);
            let plan = call.plan()?;
            // SAFETY: pages were reserved; there is room for the splits of so many columns
            unsafe {
                launch(&self.gpu, &plan, &seen)?;
                launch(&self.gpu, &combine, &results)?;
            }
        }
        match codes.is_none() && reads_codes(reader) {
            // SAFETY: the floats were made by the launches before
            true => unsafe { products::quantize(&self.gpu, to) },
            false => Ok(()),
        }
    }
}

/// The matrix that the results of a layer's heads are multiplied with.
fn output_of(attention: &network::Attention) -> &network::Weight {
    match attention {
        network::Attention::Gqa(a) => &a.output,
        network::Attention::Mla(a) => &a.output,
        network::Attention::DeltaNet(a) => &a.output,
    }
}

/// A rotary embedding as kernels take it, for elements from `at` on.
pub fn turn(rope: RopeId, at: usize) -> Turn {
    Turn { at, n: rope.n_rot, neox: rope.pairing == Pairing::Neox }
}
