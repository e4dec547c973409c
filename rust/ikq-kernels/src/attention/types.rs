//! [`CacheType`]: how keys and values are stored.

use ikq_formats::{QuantType, row_bytes};

/// How a cache stores numbers. Types are named as ggml spells them.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CacheType {
    F32,
    F16,
    BF16,
    Q8_0,
    Q6_0,
    Q4_0,
    Q4_1,
    IQ4_NL,
}

impl CacheType {
    pub const ALL: [CacheType; 8] = [
        CacheType::F32,
        CacheType::F16,
        CacheType::BF16,
        CacheType::Q8_0,
        CacheType::Q6_0,
        CacheType::Q4_0,
        CacheType::Q4_1,
        CacheType::IQ4_NL,
    ];

    /// Name as users write it.
    pub const fn name(self) -> &'static str {
        match self {
            CacheType::F32 => "f32",
            CacheType::F16 => "f16",
            CacheType::BF16 => "bf16",
            CacheType::Q8_0 => "q8_0",
            CacheType::Q6_0 => "q6_0",
            CacheType::Q4_0 => "q4_0",
            CacheType::Q4_1 => "q4_1",
            CacheType::IQ4_NL => "iq4_nl",
        }
    }

    /// The type of that name, any case.
    pub fn parse(name: &str) -> Option<CacheType> {
        CacheType::ALL.into_iter().find(|t| t.name().eq_ignore_ascii_case(name.trim()))
    }

    /// The type of tensors that stores the same way.
    pub const fn quant_type(self) -> QuantType {
        match self {
            CacheType::F32 => QuantType::F32,
            CacheType::F16 => QuantType::F16,
            CacheType::BF16 => QuantType::BF16,
            CacheType::Q8_0 => QuantType::Q8_0,
            CacheType::Q6_0 => QuantType::Q6_0,
            CacheType::Q4_0 => QuantType::Q4_0,
            CacheType::Q4_1 => QuantType::Q4_1,
            CacheType::IQ4_NL => QuantType::IQ4_NL,
        }
    }

    /// Bytes of a head's row of `d` elements; `None` when it is no whole number of blocks.
    pub fn row_bytes(self, d: usize) -> Option<usize> {
        row_bytes(self.quant_type(), d).ok()
    }

    /// Bytes of a number where each stands for itself; `None` for blocks that share a scale.
    pub const fn element_bytes(self) -> Option<usize> {
        match self {
            CacheType::F32 => Some(4),
            CacheType::F16 | CacheType::BF16 => Some(2),
            _ => None,
        }
    }
}

/// Why a cache cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheError {
    /// Heads of `d` elements are no whole number of the type's blocks.
    HeadSize { ty: CacheType, d: usize },
    /// There is no memory for it.
    Memory { n_head: usize, row_bytes: usize, n_ctx: usize },
}

impl std::fmt::Display for CacheError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match *self {
            CacheError::HeadSize { ty, d } => {
                let block = ty.quant_type().info().block_size;
                write!(f, "heads of {d} elements are no multiple of {block} ({}); use f16 or f32", ty.name())
            }
            CacheError::Memory { n_head, row_bytes, n_ctx } => {
                write!(
                    f,
                    "no memory for {n_head} heads of {row_bytes} bytes at {n_ctx} positions; choose a smaller context"
                )
            }
        }
    }
}

impl std::error::Error for CacheError {}
