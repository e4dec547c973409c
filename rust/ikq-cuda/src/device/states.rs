//! States of recurrent layers on the device; `cuda/delta.cuh` describes their layout. The kernels find everything by
//! positions, so going back within a chunk changes nothing in memory.

use std::ops::Range;

use crate::error::Error;
use crate::gpu::Gpu;
use crate::memory::{Address, Arena};
use crate::plan::{CHUNK, DeltaSizes};

/// The states of a layer, by number.
#[derive(Debug)]
pub struct States {
    sizes: DeltaSizes,
    arena: Option<Arena>,
    at: Address,
    /// How many tokens each has seen.
    n_past: Vec<usize>,
}

impl States {
    pub fn new(sizes: DeltaSizes) -> States {
        States { sizes, arena: None, at: Address::default(), n_past: Vec::new() }
    }

    /// Bytes of a state.
    pub fn bytes(&self) -> usize {
        4 * self.sizes.parts().iter().sum::<usize>()
    }

    /// How many there is room for.
    pub fn n(&self) -> usize {
        self.n_past.len()
    }

    /// The address of the first state.
    pub fn at(&self) -> Address {
        self.at
    }

    fn address(&self, state: u32) -> Address {
        self.at.offset(state as usize * self.bytes())
    }

    /// Makes room for states `0..n`; new ones have seen no token.
    ///
    /// # Errors
    /// [`Error::Memory`], and errors of the driver.
    pub fn reserve(&mut self, gpu: &Gpu, n: usize) -> Result<(), Error> {
        let has = self.n_past.len();
        if n <= has {
            return Ok(());
        }
        let mut arena = Arena::new(gpu.context(), "recurrent states", n * self.bytes())?;
        let at = arena.take(n * self.bytes())?;
        // SAFETY: both addresses have at least as many states
        unsafe { gpu.copy(at, self.at, has * self.bytes()) }?;
        gpu.wait()?; // the old states go
        (self.arena, self.at) = (Some(arena), at);
        self.n_past.resize(n, 0);
        Ok(())
    }

    /// Says how many tokens a state has seen. That is all there is to do for none: kernels do not read what a state of
    /// no tokens holds.
    pub fn set_n_past(&mut self, state: u32, n_past: usize) {
        self.n_past[state as usize] = n_past;
    }

    /// Makes state `to` what `from` is.
    ///
    /// # Errors
    /// Errors of the driver.
    pub fn copy(&mut self, gpu: &Gpu, from: u32, to: u32) -> Result<(), Error> {
        self.n_past[to as usize] = self.n_past[from as usize];
        if from == to {
            return Ok(());
        }
        // SAFETY: the caller reserved both states
        unsafe { gpu.copy(self.address(to), self.address(from), self.bytes()) }
    }

    /// Appends a state to `out`, little endian: the number of its tokens (8 bytes), then the floats that matter.
    ///
    /// # Errors
    /// Errors of the driver.
    pub fn export(&self, gpu: &Gpu, state: u32, out: &mut Vec<u8>) -> Result<(), Error> {
        let n_past = self.n_past[state as usize];
        let mut bytes = vec![0; self.bytes()];
        // SAFETY: there is such a state
        unsafe { gpu.copy_out(&mut bytes, self.address(state)) }?;
        out.extend((n_past as u64).to_le_bytes());
        live(&self.sizes, n_past).into_iter().for_each(|r| out.extend_from_slice(&bytes[in_bytes(&r)]));
        Ok(())
    }

    /// Makes a state of what [`States::export`] gave of one that had seen `n_past` tokens.
    ///
    /// # Errors
    /// Why the bytes are no such state.
    pub fn import(&mut self, gpu: &Gpu, state: u32, n_past: usize, bytes: &[u8]) -> Result<(), String> {
        let Some((head, mut rest)) = bytes.split_first_chunk::<8>() else {
            return Err("the state of a recurrent layer has no number of tokens".into());
        };
        let found = u64::from_le_bytes(*head);
        if found != n_past as u64 {
            return Err(format!("a state at {found} instead of {n_past}"));
        }
        let live = live(&self.sizes, n_past);
        let expected = 4 * live.iter().map(Range::len).sum::<usize>();
        if rest.len() != expected {
            let n = rest.len();
            return Err(format!("the state of a recurrent layer has {n} bytes, expected {expected}"));
        }
        let mut all = vec![0; self.bytes()];
        for range in live {
            let (these, others) = rest.split_at(4 * range.len());
            all[in_bytes(&range)].copy_from_slice(these);
            rest = others;
        }
        // SAFETY: there is such a state
        unsafe { gpu.copy_in(self.address(state), &all) }.map_err(|e| e.to_string())?;
        self.set_n_past(state, n_past);
        Ok(())
    }
}

fn in_bytes(floats: &Range<usize>) -> Range<usize> {
    4 * floats.start..4 * floats.end
}

/// The floats of a state of `n_past` tokens that kernels read.
fn live(sizes: &DeltaSizes, n_past: usize) -> Vec<Range<usize>> {
    let n = n_past % CHUNK;
    let [matrices, values, keys, decays, _] = sizes.parts();
    let mut all = Vec::new();
    if n_past >= CHUNK {
        all.push(0..matrices);
    }
    let mut first = matrices;
    let (n_v, n_k) = (sizes.n_head_v, sizes.n_head_k);
    for (part, n_head, width) in
        [(values, n_v, sizes.head_dim_v), (keys, n_k, sizes.head_dim_k), (decays, n_v, 1)]
    {
        all.extend((0..n_head).map(|h| first + h * CHUNK * width).map(|at| at..at + n * width));
        first += part;
    }
    // those that the convolution of the chunk's first token reads, and later ones
    let oldest = (n_past - n).saturating_sub(sizes.conv_kernel - 1);
    let width = sizes.n_channels();
    all.extend((oldest..n_past).map(|p| first + p % sizes.n_rows() * width).map(|at| at..at + width));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_matters_of_a_state_does_not_overlap() {
        let sizes = DeltaSizes { n_head_k: 2, n_head_v: 4, head_dim_k: 3, head_dim_v: 5, conv_kernel: 4 };
        let floats: usize = sizes.parts().iter().sum();
        for n_past in [0, 1, 2, 31, 32, 33, 64, 95, 1000] {
            let mut seen = vec![false; floats];
            for i in live(&sizes, n_past).into_iter().flatten() {
                assert!(!seen[i], "{n_past} tokens, float {i}");
                seen[i] = true;
            }
            let n = n_past % CHUNK;
            let matrices = if n_past < CHUNK { 0 } else { 4 * 3 * 5 };
            let inputs = (n + (sizes.conv_kernel - 1).min(n_past - n)) * sizes.n_channels();
            let expected = matrices + n * (4 * 5 + 2 * 3 + 4) + inputs;
            assert_eq!(seen.iter().filter(|s| **s).count(), expected, "{n_past} tokens");
        }
    }
}
