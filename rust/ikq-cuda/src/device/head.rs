//! The output of a step: logits (or only the largest ones) and hidden states, which the host reads.

use std::ops::Range;

use ikq_model::device::Stage;
use ikq_model::results::{Best, Results};

use super::Cuda;
use super::host;
use crate::error::Error;
use crate::floats::as_bytes_mut;
use crate::memory::Address;
use crate::plan::{Call, MOST_COLUMNS};
use crate::products::{self, Columns, Target, launch};

impl Cuda {
    /// Computes what the batch's columns want: logits, normed hidden states, or the largest logits.
    pub(super) fn results(&mut self, results: Results<'_>) -> Result<(), Error> {
        let Results { logits, hidden, best } = results;
        let (n_hidden, n_logits, n_best) = (size_of_val(hidden), size_of_val(logits), 8 * best.len());
        let n_failed = if self.has_routed { 4 * self.batch.n() } else { 0 };
        let n = n_hidden + n_logits + n_best + n_failed;
        if n > host::MOST {
            self.start_queue()?;
            return self.in_pieces(Results { logits, hidden, best });
        }
        self.host.make_room(&self.gpu, n)?;
        self.queue(Stage::Head);
        self.start_queue()?;
        self.host.wait(&self.gpu)?;
        let mut rest = &self.host.down()?.bytes()[..n];
        let mut next = |n| rest.split_off(..n).expect("they are all there");
        as_bytes_mut(hidden).copy_from_slice(next(n_hidden));
        as_bytes_mut(logits).copy_from_slice(next(n_logits));
        read_best(next(n_best), best);
        if self.has_routed {
            as_bytes_mut(self.not_finite.insert(vec![0; self.batch.n()])).copy_from_slice(next(n_failed));
        }
        Ok(())
    }

    /// Launches what [`Cuda::results`] reads: hidden states, then logits, then the largest logits of other columns, then
    /// which routers have failed.
    pub(super) fn launch_head(&self) -> Result<(), Error> {
        let (gpu, down, mut at) = (&self.gpu, self.host.down()?, 0);
        if !self.batch.hidden.is_empty() {
            let normed = self.chosen(&self.batch.hidden)?;
            let n = 4 * normed.n * normed.n_columns;
            // SAFETY: room was made; these columns were normed a moment ago
            unsafe { gpu.copy_out_later(down, at, normed.floats, n) }?;
            at += n;
        }
        // products are of all columns together, whatever is wanted of their logits
        let wanted: Vec<u32> = self.batch.logits.iter().chain(&self.batch.best).copied().collect();
        if !wanted.is_empty() {
            let columns = self.chosen(&wanted)?;
            let (n_vocab, n_whole) = (self.output_matrix().n_rows(), self.batch.logits.len());
            for first in (0..wanted.len()).step_by(MOST_COLUMNS) {
                let part = columns.part(first, MOST_COLUMNS.min(wanted.len() - first));
                self.multiply_output(&part)?;
                let whole = n_whole.saturating_sub(first).min(part.n_columns);
                let n = 4 * n_vocab * whole;
                // SAFETY: room was made, and there are the logits of so many columns
                unsafe { gpu.copy_out_later(down, at, self.scratch().logits, n) }?;
                at += n;
                if whole < part.n_columns {
                    let sizes = (self.batch.n_best, self.batch.best.len());
                    self.find_best(whole..part.n_columns, first + whole - n_whole, sizes)?;
                }
            }
            let n = 8 * self.batch.n_best * self.batch.best.len();
            // SAFETY: room was made, and that many were found
            unsafe { gpu.copy_out_later(down, at, self.scratch().best(0).0, n) }?;
            at += n;
        }
        if self.has_routed {
            // SAFETY: room was made; there is a number per column
            unsafe { gpu.copy_out_later(down, at, self.columns.not_finite(), 4 * self.batch.n()) }?;
        }
        Ok(())
    }

    /// As [`Cuda::results`], where they are too many to come at once.
    fn in_pieces(&mut self, results: Results<'_>) -> Result<(), Error> {
        if !self.batch.hidden.is_empty() {
            let normed = self.chosen(&self.batch.hidden)?;
            // SAFETY: these columns were normed a moment ago
            unsafe { self.host.fetch(&self.gpu, as_bytes_mut(results.hidden), normed.floats) }?;
        }
        if !self.batch.logits.is_empty() {
            let columns = self.chosen(&self.batch.logits)?;
            self.output(&columns, results.logits)?;
        }
        if !self.batch.best.is_empty() {
            let columns = self.chosen(&self.batch.best)?;
            self.best_of(&columns, results.best)?;
        }
        Ok(())
    }

    /// Finds the largest logits of columns, and copies them to the host: as many of each as there is room for.
    pub(super) fn best_of(&mut self, columns: &Columns, best: &mut [Best]) -> Result<(), Error> {
        let sizes = (best.len() / columns.n_columns, columns.n_columns);
        for first in (0..columns.n_columns).step_by(MOST_COLUMNS) {
            let part = columns.part(first, MOST_COLUMNS.min(columns.n_columns - first));
            self.multiply_output(&part)?;
            self.find_best(0..part.n_columns, first, sizes)?;
        }
        let mut bytes = vec![0; 8 * best.len()];
        let from = self.scratch().best(0).0;
        // SAFETY: that many were found
        unsafe { self.host.fetch(&self.gpu, &mut bytes, from) }?;
        read_best(&bytes, best);
        Ok(())
    }

    /// Computes the logits of columns, and copies them to the host.
    pub(super) fn output(&mut self, columns: &Columns, logits: &mut [f32]) -> Result<(), Error> {
        let n_vocab = self.output_matrix().n_rows();
        for (i, out) in logits.chunks_mut(MOST_COLUMNS * n_vocab).enumerate() {
            self.multiply_output(&columns.part(i * MOST_COLUMNS, out.len() / n_vocab))?;
            let y = self.scratch().logits;
            // SAFETY: there are the logits of so many columns
            unsafe { self.host.fetch(&self.gpu, as_bytes_mut(out), y) }?;
        }
        Ok(())
    }

    /// Computes the logits of columns.
    fn multiply_output(&self, columns: &Columns) -> Result<(), Error> {
        let (output, logits) = (self.output_matrix(), self.scratch().logits);
        let to = Target { y: logits, bias: output.bias, residual: None };
        // SAFETY: there is room for the logits of so many columns
        unsafe { products::multiply(&self.gpu, &output.matrix, columns, &to) }?;
        let (scale, cap) = (self.network().spec.logit_scale, self.network().spec.final_softcap);
        if scale == 1.0 && cap.is_none() {
            return Ok(());
        }
        let n = output.n_rows() * columns.n_columns;
        let plan = Call::Cap { n, scale, cap: cap.unwrap_or(0.0) }.plan()?;
        // SAFETY: so many were computed
        unsafe { launch(&self.gpu, &plan, &[("logits", logits)]) }
    }

    /// Finds the `k` largest logits of columns that were just computed, which are the `first` one of all that want them
    /// and the next ones.
    fn find_best(
        &self,
        columns: Range<usize>,
        first: usize,
        (k, n_columns): (usize, usize),
    ) -> Result<(), Error> {
        let n = self.output_matrix().n_rows();
        let (ids, values) = self.scratch().best(k * n_columns);
        let behind = |address: Address, n: usize| address.offset(4 * n);
        let logits = behind(self.scratch().logits, columns.start * n);
        let plan = Call::Best { n, n_columns: columns.len(), k }.plan()?;
        let buffers =
            [("logits", logits), ("ids", behind(ids, first * k)), ("values", behind(values, first * k))];
        // SAFETY: there are the logits of these columns, and room for as many results as may be wanted of all columns
        unsafe { launch(&self.gpu, &plan, &buffers) }
    }

    fn head(&self) -> &super::parts::Head {
        self.parts.head.as_ref().expect("the output is on this device")
    }

    fn output_matrix(&self) -> &super::parts::Linear {
        self.head().output.as_ref().expect("without it no logits are wanted")
    }

    /// Computes the output norm, if there is one, of some of the batch's columns.
    fn chosen(&self, columns: &[u32]) -> Result<Columns, Error> {
        let bytes = 4 * self.network().spec.n_embd;
        let scratch = self.scratch();
        let mut at = 0;
        // neighbours are copied together
        for run in columns.chunk_by(|a, b| a + 1 == *b) {
            let from = scratch.hidden.offset(run[0] as usize * bytes);
            // SAFETY: both have room for the batch's columns, of which these are some
            unsafe { self.gpu.copy(scratch.chosen.offset(at * bytes), from, run.len() * bytes) }?;
            at += run.len();
        }
        match self.head().norm {
            Some(norm) => self.norm((scratch.chosen, None), norm, scratch.normed, columns.len()),
            // of a part of a model there is nothing but its hidden states
            None => {
                let n = self.network().spec.n_embd;
                Ok(Columns { n, n_columns: columns.len(), floats: scratch.chosen, codes: None })
            }
        }
    }
}

/// Results from their ids and values.
fn read_best(bytes: &[u8], best: &mut [Best]) {
    let (ids, values) = bytes.split_at(4 * best.len());
    let numbers = ids.as_chunks().0.iter().zip(values.as_chunks().0);
    for (best, (id, value)) in best.iter_mut().zip(numbers) {
        *best = Best { id: u32::from_ne_bytes(*id), logit: f32::from_ne_bytes(*value) };
    }
}
