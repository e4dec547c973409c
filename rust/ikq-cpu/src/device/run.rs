//! The stages of a step, as the CPU computes them.

use ikq_kernels::act::Activations;
use ikq_kernels::ops;
use ikq_model::device::{RouterFailed, Step};
use ikq_model::network::Ffn;
use ikq_model::spec::ModelSpec;

use super::{Cpu, StepState};
use crate::attention::parted;
use crate::exec::{Exec, Forms, Product, room};
use crate::low_rank::Scales;
use crate::stages;
use crate::weight::Weight;

/// Logits of normed hidden states.
pub(super) fn output(
    exec: &Exec<'_>,
    weight: &Weight,
    acts: &Activations,
    spec: &ModelSpec,
    logits: &mut [f32],
) {
    exec.multiply(acts, vec![Product::new(weight, logits)]);
    if spec.logit_scale != 1.0 {
        let mut rows: Vec<_> = logits.chunks_mut(weight.n_rows).collect();
        exec.team.for_each(&mut rows, |row, _| row.iter_mut().for_each(|v| *v *= spec.logit_scale));
    }
    if let Some(cap) = spec.final_softcap {
        let mut rows: Vec<_> = logits.chunks_mut(weight.n_rows).collect();
        exec.team.for_each(&mut rows, |row, _| ops::softcap(exec.kind, row, cap));
    }
}

impl Cpu {
    pub(super) fn embed(&mut self, step: Step<'_>) {
        let exec = exec!(self, step);
        let network = self.network.as_ref().expect("`load` comes first");
        let batch = exec.batch;
        let StepState { hidden, acts, branch, per_layer: all_layers, .. } = &mut self.step;
        let (n_embd, scale, kind) = (network.spec.n_embd, network.spec.embd_scale, self.options.kind);
        let Some(embeddings) = self.embeddings.as_ref().or(network.token_embd.as_ref()) else {
            hidden[..batch.given.len()].copy_from_slice(&batch.given);
            return;
        };
        let columns = hidden.chunks_exact_mut(n_embd).zip(&batch.tokens);
        let mut columns: Vec<_> = columns.collect();
        let is_plain = self.parts.embedded.is_empty();
        step.team.for_each(&mut columns, |(x, token), _| {
            embeddings.decode_row(kind, **token as usize, x);
            if is_plain && scale != 1.0 {
                x.iter_mut().for_each(|v| *v *= scale);
            }
        });
        drop(columns);
        if !is_plain {
            let x = &mut hidden[..batch.n() * n_embd];
            exec.add_embedded(&self.parts.embedded, x);
            x.iter_mut().for_each(|v| *v *= scale);
        }
        if let (Some(per_layer), Some(proj)) = (&network.per_layer, &self.parts.per_layer) {
            let embd = self.layer_embeddings.as_ref().unwrap_or(&per_layer.embd);
            let x = &hidden[..batch.n() * n_embd];
            stages::layer_embeddings(&exec, (per_layer, embd, proj), x, (acts, branch), all_layers);
        }
        let (Some(nextn), Some(eh_proj)) = (&network.nextn, &self.parts.eh_proj) else { return };
        // a head's block reads both, normed, side by side
        let n = batch.n();
        acts.resize(2 * n_embd, n);
        let both = acts.floats_mut().chunks_exact_mut(2 * n_embd);
        let inputs = hidden.chunks_exact(n_embd).zip(batch.given.chunks_exact(n_embd));
        let mut columns: Vec<_> = both.zip(inputs).collect();
        step.team.for_each(&mut columns, |(both, (embedding, given)), _| {
            let (e, h) = both.split_at_mut(n_embd);
            ops::rms_norm(kind, embedding, &nextn.enorm, exec.norm_eps, e);
            ops::rms_norm(kind, given, &nextn.hnorm, exec.norm_eps, h);
        });
        exec.quantize(acts, Forms::of(exec.compute, [eh_proj]));
        exec.project(acts, vec![Product::new(eh_proj, &mut hidden[..n * n_embd])]);
    }

    pub(super) fn attention(&mut self, l: usize, step: Step<'_>) {
        let exec = exec!(self, step);
        let network = self.network.as_ref().expect("`load` comes first");
        let layer = &network.layers[l];
        let batch = exec.batch;
        let StepState { hidden, before, branch, acts, attention: buffers, .. } = &mut self.step;
        let (n_embd, n) = (network.spec.n_embd, batch.n() * network.spec.n_embd);
        let attention = self.parts.attention[l].as_ref().expect("a stage of this device");
        let with_cache = layer.attention.shares().unwrap_or(l);
        let cache = self.caches[with_cache].as_mut().expect("a stage of this device");
        let (x, branch) = (&mut hidden[..n], room(branch, n));
        let forms = attention.input_forms(exec.compute);
        exec.norm_of(network.spec.norm_kind, x, &layer.attention_norm, acts, forms);
        if layer.parallel {
            room(before, n).copy_from_slice(x);
        }
        attention.run(&exec, layer, acts, cache, buffers, branch);
        let post = (layer.post_attention_norm.as_deref(), layer.attention_factor);
        stages::add_branch(&exec, x, branch, post, n_embd);
    }

    pub(super) fn project_heads(&mut self, l: usize, step: Step<'_>) {
        let exec = exec!(self, step);
        let network = self.network.as_ref().expect("`load` comes first");
        let layer = &network.layers[l];
        let StepState { hidden, acts, attention: buffers, .. } = &mut self.step;
        let attention = self.parts.attention[l].as_ref().expect("a stage of this device");
        let x = &hidden[..exec.batch.n() * network.spec.n_embd];
        let forms = attention.input_forms(exec.compute);
        exec.norm_of(network.spec.norm_kind, x, &layer.attention_norm, acts, forms);
        attention.project(&exec, layer, acts, buffers);
    }

    pub(super) fn attend(&mut self, l: usize, step: Step<'_>) {
        let exec = exec!(self, step);
        let network = self.network.as_ref().expect("`load` comes first");
        let cache = self.caches[l].as_mut().expect("a stage of this device");
        parted::attend(&exec, &network.layers[l], cache, &mut self.step.attention, exec.batch.n());
    }

    pub(super) fn attention_output(&mut self, l: usize, step: Step<'_>) {
        let exec = exec!(self, step);
        let network = self.network.as_ref().expect("`load` comes first");
        let StepState { hidden, branch, attention: buffers, .. } = &mut self.step;
        let (n_embd, n) = (network.spec.n_embd, exec.batch.n() * network.spec.n_embd);
        let attention = self.parts.attention[l].as_ref().expect("a stage of this device");
        let (x, branch) = (&mut hidden[..n], room(branch, n));
        attention.output(&exec, buffers, branch);
        let layer = &network.layers[l];
        let post = (layer.post_attention_norm.as_deref(), layer.attention_factor);
        stages::add_branch(&exec, x, branch, post, n_embd);
    }

    pub(super) fn dense(&mut self, l: usize, step: Step<'_>) {
        let exec = exec!(self, step);
        let network = self.network.as_ref().expect("`load` comes first");
        let layer = &network.layers[l];
        let batch = exec.batch;
        let StepState { hidden, before, branch, acts, ffn, scores, .. } = &mut self.step;
        let (n_embd, n) = (network.spec.n_embd, batch.n() * network.spec.n_embd);
        let dense = self.parts.dense[l].as_ref().expect("a stage of this device");
        let (x, branch) = (&mut hidden[..n], room(branch, n));
        let (input, forms) =
            (if layer.parallel { &before[..n] } else { &*x }, dense.input_forms(exec.compute));
        exec.norm_of(network.spec.norm_kind, input, &layer.ffn_norm, acts, forms);
        dense.run(&exec, acts, ffn, scores, branch);
        let post = (layer.post_ffn_norm.as_deref(), layer.ffn_factor);
        stages::add_branch(&exec, x, branch, post, n_embd);
    }

    pub(super) fn route(&mut self, l: usize, step: Step<'_>) -> Result<(), RouterFailed> {
        let exec = exec!(self, step);
        let network = self.network.as_ref().expect("`load` comes first");
        let layer = &network.layers[l];
        let batch = exec.batch;
        let StepState { hidden, before, input, shared_input, acts, choices, scores, .. } = &mut self.step;
        let n = batch.n() * network.spec.n_embd;
        let router = self.parts.router[l].as_ref().expect("a stage of this device");
        // in all forms that this device's other stages of the layer read
        let compute = exec.compute;
        let forms = Forms::of(compute, [&router.weight]);
        let of_experts = self.parts.experts[l].as_ref().is_some_and(|e| e.input_forms(compute).q8);
        if let Ffn::Moe(moe) = &layer.ffn
            && let Some(norms) = &moe.norms
        {
            let x = &hidden[..n];
            if let Some(shared) = &self.parts.shared[l] {
                exec.norm(x, &norms.shared, exec.norm_eps, shared_input, shared.input_forms(compute));
            }
            exec.norm(x, &layer.ffn_norm, exec.norm_eps, input, Forms { q8: of_experts });
            exec.norm(x, &norms.router, exec.norm_eps, acts, forms);
            return router.run(&exec, acts, self.options.expert_reduction, scores, choices);
        }
        let mut q8 = forms.q8 || of_experts;
        q8 |= self.parts.shared[l].as_ref().is_some_and(|s| s.input_forms(compute).q8);
        let x = if layer.parallel { &before[..n] } else { &hidden[..n] };
        exec.norm_of(network.spec.norm_kind, x, &layer.ffn_norm, input, Forms { q8 });
        router.run(&exec, input, self.options.expert_reduction, scores, choices)
    }

    pub(super) fn experts(&mut self, l: usize, step: Step<'_>) {
        let exec = exec!(self, step);
        let n = exec.batch.n() * self.network.as_ref().expect("`load` comes first").spec.n_embd;
        let StepState { input, choices, ffn, sum, .. } = &mut self.step;
        let experts = self.parts.experts[l].as_ref().expect("a stage of this device");
        stages::experts(&exec, experts, input, choices, ffn, &mut sum[..n]);
    }

    pub(super) fn shared(&mut self, l: usize, step: Step<'_>) {
        let exec = exec!(self, step);
        let n = exec.batch.n() * self.network.as_ref().expect("`load` comes first").spec.n_embd;
        let StepState { input, shared_input, ffn, scores, shared, .. } = &mut self.step;
        let dense = self.parts.shared[l].as_ref().expect("a stage of this device");
        let network = self.network.as_ref().expect("`load` comes first");
        let has_norms = matches!(&network.layers[l].ffn, Ffn::Moe(moe) if moe.norms.is_some());
        let input = if has_norms { shared_input } else { input };
        dense.run(&exec, input, ffn, scores, &mut shared[..n]);
    }

    pub(super) fn join(&mut self, l: usize, step: Step<'_>) {
        let exec = exec!(self, step);
        let network = self.network.as_ref().expect("`load` comes first");
        let layer = &network.layers[l];
        let batch = exec.batch;
        let StepState { hidden, sum, shared, .. } = &mut self.step;
        let (n_embd, n) = (network.spec.n_embd, batch.n() * network.spec.n_embd);
        let (sum, shared) = (&mut sum[..n], &mut shared[..n]);
        if let Ffn::Moe(moe) = &layer.ffn
            && moe.shared.is_some()
        {
            if let Some(norms) = &moe.norms {
                stages::norm_in_place(&exec, sum, &norms.experts_output);
                stages::norm_in_place(&exec, shared, &norms.shared_output);
            }
            sum.iter_mut().zip(shared.iter()).for_each(|(sum, shared)| *sum += shared);
        }
        let post = (layer.post_ffn_norm.as_deref(), layer.ffn_factor);
        stages::add_branch(&exec, &mut hidden[..n], sum, post, n_embd);
    }

    pub(super) fn end(&mut self, l: usize, step: Step<'_>) {
        let exec = exec!(self, step);
        let network = self.network.as_ref().expect("`load` comes first");
        let layer = &network.layers[l];
        let StepState { hidden, branch, acts, ffn, per_layer, .. } = &mut self.step;
        let x = &mut hidden[..exec.batch.n() * network.spec.n_embd];
        if let (Some(end), Some(all), Some(e)) = (&self.parts.ends[l], &network.per_layer, &layer.embedding) {
            end.run(&exec, (all, l), per_layer, x, (acts, ffn.mid_mut(), branch));
            stages::add_branch(&exec, x, branch, (Some(&e.norm), 1.0), network.spec.n_embd);
        }
        if let Some(scale) = layer.scale {
            x.iter_mut().for_each(|v| *v *= scale);
        }
    }
}
