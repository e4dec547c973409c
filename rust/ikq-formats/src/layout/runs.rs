//! Parts joined to regular runs. The codes of nearly all types are laid out so that every 16th or
//! 32nd number, or 16 neighbours, sit at the same bits of equidistant bytes. Such a run is one loop
//! that compilers turn into vector code; taken alone, a part costs a table look-up.

use super::{Part, mask};

/// `n` parts: number `value + k * value_step` has its bits from `lo` up at bit `shift` of byte
/// `byte + k * byte_step`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    value: u32,
    value_step: u32,
    byte: u32,
    byte_step: u32,
    n: u32,
    lo: u8,
    shift: u8,
    mask: u8,
    flip: u8,
}

/// Joins the parts of numbers `first..first + numbers.len()`.
pub(super) fn join(first: usize, numbers: &[Vec<Part>]) -> Vec<Run> {
    let mut alike: Vec<(Part, u32)> = numbers
        .iter()
        .enumerate()
        .flat_map(|(i, parts)| parts.iter().map(move |p| (*p, (first + i) as u32)))
        .collect();
    let kind = |p: &Part| (p.lo, p.shift, p.width, p.flip);
    alike.sort_by_key(|(p, value)| (kind(p), *value));
    let mut runs: Vec<Run> = Vec::new();
    for same in alike.chunk_by(|(a, _), (b, _)| kind(a) == kind(b)) {
        let mut rest = same;
        while let [(p, value), tail @ ..] = rest {
            let mut run = Run {
                value: *value,
                value_step: 1,
                byte: p.byte,
                byte_step: 1,
                n: 1,
                lo: p.lo,
                shift: p.shift,
                mask: mask(p.width),
                flip: p.flip,
            };
            // steps backwards through the bytes are rare and stay single
            if let [(next, next_value), ..] = tail
                && next.byte >= p.byte
            {
                (run.value_step, run.byte_step) = (next_value - value, next.byte - p.byte);
                let follows = |(k, (p, v)): (usize, &(Part, u32))| {
                    let k = k as u32 + 1;
                    (p.byte, *v) == (run.byte + k * run.byte_step, run.value + k * run.value_step)
                };
                run.n += tail.iter().enumerate().take_while(|at| follows(*at)).count() as u32;
            }
            rest = &rest[run.n as usize..];
            runs.push(run);
        }
    }
    runs
}

impl Run {
    pub(super) fn first_byte(&self) -> (u32, u8) {
        (self.byte, self.shift)
    }

    fn is_dense(&self) -> bool {
        self.value_step == 1 && self.byte_step == 1
    }

    /// Adds the bits to a block in which they are zero.
    #[inline]
    pub(super) fn pack(&self, values: &[u32], block: &mut [u8]) {
        let (mask, flip) = (u32::from(self.mask), u32::from(self.flip));
        let put = |v: u32| ((((v >> self.lo) ^ flip) & mask) << self.shift) as u8;
        let (value, byte, n) = (self.value as usize, self.byte as usize, self.n as usize);
        if self.is_dense() {
            for (b, v) in block[byte..byte + n].iter_mut().zip(&values[value..value + n]) {
                *b |= put(*v);
            }
        } else {
            for k in 0..n {
                block[byte + k * self.byte_step as usize] |=
                    put(values[value + k * self.value_step as usize]);
            }
        }
    }

    /// Adds the bits to numbers in which they are zero.
    #[inline]
    pub(super) fn unpack(&self, block: &[u8], values: &mut [u32]) {
        let (mask, flip) = (u32::from(self.mask), u32::from(self.flip));
        let get = |b: u8| (((u32::from(b) >> self.shift) ^ flip) & mask) << self.lo;
        let (value, byte, n) = (self.value as usize, self.byte as usize, self.n as usize);
        if self.is_dense() {
            for (v, b) in values[value..value + n].iter_mut().zip(&block[byte..byte + n]) {
                *v |= get(*b);
            }
        } else {
            for k in 0..n {
                values[value + k * self.value_step as usize] |=
                    get(block[byte + k * self.byte_step as usize]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{bits, nib};
    use super::*;

    #[test]
    fn the_nibbles_of_a_block_are_two_runs() {
        let numbers: Vec<_> = (0..32).map(|i| vec![nib(2 + i % 16, i / 16)]).collect();
        let runs = join(1, &numbers);
        let shapes: Vec<_> = runs.iter().map(|r| (r.value, r.byte, r.n, r.shift)).collect();
        assert_eq!(shapes, [(1, 2, 16, 0), (17, 2, 16, 4)]);
    }

    #[test]
    fn strides_are_found() {
        let numbers: Vec<_> = (0..64).map(|i| vec![bits(i / 4, 2 * (i % 4), 2)]).collect();
        let runs = join(0, &numbers);
        assert_eq!(runs.len(), 4);
        assert!(runs.iter().all(|r| (r.value_step, r.byte_step, r.n) == (4, 1, 16)));
    }
}
