//! A block as 32-bit words made of shifted numbers: what packs many blocks side by side, one per lane of
//! a vector, where [`super::Layout::pack`] takes one after another.

use super::{Part, mask};

/// Four bytes of a block (little endian), fewer at its end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Word {
    /// Pieces that are shifted left; `right` has those that are shifted right.
    pub left: Vec<Piece>,
    pub right: Vec<Piece>,
    /// Exclusive-or that is applied to the finished word.
    pub flip: u32,
}

/// The bits `mask` of number `value`, shifted `by` bits to their place in the word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    pub value: u32,
    pub mask: u32,
    pub by: u32,
}

/// The words of a block of `bytes` bytes; `numbers` are the parts of its numbers.
pub(super) fn words<'a>(bytes: usize, numbers: impl Iterator<Item = &'a [Part]>) -> Vec<Word> {
    let mut words = vec![Word::default(); bytes.div_ceil(4)];
    for (value, parts) in numbers.enumerate() {
        for p in parts {
            let word = &mut words[p.byte as usize / 4];
            let at = p.byte % 4 * 8 + u32::from(p.shift);
            word.flip |= u32::from(p.flip) << at;
            let (lo, bits) = (u32::from(p.lo), u32::from(mask(p.width)));
            let (pieces, by) = match at.checked_sub(lo) {
                Some(by) => (&mut word.left, by),
                None => (&mut word.right, lo - at),
            };
            let piece = Piece { value: value as u32, mask: bits << lo, by };
            // neighbouring bits that stay neighbours move together
            match pieces.last_mut() {
                Some(last) if (last.value, last.by) == (piece.value, by) => last.mask |= piece.mask,
                _ => pieces.push(piece),
            }
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::super::{bit, le, nib};
    use super::*;

    #[test]
    fn a_number_of_two_bytes_is_one_piece() {
        let numbers = [le(0, 2), vec![nib(2, 0), bit(2, 4).at(5)], vec![nib(2, 1).flipped(8)]];
        let words = words(3, numbers.iter().map(Vec::as_slice));
        let piece = |value, mask, by| Piece { value, mask, by };
        assert_eq!(words.len(), 1);
        assert_eq!(
            words[0].left,
            [piece(0, 0xffff, 0), piece(1, 15, 16), piece(1, 32, 15), piece(2, 15, 20)]
        );
        assert_eq!((words[0].right.len(), words[0].flip), (0, 8 << 20));
    }
}
