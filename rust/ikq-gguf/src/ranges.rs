//! [`Ranges`]: which bytes of a tensor have been written.

/// A set of byte positions, stored as sorted ranges that do not touch. Writers finish blocks nearly in order, so
/// that there are few ranges at any time.
#[derive(Debug, Default)]
pub(crate) struct Ranges {
    spans: Vec<(u64, u64)>,
}

impl Ranges {
    /// Adds `begin..end`, of which parts may be in the set already.
    pub(crate) fn insert(&mut self, begin: u64, end: u64) {
        if begin >= end {
            return;
        }
        // the spans that touch the new one become part of it
        let first = self.spans.partition_point(|s| s.1 < begin);
        let last = self.spans.partition_point(|s| s.0 <= end);
        let joined = match self.spans.get(first..last) {
            Some([one]) => (begin.min(one.0), end.max(one.1)),
            Some([a, .., b]) => (begin.min(a.0), end.max(b.1)),
            _ => (begin, end),
        };
        self.spans.splice(first..last, [joined]);
    }

    /// Number of positions in the set.
    pub(crate) fn covered(&self) -> u64 {
        self.spans.iter().map(|s| s.1 - s.0).sum()
    }

    /// The first position from 0 that is not in the set.
    pub(crate) fn first_gap(&self) -> u64 {
        match self.spans.first() {
            Some((0, end)) => *end,
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_a_bitmap() {
        let mut state = 1u64;
        let mut next = |n: u64| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) % n
        };
        for _ in 0..200 {
            let mut bitmap = [false; 64];
            let mut ranges = Ranges::default();
            for _ in 0..12 {
                let begin = next(64);
                let end = begin + next(64 - begin + 1);
                ranges.insert(begin, end);
                bitmap[begin as usize..end as usize].fill(true);
                assert_eq!(ranges.covered(), bitmap.iter().filter(|b| **b).count() as u64);
                assert_eq!(ranges.first_gap(), bitmap.iter().take_while(|b| **b).count() as u64);
                assert!(ranges.spans.windows(2).all(|w| w[0].1 < w[1].0));
            }
        }
    }
}
