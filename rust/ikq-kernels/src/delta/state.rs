//! What a layer remembers of one sequence.

use super::{BLOCK, CHUNK};
use crate::aligned::Aligned;
use crate::ops::matrix::{PANEL, bytes_of};

/// Sizes of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Value heads: each has a state.
    pub n_head: usize,
    /// Elements of a head's keys and queries.
    pub dk: usize,
    /// Elements of a head's values.
    pub dv: usize,
    /// Channels of the convolution.
    pub n_channels: usize,
    /// Taps of the convolution: the tokens that it looks at.
    pub conv_kernel: usize,
}

impl Shape {
    /// Memory of a [`State`] of this shape, in bytes.
    pub fn bytes(&self) -> usize {
        4 * (self.n_conv() + self.n_head * self.sizes().n_floats())
    }

    /// Room for the inputs of the convolution.
    fn n_conv(&self) -> usize {
        (self.conv_kernel - 1 + CHUNK) * self.n_channels
    }

    fn sizes(&self) -> Sizes {
        Sizes { dk: self.dk, width: self.dv.next_multiple_of(16) }
    }
}

/// Sizes of one head's floats.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Sizes {
    pub dk: usize,
    /// Columns of S: `dv`, rounded up to a multiple of 16.
    pub width: usize,
}

impl Sizes {
    fn n_floats(self) -> usize {
        self.dk * (self.width + CHUNK) + CHUNK * (self.width + 1)
    }

    /// Columns of S that stand together, and the number of such panels' first column.
    pub fn panels(self) -> impl Iterator<Item = (usize, usize)> {
        (0..self.width).step_by(PANEL).map(move |at| (at, PANEL.min(self.width - at)))
    }
}

/// What a layer remembers of one sequence: a matrix per head, what the unfinished chunk's tokens add to it, and the
/// inputs of the convolution back to where the chunk's first token needs them.
pub struct State {
    shape: Shape,
    n_past: usize,
    /// `conv_kernel - 1` inputs before the chunk, then those of the chunk's tokens; `n_channels` each.
    conv: Vec<f32>,
    /// The [`Parts`] of all heads, one head behind the other.
    heads: Aligned,
}

/// One head's floats, in the order of memory, which is that in which a token reads them.
pub(super) struct Parts<'a> {
    /// Logarithms of the decays of the chunk's tokens.
    pub log_decays: &'a mut [f32],
    /// S at the start of the chunk: panels of [`PANEL`] columns (the last may have fewer), each `dk` rows one behind
    /// the other.
    pub matrix: &'a mut [f32],
    /// Keys of the chunk's tokens as columns: for each [`BLOCK`] of tokens `dk` rows. Columns of tokens to come hold
    /// anything.
    pub keys: &'a mut [f32],
    /// What each of the chunk's tokens adds along its key: [`CHUNK`] rows.
    pub values: &'a mut [f32],
}

impl Parts<'_> {
    fn of(floats: &mut [f32], sizes: Sizes) -> Parts<'_> {
        let (log_decays, rest) = floats.split_at_mut(CHUNK);
        let (matrix, rest) = rest.split_at_mut(sizes.dk * sizes.width);
        let (keys, values) = rest.split_at_mut(sizes.dk * CHUNK);
        Parts { log_decays, matrix, keys, values }
    }
}

/// One head of a [`State`], to be moved on by [`super::advance`].
pub struct Head<'a> {
    pub(super) parts: Parts<'a>,
    pub(super) dk: usize,
    pub(super) dv: usize,
    /// Tokens in the chunk.
    pub(super) n: usize,
}

impl Head<'_> {
    /// Tokens until the chunk is full, 1 to [`CHUNK`]: the fastest number to give [`super::advance`] at once.
    pub fn rest(&self) -> usize {
        CHUNK - self.n
    }

    pub(super) fn sizes(&self) -> Sizes {
        Shape { n_head: 1, dk: self.dk, dv: self.dv, n_channels: 0, conv_kernel: 1 }.sizes()
    }
}

/// Why bytes are no state of a shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateError {
    /// They are too short to hold the number of tokens, or hold an impossible one.
    Position,
    /// A state of that shape and number of tokens has another length.
    Length { expected: usize, found: usize },
}

impl std::fmt::Display for StateError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            StateError::Position => {
                write!(f, "the state of a recurrent layer has no sensible number of tokens")
            }
            StateError::Length { expected, found } => {
                write!(f, "the state of a recurrent layer has {found} bytes, expected {expected}")
            }
        }
    }
}

impl std::error::Error for StateError {}

impl State {
    /// A state of no tokens. Its memory is not touched before it is used.
    ///
    /// # Panics
    /// When a size is 0.
    pub fn new(shape: Shape) -> State {
        let Shape { n_head, dk, dv, n_channels, conv_kernel } = shape;
        assert!(![n_head, dk, dv, n_channels, conv_kernel].contains(&0), "{shape:?}");
        let mut heads = Aligned::default();
        heads.reserve(n_head * shape.sizes().n_floats());
        State { shape, n_past: 0, conv: vec![0.0; shape.n_conv()], heads }
    }

    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Tokens it has seen.
    pub fn n_past(&self) -> usize {
        self.n_past
    }

    /// Tokens of the unfinished chunk, which are those that can be taken back.
    pub fn n_in_chunk(&self) -> usize {
        self.n_past % CHUNK
    }

    /// Memory in bytes.
    pub fn bytes(&self) -> usize {
        self.shape.bytes()
    }

    /// Resets the state to that of a sequence without tokens.
    pub fn clear(&mut self) {
        self.n_past = 0;
        let n = self.n_inputs();
        self.conv[..n].fill(0.0);
        let sizes = self.shape.sizes();
        for floats in self.heads.get_mut().chunks_exact_mut(sizes.n_floats()) {
            Parts::of(floats, sizes).matrix.fill(0.0);
        }
    }

    /// Becomes what `other` is.
    ///
    /// # Panics
    /// When shapes differ.
    pub fn copy_from(&mut self, other: &State) {
        assert_eq!(self.shape, other.shape, "states of different layers");
        self.n_past = other.n_past;
        let n = self.n_inputs();
        self.conv[..n].copy_from_slice(&other.conv[..n]);
        let (sizes, n) = (self.shape.sizes(), self.n_in_chunk());
        let n_keys = n.div_ceil(BLOCK) * BLOCK * sizes.dk;
        let before_values = CHUNK + sizes.dk * (sizes.width + CHUNK);
        let heads = self.heads.get_mut().chunks_exact_mut(sizes.n_floats());
        for (to, from) in heads.zip(other.heads.get().chunks_exact(sizes.n_floats())) {
            for live in
                [0..CHUNK + sizes.dk * sizes.width + n_keys, before_values..before_values + n * sizes.width]
            {
                to[live.clone()].copy_from_slice(&from[live]);
            }
        }
    }

    /// Forgets the tokens of the unfinished chunk behind its first `n_in_chunk`, exactly: what follows has the bits
    /// that it has without them.
    ///
    /// # Panics
    /// When the chunk has fewer tokens.
    pub fn truncate(&mut self, n_in_chunk: usize) {
        let n = self.n_in_chunk();
        assert!(n_in_chunk <= n, "the chunk has {n} tokens, {n_in_chunk} were asked for");
        self.n_past -= n - n_in_chunk;
    }

    /// Appends the state to `out`, little endian: the number of tokens (8 bytes), then floats. Fewest at the start
    /// of a chunk, where there are no tokens beside S.
    pub fn write_to(&self, out: &mut Vec<u8>) {
        let (sizes, n) = (self.shape.sizes(), self.n_in_chunk());
        out.extend((self.n_past as u64).to_le_bytes());
        // x86-64, the only machine there is a vocabulary for, is little endian
        let mut put = |floats: &[f32]| out.extend_from_slice(bytes_of(floats));
        put(&self.conv[..self.n_inputs()]);
        for floats in self.heads.get().chunks_exact(sizes.n_floats()) {
            let (log_decays, rest) = floats.split_at(CHUNK);
            let (matrix, rest) = rest.split_at(sizes.dk * sizes.width);
            let (keys, values) = rest.split_at(sizes.dk * CHUNK);
            put(&log_decays[..n]);
            put(matrix);
            for (block, n) in keys.chunks_exact(BLOCK * sizes.dk).zip(in_blocks(n)) {
                block.chunks_exact(BLOCK).for_each(|row| put(&row[..n]));
            }
            put(&values[..n * sizes.width]);
        }
    }

    /// Becomes what [`State::write_to`] wrote of a state of this shape.
    ///
    /// # Errors
    /// When `bytes` are of another length; the state is then what it was.
    pub fn read_from(&mut self, bytes: &[u8]) -> Result<(), StateError> {
        let (head, mut floats) = bytes.split_first_chunk::<8>().ok_or(StateError::Position)?;
        let n_past = i64::from_le_bytes(*head);
        let n_past = usize::try_from(n_past).map_err(|_| StateError::Position)?;
        let (sizes, n) = (self.shape.sizes(), n_past % CHUNK);
        let n_head_floats = sizes.dk * (sizes.width + n) + n * (sizes.width + 1);
        let n_inputs = (self.shape.conv_kernel - 1 + n) * self.shape.n_channels;
        let expected = 8 + 4 * (n_inputs + self.shape.n_head * n_head_floats);
        if bytes.len() != expected {
            return Err(StateError::Length { expected, found: bytes.len() });
        }
        self.n_past = n_past;
        let mut get = |to: &mut [f32]| {
            let (these, rest) = floats.split_at(4 * to.len());
            to.iter_mut().zip(these.as_chunks::<4>().0).for_each(|(x, b)| *x = f32::from_le_bytes(*b));
            floats = rest;
        };
        get(&mut self.conv[..n_inputs]);
        for floats in self.heads.get_mut().chunks_exact_mut(sizes.n_floats()) {
            let Parts { log_decays, matrix, keys, values } = Parts::of(floats, sizes);
            get(&mut log_decays[..n]);
            get(matrix);
            for (block, n) in keys.chunks_exact_mut(BLOCK * sizes.dk).zip(in_blocks(n)) {
                block.chunks_exact_mut(BLOCK).for_each(|row| get(&mut row[..n]));
            }
            get(&mut values[..n * sizes.width]);
        }
        Ok(())
    }

    /// The last `conv_kernel - 1` inputs of the convolution, oldest first; zeros stand for those before the first.
    pub fn before(&self) -> &[f32] {
        let Shape { n_channels, conv_kernel, .. } = self.shape;
        &self.conv[self.n_in_chunk() * n_channels..][..(conv_kernel - 1) * n_channels]
    }

    /// The heads. Each must be moved on over the same tokens, then [`State::finish`] called.
    pub fn heads_mut(&mut self) -> impl ExactSizeIterator<Item = Head<'_>> {
        let (sizes, n, Shape { dk, dv, .. }) = (self.shape.sizes(), self.n_in_chunk(), self.shape);
        let heads = self.heads.get_mut().chunks_exact_mut(sizes.n_floats());
        heads.map(move |floats| Head { parts: Parts::of(floats, sizes), dk, dv, n })
    }

    /// Ends a step whose tokens all heads have seen: keeps the inputs of its convolution, `n_channels` per token,
    /// and counts the tokens. A step that is given up before this has not happened, unless it filled a chunk.
    ///
    /// # Panics
    /// When `u` is no whole number of tokens.
    pub fn finish(&mut self, u: &[f32]) {
        let n_channels = self.shape.n_channels;
        assert!(u.len().is_multiple_of(n_channels), "inputs of {n_channels} channels");
        let end = self.n_in_chunk() + u.len() / n_channels;
        // floats of this state's inputs and u, being one sequence, that are no longer needed
        let old = self.n_inputs();
        let gone = end / CHUNK * CHUNK * n_channels;
        self.n_past += u.len() / n_channels;
        let new = self.n_inputs();
        let kept = old.saturating_sub(gone);
        if gone > 0 {
            self.conv.copy_within(old - kept..old, 0);
        }
        self.conv[kept..new].copy_from_slice(&u[u.len() - (new - kept)..]);
    }

    /// Floats of `conv` that are in use.
    fn n_inputs(&self) -> usize {
        (self.shape.conv_kernel - 1 + self.n_in_chunk()) * self.shape.n_channels
    }
}

/// How many of a chunk's first `n` tokens are in each of its blocks.
fn in_blocks(n: usize) -> impl Iterator<Item = usize> {
    (0..CHUNK).step_by(BLOCK).map(move |first| n.saturating_sub(first).min(BLOCK))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape { n_head: 3, dk: 5, dv: 7, n_channels: 2, conv_kernel: 4 };

    /// A state of `n` tokens whose floats are all different.
    fn state(n: usize) -> State {
        let mut state = State::new(SHAPE);
        state.heads.get_mut().iter_mut().enumerate().for_each(|(i, x)| *x = i as f32);
        let u: Vec<f32> = (0..2 * n).map(|i| i as f32 + 1.0).collect();
        state.finish(&u);
        state
    }

    fn written(state: &State) -> Vec<u8> {
        let mut bytes = Vec::new();
        state.write_to(&mut bytes);
        bytes
    }

    #[test]
    fn memory_is_what_it_has() {
        let state = state(0);
        assert_eq!(state.bytes(), 4 * (state.conv.len() + state.heads.get().len()));
    }

    #[test]
    fn the_last_inputs_are_kept_whatever_the_steps() {
        // inputs of a token: its number, twice
        let u: Vec<f32> = (1..=200).flat_map(|t| [t as f32; 2]).collect();
        for conv_kernel in [1, 2, 4, 40] {
            for cut in [1, 3, 31, 32, 33, 70, 200] {
                let mut state = State::new(Shape { conv_kernel, ..SHAPE });
                while state.n_past() < 200 {
                    let n = state.n_past();
                    state.finish(&u[2 * n..2 * (n + cut).min(200)]);
                    // all those that truncation can reach
                    let end = state.n_past();
                    for n in (0..=state.n_in_chunk()).rev() {
                        state.truncate(n);
                        let first = state.n_past() as i64 + 1 - (conv_kernel as i64 - 1);
                        let expected: Vec<f32> =
                            (first..=state.n_past() as i64).flat_map(|t| [t.max(0) as f32; 2]).collect();
                        assert_eq!(state.before(), expected, "kernel {conv_kernel}, steps of {cut}");
                    }
                    state.n_past = end;
                }
            }
        }
    }

    #[test]
    fn bytes_come_back() {
        for n in [0, 1, 31, 32, 45] {
            let from = state(n);
            let mut bytes = vec![1, 2, 3];
            from.write_to(&mut bytes);
            let bytes = &bytes[3..];
            let mut to = state(17);
            to.read_from(bytes).expect("a state");
            assert_eq!((to.n_past(), written(&to).as_slice()), (n, bytes));
            let mut copy = state(3);
            copy.copy_from(&from);
            assert_eq!((copy.n_past(), written(&copy).as_slice()), (n, bytes));
            copy.clear();
            assert_eq!(written(&copy), written(&State::new(SHAPE)));
        }
    }

    #[test]
    fn other_bytes_are_refused() {
        let bytes = written(&state(5));
        let mut to = state(40);
        let before = written(&to);
        for len in (0..bytes.len()).chain([bytes.len() + 1, bytes.len() + 4]) {
            let mut bytes = bytes.clone();
            bytes.resize(len, 0);
            let expected = match len {
                0..8 => StateError::Position,
                _ => StateError::Length { expected: written(&state(5)).len(), found: len },
            };
            assert_eq!(to.read_from(&bytes), Err(expected));
        }
        let mut negative = bytes.clone();
        negative[7] = 0xff;
        assert_eq!(to.read_from(&negative), Err(StateError::Position));
        // a token more has a row more
        let mut more = bytes;
        more[0] += 1;
        assert!(matches!(to.read_from(&more), Err(StateError::Length { .. })));
        assert_eq!(written(&to), before);
    }

    #[test]
    #[should_panic(expected = "the chunk has 8 tokens")]
    fn finished_chunks_stay() {
        state(40).truncate(9);
    }
}
