//! The kernels of each block type, which [`with_type`] compiles once for each.

use std::ops::Range;

use ikq_decode::{BlockType, DecodeFacts, Visitor, facts, with_type};
use ikq_formats::QuantType;
use ikq_simd::IsaKind;

use super::bands::{Bands, Product};
use super::panel::{self, Panel};
use super::{direct, float};

/// Decodes units of a band into a panel.
type Fill = fn(IsaKind, &Bands<'_>, usize, Range<usize>, &mut Panel, (usize, usize));

/// The kernels of a block type.
pub(super) struct Bodies {
    pub facts: DecodeFacts,
    pub direct: fn(IsaKind, Product<'_>),
    pub fill: Fill,
    /// Decodes a band to lines of floats.
    pub floats: fn(IsaKind, &Bands<'_>, usize, &mut [u8]),
}

/// The kernels for a type's rows; `None` for types that are no block types.
pub(super) fn bodies(ty: QuantType) -> Option<Bodies> {
    struct OfType(DecodeFacts);
    impl Visitor for OfType {
        type Output = Bodies;
        fn visit<T: BlockType>(self) -> Bodies {
            Bodies {
                facts: self.0,
                direct: direct::multiply::<T>,
                fill: panel::fill::<T>,
                floats: float::decode::<T>,
            }
        }
    }
    with_type(ty, OfType(facts(ty)?))
}
