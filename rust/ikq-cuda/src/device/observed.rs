//! Statistics of what weights of this device are multiplied with. Sums are the collector's: in a step that has one, the
//! inputs of products are copied to the host as floats, where they are made, and handed over when the stage is over.
//!
//! Every stage of such a step is launched by itself and never as a graph. Its kernels are those of other steps; where they
//! make codes only, they write the floats of these codes as well. So the results are the same bits with a collector and
//! without.

use std::ops::Range;

use ikq_model::device::Step;
use ikq_model::network::{Experts, Mla, Weight};
use ikq_model::statistics::{CollectOptions, Collector, Observed, Owner};
use ikq_pool::Team;

use super::Cuda;
use super::host::Host;
use super::parts::Ffn;
use crate::error::Error;
use crate::floats::{as_bytes, as_bytes_mut};
use crate::memory::Address;
use crate::products::{Chosen, Columns};

/// What a stage was seen to read, while there is a collector.
#[derive(Default)]
pub struct Watch {
    host: Host,
    options: Option<CollectOptions>,
    seen: Vec<Seen>,
}

/// What a collector is told of, in order.
enum Seen {
    Input { owners: Vec<Owner>, groups: Groups, k: usize, floats: Vec<f32> },
    Choices { router: String, of: Vec<Vec<(u32, f32)>> },
}

impl Seen {
    fn tell(&self, collector: &Collector, team: &Team<'_>) {
        match self {
            Seen::Input { owners, groups, k, floats } => {
                let k = *k;
                let input = Observed {
                    k,
                    n_groups: groups.n,
                    groups: &groups.ranges,
                    columns: &groups.columns,
                    tokens: &groups.tokens,
                    floats: &|column| &floats[column as usize * k..][..k],
                };
                collector.observe(team, owners, &input);
            }
            Seen::Choices { router, of } => collector.choose(router, of),
        }
    }
}

/// The columns of an input by group (expert or head), and the token of each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Groups {
    n: usize,
    /// Groups that have columns, ascending, with their range of `columns`.
    ranges: Vec<(usize, Range<usize>)>,
    columns: Vec<u32>,
    tokens: Vec<u32>,
}

impl Groups {
    fn new(n: usize, members: impl Iterator<Item = Vec<(u32, u32)>>) -> Groups {
        let mut groups = Groups { n, ..Groups::default() };
        for (group, members) in members.enumerate().filter(|(_, members)| !members.is_empty()) {
            let first = groups.columns.len();
            groups.columns.extend(members.iter().map(|(column, _)| column));
            groups.tokens.extend(members.iter().map(|(_, token)| token));
            groups.ranges.push((group, first..groups.columns.len()));
        }
        groups
    }

    /// All of `n` columns, which are of one group.
    fn all(n: usize) -> Groups {
        Groups::new(1, std::iter::once((0..n as u32).map(|c| (c, c)).collect()))
    }

    /// Columns of heads within tokens. Tokens of different heads are told apart, as the CPU tells them.
    fn heads(n_head: usize, n: usize) -> Groups {
        let of = |h: usize| (0..n).map(move |t| ((t * n_head + h) as u32, (h * n + t) as u32)).collect();
        Groups::new(n_head, (0..n_head).map(of))
    }

    /// Pairs of a token and one of its `k` experts, by expert; negative ids are of none.
    fn experts(ids: &[i32], k: usize, n_experts: usize) -> Groups {
        let mut members = vec![Vec::new(); n_experts];
        for (pair, id) in ids.iter().enumerate() {
            if let Some(of) = usize::try_from(*id).ok().and_then(|id| members.get_mut(id)) {
                of.push((pair as u32, (pair / k) as u32));
            }
        }
        Groups::new(n_experts, members.into_iter())
    }

    /// The same where a token's pairs share its column.
    fn of_tokens(&self) -> Groups {
        Groups { columns: self.tokens.clone(), ..self.clone() }
    }
}

impl Cuda {
    /// Does a part of a step, and tells its collector, if it has one, what weights were multiplied with.
    pub(super) fn observed(
        &mut self,
        step: Step<'_>,
        work: impl FnOnce(&mut Cuda) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let Some(collector) = step.collector else { return work(self) };
        self.watch.get_mut().options = Some(collector.options());
        let done = work(self);
        let watch = self.watch.get_mut();
        watch.options = None;
        let seen = std::mem::take(&mut watch.seen);
        done?;
        seen.iter().for_each(|seen| seen.tell(collector, step.team));
        Ok(())
    }

    /// What is collected in the present stage, if anything is.
    pub(super) fn watched(&self) -> Option<CollectOptions> {
        self.watch.borrow().options
    }

    /// Notes that these weights are multiplied with all of the columns, whose floats were made before.
    pub(super) fn observe(&self, weights: &[&Weight], input: &Columns) -> Result<(), Error> {
        self.observe_groups(weights, input, || Groups::all(input.n_columns))
    }

    /// The same for columns of heads within tokens, each head having its matrix.
    pub(super) fn observe_heads(&self, weight: &Weight, input: &Columns, n_head: usize) -> Result<(), Error> {
        self.observe_groups(&[weight], input, || Groups::heads(n_head, input.n_columns / n_head))
    }

    fn observe_groups(
        &self,
        weights: &[&Weight],
        input: &Columns,
        groups: impl FnOnce() -> Groups,
    ) -> Result<(), Error> {
        let owners = || weights.iter().map(|w| w.owner()).collect();
        self.observe_by(owners, input, groups)
    }

    fn observe_by(
        &self,
        owners: impl FnOnce() -> Vec<Owner>,
        input: &Columns,
        groups: impl FnOnce() -> Groups,
    ) -> Result<(), Error> {
        if self.watched().is_none() {
            return Ok(());
        }
        let mut floats = vec![0.0f32; input.n * input.n_columns];
        let mut watch = self.watch.borrow_mut();
        // SAFETY: the floats of so many columns were made by earlier launches
        unsafe { watch.host.fetch(&self.gpu, as_bytes_mut(&mut floats), input.floats) }?;
        watch.seen.push(Seen::Input { owners: owners(), groups: groups(), k: input.n, floats });
        Ok(())
    }

    /// Notes the compressed vectors (normed, and one behind the other), which are what keys and values of all heads are
    /// made of where nothing is absorbed.
    pub(super) fn observe_compressed(&self, a: &Mla, input: &Columns) -> Result<(), Error> {
        let Some(name) = &a.kv_b else { return Ok(()) };
        let owner = || vec![Owner { names: vec![name.clone()], pooled: false }];
        self.observe_by(owner, input, || Groups::all(input.n_columns))
    }

    /// The pairs of chosen experts by expert, if these are collected in the present stage.
    pub(super) fn groups_of(&self, chosen: Chosen, n_experts: usize) -> Result<Option<Groups>, Error> {
        match self.watched() {
            None => Ok(None),
            Some(_) => Ok(Some(Groups::experts(&self.ids(chosen)?, chosen.pairs.k, n_experts))),
        }
    }

    fn ids(&self, chosen: Chosen) -> Result<Vec<i32>, Error> {
        let mut ids = vec![-1i32; chosen.pairs.n_pairs];
        let mut watch = self.watch.borrow_mut();
        // SAFETY: there is an id per pair
        unsafe { watch.host.fetch(&self.gpu, as_bytes_mut(&mut ids), chosen.ids) }?;
        Ok(ids)
    }

    /// Notes the input of gate and up of chosen experts, which have tokens in common.
    pub(super) fn observe_up_gate(
        &self,
        experts: &Experts,
        input: &Columns,
        groups: Option<&Groups>,
    ) -> Result<(), Error> {
        let Some(groups) = groups else { return Ok(()) };
        self.observe_groups(&[&experts.gate, &experts.up], input, || groups.of_tokens())
    }

    /// Notes the input of down of chosen experts, which is a column for each pair.
    pub(super) fn observe_down(
        &self,
        experts: &Experts,
        activated: &Columns,
        groups: Option<Groups>,
    ) -> Result<(), Error> {
        let Some(groups) = groups else { return Ok(()) };
        self.observe_groups(&[&experts.down], activated, || groups)
    }

    /// Notes the inputs of all experts as if every token took each of them, as many at a time as a token has. The choices
    /// are what they were when this returns.
    pub(super) fn observe_all_experts(
        &self,
        ffn: &Ffn,
        experts: &Experts,
        input: &Columns,
        chosen: Chosen,
    ) -> Result<(), Error> {
        let (n, k, n_experts) = (input.n_columns, chosen.pairs.k, ffn.n_experts);
        let tokens = |_| (0..n as u32).map(|t| (t, t)).collect();
        let all = Groups::new(n_experts, (0..n_experts).map(tokens));
        self.observe_groups(&[&experts.gate, &experts.up], input, || all)?;
        let before = self.ids(chosen)?;
        for first in (0..n_experts).step_by(k) {
            let some: Vec<i32> =
                (first..first + k).map(|e| if e < n_experts { e as i32 } else { -1 }).collect();
            let ids = some.repeat(n);
            self.send_ids(chosen, &ids)?;
            let sorted = self.sorted(ffn, chosen.ids, chosen.pairs)?;
            let activated = self.up_gate(ffn, input, Some(Chosen { sorted, ..chosen }))?;
            self.observe_down(experts, &activated, Some(Groups::experts(&ids, k, n_experts)))?;
        }
        self.send_ids(chosen, &before)
    }

    fn send_ids(&self, chosen: Chosen, ids: &[i32]) -> Result<(), Error> {
        // SAFETY: there is room for an id per pair
        unsafe { self.watch.borrow_mut().host.send(&self.gpu, chosen.ids, as_bytes(ids)) }
    }

    /// Notes what a router has chosen, whose ids and weights are at these places.
    pub(super) fn observe_choices(
        &self,
        router: &Weight,
        chosen: Chosen,
        weights: Address,
    ) -> Result<(), Error> {
        if self.watched().is_none_or(|options| !options.choices) {
            return Ok(());
        }
        let ids = self.ids(chosen)?;
        let mut factors = vec![0.0f32; ids.len()];
        let watch = &mut *self.watch.borrow_mut();
        // SAFETY: there is a weight per pair
        unsafe { watch.host.fetch(&self.gpu, as_bytes_mut(&mut factors), weights) }?;
        let pairs: Vec<_> = ids.into_iter().zip(factors).collect();
        let chosen_of = |pairs: &[(i32, f32)]| {
            let there = pairs.iter().filter(|(id, _)| *id >= 0);
            there.map(|(id, weight)| (id.cast_unsigned(), *weight)).collect()
        };
        let of = pairs.chunks(chosen.pairs.k).map(chosen_of).collect();
        watch.seen.push(Seen::Choices { router: router.name.clone(), of });
        Ok(())
    }

    /// Notes the input of the output matrix at all positions, if it is collected.
    pub(super) fn observe_head(&mut self) -> Result<(), Error> {
        let options = self.watched();
        if options.is_none_or(|options| !options.output) {
            return Ok(());
        }
        self.start_queue()?;
        let (scratch, head) =
            (self.scratch(), self.parts.head.as_ref().expect("the output is on this device"));
        let (Some(norm), Some(weight)) = (head.norm, &self.network().output) else { return Ok(()) };
        let input = self.norm((scratch.hidden, None), norm, scratch.normed, self.batch.n())?;
        self.observe(&[weight], &input)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_grouped_by_expert_and_tokens_ascend() {
        let groups = Groups::experts(&[2, 0, -1, 2, 7, 2], 2, 4);
        assert_eq!((groups.n, &groups.ranges[..]), (4, &[(0, 0..1), (2, 1..4)][..]));
        assert_eq!((&groups.columns[..], &groups.tokens[..]), (&[1, 0, 3, 5][..], &[0, 0, 1, 2][..]));
        assert_eq!(groups.of_tokens().columns, [0, 0, 1, 2]);
    }

    #[test]
    fn heads_lie_within_tokens() {
        let groups = Groups::heads(2, 3);
        assert_eq!((groups.n, &groups.ranges[..]), (2, &[(0, 0..3), (1, 3..6)][..]));
        assert_eq!(
            (&groups.columns[..], &groups.tokens[..]),
            (&[0, 2, 4, 1, 3, 5][..], &[0, 1, 2, 3, 4, 5][..])
        );
        assert_eq!(Groups::all(2), Groups::heads(1, 2));
    }
}
