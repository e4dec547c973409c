//! The output of a step: logits and hidden states, which the host reads.

use ikq_model::device::Stage;

use super::Cuda;
use super::host;
use crate::error::Error;
use crate::floats::as_bytes_mut;
use crate::plan::MOST_COLUMNS;
use crate::products::{self, Columns, Target};

impl Cuda {
    /// Computes logits, and normed hidden states, of the batch's columns that want them.
    pub(super) fn results(&mut self, logits: &mut [f32], hidden: &mut [f32]) -> Result<(), Error> {
        let (n_hidden, n_logits) = (size_of_val(hidden), size_of_val(logits));
        let n_failed = if self.has_routed { 4 * self.batch.n() } else { 0 };
        let n = n_hidden + n_logits + n_failed;
        if n > host::MOST {
            self.start_queue()?;
            return self.in_pieces(logits, hidden);
        }
        self.host.make_room(&self.gpu, n)?;
        self.queue(Stage::Head);
        self.start_queue()?;
        self.host.wait(&self.gpu)?;
        let bytes = self.host.down()?.bytes();
        as_bytes_mut(hidden).copy_from_slice(&bytes[..n_hidden]);
        as_bytes_mut(logits).copy_from_slice(&bytes[n_hidden..n_hidden + n_logits]);
        if self.has_routed {
            as_bytes_mut(self.not_finite.insert(vec![0; self.batch.n()]))
                .copy_from_slice(&bytes[n_hidden + n_logits..n]);
        }
        self.cap(logits);
        Ok(())
    }

    /// Launches what [`Cuda::results`] reads: hidden states, then logits, then which routers have failed.
    pub(super) fn launch_head(&self) -> Result<(), Error> {
        let (gpu, down, mut at) = (&self.gpu, self.host.down()?, 0);
        if !self.batch.hidden.is_empty() {
            let normed = self.chosen(&self.batch.hidden)?;
            let n = 4 * normed.n * normed.n_columns;
            // SAFETY: room was made; these columns were normed a moment ago
            unsafe { gpu.copy_out_later(down, at, normed.floats, n) }?;
            at += n;
        }
        if !self.batch.logits.is_empty() {
            let columns = self.chosen(&self.batch.logits)?;
            let n_vocab = self.output_matrix().n_rows();
            for first in (0..columns.n_columns).step_by(MOST_COLUMNS) {
                let part = columns.part(first, MOST_COLUMNS.min(columns.n_columns - first));
                self.multiply_output(&part)?;
                let n = 4 * n_vocab * part.n_columns;
                // SAFETY: room was made, and there are the logits of so many columns
                unsafe { gpu.copy_out_later(down, at, self.scratch().logits, n) }?;
                at += n;
            }
        }
        if self.has_routed {
            // SAFETY: room was made; there is a number per column
            unsafe { gpu.copy_out_later(down, at, self.columns.not_finite(), 4 * self.batch.n()) }?;
        }
        Ok(())
    }

    /// As [`Cuda::results`], where they are too many to come at once.
    fn in_pieces(&mut self, logits: &mut [f32], hidden: &mut [f32]) -> Result<(), Error> {
        if !self.batch.hidden.is_empty() {
            let normed = self.chosen(&self.batch.hidden)?;
            // SAFETY: these columns were normed a moment ago
            unsafe { self.host.fetch(&self.gpu, as_bytes_mut(hidden), normed.floats) }?;
        }
        match self.batch.logits.is_empty() {
            true => Ok(()),
            false => {
                let columns = self.chosen(&self.batch.logits)?;
                self.output(&columns, logits)
            }
        }
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
        self.cap(logits);
        Ok(())
    }

    fn multiply_output(&self, columns: &Columns) -> Result<(), Error> {
        let output = self.output_matrix();
        let to = Target { y: self.scratch().logits, bias: output.bias, residual: None };
        // SAFETY: there is room for the logits of so many columns
        unsafe { products::multiply(&self.gpu, &output.matrix, columns, &to) }
    }

    fn cap(&self, logits: &mut [f32]) {
        let scale = self.network().spec.logit_scale;
        if scale != 1.0 {
            logits.iter_mut().for_each(|v| *v *= scale);
        }
        if let Some(cap) = self.network().spec.final_softcap {
            logits.iter_mut().for_each(|v| *v = cap * (*v / cap).tanh());
        }
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
