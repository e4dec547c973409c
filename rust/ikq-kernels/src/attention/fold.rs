//! How partial results become one, always in the same way.
//!
//! Sums of floats depend on their order, so it is fixed by positions alone: keys from multiples of [`CHUNK`] on make a
//! partial result; those of a [`SPAN`] are combined in ascending order, and so are the spans'. Whoever works off
//! only some of the chunks, or whole spans, leaves results that combine to the same bits.

use ikq_simd::IsaKind;

use super::partial::Partial;

/// Keys of a chunk, whose partial result is made in one go.
pub const CHUNK: usize = 512;
/// Keys of a span, whose chunks are combined first, so that few partial results of long contexts need to be kept.
pub const SPAN: usize = 16 * CHUNK;

/// Partial results combined so far.
#[derive(Default)]
pub(super) struct Fold {
    /// The partial result of the span that the last chunk belongs to.
    span: Partial,
    open: Option<usize>,
    whole: Partial,
    is_empty: bool,
}

impl Fold {
    /// Starts anew, without any results.
    pub fn begin(&mut self) {
        (self.open, self.is_empty) = (None, true);
    }

    /// Takes in the result of chunk number `chunk`. Numbers ascend. `partial` is left with anything.
    pub fn chunk(&mut self, kind: IsaKind, chunk: usize, partial: &mut Partial) {
        let span = chunk / (SPAN / CHUNK);
        if self.open == Some(span) {
            self.span.combine(kind, partial);
        } else {
            self.close(kind);
            std::mem::swap(&mut self.span, partial);
            self.open = Some(span);
        }
    }

    /// Takes in the result of a whole span, later than all before. `partial` is left with anything.
    pub fn span(&mut self, kind: IsaKind, partial: &mut Partial) {
        self.close(kind);
        if self.is_empty {
            std::mem::swap(&mut self.whole, partial);
            self.is_empty = false;
        } else {
            self.whole.combine(kind, partial);
        }
    }

    /// The combined result of all chunks and spans.
    pub fn finish(&mut self, kind: IsaKind) -> &mut Partial {
        self.close(kind);
        &mut self.whole
    }

    /// Ends the span that is open: its result is combined with those before.
    fn close(&mut self, kind: IsaKind) {
        if self.open.take().is_some() {
            let mut span = std::mem::take(&mut self.span);
            self.span(kind, &mut span);
            self.span = span;
        }
    }
}
