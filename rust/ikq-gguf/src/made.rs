//! [`Made`]: tensor data that are not one run of bytes of a file, such as those of a checkpoint that is being
//! converted.

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use half::{bf16, f16};

use crate::bytes::Bytes;

/// The reason why data could not be made.
pub type MakeError = Box<dyn std::error::Error + Send + Sync>;

/// Computes bytes of tensors on demand, for any number of threads. The same range must always have the same bytes.
pub trait Maker: Send + Sync {
    /// Computes the bytes `range` of the tensor with this number.
    ///
    /// # Errors
    /// The reason why they could not be computed.
    fn make(&self, tensor: usize, range: Range<usize>) -> Result<Bytes, MakeError>;
}

/// The source of tensor data that are not one run of bytes of a file.
#[derive(Clone)]
pub enum Made {
    /// Several runs of bytes of files, to be joined in order; a checkpoint may store each expert separately, for
    /// example.
    Pieces { pieces: Arc<[Bytes]>, len: usize },
    /// Rows of `row` bytes of joined runs, in another order: row `i` is their row `order[i]`. Tensors of the same
    /// shape may share an order.
    Ordered { pieces: Arc<[Bytes]>, order: Arc<[u32]>, row: usize },
    /// Floats of 16 bits as F32.
    Widened { of: Arc<Made>, half: Half },
    /// Data that `maker` computes on demand, in rows of `row` bytes.
    Computed { maker: Arc<dyn Maker>, tensor: usize, len: usize, row: usize },
}

/// A type of floats of 16 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    F16,
    BF16,
}

impl Half {
    /// The number that two bytes hold.
    fn widen(self, bytes: [u8; 2]) -> f32 {
        let bits = u16::from_le_bytes(bytes);
        match self {
            Half::F16 => f16::from_bits(bits).to_f32(),
            Half::BF16 => bf16::from_bits(bits).to_f32(),
        }
    }
}

impl fmt::Debug for Made {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Made::Pieces { pieces, len } => write!(f, "Pieces({} of {len} bytes)", pieces.len()),
            Made::Ordered { order, row, .. } => write!(f, "Ordered({} rows of {row} bytes)", order.len()),
            Made::Widened { of, half } => write!(f, "Widened({of:?} of {half:?})"),
            Made::Computed { tensor, len, .. } => write!(f, "Computed({tensor}, {len} bytes)"),
        }
    }
}

impl Made {
    /// Data that consist of these pieces in order.
    pub fn of_pieces(pieces: Vec<Bytes>) -> Made {
        let len = pieces.iter().map(|p| p.len()).sum();
        Made::Pieces { pieces: pieces.into(), len }
    }

    /// Rows of `row` bytes of these pieces, joined, in this order.
    ///
    /// Returns `None` if the pieces have no such row, or rows of no bytes.
    pub fn of_ordered(pieces: Vec<Bytes>, order: Arc<[u32]>, row: usize) -> Option<Made> {
        let len: usize = pieces.iter().map(|p| p.len()).sum();
        let n_rows = len.checked_div(row)?;
        let all_there = order.iter().all(|&from| (from as usize) < n_rows);
        all_there.then(|| Made::Ordered { pieces: pieces.into(), order, row })
    }

    /// Number of bytes.
    pub fn len(&self) -> usize {
        match self {
            Made::Pieces { len, .. } | Made::Computed { len, .. } => *len,
            Made::Ordered { order, row, .. } => order.len() * row,
            Made::Widened { of, .. } => 2 * of.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes `range`, which must lie within the data. This is a view, not a copy, where they are one long run of
    /// a file.
    pub(crate) fn read(&self, range: Range<usize>) -> Result<Bytes, MakeError> {
        match self {
            Made::Computed { maker, tensor, row, .. } => compute(&**maker, *tensor, range, *row),
            Made::Pieces { pieces, .. } => {
                let parts = parts(pieces, range.clone());
                match &parts[..] {
                    [one] if range.len() > COPIED => Ok(one.clone()),
                    _ => Ok(Bytes::from(joined(&parts)?)),
                }
            }
            Made::Ordered { pieces, order, row } => Ok(Bytes::from(gather(pieces, order, *row, range)?)),
            Made::Widened { of, half } => Ok(Bytes::from(widened(of, *half, range)?)),
        }
    }

    /// Asks the system to read these bytes ahead, where they are in files.
    pub(crate) fn will_need(&self, range: Range<usize>) {
        match self {
            Made::Pieces { pieces, .. } => parts(pieces, range).iter().for_each(Bytes::will_need),
            Made::Ordered { pieces, order, row } => {
                if let Some(span) = span(&order[rows_of(&range, *row)], *row) {
                    parts(pieces, span).iter().for_each(Bytes::will_need);
                }
            }
            Made::Widened { of, .. } => of.will_need(narrow(&range)),
            Made::Computed { .. } => {}
        }
    }
}

/// Up to so many bytes are copied rather than mapped, even where they are one run of a file.
const COPIED: usize = 64 << 10;

/// These parts one behind the other.
fn joined(parts: &[Bytes]) -> io::Result<Vec<u8>> {
    let mut all = vec![0; parts.iter().map(|part| part.len()).sum()];
    let mut to = &mut all[..];
    for part in parts {
        let (here, rest) = to.split_at_mut(part.len());
        part.read_into(0, here)?;
        to = rest;
    }
    Ok(all)
}

/// The bytes `range` of rows in another order; rows that follow each other in the files are read together.
fn gather(pieces: &[Bytes], order: &[u32], row: usize, range: Range<usize>) -> io::Result<Vec<u8>> {
    let wanted = rows_of(&range, row);
    let (first, order) = (wanted.start, &order[wanted]);
    let mut places: Vec<u32> = (0..order.len() as u32).collect();
    places.sort_unstable_by_key(|&place| order[place as usize]);
    let mut all = vec![0; range.len()];
    for stretch in places.chunk_by(|&a, &b| order[b as usize] - order[a as usize] <= 1) {
        let from = order[stretch[0] as usize] as usize * row;
        let last = order[stretch[stretch.len() - 1] as usize] as usize * row;
        let found = joined(&parts(pieces, from..last + row))?;
        for &place in stretch {
            let begin = (first + place as usize) * row;
            let (start, end) = (begin.max(range.start), (begin + row).min(range.end));
            let at = order[place as usize] as usize * row - from + start - begin;
            all[start - range.start..end - range.start].copy_from_slice(&found[at..at + end - start]);
        }
    }
    Ok(all)
}

/// The bytes of 16-bit floats that a range of bytes of the same numbers as F32 is made of.
fn narrow(range: &Range<usize>) -> Range<usize> {
    range.start / 4 * 2..range.end.div_ceil(4) * 2
}

/// The bytes `range` of 16-bit floats as F32.
fn widened(of: &Made, half: Half, range: Range<usize>) -> Result<Vec<u8>, MakeError> {
    let mut all = Vec::with_capacity(range.len());
    let mut at = range.start;
    while at < range.end {
        let end = (at / 4 * 4 + WIDENED_AT_A_TIME).min(range.end);
        let found = of.read(narrow(&(at..end)))?;
        let floats = found.as_chunks::<2>().0.iter().flat_map(|&bytes| half.widen(bytes).to_le_bytes());
        all.extend(floats.skip(at % 4).take(end - at));
        at = end;
    }
    Ok(all)
}

/// So many bytes of F32 are made from what is read at a time, so that it does not take room of its own.
const WIDENED_AT_A_TIME: usize = 2 * COPIED;

/// The most bytes that are asked of a maker at a time. It needs room for what it computes and for steps on the way,
/// for each thread, so this is less than a unit of work.
const COMPUTED_AT_A_TIME: usize = 128 << 10;

/// Has `range` of a tensor computed, whole rows at a time.
fn compute(maker: &dyn Maker, tensor: usize, range: Range<usize>, row: usize) -> Result<Bytes, MakeError> {
    let step = (COMPUTED_AT_A_TIME / row.max(1)).max(1) * row.max(1);
    let mut all = Vec::new();
    let mut at = range.start;
    while at < range.end {
        let end = ((at / step + 1) * step).min(range.end);
        let bytes = maker.make(tensor, at..end)?;
        if bytes.len() != end - at {
            return Err(format!("{} bytes were made instead of {}", bytes.len(), end - at).into());
        }
        if end - at == range.len() {
            return Ok(bytes);
        }
        if all.is_empty() {
            all.reserve_exact(range.len());
        }
        all.extend_from_slice(&bytes);
        at = end;
    }
    Ok(Bytes::from(all))
}

/// The rows of `row` bytes in which a range of bytes lies.
fn rows_of(range: &Range<usize>, row: usize) -> Range<usize> {
    range.start / row..range.end.div_ceil(row)
}

/// The bytes from the first of these rows to the last, unless other rows are most of them.
fn span(order: &[u32], row: usize) -> Option<Range<usize>> {
    let (low, high) = (*order.iter().min()? as usize, *order.iter().max()? as usize + 1);
    (high - low <= 8 * order.len()).then(|| low * row..high * row)
}

/// The parts of the pieces that lie in `range` of all of them joined.
fn parts(pieces: &[Bytes], range: Range<usize>) -> Vec<Bytes> {
    let mut begin = 0;
    let mut found = Vec::new();
    for piece in pieces {
        let end = begin + piece.len();
        let (from, to) = (range.start.max(begin), range.end.min(end));
        if from < to {
            found.extend(piece.slice(from - begin..to - begin));
        }
        begin = end;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_one_run_of_bytes() {
        let pieces = [0..4u8, 4..4, 4..9, 9..10].map(|r| Bytes::from(r.collect::<Vec<_>>()));
        let made = Made::of_pieces(pieces.to_vec());
        assert_eq!(made.len(), 10);
        for start in 0..10usize {
            for end in start..=10 {
                let expected: Vec<u8> = (start as u8..end as u8).collect();
                assert_eq!(*made.read(start..end).expect("in range"), expected, "{start}..{end}");
            }
        }
        made.will_need(0..10);
    }

    #[test]
    fn rows_in_another_order() {
        let pieces =
            vec![Bytes::from((0..5u8).collect::<Vec<_>>()), Bytes::from((5..12u8).collect::<Vec<_>>())];
        let order: Arc<[u32]> = Arc::from([2, 0, 3]);
        let made = Made::of_ordered(pieces.clone(), order, 3).expect("rows that are there");
        let whole = [6u8, 7, 8, 0, 1, 2, 9, 10, 11];
        assert_eq!(made.len(), whole.len());
        for start in 0..whole.len() {
            for end in start..=whole.len() {
                assert_eq!(*made.read(start..end).expect("in range"), whole[start..end], "{start}..{end}");
                made.will_need(start..end);
            }
        }
        assert!(Made::of_ordered(pieces.clone(), Arc::from([4]), 3).is_none());
        assert!(Made::of_ordered(pieces, Arc::from([0]), 0).is_none());
    }

    #[test]
    fn sixteen_bits_as_thirty_two() {
        let numbers = [1.5f32, -0.25, 3.0, 0.0, -65504.0, 2.0f32.powi(-24)];
        for half in [Half::F16, Half::BF16] {
            let narrow = numbers.iter().flat_map(|&x| match half {
                Half::F16 => f16::from_f32(x).to_le_bytes(),
                Half::BF16 => bf16::from_f32(x).to_le_bytes(),
            });
            let exact = numbers.map(|x| if half == Half::BF16 { bf16::from_f32(x).to_f32() } else { x });
            let whole: Vec<u8> = exact.iter().flat_map(|x| x.to_le_bytes()).collect();
            let of = Arc::new(Made::of_pieces(vec![Bytes::from(narrow.collect::<Vec<_>>())]));
            let made = Made::Widened { of, half };
            assert_eq!(made.len(), whole.len());
            for start in 0..whole.len() {
                for end in start..=whole.len() {
                    assert_eq!(
                        *made.read(start..end).expect("in range"),
                        whole[start..end],
                        "{start}..{end}"
                    );
                    made.will_need(start..end);
                }
            }
        }
        // more than is made at a time, from the middle of a number
        let n = WIDENED_AT_A_TIME;
        let narrow: Vec<u8> = (0..n).flat_map(|i| (i as u16).to_le_bytes()).collect();
        let whole: Vec<u8> = (0..n).flat_map(|i| bf16::from_bits(i as u16).to_f32().to_le_bytes()).collect();
        let made =
            Made::Widened { of: Arc::new(Made::of_pieces(vec![Bytes::from(narrow)])), half: Half::BF16 };
        assert_eq!(*made.read(3..4 * n - 1).expect("in range"), whole[3..4 * n - 1]);
    }

    #[test]
    fn what_is_computed_is_asked_for_in_whole_rows() {
        struct Count;
        impl Maker for Count {
            fn make(&self, tensor: usize, range: Range<usize>) -> Result<Bytes, MakeError> {
                assert!(range.start == 5 || range.start.is_multiple_of(30_000), "{range:?}");
                assert!(range.len() <= COMPUTED_AT_A_TIME, "{range:?}");
                Ok(Bytes::from(range.map(|i| (i % 251 + tensor) as u8).collect::<Vec<_>>()))
            }
        }
        let made = Made::Computed { maker: Arc::new(Count), tensor: 3, len: 600_000, row: 30_000 };
        for range in [5..5, 5..8, 5..300_000, 30_000..600_000] {
            let expected: Vec<u8> = range.clone().map(|i| (i % 251 + 3) as u8).collect();
            assert_eq!(*made.read(range).expect("in range"), expected);
        }
    }

    #[test]
    fn what_is_made_must_have_the_length_asked_for() {
        struct Short;
        impl Maker for Short {
            fn make(&self, _: usize, range: Range<usize>) -> Result<Bytes, MakeError> {
                Ok(Bytes::from(vec![0; range.len() / 2]))
            }
        }
        let made = Made::Computed { maker: Arc::new(Short), tensor: 0, len: 8, row: 8 };
        let error = made.read(0..8).expect_err("too short");
        assert_eq!(error.to_string(), "4 bytes were made instead of 8");
    }
}
