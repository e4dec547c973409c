//! Stages of feed-forward networks on a GPU.

use ikq_model::network;

use super::Cuda;
use super::parts::{Ffn, Linear};
use crate::blas::Blas;
use crate::error::Error;
use crate::memory::Address;
use crate::plan::{
    Call, Down, GluCall, Grouped, MOST_COLUMNS, MOST_GRID, MmqUpGate, Pairs, Plan, Router, SumSlots,
    TiledColumns, UpGate, reads_codes,
};
use crate::products::{self, Chosen, Columns, Sorted, Target, launch};

impl Cuda {
    /// Computes the FFN of a dense layer, and adds it to the residual stream.
    pub(super) fn dense(&self, l: usize) -> Result<(), Error> {
        let dense = self.parts.dense[l].as_ref().expect("a stage of this device");
        let (n, scratch) = (self.batch.n(), self.scratch());
        let input = self.norm((scratch.hidden, None), dense.norm, scratch.normed, n)?;
        let network::Ffn::Dense(of) = &self.network().layers[l].ffn else {
            unreachable!("weights are loaded by the network")
        };
        match dense.post_norm {
            None => self.one((&dense.ffn, of), &input, scratch.hidden, Some(scratch.hidden)),
            Some(norm) => {
                self.one((&dense.ffn, of), &input, scratch.branch, None)?;
                self.add_branch((scratch.branch, None), Some(norm))
            }
        }
    }

    /// Computes the norm of the columns, and chooses the experts of each. Returns how many each has.
    pub(super) fn route(&self, l: usize) -> Result<usize, Error> {
        let router = self.parts.router[l].as_ref().expect("a stage of this device");
        let (n, scratch, rule) = (self.batch.n(), self.scratch(), &router.rule);
        let input = self.norm((scratch.hidden, None), router.norm, scratch.input, n)?;
        let moe = self.moe(l);
        self.observe(&[&moe.router], &input)?;
        let to = Target { y: scratch.scores, bias: router.weight.bias, residual: None };
        let plan = Call::Router(Router {
            n_tokens: n,
            n_experts: rule.n_expert,
            n_used: rule.n_used,
            func: rule.func,
            bias: router.bias.is_some(),
            normalize: rule.normalize,
            scale: rule.scale,
            groups: (rule.n_group, rule.n_group_used),
            reduction: self.options.expert_reduction,
            layer: l,
        })
        .plan()?;
        let (ids, weights) = scratch.choices(n * rule.n_used);
        let mut buffers = vec![("logits", scratch.scores), ("ids", ids), ("weights", weights)];
        buffers.push(("not_finite", self.columns.not_finite()));
        buffers.extend(router.bias.map(|a| ("bias", a)));
        // SAFETY: scratch memory has room for the batch's columns
        unsafe {
            products::multiply(&self.gpu, &router.weight.matrix, &input, &to)?;
            launch(&self.gpu, &plan, &buffers)?;
        }
        let pairs = Pairs { n_pairs: n * rule.n_used, k: rule.n_used };
        self.observe_choices(&moe.router, Chosen { ids, pairs, sorted: None }, weights)?;
        if router.is_read {
            // SAFETY: room was made for the ids, and for the weights behind them, which the router wrote
            unsafe { self.gpu.copy_out_later(self.host.choices()?, 0, ids, 8 * n * rule.n_used) }?;
        }
        Ok(rule.n_used)
    }

    /// Reads the router's choices, for another device that has the experts.
    pub(super) fn read_choices(&mut self) -> Result<(), Error> {
        self.start_queue()?;
        self.host.wait(&self.gpu)?;
        let (n_used, n_pairs) = (self.n_used, self.batch.n() * self.n_used);
        let (numbers, _) = self.host.choices()?.bytes()[..8 * n_pairs].as_chunks::<4>();
        let (ids, weights) = numbers.split_at(n_pairs);
        self.choices.clear();
        self.choices.extend(ids.chunks(n_used).zip(weights.chunks(n_used)).map(|(ids, weights)| {
            let pairs = ids.iter().map(|b| i32::from_le_bytes(*b)).zip(weights);
            let chosen = pairs.filter(|(id, _)| *id >= 0);
            chosen.map(|(id, weight)| (id.cast_unsigned(), f32::from_le_bytes(*weight))).collect()
        }));
        Ok(())
    }

    /// Computes the weighted sum of the chosen experts, `k` per column.
    pub(super) fn experts(&self, l: usize, k: usize) -> Result<(), Error> {
        let ffn = self.parts.experts[l].as_ref().expect("a stage of this device");
        let (n, scratch) = (self.batch.n(), self.scratch());
        let (ids, weights) = scratch.choices(n * k);
        let pairs = Pairs { n_pairs: n * k, k };
        let chosen = Chosen { ids, pairs, sorted: None };
        let (input, of) = (self.embeddings(scratch.input), &self.moe(l).experts);
        let groups = match self.watched() {
            Some(options) if options.all_experts => {
                self.observe_all_experts(ffn, of, &input, chosen)?;
                None
            }
            _ => self.groups_of(chosen, ffn.n_experts)?,
        };
        // the others, if there were any, have used the list
        let chosen = Chosen { sorted: self.sorted(ffn, ids, pairs)?, ..chosen };
        self.observe_up_gate(of, &input, groups.as_ref())?;
        let activated = self.up_gate(ffn, &input, Some(chosen))?;
        self.observe_down(of, &activated, groups)?;
        self.down(&ffn.down, &activated, chosen, weights, scratch.sum)
    }

    /// Sorts pairs by expert, if there are so many columns that a matrix of these experts is read in tiles.
    pub(super) fn sorted(&self, ffn: &Ffn, ids: Address, pairs: Pairs) -> Result<Option<Sorted>, Error> {
        let Pairs { n_pairs, k } = pairs;
        let (n_experts, n_tokens) = (ffn.n_experts, n_pairs / k);
        let is_tiled = |weight: &Linear| products::is_tiled(&self.gpu, weight.ty(), n_tokens);
        let fits = Grouped { n_pairs, k, n_experts }.fits() && n_tokens <= MOST_GRID;
        if !fits || ![&ffn.up, &ffn.gate, &ffn.down].into_iter().any(is_tiled) {
            return Ok(None);
        }
        let scratch = self.scratch();
        let sorted = Sorted { bounds: scratch.bounds, list: scratch.list, n_experts, n_pairs: None };
        let plan = Call::Sort { n_pairs, n_experts }.plan()?;
        let buffers = [("ids", ids), ("bounds", sorted.bounds), ("rows", sorted.list)];
        // SAFETY: scratch memory has room for the batch's pairs, and for a bound per expert
        unsafe { launch(&self.gpu, &plan, &buffers) }?;
        Ok(Some(sorted))
    }

    /// Computes the shared expert.
    pub(super) fn shared(&self, l: usize) -> Result<(), Error> {
        let ffn = self.parts.shared[l].as_ref().expect("a stage of this device");
        let (scratch, of) = (self.scratch(), self.moe(l).shared.as_ref().expect("a stage of this device"));
        self.one((ffn, of), &self.embeddings(scratch.input), scratch.shared, None)
    }

    /// Adds the results of the experts to the residual stream.
    pub(super) fn join(&self, l: usize) -> Result<(), Error> {
        let router = self.parts.router[l].as_ref().expect("a stage of this device");
        let scratch = self.scratch();
        let shared = router.has_shared.then_some(scratch.shared);
        self.add_branch((scratch.sum, shared), router.post_norm)
    }

    /// The mixture of experts of a layer.
    pub(super) fn moe(&self, l: usize) -> &network::Moe {
        match &self.network().layers[l].ffn {
            network::Ffn::Moe(moe) => moe,
            network::Ffn::Dense(_) => unreachable!("weights are loaded by the network"),
        }
    }

    /// The columns of the batch at a place, with the width of the residual stream.
    pub(super) fn embeddings(&self, place: super::scratch::Wide) -> Columns {
        place.columns(self.network().spec.n_embd, self.batch.n())
    }

    /// Computes an FFN of all columns, adds `residual` if there is one, and writes the result to `y`.
    fn one(
        &self,
        (ffn, of): (&Ffn, &network::Dense),
        input: &Columns,
        y: Address,
        residual: Option<Address>,
    ) -> Result<(), Error> {
        let (n, scratch) = (input.n_columns, self.scratch());
        if let Some(gate) = &of.input_gate {
            self.observe(&[gate], input)?;
        }
        self.observe(&[&of.experts.gate, &of.experts.up], input)?;
        let activated = self.up_gate(ffn, input, None)?;
        self.observe(&[&of.experts.down], &activated)?;
        let Some(gate) = &ffn.input_gate else {
            let to = Target { y, bias: ffn.down.bias, residual };
            // SAFETY: scratch memory has room for the columns
            return unsafe { products::multiply(&self.gpu, &ffn.down.matrix, &activated, &to) };
        };
        // this is computed like a single expert whose weights are the sigmoids
        let to = Target { y: scratch.input_gates, bias: gate.bias, residual: None };
        let sigmoid = Call::Sigmoid { n }.plan()?;
        // SAFETY: as above
        unsafe {
            products::multiply(&self.gpu, &gate.matrix, input, &to)?;
            launch(&self.gpu, &sigmoid, &[("x", scratch.input_gates)])?;
        }
        let chosen = Chosen { ids: self.columns.zeros(), pairs: Pairs { n_pairs: n, k: 1 }, sorted: None };
        if products::is_tiled(&self.gpu, ffn.down.ty(), n) && n <= MOST_GRID {
            let to = Target { y: scratch.slots, bias: ffn.down.bias, residual: None };
            // SAFETY: as above
            unsafe { products::multiply(&self.gpu, &ffn.down.matrix, &activated, &to) }?;
            return self.sum_slots(ffn.down.n_rows(), chosen, scratch.input_gates, (y, residual));
        }
        self.down(&ffn.down, &activated, chosen, scratch.input_gates, y)?;
        match residual {
            None => Ok(()),
            // the kernel for experts does not add to what is there
            Some(residual) => self.add((residual, y), None),
        }
    }

    /// Computes `act(gate) * up` of columns, or of pairs of a column and a chosen expert.
    pub(super) fn up_gate(
        &self,
        ffn: &Ffn,
        input: &Columns,
        chosen: Option<Chosen>,
    ) -> Result<Columns, Error> {
        let n_ff = ffn.up.n_rows();
        let n = chosen.map_or(input.n_columns, |c| c.pairs.n_pairs);
        let activated = self.scratch().activated.columns(n_ff, n);
        let sorted = chosen.and_then(|c| Some((c.sorted?, c.pairs)));
        let is_tiled = |weight: &Linear| match chosen {
            Some(_) => sorted.is_some() && products::has_tiles(&self.gpu, weight.ty()),
            None => products::is_tiled(&self.gpu, weight.ty(), n),
        };
        let in_tiles = is_tiled(&ffn.up) && is_tiled(&ffn.gate);
        let table = self.gpu.blas().and_then(Blas::table).filter(|_| chosen.is_none());
        let by_blas = table.is_some_and(|table| ffn.is_apart_for(table, n));
        match (ffn.apart || by_blas, chosen) {
            (true, _) => self.apart(ffn, input, chosen, &activated)?,
            (false, _) if in_tiles && reads_codes(ffn.up.ty()) => {
                self.fused_tiles(ffn, input, &activated, sorted)?;
            }
            // floats have no tiles for both at once
            (false, _) if in_tiles => self.apart(ffn, input, chosen, &activated)?,
            (false, None) => {
                for first in (0..n).step_by(MOST_COLUMNS) {
                    let n_columns = MOST_COLUMNS.min(n - first);
                    let (from, to) = (input.part(first, n_columns), activated.part(first, n_columns));
                    self.fused(ffn, &from, &to, n_columns, None)?;
                }
            }
            (false, Some(chosen)) => {
                for (first, part) in chosen.parts() {
                    let Pairs { n_pairs, k } = part.pairs;
                    let from = input.part(first, n_pairs / k);
                    self.fused(ffn, &from, &activated.part(first * k, n_pairs), 1, Some(part))?;
                }
            }
        }
        Ok(activated)
    }

    /// Computes up, gate and activation in one launch.
    fn fused(
        &self,
        ffn: &Ffn,
        from: &Columns,
        to: &Columns,
        n_columns: usize,
        chosen: Option<Chosen>,
    ) -> Result<(), Error> {
        let (up, gate) = (&ffn.up, &ffn.gate);
        let codes = reads_codes(ffn.down.ty());
        let plan = Call::UpGate(UpGate {
            up: up.ty(),
            gate: gate.ty(),
            n_rows: up.n_rows(),
            n: up.matrix.n,
            n_columns,
            pairs: chosen.map(|c| c.pairs),
            glu: ffn.glu,
            bias_up: up.bias.is_some(),
            bias_gate: gate.bias.is_some(),
            codes,
        })
        .plan()?;
        let (plan, results) = self.made(plan, to, codes);
        let mut buffers = fused_buffers(ffn, from, results)?;
        buffers.extend(chosen.map(|c| ("ids", c.ids)));
        // SAFETY: scratch memory has room for these columns
        unsafe { launch(&self.gpu, &plan, &buffers) }
    }

    /// Computes up, gate and activation of all columns in one launch.
    fn fused_tiles(
        &self,
        ffn: &Ffn,
        from: &Columns,
        to: &Columns,
        sorted: Option<(Sorted, Pairs)>,
    ) -> Result<(), Error> {
        let (up, gate) = (&ffn.up, &ffn.gate);
        let codes = reads_codes(ffn.down.ty());
        let columns = sorted.map_or(TiledColumns::Plain(from.n_columns), |(s, pairs)| s.columns(pairs));
        let plan = Call::MmqUpGate(MmqUpGate {
            up: up.ty(),
            gate: gate.ty(),
            n_rows: up.n_rows(),
            n: up.matrix.n,
            columns,
            tile: columns.tile(&[up.ty(), gate.ty()], up.n_rows(), self.gpu.facts()),
            glu: ffn.glu,
            bias_up: up.bias.is_some(),
            bias_gate: gate.bias.is_some(),
            codes,
        })
        .plan()?;
        let (plan, results) = self.made(plan, to, codes);
        let mut buffers = fused_buffers(ffn, from, results)?;
        buffers.extend(sorted.into_iter().flat_map(|(sorted, _)| sorted.buffers()));
        // SAFETY: scratch memory has room for these columns
        unsafe { launch(&self.gpu, &plan, &buffers) }
    }

    /// Computes up and gate as two products, then the activation.
    fn apart(
        &self,
        ffn: &Ffn,
        input: &Columns,
        chosen: Option<Chosen>,
        activated: &Columns,
    ) -> Result<(), Error> {
        let scratch = self.scratch();
        let n_ff = ffn.up.n_rows();
        for (weight, y) in [(&ffn.up, scratch.up), (&ffn.gate, scratch.gate)] {
            let Linear { matrix, bias } = weight;
            let to = Target { y, bias: *bias, residual: None };
            match chosen {
                // SAFETY: scratch memory has room for all columns
                None => unsafe { products::multiply(&self.gpu, matrix, input, &to) }?,
                // SAFETY: as above
                Some(chosen) => unsafe {
                    products::multiply_chosen(&self.gpu, (matrix, *bias), chosen, input, (y, n_ff))
                }?,
            }
        }
        self.activate(ffn, chosen, activated)
    }

    /// Computes the activation of up and gate that were computed as two products.
    pub(super) fn activate(
        &self,
        ffn: &Ffn,
        chosen: Option<Chosen>,
        activated: &Columns,
    ) -> Result<(), Error> {
        let (scratch, n_ff) = (self.scratch(), ffn.up.n_rows());
        let codes = reads_codes(ffn.down.ty());
        let at_once = MOST_GRID;
        for first in (0..activated.n_columns).step_by(at_once) {
            let n_columns = at_once.min(activated.n_columns - first);
            let glu = GluCall { n_rows: n_ff, n_columns, glu: ffn.glu, ids: chosen.is_some(), codes };
            let (plan, results) = self.made(Call::Glu(glu).plan()?, &activated.part(first, n_columns), codes);
            let skipped = 4 * first * n_ff;
            let mut buffers =
                vec![("up", scratch.up.offset(skipped)), ("gate", scratch.gate.offset(skipped))];
            buffers.extend(chosen.map(|c| ("ids", c.ids.offset(4 * first))));
            buffers.extend(results);
            // SAFETY: scratch memory has room for all columns
            unsafe { launch(&self.gpu, &plan, &buffers) }?;
        }
        Ok(())
    }

    /// Computes the down projections of the chosen experts, weighed and summed.
    fn down(
        &self,
        down: &Linear,
        activated: &Columns,
        chosen: Chosen,
        weights: Address,
        y: Address,
    ) -> Result<(), Error> {
        if chosen.sorted.is_some() && products::has_tiles(&self.gpu, down.ty()) {
            // a result for each pair, which reads a column of its own
            let pairs = Pairs { k: 1, ..chosen.pairs };
            let (slots, each) = (self.scratch().slots, Chosen { pairs, ..chosen });
            let to = (slots, down.n_rows());
            // SAFETY: scratch memory has room for the batch's pairs
            unsafe { products::multiply_chosen(&self.gpu, (&down.matrix, down.bias), each, activated, to) }?;
            return self.sum_slots(down.n_rows(), chosen, weights, (y, None));
        }
        for (first, Chosen { ids, pairs, .. }) in chosen.parts() {
            let Pairs { n_pairs, k } = pairs;
            let plan = Call::Down(Down {
                ty: down.ty(),
                n_rows: down.n_rows(),
                n: down.matrix.n,
                pairs,
                bias: down.bias.is_some(),
                residual: false,
            })
            .plan()?;
            let mut buffers = vec![
                ("w", down.matrix.at),
                ("ids", ids),
                ("weights", weights.offset(4 * first * k)),
                ("y", y.offset(4 * first * down.n_rows())),
            ];
            buffers.extend(down.bias.map(|a| ("bias", a)));
            buffers.extend(activated.part(first * k, n_pairs).read_by(down.ty())?);
            // SAFETY: scratch memory has room for the batch's columns
            unsafe { launch(&self.gpu, &plan, &buffers) }?;
        }
        Ok(())
    }

    /// Weighs the results of pairs, which are in [`Scratch::slots`](super::scratch::Scratch::slots), and sums up those of
    /// each token.
    pub(super) fn sum_slots(
        &self,
        n_rows: usize,
        chosen: Chosen,
        weights: Address,
        (y, residual): (Address, Option<Address>),
    ) -> Result<(), Error> {
        let Pairs { n_pairs, k } = chosen.pairs;
        let sum = SumSlots { n_rows, n_tokens: n_pairs / k, k, residual: residual.is_some() };
        let mut buffers = vec![("products", self.scratch().slots), ("ids", chosen.ids)];
        buffers.extend([("weights", weights), ("y", y)]);
        buffers.extend(residual.map(|a| ("residual", a)));
        // SAFETY: scratch memory has room for the batch's columns
        unsafe { launch(&self.gpu, &Call::SumSlots(sum).plan()?, &buffers) }
    }

    /// A launch that makes activations, and the buffers for them: codes or floats. While inputs are collected, codes come
    /// with the floats of which they are made.
    fn made(&self, plan: Plan, to: &Columns, codes: bool) -> (Plan, Vec<(&'static str, Address)>) {
        match to.codes.filter(|_| codes) {
            None => (plan, vec![("y", to.floats)]),
            Some((q, ds)) if self.watched().is_none() => (plan, vec![("q", q), ("q_ds", ds)]),
            Some((q, ds)) => (plan.with("y"), vec![("y", to.floats), ("q", q), ("q_ds", ds)]),
        }
    }
}

/// What a kernel reads and writes that computes up, gate and activation, beside the list of experts.
fn fused_buffers(
    ffn: &Ffn,
    from: &Columns,
    results: Vec<(&'static str, Address)>,
) -> Result<Vec<(&'static str, Address)>, Error> {
    let (up, gate) = (&ffn.up, &ffn.gate);
    let mut buffers = vec![("up", up.matrix.at), ("gate", gate.matrix.at)];
    buffers.extend(up.bias.map(|a| ("bias_up", a)));
    buffers.extend(gate.bias.map(|a| ("bias_gate", a)));
    buffers.extend(from.read_by(up.ty())?);
    buffers.extend(results);
    Ok(buffers)
}
