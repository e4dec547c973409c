//! A step: the order of stages for a batch of sequences, and the moves between devices. It computes nothing.

use std::ops::Range;
use std::sync::Arc;

use ikq_pool::{Cancel, Stop};

use crate::batch::{Batch, PAGE, Run};
use crate::device::{Device, Stage, Step, Value};
use crate::error::Error;
use crate::model::{Model, Runner, Shared};
use crate::network::{Ffn, Layer, Network};
use crate::placement::{CPU, Placement};
use crate::results::{Best, Computed, MOST_BEST, Output, Results, Share, first_not_finite};
use crate::sequence::{Sequence, Start};
use crate::statistics::Collector;

/// What a step shall return for the tokens of a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    Nothing,
    /// Logits after the last token.
    Last,
    /// Logits after every token.
    All,
    /// So many of the largest logits after the last token, at most [`MOST_BEST`]; all, if there are fewer.
    Best(usize),
    /// The same after every token.
    BestOfAll(usize),
    /// The normed hidden state after every token: what the output matrix reads. Of a part of a model without a norm.
    Hidden,
}

/// Some tokens of one sequence that a step computes.
pub struct Entry<'a> {
    pub sequence: &'a mut Sequence,
    pub tokens: &'a [i64],
    pub want: Want,
    /// What a multi-token prediction head, or a part of a model, is given: `n_embd` floats per token. Empty for all others.
    pub hidden: &'a [f32],
}

/// A piece of an entry that is computed in one go.
struct Piece {
    entry: usize,
    tokens: Range<usize>,
    want: Want,
}

impl Piece {
    /// What its entry gets of what a step computes.
    fn share(&self) -> Option<(usize, Share)> {
        let n = self.tokens.len();
        let share = match self.want {
            Want::Nothing => return None,
            Want::Last => Share::Logits(1),
            Want::All => Share::Logits(n),
            Want::Best(each) => Share::Best(1, each),
            Want::BestOfAll(each) => Share::Best(n, each),
            Want::Hidden => Share::Hidden(n),
        };
        Some((self.entry, share))
    }
}

impl Model {
    /// Runs the tokens of all entries after what their sequences hold, and gives what each wants. On an error the sequences hold what they held, but for recurrent ones that cannot go
    /// back, which then start anew.
    ///
    /// # Errors
    /// [`Error::Token`], [`Error::NoTokens`], [`Error::Context`], [`Error::SameSequence`], [`Error::OtherModel`],
    /// [`Error::CacheMemory`], [`Error::NotFinite`], [`Error::Overflow`], [`Error::Closed`]; [`Stop::Cancelled`].
    pub fn step(&self, entries: &mut [Entry<'_>], cancel: &Cancel) -> Result<Vec<Output>, Stop<Error>> {
        let ids = self.check(entries)?;
        let mut runner = self.shared.runner()?;
        let starts: Vec<Start> = entries.iter().map(|e| e.sequence.start(e.tokens.len())).collect();
        let mut out = vec![Output::default(); entries.len()];
        for pieces in self.pieces(entries) {
            let done = match cancel.is_cancelled() {
                true => Err(Stop::Cancelled),
                false => {
                    self.pieces_step(&mut runner, entries, &ids, &pieces, &mut out).map_err(Stop::Failed)
                }
            };
            if let Err(stop) = done {
                drop(runner);
                for (entry, start) in entries.iter_mut().zip(starts) {
                    let sequence = &mut *entry.sequence;
                    let n_past = start.n_past;
                    sequence.end(start, true);
                    // recurrent layers may not lead back: then there is only the beginning
                    if sequence.truncate(n_past).is_err() {
                        sequence.truncate(0).map_err(Stop::Failed)?;
                    }
                }
                return Err(stop);
            }
        }
        drop(runner);
        for (entry, start) in entries.iter_mut().zip(starts) {
            entry.sequence.end(start, false);
        }
        Ok(out)
    }

    /// Token ids of all entries.
    fn check(&self, entries: &[Entry<'_>]) -> Result<Vec<Vec<u32>>, Error> {
        let n_vocab = self.network.spec.n_vocab;
        let mut all = Vec::with_capacity(entries.len());
        for (i, entry) in entries.iter().enumerate() {
            if !Arc::ptr_eq(&entry.sequence.shared, &self.shared) {
                return Err(Error::OtherModel);
            }
            if entries[..i].iter().any(|e| std::ptr::eq::<Sequence>(&*e.sequence, &*entry.sequence)) {
                return Err(Error::SameSequence);
            }
            if entry.tokens.is_empty() {
                return Err(Error::NoTokens);
            }
            let n = entry.tokens.len();
            let expected = if self.network.is_given_hidden() { n * self.network.spec.n_embd } else { 0 };
            if entry.hidden.len() != expected {
                return Err(Error::Hidden { found: entry.hidden.len(), n, expected });
            }
            if self.network.output.is_none() && !matches!(entry.want, Want::Nothing | Want::Hidden) {
                return Err(Error::NoOutput);
            }
            if let Want::Best(n) | Want::BestOfAll(n) = entry.want {
                check_best(n)?;
            }
            let mut ids = Vec::with_capacity(entry.tokens.len());
            for (index, &token) in entry.tokens.iter().enumerate() {
                match u32::try_from(token) {
                    Ok(id) if (id as usize) < n_vocab => ids.push(id),
                    _ => return Err(Error::Token { index, token, n_vocab }),
                }
            }
            let needed = entry.sequence.n_past() + ids.len();
            if needed > self.n_ctx() {
                return Err(Error::Context { needed, n_ctx: self.n_ctx() });
            }
            all.push(ids);
        }
        Ok(all)
    }

    /// Cuts the entries into ubatches, in order.
    fn pieces(&self, entries: &[Entry<'_>]) -> Vec<Vec<Piece>> {
        let mut all: Vec<Vec<Piece>> = Vec::new();
        let n_vocab = self.network.spec.n_vocab;
        let mut room = 0;
        for (entry, e) in entries.iter().enumerate() {
            let n = e.tokens.len();
            let mut from = 0;
            while from < n {
                if room == 0 {
                    all.push(Vec::new());
                    room = self.n_ubatch;
                }
                let to = n.min(from + room);
                let want = match e.want {
                    Want::Last | Want::Best(_) if to < n => Want::Nothing,
                    Want::Best(each) => Want::Best(each.min(n_vocab)),
                    Want::BestOfAll(each) => Want::BestOfAll(each.min(n_vocab)),
                    want => want,
                };
                all.last_mut().expect("one was pushed").push(Piece { entry, tokens: from..to, want });
                room -= to - from;
                from = to;
            }
        }
        all
    }

    /// Logits of hidden states as [`Want::Hidden`] gives them: `n_vocab` for every `n_embd` floats. `scales` are those
    /// of the adapters; `None`: as new sequences have them.
    ///
    /// # Errors
    /// [`Error::Hidden`], [`Error::NoOutput`], [`Error::Overflow`], [`Error::Closed`]; [`Error::Option`] for scales.
    pub fn head(&self, hidden: &[f32], scales: Option<&[f32]>) -> Result<Vec<f32>, Error> {
        let n_vocab = self.network.spec.n_vocab;
        let mut logits = vec![0.0; self.n_states(hidden)? * n_vocab];
        self.project(hidden, scales, &mut logits, &mut [])?;
        match first_not_finite(&logits) {
            None => Ok(logits),
            Some(at) => Err(overflow(at / n_vocab, at % n_vocab, logits[at])),
        }
    }

    /// The same, but only the `each` largest logits (all, if there are fewer) for every `n_embd` floats, the largest
    /// first.
    ///
    /// # Errors
    /// As [`Model::head`]; [`Error::Option`] also where more than [`MOST_BEST`] are wanted, or none.
    pub fn head_best(&self, hidden: &[f32], each: usize, scales: Option<&[f32]>) -> Result<Vec<Best>, Error> {
        check_best(each)?;
        let each = each.min(self.network.spec.n_vocab);
        let mut best = vec![Best::default(); self.n_states(hidden)? * each];
        self.project(hidden, scales, &mut [], &mut best)?;
        let first = best.chunks_exact(each.max(1)).map(|best| best[0]);
        match first.enumerate().find(|(_, best)| !best.logit.is_finite()) {
            None => Ok(best),
            Some((position, best)) => Err(overflow(position, best.id as usize, best.logit)),
        }
    }

    /// How many hidden states these are, of which there is one at least.
    fn n_states(&self, hidden: &[f32]) -> Result<usize, Error> {
        let n_embd = self.network.spec.n_embd;
        let n = hidden.len() / n_embd;
        match n > 0 && hidden.len().is_multiple_of(n_embd) {
            true => Ok(n),
            false => Err(Error::Hidden { found: hidden.len(), n, expected: n.max(1) * n_embd }),
        }
    }

    /// As [`Device::project`](crate::device::Device::project), on the device that has the output.
    fn project(
        &self,
        hidden: &[f32],
        scales: Option<&[f32]>,
        logits: &mut [f32],
        best: &mut [Best],
    ) -> Result<(), Error> {
        if self.network.output.is_none() {
            return Err(Error::NoOutput);
        }
        let scales = match scales {
            Some(scales) => self.checked_scales(scales)?,
            None => self.scales(),
        };
        let mut runner = self.shared.runner()?;
        let Runner { devices, pool, .. } = &mut *runner;
        let device = self.placement().device(Stage::Head);
        pool.step(|team| {
            let step = Step { team, collector: None, scales: &scales };
            devices[device].project(step, hidden, logits, best);
        });
        devices[device].failure().map_or(Ok(()), Err)
    }

    fn pieces_step(
        &self,
        runner: &mut Runner,
        entries: &mut [Entry<'_>],
        ids: &[Vec<u32>],
        pieces: &[Piece],
        out: &mut [Output],
    ) -> Result<(), Error> {
        let mut batch = Batch::default();
        for piece in pieces {
            let sequence = &mut *entries[piece.entry].sequence;
            let tokens = &ids[piece.entry][piece.tokens.clone()];
            let first = sequence.n_past();
            runner.make_room(&self.shared, sequence, tokens.len())?;
            let columns = batch.n()..batch.n() + tokens.len();
            batch.tokens.extend(tokens);
            if !entries[piece.entry].hidden.is_empty() {
                let n_embd = self.network.spec.n_embd;
                let given = piece.tokens.start * n_embd..piece.tokens.end * n_embd;
                batch.given.extend_from_slice(&entries[piece.entry].hidden[given]);
            }
            batch.positions.extend((0..tokens.len()).map(|i| (first + i) as u32));
            let all = columns.start as u32..columns.end as u32;
            match piece.want {
                Want::Nothing => {}
                Want::Last => batch.logits.push(all.end - 1),
                Want::All => batch.logits.extend(all),
                Want::Best(_) => batch.best.push(all.end - 1),
                Want::BestOfAll(_) => batch.best.extend(all),
                Want::Hidden => batch.hidden.extend(all),
            }
            if let Want::Best(each) | Want::BestOfAll(each) = piece.want {
                // one number for all columns: those who want fewer get the first ones
                batch.n_best = batch.n_best.max(each);
            }
            let tables = sequence.tables.iter().map(|t| Arc::from(t.as_slice())).collect();
            batch.runs.push(Run { columns, first, tables, state: sequence.state });
            batch.scales.push(Arc::clone(&sequence.scales));
        }
        let mut computed = Computed::new(&batch, self.network.spec.n_vocab, self.network.spec.n_embd);
        let Runner { devices, pool, collector } = runner;
        let collector = collector.as_deref();
        let placement = self.placement();
        let scales = self.shared.scales();
        let result = pool.step(|team| {
            let (step, network) = (Step { team, collector, scales: &scales }, &self.network);
            let mut order = Order { devices, placement, step, network, at: CPU, computing: CPU };
            order.run(&batch, computed.results())
        });
        // every device is asked, so that none keeps its failure for the next step
        let failures: Vec<Error> = devices.iter_mut().filter_map(|d| d.failure()).collect();
        if let Some(e) = failures.into_iter().next() {
            return Err(e);
        }
        let failed = match result {
            Err((layer, column)) => Some((column, format!("the router of layer {layer} gave no numbers"))),
            Ok(()) => computed.not_finite(&batch),
        };
        if let Some((column, what)) = failed {
            let position = batch.positions[column] as usize;
            let bad = self.network.weights().into_iter().find_map(|w| w.not_finite(self.kind));
            return Err(bad.unwrap_or(Error::Overflow { position, what }));
        }
        computed.hand_out(pieces.iter().filter_map(Piece::share), out);
        for piece in pieces {
            let sequence = &mut *entries[piece.entry].sequence;
            let first = sequence.n_past();
            sequence.tokens.extend(&ids[piece.entry][piece.tokens.clone()]);
            // as seen from where the piece begins, if that is near: it can still be taken back
            sequence.give_back_unseen(first.max(sequence.n_past().saturating_sub(PAGE)));
            runner.snapshot(&self.shared, sequence)?;
        }
        Ok(())
    }
}

impl Runner {
    /// Makes the pages and the state that `n` more tokens of a sequence are written to its own.
    fn make_room(&mut self, shared: &Shared, sequence: &mut Sequence, n: usize) -> Result<(), Error> {
        let n_past = sequence.n_past();
        for group in 0..sequence.tables.len() {
            let first = n_past / PAGE;
            if let Some(&page) = sequence.tables[group].get(first)
                && shared.pools().groups[group].is_shared(page)
            {
                // the last page is written on: a copy, if there is something in it
                let copy = self.take_page(shared, group)?;
                if !n_past.is_multiple_of(PAGE) {
                    self.devices.iter_mut().for_each(|d| d.copy_page(group, page, copy));
                }
                shared.pools().groups[group].give_back(page);
                sequence.tables[group][first] = copy;
            }
            while sequence.tables[group].len() < (n_past + n).div_ceil(PAGE) {
                let page = self.take_page(shared, group)?;
                sequence.tables[group].push(page);
            }
        }
        if !shared.is_recurrent {
            return Ok(());
        }
        let state = match sequence.state {
            Some(state) => state,
            None => {
                let state = self.take_state(shared)?;
                self.devices.iter_mut().for_each(|d| d.clear_state(state));
                sequence.state = Some(state);
                state
            }
        };
        // a step that ends in another chunk leaves no way back to where it began
        if shared.state_floor(n_past + n) > n_past && n_past > 0 {
            let copy = match sequence.before {
                Some((_, copy)) if !shared.pools().states.is_shared(copy) => copy,
                _ => self.take_state(shared)?,
            };
            self.devices.iter_mut().for_each(|d| d.copy_state(state, copy));
            let old = sequence.before.replace((n_past, copy));
            if let Some((_, old)) = old.filter(|(_, old)| *old != copy) {
                shared.pools().states.give_back(old);
            }
        }
        Ok(())
    }

    /// Keeps a snapshot of a sequence's state where one is due.
    fn snapshot(&mut self, shared: &Shared, sequence: &mut Sequence) -> Result<(), Error> {
        let n_past = sequence.n_past();
        if let Some(state) = sequence.state
            && sequence.snapshots.is_due(n_past)
        {
            let copy = self.take_state(shared)?;
            self.devices.iter_mut().for_each(|d| d.copy_state(state, copy));
            if let Some(dropped) = sequence.snapshots.add(n_past, copy) {
                shared.pools().states.give_back(dropped);
            }
        }
        Ok(())
    }
}

/// Runs the stages of a step in order, and knows which device has each value.
struct Order<'a> {
    devices: &'a mut [Box<dyn Device>],
    placement: &'a Placement,
    step: Step<'a>,
    network: &'a Network,
    /// The device that has the residual stream.
    at: usize,
    /// The device that ran the last stage.
    computing: usize,
}

impl Order<'_> {
    /// # Errors
    /// Layer and column of a router that gave no numbers.
    fn run(&mut self, batch: &Batch, results: Results<'_>) -> Result<(), (usize, usize)> {
        self.devices.iter_mut().for_each(|d| d.begin(batch));
        self.stage(Stage::Embed, CPU)?;
        let compared = self.step.collector.filter(|c| c.options().similarity);
        let wanted = batch.wanted();
        let narrows = wanted.len() < batch.n() && self.narrows();
        for (l, layer) in self.network.layers.iter().enumerate() {
            let before = compared.map(|_| self.hidden());
            self.attention(l)?;
            let between = compared.map(|_| self.hidden());
            let is_narrow = narrows && l + 1 == self.network.layers.len();
            if is_narrow {
                if wanted.is_empty() {
                    return Ok(());
                }
                let some = batch.of_columns(&wanted);
                self.devices.iter_mut().for_each(|d| d.narrow(&some, &wanted));
            }
            let column = |c: usize| if is_narrow { wanted[c] as usize } else { c };
            self.ffn(l, layer).map_err(|(l, c)| (l, column(c)))?;
            if let (Some(c), Some(before), Some(between)) = (compared, before, between) {
                self.compare(c, l, &before, &between);
            }
        }
        let observed = self.step.collector.is_some_and(|c| c.options().output);
        if !wanted.is_empty() || observed {
            let device = self.placement.device(Stage::Head);
            self.move_hidden(device);
            self.devices[device].head(self.step, results);
        }
        Ok(())
    }

    /// Whether the last layer goes on behind its attention with those columns alone of which something is wanted: nothing
    /// reads the others any more, unless statistics are collected.
    fn narrows(&self) -> bool {
        self.step.collector.is_none() && self.devices.iter().all(|d| d.narrows())
    }

    /// What a layer does behind its attention.
    fn ffn(&mut self, l: usize, layer: &Layer) -> Result<(), (usize, usize)> {
        match &layer.ffn {
            Ffn::Dense(_) => self.on_hidden(Stage::Dense(l))?,
            Ffn::Moe(moe) => self.mixture(l, moe.shared.is_some())?,
        }
        if layer.has_end() {
            self.on_hidden(Stage::End(l))?;
        }
        Ok(())
    }

    fn stage(&mut self, stage: Stage, device: usize) -> Result<(), (usize, usize)> {
        if self.computing != device {
            self.devices[self.computing].start();
            self.computing = device;
        }
        let failed = self.devices[device].run(stage, self.step);
        failed.map_err(|e| (stage.layer().unwrap_or(0), e.column))
    }

    /// A stage that reads and writes the residual stream.
    fn on_hidden(&mut self, stage: Stage) -> Result<(), (usize, usize)> {
        let device = self.placement.device(stage);
        self.move_hidden(device);
        self.stage(stage, device)
    }

    fn attention(&mut self, l: usize) -> Result<(), (usize, usize)> {
        let (device, cache) =
            (self.placement.device(Stage::Attention(l)), self.placement.device(Stage::Attend(l)));
        if device == cache {
            return self.on_hidden(Stage::Attention(l));
        }
        self.on_hidden(Stage::Project(l))?;
        self.transfer(Value::Projected(l), device, cache);
        self.stage(Stage::Attend(l), cache)?;
        self.transfer(Value::Attended(l), cache, device);
        self.stage(Stage::Output(l), device)
    }

    fn mixture(&mut self, l: usize, has_shared: bool) -> Result<(), (usize, usize)> {
        let router = self.placement.device(Stage::Route(l));
        self.on_hidden(Stage::Route(l))?;
        let experts = self.placement.device(Stage::Experts(l));
        // statistics of all experts take more than those that the tokens chose
        let takes_all = self.step.collector.is_some_and(|c| c.options().all_experts);
        let borrows = experts != router
            && !takes_all
            && self.devices[router].borrows(l)
            && self.devices[experts].lends(l).is_some();
        if experts != router && !borrows {
            self.transfer(Value::Input, router, experts);
            let choices = self.devices[router].choices().clone();
            self.devices[experts].put_choices(&choices);
        }
        // a device that works by itself computes the shared expert while the next one has the others
        if has_shared {
            let shared = self.placement.device(Stage::Shared(l));
            if shared != router {
                self.transfer(Value::Input, router, shared);
            }
            self.stage(Stage::Shared(l), shared)?;
            if shared != router {
                self.transfer(Value::Shared, shared, router);
            }
        }
        if borrows {
            self.borrowed(l, router, experts);
            return self.stage(Stage::Join(l), router);
        }
        self.stage(Stage::Experts(l), experts)?;
        if experts != router {
            self.transfer(Value::Sum, experts, router);
        }
        self.stage(Stage::Join(l), router)
    }

    /// Has the experts of a layer computed on `device`, with the weights that `owner` has.
    fn borrowed(&mut self, l: usize, device: usize, owner: usize) {
        if self.computing != device {
            self.devices[self.computing].start();
            self.computing = device;
        }
        let [device, owner] = self.devices.get_disjoint_mut([device, owner]).expect("two devices");
        let lent = owner.lends(l).expect("a device whose experts are borrowed lends them");
        device.run_borrowed(l, &lent, self.step);
    }

    fn transfer(&mut self, value: Value, from: usize, to: usize) {
        let columns = self.devices[from].get(value).to_vec();
        self.devices[to].put(value, &columns);
    }

    fn move_hidden(&mut self, to: usize) {
        if self.at != to {
            self.transfer(Value::Hidden, self.at, to);
            self.at = to;
        }
    }

    /// The residual stream, which stays where it is.
    fn hidden(&mut self) -> Vec<f32> {
        let device = &mut self.devices[self.at];
        let hidden = device.get(Value::Hidden).to_vec();
        device.put(Value::Hidden, &hidden);
        hidden
    }

    fn compare(&mut self, collector: &Collector, l: usize, before: &[f32], between: &[f32]) {
        let (after, n_embd, team) = (self.hidden(), self.network.spec.n_embd, self.step.team);
        collector.compare(team, l, 1, before, between, n_embd);
        collector.compare(team, l, 2, between, &after, n_embd);
        collector.compare(team, l, 0, before, &after, n_embd);
    }
}

/// Refuses numbers of largest logits that devices do not find.
fn check_best(n: usize) -> Result<(), Error> {
    if (1..=MOST_BEST).contains(&n) {
        return Ok(());
    }
    let why = format!("1 to {MOST_BEST} can be wanted");
    Err(Error::Option { option: "best", value: n.to_string(), why })
}

fn overflow(position: usize, index: usize, value: f32) -> Error {
    Error::Overflow { position, what: format!("number {index} is {value}") }
}
