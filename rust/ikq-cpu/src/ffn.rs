//! Feed-forward networks: dense, shared and mixtures of experts are one computation, a dense FFN being one expert
//! that every token takes.
//!
//! ```text
//! pairs (token, expert), sorted by expert
//! fused      unit = (expert, row block): gate rows, up rows, act(gate) * up -> mid
//! separate   unit = (expert, row block): gate rows -> buffer; the same for up; then act(gate) * up -> mid
//! then       unit = row block: for every expert: down rows, times the pair's weight, added to its token
//! ```
//! Experts are added in ascending order by whichever thread has the rows, so the sum does not depend on
//! threads. Gate and up are weights of their own types; a merged tensor is two runs of its rows.

use std::ops::Range;

use ikq_kernels::act::Activations;
use ikq_kernels::matmul::Compute;
use ikq_kernels::ops::{Activation, glu};
use ikq_kernels::tiles::tiles;
use ikq_model::network::{self, PlanKind};
use ikq_model::spec;

use crate::exec::{Exec, Forms, room};
use crate::load::Loaded;
use crate::weight::Weight;

/// Gate, up and down of one or many experts.
#[derive(Debug)]
pub struct Experts {
    pub gate: Weight,
    pub up: Weight,
    pub down: Weight,
    pub activation: Activation,
    /// The input is multiplied with an expert's weight, not what it gives.
    pub weighs_input: bool,
    pub plan: PlanKind,
}

impl Experts {
    /// The weights of `experts`, taken from those loaded.
    pub fn new(experts: &network::Experts, loaded: &mut Loaded) -> Experts {
        Experts {
            gate: loaded.take(&experts.gate),
            up: loaded.take(&experts.up),
            down: loaded.take(&experts.down),
            activation: match experts.activation {
                spec::Activation::Silu => experts.limit.map_or(Activation::Silu, Activation::SiluLimited),
                spec::Activation::GeluTanh => Activation::GeluTanh,
                spec::Activation::SwigluOai => Activation::SwigluOai,
            },
            weighs_input: experts.weighs_input,
            plan: experts.plan.kind,
        }
    }

    /// The form in which the input is read.
    pub fn input_forms(&self, compute: Compute) -> Forms {
        Forms::of(compute, [&self.gate, &self.up])
    }

    /// Rows of gate and up.
    pub fn n_ff(&self) -> usize {
        self.up.n_rows
    }
}

/// Which tokens go to which experts: pairs sorted by expert, tokens ascending.
#[derive(Debug, Default)]
pub struct Groups {
    /// Each expert that has pairs, with their range.
    experts: Vec<(usize, Range<usize>)>,
    /// The token of each pair; `weights` has its weight.
    tokens: Vec<u32>,
    weights: Vec<f32>,
    /// Where the next pair of each expert goes; used by `assign` only.
    next: Vec<usize>,
}

impl Groups {
    /// Every token takes expert 0 with its weight.
    pub fn all_to_one(&mut self, weights: impl IntoIterator<Item = f32>) {
        self.weights.clear();
        self.weights.extend(weights);
        let n = self.weights.len();
        self.tokens.clear();
        self.tokens.extend(0..n as u32);
        self.experts.clear();
        self.experts.push((0, 0..n));
    }

    /// Every one of `n` tokens takes every expert of the range, with weight 0.
    pub fn all_to_all(&mut self, n: usize, experts: Range<usize>) {
        self.experts.clear();
        self.experts.extend(experts.clone().enumerate().map(|(i, expert)| (expert, i * n..(i + 1) * n)));
        self.tokens.clear();
        self.tokens.extend(experts.flat_map(|_| 0..n as u32));
        self.weights.clear();
        self.weights.resize(self.tokens.len(), 0.0);
    }

    /// Sorts the choices of all tokens by expert; `choices[token]` has the token's experts with their weights.
    pub fn assign(&mut self, choices: &[Vec<(u32, f32)>], n_experts: usize) {
        self.next.clear();
        self.next.resize(n_experts, 0);
        let n_pairs = choices.iter().map(Vec::len).sum();
        choices.iter().flatten().for_each(|(expert, _)| self.next[*expert as usize] += 1);
        self.experts.clear();
        let mut at = 0;
        for (expert, n) in self.next.iter_mut().enumerate() {
            let range = at..at + *n;
            *n = at;
            at = range.end;
            if !range.is_empty() {
                self.experts.push((expert, range));
            }
        }
        self.tokens.clear();
        self.tokens.resize(n_pairs, 0);
        self.weights.clear();
        self.weights.resize(n_pairs, 0.0);
        for (token, chosen) in choices.iter().enumerate() {
            for (expert, weight) in chosen {
                let next = &mut self.next[*expert as usize];
                self.tokens[*next] = token as u32;
                self.weights[*next] = *weight;
                *next += 1;
            }
        }
    }

    pub fn n_pairs(&self) -> usize {
        self.tokens.len()
    }

    /// Experts that have pairs, each with its range of pairs.
    pub fn experts(&self) -> &[(usize, Range<usize>)] {
        &self.experts
    }
}

/// Buffers between the phases of an FFN.
#[derive(Default)]
pub struct FfnBuffers {
    pub groups: Groups,
    /// `act(gate) * up` of every pair.
    mid: Activations,
    /// Results of gate, which only the separate plan keeps.
    gate: Vec<f32>,
    up: Vec<f32>,
    /// The numbers 0, 1, 2, ...: the columns of `mid` that the pairs have.
    pairs: Vec<u32>,
}

impl FfnBuffers {
    /// The buffer between products, for others that have two of them.
    pub fn mid_mut(&mut self) -> &mut Activations {
        &mut self.mid
    }
}

/// Runs the experts of `buffers.groups` on `acts` and adds the weighted results to `out` (columns of
/// `down.n_rows`, one per token).
pub fn run(
    exec: &Exec<'_>,
    experts: &Experts,
    acts: &Activations,
    buffers: &mut FfnBuffers,
    out: &mut [f32],
) {
    middle(exec, experts, acts, buffers);
    let FfnBuffers { groups, mid, pairs, .. } = buffers;
    exec.quantize(mid, Forms::of(exec.compute, [&experts.down]));
    down(exec, experts, groups, mid, &pairs[..groups.n_pairs()], out);
}

/// Everything before `down`, whatever the plan; the collector is told of both inputs.
fn middle(exec: &Exec<'_>, experts: &Experts, acts: &Activations, buffers: &mut FfnBuffers) {
    let FfnBuffers { groups, mid, gate, up, pairs } = buffers;
    let n_pairs = groups.n_pairs();
    pairs.extend(pairs.len() as u32..n_pairs as u32);
    let n_experts = experts.up.n_experts();
    let tokens = &groups.tokens[..];
    let inputs = [&experts.gate, &experts.up];
    if experts.weighs_input && exec.collector.is_some() {
        let input = weighed(groups, acts);
        exec.observe_groups(&inputs, n_experts, &groups.experts, (&pairs[..n_pairs], tokens), &input);
    } else {
        exec.observe_groups(&inputs, n_experts, &groups.experts, (tokens, tokens), acts);
    }
    mid.resize(experts.n_ff(), n_pairs);
    match experts.plan {
        PlanKind::Fused | PlanKind::Merged => fused(exec, experts, acts, groups, mid),
        PlanKind::Separate => separate(exec, experts, acts, groups, mid, [gate, up]),
    }
    let columns = (&pairs[..n_pairs], &groups.tokens[..]);
    exec.observe_groups(&[&experts.down], n_experts, &groups.experts, columns, mid);
}

/// Pairs of [`collect_all`] that are held at once, per token.
const EXPERTS_AT_ONCE: usize = 16;

/// Statistics as if every token took every expert, a few experts at a time; gives no result.
pub fn collect_all(exec: &Exec<'_>, experts: &Experts, acts: &Activations, buffers: &mut FfnBuffers) {
    let n_experts = experts.up.n_experts();
    for first in (0..n_experts).step_by(EXPERTS_AT_ONCE) {
        let some = first..n_experts.min(first + EXPERTS_AT_ONCE);
        buffers.groups.all_to_all(acts.n_columns(), some);
        middle(exec, experts, acts, buffers);
    }
}

/// How many rows a unit of the expert phases has. The rows of all experts together are shared among the threads.
fn block(exec: &Exec<'_>, groups: &Groups, n_rows: usize, step: usize) -> usize {
    let n_experts = groups.experts.len().max(1);
    exec.row_block(n_rows * n_experts, groups.n_pairs().div_ceil(n_experts), step)
}

fn fused(exec: &Exec<'_>, experts: &Experts, acts: &Activations, groups: &Groups, mid: &mut Activations) {
    let (gate, up) = (&experts.gate, &experts.up);
    let n_ff = experts.n_ff();
    let step = gate.row_step().max(up.row_step());
    let step = block(exec, groups, n_ff, step);
    let per_expert = n_ff.div_ceil(step);
    let tokens = &groups.tokens[..];
    let additions = exec.additions(&[gate, up], &groups.experts, (tokens, tokens), acts);
    let ranges = groups.experts.iter().map(|(_, pairs)| pairs.clone());
    let mut units: Vec<_> = tiles(mid.floats_mut(), n_ff, step, ranges).into_iter().enumerate().collect();
    exec.team.for_each(&mut units, |(i, tile), thread| {
        let (expert, pairs) = &groups.experts[*i / per_expert];
        let scratch = &mut *exec.scratch(thread);
        let (rows, columns) = (tile.rows(), (&tokens[pairs.clone()], pairs.start));
        exec.product((up, *expert, &additions[1]), rows.clone(), acts, columns, scratch);
        std::mem::swap(&mut scratch.first, &mut scratch.second);
        exec.product((gate, *expert, &additions[0]), rows.clone(), acts, columns, scratch);
        let n = rows.len();
        if experts.weighs_input {
            let weights = &groups.weights[pairs.clone()];
            weigh(weights, n, &mut scratch.first);
            weigh(weights, n, &mut scratch.second);
        }
        let gates = scratch.first.chunks_exact(n);
        let ups = scratch.second.chunks_exact(n);
        for ((pair, gate), up) in pairs.clone().zip(gates).zip(ups) {
            glu(exec.kind, experts.activation, gate, up, tile.column(pair));
        }
    });
}

/// The input of every pair times its weight, for the collector. Weights of 0 are those of pairs that no router has chosen
/// ([`Groups::all_to_all`]), whose input counts as it is.
fn weighed(groups: &Groups, acts: &Activations) -> Activations {
    let mut input = Activations::default();
    input.resize(acts.k(), groups.n_pairs());
    let columns = input.floats_mut().chunks_exact_mut(acts.k());
    for ((column, token), weight) in columns.zip(&groups.tokens).zip(&groups.weights) {
        let weight = if *weight == 0.0 { 1.0 } else { *weight };
        let x = acts.floats(*token as usize);
        column.iter_mut().zip(x).for_each(|(v, x)| *v = weight * x);
    }
    input
}

/// Multiplies columns of `n` with the weights of their pairs: what products of weighed inputs are.
fn weigh(weights: &[f32], n: usize, values: &mut [f32]) {
    for (weight, column) in weights.iter().zip(values.chunks_exact_mut(n)) {
        column.iter_mut().for_each(|v| *v *= weight);
    }
}

fn separate(
    exec: &Exec<'_>,
    experts: &Experts,
    acts: &Activations,
    groups: &Groups,
    mid: &mut Activations,
    buffers: [&mut Vec<f32>; 2],
) {
    let n_ff = experts.n_ff();
    let len = n_ff * groups.n_pairs();
    let [gates, ups] = buffers.map(|b| room(b, len));
    let tokens = (&groups.tokens[..], &groups.tokens[..]);
    exec.grouped(&experts.gate, &groups.experts, tokens, acts, gates);
    exec.grouped(&experts.up, &groups.experts, tokens, acts, ups);
    if experts.weighs_input {
        weigh(&groups.weights, n_ff, gates);
        weigh(&groups.weights, n_ff, ups);
    }
    let columns = mid.floats_mut().chunks_exact_mut(n_ff);
    let mut units: Vec<_> = columns.zip(gates.chunks_exact(n_ff)).zip(ups.chunks_exact(n_ff)).collect();
    exec.team.for_each(&mut units, |((out, gate), up), _| {
        glu(exec.kind, experts.activation, gate, up, out);
    });
}

fn down(
    exec: &Exec<'_>,
    experts: &Experts,
    groups: &Groups,
    mid: &Activations,
    pairs_as_columns: &[u32],
    out: &mut [f32],
) {
    let weight = &experts.down;
    let n_rows = weight.n_rows;
    let step = exec.row_block(n_rows, groups.n_pairs(), weight.row_step());
    let n_tokens = out.len() / n_rows;
    let columns = (pairs_as_columns, &groups.tokens[..]);
    let additions = &exec.additions(&[weight], &groups.experts, columns, mid)[0];
    let mut units = tiles(out, n_rows, step, std::iter::once(0..n_tokens));
    exec.team.for_each(&mut units, |tile, thread| {
        let scratch = &mut *exec.scratch(thread);
        let rows = tile.rows();
        for (expert, pairs) in &groups.experts {
            let columns = (&pairs_as_columns[pairs.clone()], pairs.start);
            exec.product((weight, *expert, additions), rows.clone(), mid, columns, scratch);
            for (pair, values) in pairs.clone().zip(scratch.first.chunks_exact(rows.len())) {
                let factor = if experts.weighs_input { 1.0 } else { groups.weights[pair] };
                let out = tile.column(groups.tokens[pair] as usize);
                out.iter_mut().zip(values).for_each(|(o, v)| *o += factor * v);
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_sorted_by_expert_and_cover_every_choice() {
        let choices = vec![vec![(2, 0.5), (0, 0.25)], vec![], vec![(2, 1.0)], vec![(3, 0.75), (2, 0.125)]];
        let mut groups = Groups::default();
        groups.assign(&choices, 4);
        assert_eq!(groups.experts(), [(0, 0..1), (2, 1..4), (3, 4..5)]);
        assert_eq!(groups.tokens, [0, 0, 2, 3, 3]);
        assert_eq!(groups.weights, [0.25, 0.5, 1.0, 0.125, 0.75]);
        groups.all_to_one([1.0, 2.0]);
        assert_eq!((groups.experts(), groups.n_pairs()), (&[(0, 0..2)][..], 2));
        groups.all_to_all(3, 2..4);
        assert_eq!(groups.experts(), [(2, 0..3), (3, 3..6)]);
        assert_eq!((groups.tokens, groups.weights), (vec![0, 1, 2, 0, 1, 2], vec![0.0; 6]));
    }
}
