//! Experts in RAM that are computed on the GPU: in steps of many tokens those that the router chose are copied to the
//! device, some at a time, which takes less time there than their products take the CPU.
//!
//! ```text
//! host              reads rows of part i + 1 into pinned memory, 16 MiB at a time
//! stream of copies  copies part i + 1 to a slab, as soon as part i - 1 has left it
//! own stream        brings part i from the other slab into the device's form, and computes it
//! ```
//! Kernels, lists of pairs and the order of sums are those of experts that stay on the device, and so are the bits.

use std::sync::Arc;

use ikq_formats::QuantType;
use ikq_formats::row::row_bytes;
use ikq_model::device::{Lent, Stage};
use ikq_model::device_name::DeviceName;
use ikq_model::network::{self, Network, PlanKind, Weight};
use ikq_model::placement::{CPU, Placement};
use ikq_pool::Team;

use super::Cuda;
use super::parts::{Ffn, Linear};
use super::slabs::{self, Layout, Slabs};
use crate::environment;
use crate::error::Error;
use crate::floats::as_bytes;
use crate::gpu::{self, Gpu};
use crate::memory::Address;
use crate::plan::{self, Glu, Grouped, MOST_GRID, Pairs, ROW_ALIGNMENT, reads_codes};
use crate::products::{self, Chosen, Sorted};
use crate::weights;

/// Experts of another device, and how they are computed on this one.
#[derive(Clone, Debug)]
pub struct Borrowed {
    /// Gate, up and down, whose addresses are 0.
    pub ffn: Ffn,
    /// From how many columns on.
    pub from: usize,
    /// How a part lies in memory.
    pub layout: Layout,
}

/// Multiply-adds that the CPU is taken to do in the time in which a byte is copied to the device: 1.4 * 10^12 per second
/// beside 25 * 10^9 bytes per second. With it experts of 4.5 bits are copied for 32 tokens each.
const MULTIPLY_ADDS_PER_BYTE: f64 = 57.0;

/// The same of floats, which CPUs multiply 0.38 times as fast (`benches/results/types_one_thread.md`): BF16 is copied for 44
/// tokens each.
const OF_FLOATS: f64 = 0.38 * MULTIPLY_ADDS_PER_BYTE;

/// Where this share of the experts of the layer before was chosen, those of the first part are copied before it is known
/// whether they are.
const LIKELY: f64 = 0.9;

/// What a user's number of tokens means: `None` for never.
fn wanted(says: Option<usize>, modelled: usize) -> Option<usize> {
    match says {
        None => Some(modelled),
        Some(0) => None,
        Some(n) => Some(n),
    }
}

/// From how many tokens of a step on copying all experts of a layer takes less time than the products of those chosen
/// on the CPU.
fn modelled(experts: &network::Experts, n_used: usize) -> usize {
    let weights = experts.weights();
    let bytes: usize = weights.iter().map(|w| w.n_bytes()).sum();
    // bytes that could be copied while the CPU computes a token
    let of_token = |w: &&Weight| {
        let at_once = if reads_codes(w.ty) { MULTIPLY_ADDS_PER_BYTE } else { OF_FLOATS };
        (w.n_rows * w.k * n_used) as f64 / at_once
    };
    let of_token: f64 = weights.iter().map(of_token).sum();
    ((bytes as f64 / of_token.max(1e-9)).ceil() as usize).max(1)
}

fn has_kernels(weight: &Weight) -> bool {
    let ty = weight.ty;
    let is_plain = ty != QuantType::I2_S && plan::device_type(ty).is_ok_and(|device| device == ty);
    let is_alone = weight.factors.is_none() && weight.low_rank.is_empty();
    let has_form = match ty {
        // rows are the device's as they stand
        QuantType::F32 | QuantType::F16 | QuantType::BF16 => {
            row_bytes(ty, weight.k).is_ok_and(|n| n.is_multiple_of(ROW_ALIGNMENT))
        }
        _ => reads_codes(ty) && weight.k.is_multiple_of(32),
    };
    is_plain && is_alone && has_form
}

/// The device that computes a layer's experts, which are on the CPU, in steps of so many tokens and more.
///
/// # Errors
/// [`Error::Variable`].
fn borrows(network: &Network, placement: &Placement, layer: usize) -> Result<Option<(usize, usize)>, Error> {
    let (layer, l) = (&network.layers[layer], layer);
    let network::Ffn::Moe(moe) = &layer.ffn else { return Ok(None) };
    let (router, experts) = (placement.device(Stage::Route(l)), placement.device(Stage::Experts(l)));
    let is_rare = layer.rare_ffn().is_some() || moe.norms.is_some();
    // the CPU may be there again, by another name
    let is_gpu = DeviceName::parse(&placement.devices[router]).is_ok_and(|name| name.gpu().is_some());
    if experts != CPU || !is_gpu || is_rare || !moe.experts.weights().into_iter().all(has_kernels) {
        return Ok(None);
    }
    let says = environment::whole_number(environment::STREAM_FROM, 0)?;
    // with fewer columns there are no tiles
    let tiles_from = gpu::tiles_from()?;
    Ok(wanted(says, modelled(&moe.experts, moe.routing.n_used)).map(|from| (router, from.max(tiles_from))))
}

/// Says so to users; `None` where the CPU computes them in all steps.
///
/// # Errors
/// [`Error::Variable`].
pub fn told(network: &Network, placement: &Placement, layer: usize) -> Result<Option<String>, Error> {
    let Some((device, from)) = borrows(network, placement, layer)? else { return Ok(None) };
    let network::Ffn::Moe(moe) = &network.layers[layer].ffn else { return Ok(None) };
    let has_floats = moe.experts.weights().into_iter().any(|w| !reads_codes(w.ty));
    let if_new = if has_floats { ", if its compute capability is 8.0 or more" } else { "" };
    Ok(Some(format!("computed on {} in steps of {from} tokens or more{if_new}", placement.devices[device])))
}

impl Borrowed {
    /// The experts of a layer, if device `index` borrows them.
    ///
    /// # Errors
    /// [`Error::Plan`] for types and row lengths that kernels do not take; [`Error::Variable`].
    pub fn new(
        network: &Network,
        placement: &Placement,
        index: usize,
        l: usize,
    ) -> Result<Option<Borrowed>, Error> {
        let network::Ffn::Moe(moe) = &network.layers[l].ffn else { return Ok(None) };
        let Some((_, from)) = borrows(network, placement, l)?.filter(|(device, _)| *device == index) else {
            return Ok(None);
        };
        let experts = &moe.experts;
        let linear = |weight: &Weight| Linear {
            matrix: weights::Matrix { at: Address(0), ty: weight.ty, n_rows: weight.n_rows, n: weight.k },
            bias: weight.bias.is_some().then_some(Address(0)),
        };
        let ffn = Ffn {
            gate: linear(&experts.gate),
            up: linear(&experts.up),
            down: linear(&experts.down),
            n_experts: experts.down.n_experts(),
            glu: Glu::from(experts.activation),
            apart: experts.plan.kind == PlanKind::Separate
                || reads_codes(experts.gate.ty) != reads_codes(experts.up.ty),
            input_gate: None,
        };
        Ok(Some(Borrowed { ffn, from, layout: Layout::new(&ffn, slabs::most_bytes()?)? }))
    }

    /// Whether the device has tiles for all of their types.
    pub fn has_tiles(&self, gpu: &Gpu) -> bool {
        let Ffn { gate, up, down, .. } = &self.ffn;
        [gate, up, down].into_iter().all(|w| products::has_tiles(gpu, w.ty()))
    }
}

/// Parts of the chosen experts: their numbers, ascending.
struct Part {
    experts: Vec<usize>,
    /// Pairs of all experts before them, and of each of them.
    bounds: Vec<i32>,
    is_copied: bool,
}

/// Divides experts into parts of at most `at_once`. `counts` are the pairs of each; those without pairs are left out
/// unless they are among the first `n_copied`, which are a part of their own that is there already.
fn parts(counts: &[usize], at_once: usize, n_copied: usize) -> Vec<Part> {
    let chosen: Vec<usize> = (n_copied..counts.len()).filter(|e| counts[*e] > 0).collect();
    let copied: Vec<usize> = (0..n_copied).collect();
    let mut before = 0;
    let of = |(experts, is_copied): (&[usize], bool)| {
        let mut bounds = vec![before];
        for e in experts {
            before += counts[*e] as i32;
            bounds.push(before);
        }
        Part { experts: experts.to_vec(), bounds, is_copied }
    };
    let copied = (n_copied > 0).then_some((copied.as_slice(), true));
    copied.into_iter().chain(chosen.chunks(at_once).map(|c| (c, false))).map(of).collect()
}

impl Cuda {
    /// Whether experts of a layer are computed here in this step though the CPU has them.
    pub(super) fn is_borrowed(&self, l: usize) -> bool {
        let n = self.batch.n();
        let Some(borrowed) = self.parts.borrowed.get(l).and_then(Option::as_ref) else { return false };
        let Some(router) = &self.parts.router[l] else { return false };
        let k = router.rule.n_used;
        let pairs = Grouped { n_pairs: n * k, k, n_experts: borrowed.ffn.n_experts };
        n >= borrowed.from && n <= MOST_GRID && pairs.fits()
    }

    /// Computes the weighted sum of the chosen experts of a layer that the CPU has.
    pub(super) fn borrowed_experts(
        &mut self,
        l: usize,
        lent: &Lent<'_>,
        team: &Team<'_>,
    ) -> Result<(), Error> {
        self.start_queue()?;
        let none = || Error::Plan { name: "experts".into(), why: "room was not made before".into() };
        let mut slabs = self.slabs.take().ok_or_else(none)?;
        let done = self.through_slabs(l, &mut slabs, lent, team);
        self.slabs = Some(slabs);
        done
    }

    fn through_slabs(
        &mut self,
        l: usize,
        slabs: &mut Slabs,
        lent: &Lent<'_>,
        team: &Team<'_>,
    ) -> Result<(), Error> {
        let network = Arc::clone(self.network.as_ref().expect("`load` comes first"));
        let network::Ffn::Moe(moe) = &network.layers[l].ffn else { unreachable!("a layer with experts") };
        let Borrowed { ffn, layout, .. } =
            self.parts.borrowed[l].clone().expect("a layer whose experts are borrowed");
        let source = slabs::Source { experts: &moe.experts, lent, team };

        // while the device computes what comes before
        let n_copied = if slabs.share >= LIKELY { layout.n_experts } else { 0 };
        if n_copied > 0 {
            slabs.send(&self.gpu, &layout, &source, &(0..n_copied).collect::<Vec<_>>())?;
        }
        self.host.wait(&self.gpu)?;
        let (n, k) = (self.batch.n(), self.n_used);
        let pairs = Pairs { n_pairs: n * k, k };
        let (numbers, _) = self.host.choices()?.bytes()[..4 * pairs.n_pairs].as_chunks::<4>();
        let chosen_ids: Vec<i32> = numbers.iter().map(|b| i32::from_le_bytes(*b)).collect();
        let mut counts = vec![0usize; ffn.n_experts];
        for id in &chosen_ids {
            if let Some(count) = usize::try_from(*id).ok().and_then(|e| counts.get_mut(e)) {
                *count += 1;
            }
        }
        slabs.share = counts.iter().filter(|c| **c > 0).count() as f64 / ffn.n_experts as f64;

        let (ids, weights) = self.scratch().choices(pairs.n_pairs);
        let sorted = self.sorted(&ffn, ids, pairs)?.ok_or_else(|| Error::Plan {
            name: "experts".into(),
            why: "borrowed experts are computed in tiles".into(),
        })?;
        let (input, groups) = (
            self.embeddings(self.scratch().input),
            self.groups_of(Chosen { ids, pairs, sorted: None }, ffn.n_experts)?,
        );
        self.observe_up_gate(&moe.experts, &input, groups.as_ref())?;
        let (part_ids, slots, sum) = {
            let scratch = self.scratch();
            (scratch.part_ids, scratch.slots, scratch.sum)
        };
        for part in parts(&counts, layout.n_experts, n_copied) {
            if !part.is_copied {
                slabs.send(&self.gpu, &layout, &source, &part.experts)?;
            }
            let here = slabs.take(&self.gpu, &layout, &ffn, part.experts.len())?;
            let n_pairs = (part.bounds[part.experts.len()] - part.bounds[0]) as usize;
            if n_pairs == 0 {
                continue;
            }
            // SAFETY: there is room for as many bounds as there are experts; kernels of the part before have read theirs
            unsafe { self.host.send(&self.gpu, sorted.bounds, as_bytes(&part.bounds)) }?;
            let ids = match ffn.is_apart_in_tiles() {
                false => ids,
                true => {
                    // the activation is that of the part's pairs only
                    let mut is_here = vec![false; ffn.n_experts];
                    part.experts.iter().for_each(|e| is_here[*e] = true);
                    let mine = |id: i32| usize::try_from(id).is_ok_and(|e| is_here[e]);
                    let list: Vec<i32> =
                        chosen_ids.iter().map(|id| if mine(*id) { *id } else { -1 }).collect();
                    // SAFETY: there is room for all pairs
                    unsafe { self.host.send(&self.gpu, part_ids, as_bytes(&list)) }?;
                    part_ids
                }
            };
            let sorted = Sorted { n_experts: part.experts.len(), n_pairs: Some(n_pairs), ..sorted };
            let chosen = Chosen { ids, pairs, sorted: Some(sorted) };
            let activated = self.up_gate(&here, &input, Some(chosen))?;
            let each = Chosen { pairs: Pairs { k: 1, ..pairs }, ..chosen };
            let down = (&here.down.matrix, here.down.bias);
            // SAFETY: scratch memory has room for the batch's pairs
            unsafe {
                products::multiply_chosen(&self.gpu, down, each, &activated, (slots, here.down.n_rows()))
            }?;
        }
        self.host.launches();
        let all = Chosen { ids, pairs, sorted: None };
        if groups.is_some() {
            // each part has written the columns of its pairs, but a separate activation also zeros in the others
            let activated = self.scratch().activated.columns(ffn.up.n_rows(), pairs.n_pairs);
            if ffn.is_apart_in_tiles() {
                self.activate(&ffn, Some(all), &activated)?;
            }
            self.observe_down(&moe.experts, &activated, groups)?;
        }
        self.sum_slots(ffn.down.n_rows(), all, weights, (sum, None))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(parts: &[Part]) -> Vec<(Vec<usize>, Vec<i32>, bool)> {
        parts.iter().map(|p| (p.experts.clone(), p.bounds.clone(), p.is_copied)).collect()
    }

    #[test]
    fn parts_have_those_that_were_chosen() {
        let counts = [0, 3, 0, 0, 2, 1, 7, 0];
        let found = told(&parts(&counts, 3, 0));
        assert_eq!(found, [(vec![1, 4, 5], vec![0, 3, 5, 6], false), (vec![6], vec![6, 13], false)]);
        assert!(parts(&[0, 0], 2, 0).is_empty());
    }

    #[test]
    fn those_that_were_copied_before_come_first() {
        let found = told(&parts(&[0, 3, 0, 0, 2], 2, 2));
        assert_eq!(found, [(vec![0, 1], vec![0, 0, 3], true), (vec![4], vec![3, 5], false)]);
        let found = told(&parts(&[0, 0, 4], 2, 2));
        assert_eq!(found, [(vec![0, 1], vec![0, 0, 0], true), (vec![2], vec![0, 4], false)]);
    }

    #[test]
    fn users_say_from_when_on_or_never() {
        assert_eq!(wanted(None, 512), Some(512));
        assert_eq!((wanted(Some(40), 512), wanted(Some(0), 512)), (Some(40), None));
    }
}
