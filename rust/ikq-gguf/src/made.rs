//! [`Made`]: tensor data that are not one run of bytes of a file, such as those of a checkpoint that is being
//! converted.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

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
    /// Data that `maker` computes on demand.
    Computed { maker: Arc<dyn Maker>, tensor: usize, len: usize },
}

impl fmt::Debug for Made {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Made::Pieces { pieces, len } => write!(f, "Pieces({} of {len} bytes)", pieces.len()),
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

    /// Number of bytes.
    pub fn len(&self) -> usize {
        match self {
            Made::Pieces { len, .. } | Made::Computed { len, .. } => *len,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes `range`, which must lie within the data. This is a view, not a copy, where they are one run of a
    /// file.
    pub(crate) fn read(&self, range: Range<usize>) -> Result<Bytes, MakeError> {
        match self {
            Made::Computed { maker, tensor, .. } => {
                let bytes = maker.make(*tensor, range.clone())?;
                match bytes.len() == range.len() {
                    true => Ok(bytes),
                    false => {
                        Err(format!("{} bytes were made instead of {}", bytes.len(), range.len()).into())
                    }
                }
            }
            Made::Pieces { pieces, .. } => {
                let parts = parts(pieces, range.clone());
                if let [one] = &parts[..] {
                    return Ok(one.clone());
                }
                let mut all = Vec::with_capacity(range.len());
                for part in parts {
                    all.extend_from_slice(&part);
                    part.release();
                }
                Ok(Bytes::from(all))
            }
        }
    }

    /// Asks the system to read these bytes ahead, where they are in files.
    pub(crate) fn will_need(&self, range: Range<usize>) {
        if let Made::Pieces { pieces, .. } = self {
            parts(pieces, range).iter().for_each(Bytes::will_need);
        }
    }
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
    fn what_is_made_must_have_the_length_asked_for() {
        struct Short;
        impl Maker for Short {
            fn make(&self, _: usize, range: Range<usize>) -> Result<Bytes, MakeError> {
                Ok(Bytes::from(vec![0; range.len() / 2]))
            }
        }
        let made = Made::Computed { maker: Arc::new(Short), tensor: 0, len: 8 };
        let error = made.read(0..8).expect_err("too short");
        assert_eq!(error.to_string(), "4 bytes were made instead of 8");
    }
}
