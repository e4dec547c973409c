//! Gated delta-net layers on a GPU.

use ikq_model::network;

use super::Cuda;
use super::parts::DeltaNet;
use crate::error::Error;
use crate::memory::Address;
use crate::plan::{Call, Delta, DeltaKernel, MOST_GRID, reads_codes};
use crate::products::{self, Columns, launch};

impl DeltaNet {
    /// Floats per column of the products of gates, and of the gates.
    pub fn gates(&self) -> usize {
        self.beta.n_rows() + self.alpha.map_or(0, |a| a.n_rows()) + 2 * self.sizes.n_head_v
    }
}

impl Cuda {
    /// Computes the layer up to its output product, in the form that this reads.
    pub(super) fn delta_net(&self, l: usize, a: &DeltaNet, input: &Columns) -> Result<Columns, Error> {
        let (scratch, n, eps) = (self.scratch(), input.n_columns, self.network().spec.norm_eps);
        let n_runs = self.batch.runs.len();
        if n > MOST_GRID {
            let why = format!("{n} columns; recurrent layers take up to {MOST_GRID}");
            return Err(Error::Plan { name: self.name.clone(), why });
        }
        let states = self.caches[l].as_ref().and_then(|cache| cache.states.as_ref());
        let states = states.expect("`LayerCache::new` made states").at();
        let (u, inputs, pairs) = (scratch.q, scratch.k, scratch.queries);
        let results = scratch.outer.columns(a.sizes.n_values(), n);
        // of all columns: products for betas, those for alphas, then gates
        let beta = scratch.v;
        let alpha = beta.offset(4 * n * a.beta.n_rows());
        let gates = alpha.offset(4 * n * a.alpha.map_or(0, |a| a.n_rows()));
        self.observe_delta_net(l, input)?;
        self.product(&a.qkv, input, u)?;
        self.product(&a.beta, input, beta)?;
        if let Some(weight) = &a.alpha {
            self.product(weight, input, alpha)?;
        }
        let z = match &a.z {
            Some(weight) => {
                self.product(weight, input, scratch.inner.floats())?;
                (scratch.inner.floats(), weight.n_rows())
            }
            None => (u, a.qkv.n_rows()),
        };

        let mixed = a.z.is_none();
        let start = |kernel, buffers: &[(&str, Address)]| {
            let plan = Call::Delta(Delta { kernel, sizes: a.sizes, n_columns: n, mixed }).plan()?;
            // SAFETY: scratch memory has room for the batch's columns; states of its runs were reserved
            unsafe { launch(&self.gpu, &plan, buffers) }
        };
        let stride = a.qkv.n_rows();
        let (runs, run_of) = (("runs", self.columns.runs()), ("run_of", self.columns.run_of()));
        let (states, inputs, gates, pairs) =
            (("states", states), ("inputs", inputs), ("gates", gates), ("pairs", pairs));
        let weights = [("conv", a.conv), ("dt", a.dt), ("slope", a.slope)];
        let mut buffers = vec![("u", u), ("beta", beta), states, runs, run_of, inputs, gates];
        buffers.extend(weights);
        buffers.extend(a.alpha.map(|_| ("alpha", alpha)));
        let (gate_stride, grouped) = (a.beta.n_rows(), a.alpha.is_none());
        start(DeltaKernel::Inputs { stride, gate_stride, grouped, eps }, &buffers)?;
        start(DeltaKernel::Pairs, &[inputs, states, runs, run_of, pairs])?;
        let out = ("results", results.floats);
        start(DeltaKernel::Chunks { n_runs, tiled: a.tiled }, &[inputs, gates, pairs, states, runs, out])?;
        start(DeltaKernel::Keep { stride }, &[("u", u), inputs, gates, states, runs, run_of])?;

        let is_read = reads_codes(a.output.ty());
        // the kernel makes codes in blocks of 32; heads of other sizes get theirs afterwards
        let codes = results.codes.filter(|_| is_read && a.sizes.head_dim_v.is_multiple_of(32));
        let mut buffers = vec![out, ("weight", a.norm), ("z", z.0), ("y", results.floats)];
        buffers.extend(codes.into_iter().flat_map(|(q, ds)| [("q", q), ("ds", ds)]));
        start(DeltaKernel::Output { stride: z.1, codes: codes.is_some(), eps }, &buffers)?;
        if codes.is_none() && is_read {
            // SAFETY: the floats were made by the launch before
            unsafe { products::quantize(&self.gpu, &results) }?;
        }
        Ok(results)
    }

    /// Notes what the first matrices of the layer read, if statistics are collected.
    fn observe_delta_net(&self, l: usize, input: &Columns) -> Result<(), Error> {
        if self.watched().is_none() {
            return Ok(());
        }
        let network::Attention::DeltaNet(a) = &self.network().layers[l].attention else {
            unreachable!("weights are loaded by the network")
        };
        let alpha = (!a.ba_grouped).then_some(&a.alpha);
        let weights: Vec<_> = [&a.qkv, &a.beta].into_iter().chain(alpha).chain(&a.z).collect();
        self.observe(&weights, input)
    }
}
