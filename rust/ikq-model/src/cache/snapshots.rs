//! Snapshots of recurrent states: where a sequence can go back to.
//!
//! They are taken at intervals. Where there are more than may be kept, the one goes whose loss makes the
//! shortest gap in proportion to its distance from the end, so that they are dense near the end and thin far
//! back.

/// Positions between snapshots.
const INTERVAL: usize = 512;
/// Snapshots that a sequence keeps.
const MOST: usize = 4;

/// The most states that a sequence of up to `n` positions holds at a time: its own, the one before its last step, and
/// snapshots, with the one that is made before another is dropped for it.
pub fn most_states(n: usize) -> usize {
    // between two snapshots a multiple of the interval is passed
    [n.min(1), usize::from(n > 1), (n / INTERVAL).min(MOST + 1)].into_iter().sum()
}

/// Snapshots of a sequence: position and state, ascending.
#[derive(Clone, Debug, Default)]
pub struct Snapshots(Vec<(usize, u32)>);

impl Snapshots {
    /// Whether a snapshot at `n_past` is due.
    pub fn is_due(&self, n_past: usize) -> bool {
        n_past / INTERVAL > self.0.last().map_or(0, |(n, _)| n / INTERVAL)
    }

    /// Adds a snapshot, and returns the state that is dropped for it.
    pub fn add(&mut self, n_past: usize, state: u32) -> Option<u32> {
        self.0.push((n_past, state));
        if self.0.len() <= MOST {
            return None;
        }
        let cost = |i: usize| {
            let before = if i == 0 { 0 } else { self.0[i - 1].0 };
            (self.0[i + 1].0 - before) as f64 / (n_past - self.0[i].0).max(1) as f64
        };
        let least = (0..self.0.len() - 1).min_by(|a, b| cost(*a).total_cmp(&cost(*b)))?;
        Some(self.0.remove(least).1)
    }

    /// The last snapshot from which position `n` can be reached exactly by going back inside it (`floor` tells how
    /// far), or else the last one not behind `n`.
    pub fn nearest(&self, n: usize, floor: impl Fn(usize) -> usize) -> Option<(usize, u32)> {
        let reach = |at: usize| if at > n { if floor(at) <= n { Some(n) } else { None } } else { Some(at) };
        let reachable = self.0.iter().filter_map(|(at, state)| Some((reach(*at)?, *state)));
        reachable.max_by_key(|(at, _)| *at)
    }

    /// Removes snapshots behind `n`, and returns their states.
    pub fn truncate(&mut self, n: usize) -> Vec<u32> {
        let kept = self.0.partition_point(|(at, _)| *at <= n);
        self.0.drain(kept..).map(|(_, state)| state).collect()
    }

    /// The states of all snapshots.
    pub fn states(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter().map(|(_, state)| *state)
    }

    /// The position and state of every snapshot, in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = (usize, u32)> + '_ {
        self.0.iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_dense_near_the_end() {
        let mut all = Snapshots::default();
        let mut dropped = 0;
        for n_past in (0..40_000).step_by(100) {
            if all.is_due(n_past) {
                dropped += usize::from(all.add(n_past, n_past as u32).is_some());
            }
        }
        let at: Vec<usize> = all.iter().map(|(n, _)| n).collect();
        assert_eq!((at.len(), dropped), (MOST, 39_900 / INTERVAL - MOST));
        assert!(39_900 - at[MOST - 1] < INTERVAL && at.windows(2).all(|w| w[0] < w[1]), "{at:?}");
        // what must be computed again is in proportion to what is taken back
        for n in [39_800, 39_000, 37_500, 33_000] {
            let (back, _) = all.nearest(n, |at| at).expect("a snapshot");
            assert!(back <= n && n - back <= 2 * (39_900 - n) + INTERVAL, "{n}: {back} of {at:?}");
        }
    }

    #[test]
    fn no_sequence_holds_more_than_was_told() {
        for steps in [1, 31, 100, 512, 700] {
            let (mut all, mut most) = (Snapshots::default(), 0);
            for n_past in (steps..6000).step_by(steps) {
                if all.is_due(n_past) {
                    let held = all.states().count() + 1;
                    all.add(n_past, 0);
                    most = most.max(held);
                }
                let states = 1 + usize::from(n_past > steps) + most;
                assert!(states <= most_states(n_past), "{n_past} in steps of {steps}: {states}");
            }
            assert!(steps > INTERVAL || 2 + most == most_states(6000), "{steps}");
        }
        assert_eq!([0, 1, 2, 511, 512, 1 << 20].map(most_states), [0, 1, 2, 2, 3, 7]);
    }

    #[test]
    fn going_back_inside_a_chunk_is_exact() {
        let mut all = Snapshots::default();
        all.add(600, 1);
        all.add(1100, 2);
        let floor = |at: usize| at / 32 * 32;
        assert_eq!(all.nearest(1099, floor), Some((1099, 2)));
        assert_eq!(all.nearest(1000, floor), Some((600, 1)));
        assert_eq!(all.nearest(599, floor), Some((599, 1)));
        assert_eq!(all.nearest(500, floor), None);
        assert_eq!(all.truncate(1050), [2]);
        assert_eq!(all.states().collect::<Vec<_>>(), [1]);
    }
}
