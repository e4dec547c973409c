//! The bodies of a type: what [`with_type`] makes for each, once.

use std::ops::Range;

use ikq_decode::{BlockType, DecodeFacts, Visitor, facts, with_type};
use ikq_formats::QuantType;
use ikq_simd::IsaKind;

use super::panel::{self, Panel};
use super::row;
use super::stored::Rows;
use crate::act::ActUnit;

/// Decodes units of at most sixteen rows into a band of a panel.
type Fill = fn(IsaKind, &Rows<'_>, Range<usize>, &mut Panel, (usize, usize));

/// Code for a block type.
pub(super) struct Bodies {
    pub facts: DecodeFacts,
    /// `out[r] = row r . column`.
    pub rows: fn(IsaKind, &Rows<'_>, &[ActUnit], &mut [f32]),
    pub fill: Fill,
}

/// The code for a type's rows; `None` for types that are no block types.
pub(super) fn bodies(ty: QuantType) -> Option<Bodies> {
    struct OfType(DecodeFacts);
    impl Visitor for OfType {
        type Output = Bodies;
        fn visit<T: BlockType>(self) -> Bodies {
            Bodies { facts: self.0, rows: row::rows::<T>, fill: panel::fill::<T> }
        }
    }
    with_type(ty, OfType(facts(ty)?))
}
