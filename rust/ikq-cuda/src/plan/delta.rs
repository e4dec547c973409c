//! Launches of gated delta-net layers; `cuda/delta.cu` says what each does.

use super::{Kernel, Plan, geometry, i32_of, i64_of, optional};
use crate::error::Error;
use crate::gpu::Argument;

/// Tokens of a chunk: a state can be taken back to the last multiple of it.
pub const CHUNK: usize = 32;

/// Sizes of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeltaSizes {
    pub n_head_k: usize,
    pub n_head_v: usize,
    pub head_dim_k: usize,
    pub head_dim_v: usize,
    pub conv_kernel: usize,
}

impl DeltaSizes {
    /// Channels of the convolution: all queries, all keys, all values.
    pub fn n_channels(&self) -> usize {
        2 * self.n_head_k * self.head_dim_k + self.n_values()
    }

    /// Elements of all value heads.
    pub fn n_values(&self) -> usize {
        self.n_head_v * self.head_dim_v
    }

    /// Rows of inputs that a state has; the input of position p is in row p modulo this number.
    pub fn n_rows(&self) -> usize {
        self.conv_kernel - 1 + CHUNK
    }

    /// Floats of a column's products of keys and queries with keys.
    pub fn n_pairs(&self) -> usize {
        2 * CHUNK * self.n_head_k
    }

    /// Floats of the parts of a state: matrices, values, keys, decays and inputs.
    pub fn parts(&self) -> [usize; 5] {
        let Self { n_head_k, n_head_v, head_dim_k, head_dim_v, .. } = *self;
        [
            n_head_v * head_dim_k * head_dim_v,
            n_head_v * CHUNK * head_dim_v,
            n_head_k * CHUNK * head_dim_k,
            n_head_v * CHUNK,
            self.n_rows() * self.n_channels(),
        ]
    }

    fn arguments(&self) -> Result<[(&'static str, Option<Argument>); 5], Error> {
        Ok([
            ("n_k", Some(i32_of(self.n_head_k)?)),
            ("n_v", Some(i32_of(self.n_head_v)?)),
            ("dk", Some(i32_of(self.head_dim_k)?)),
            ("dv", Some(i32_of(self.head_dim_v)?)),
            ("taps", Some(i32_of(self.conv_kernel)?)),
        ])
    }
}

/// What [`Call::Delta`](super::Call::Delta) launches.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum DeltaKernel {
    /// Computes the convolution, and gates. `stride` and `gate_stride`: floats from one column of products to the
    /// next. `grouped`: one product has betas and alphas.
    Inputs { stride: usize, gate_stride: usize, grouped: bool, eps: f32 },
    /// Multiplies keys and queries with the keys of their chunk.
    Pairs,
    /// Computes results, and moves states on, for `n_runs` sequences. `tiled`: value head h belongs to key head
    /// h modulo their number.
    Chunks { n_runs: usize, tiled: bool },
    /// Keeps inputs, keys and decays for later steps.
    Keep { stride: usize },
    /// Computes the norm and the output gate. `stride`: floats from one column of gates to the next.
    Output { stride: usize, codes: bool, eps: f32 },
}

/// A launch of a gated delta-net layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Delta {
    pub kernel: DeltaKernel,
    pub sizes: DeltaSizes,
    pub n_columns: usize,
    /// Whether queries, keys, values and output gates are one product, mixed by key head.
    pub mixed: bool,
}

impl Delta {
    pub(super) fn plan(&self) -> Result<Plan, Error> {
        let Delta { kernel, sizes, n_columns, mixed } = *self;
        let DeltaSizes { n_head_k, n_head_v, head_dim_k, head_dim_v, conv_kernel } = sizes;
        let wrong = |why: String| Error::Plan { name: "delta".into(), why };
        if [n_head_k, n_head_v, head_dim_k, head_dim_v, conv_kernel].contains(&0)
            || !n_head_v.is_multiple_of(n_head_k)
        {
            return Err(wrong(format!("sizes {sizes:?}")));
        }
        i32_of(sizes.n_channels())?;
        let flag = |on: bool| Some(Argument::I32(i32::from(on)));
        let mixed = ("mixed", flag(mixed));
        let runs = [("runs", None), ("run_of", None)];
        let of_heads = [2 * n_head_k + n_head_v, n_columns, 1];
        let (name, grid, threads, arguments) = match kernel {
            DeltaKernel::Inputs { stride, gate_stride, grouped, eps } => {
                let mut a = vec![("u", None), ("u_stride", Some(i64_of(stride)?)), ("beta", None)];
                a.extend([("alpha", optional(!grouped)), ("gate_stride", Some(i32_of(gate_stride)?))]);
                a.extend([("conv", None), ("dt", None), ("slope", None), ("states", None)]);
                a.extend(runs);
                a.extend([("inputs", None), ("gates", None)]);
                a.extend(sizes.arguments()?);
                a.extend([mixed, ("grouped", flag(grouped)), ("eps", Some(Argument::F32(eps)))]);
                ("delta_inputs", of_heads, 32, a)
            }
            DeltaKernel::Pairs => {
                let mut a = vec![("inputs", None), ("states", None)];
                a.extend(runs);
                a.push(("pairs", None));
                a.extend(sizes.arguments()?);
                ("delta_pairs", [n_head_k, n_columns, 1], 128, a)
            }
            DeltaKernel::Chunks { n_runs, tiled } => {
                let mut a = vec![("inputs", None), ("gates", None), ("pairs", None), ("states", None)];
                a.extend([("runs", None), ("results", None)]);
                a.extend(sizes.arguments()?);
                a.push(("tiled", flag(tiled)));
                ("delta_chunks", [n_head_v, head_dim_v.div_ceil(32), n_runs], 128, a)
            }
            DeltaKernel::Keep { stride } => {
                let mut a = vec![("u", None), ("u_stride", Some(i64_of(stride)?)), ("inputs", None)];
                a.extend([("gates", None), ("states", None)]);
                a.extend(runs);
                a.extend(sizes.arguments()?);
                a.push(mixed);
                ("delta_keep", of_heads, 32, a)
            }
            DeltaKernel::Output { stride, codes, eps } => {
                if codes && !head_dim_v.is_multiple_of(32) {
                    return Err(wrong(format!("{head_dim_v} numbers are no whole blocks of 32")));
                }
                let mut a = vec![("results", None), ("weight", None), ("z", None)];
                a.extend([("z_stride", Some(i64_of(stride)?)), ("y", None)]);
                a.extend([("q", optional(codes)), ("ds", optional(codes))]);
                a.extend(sizes.arguments()?.into_iter().take(4));
                a.extend([mixed, ("eps", Some(Argument::F32(eps)))]);
                ("delta_output", [n_head_v, n_columns, 1], 32, a)
            }
        };
        let kernel = Kernel::whole("delta.cu", name);
        Ok(Plan { kernel, geometry: geometry(grid, threads)?, arguments })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: DeltaSizes =
        DeltaSizes { n_head_k: 2, n_head_v: 4, head_dim_k: 16, head_dim_v: 48, conv_kernel: 4 };

    #[test]
    fn sizes_of_a_state() {
        assert_eq!(SIZES.n_channels(), 2 * 2 * 16 + 4 * 48);
        assert_eq!(SIZES.parts(), [4 * 16 * 48, 4 * 32 * 48, 2 * 32 * 16, 4 * 32, 35 * 256]);
    }

    #[test]
    fn columns_of_values_are_shared_out_to_blocks() {
        let plan = |kernel, sizes| Delta { kernel, sizes, n_columns: 7, mixed: false }.plan();
        let chunks = plan(DeltaKernel::Chunks { n_runs: 3, tiled: true }, SIZES).expect("a plan");
        assert_eq!((chunks.geometry.grid, chunks.kernel.name().as_str()), ([4, 2, 3], "delta_chunks"));
        assert_eq!(plan(DeltaKernel::Pairs, SIZES).expect("a plan").geometry.grid, [2, 7, 1]);
        let coded = DeltaKernel::Output { stride: 192, codes: true, eps: 0.0 };
        assert!(plan(coded, SIZES).is_err(), "heads of 48 are no whole blocks");
        assert!(plan(DeltaKernel::Pairs, DeltaSizes { n_head_k: 3, ..SIZES }).is_err());
    }
}
