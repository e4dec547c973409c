//! [`Sequence`]: tokens that a model has read, as positions in pages and a state of the recurrent layers.

use std::sync::{Arc, PoisonError};

use crate::batch::{NO_PAGE, PAGE};
use crate::cache::{Pools, Snapshots};
use crate::device::Move;
use crate::error::Error;
use crate::model::Shared;

/// What a sequence was at the start of a step, to go back to when the step fails.
pub(crate) struct Start {
    pub n_past: usize,
    /// Group, index in its table, and number of pages that are held.
    held: Vec<(usize, usize, u32)>,
}

/// A text that a model is reading or writing. Dropping it gives its pages back.
pub struct Sequence {
    pub(crate) shared: Arc<Shared>,
    /// Tokens so far.
    pub(crate) tokens: Vec<u32>,
    /// Pages, group after group.
    pub(crate) tables: Vec<Vec<u32>>,
    /// The state of the recurrent layers, where the model has any.
    pub(crate) state: Option<u32>,
    pub(crate) snapshots: Snapshots,
    /// The state as it was before the last step that left no way back to there.
    pub(crate) before: Option<(usize, u32)>,
    /// Layers with a window that gave positions back hold, since the last shift, only what tokens from here on see;
    /// 0: there was no such shift.
    pub(crate) shifted_at: usize,
    /// Scales of the model's adapters.
    pub(crate) scales: Arc<[f32]>,
}

impl Sequence {
    pub(crate) fn new(shared: Arc<Shared>) -> Sequence {
        let n_groups = shared.groups.len();
        let scales = shared.scales();
        Sequence {
            shared,
            tokens: Vec::new(),
            tables: vec![Vec::new(); n_groups],
            state: None,
            snapshots: Snapshots::default(),
            before: None,
            shifted_at: 0,
            scales,
        }
    }

    /// Scales of the model's adapters, which hold for all its tokens.
    pub fn scales(&self) -> &[f32] {
        &self.scales
    }

    /// How many positions it holds.
    pub fn n_past(&self) -> usize {
        self.tokens.len()
    }

    /// The tokens at these positions.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Bytes of the pages and states that it holds, shared ones included.
    pub fn bytes(&self) -> usize {
        let held = |table: &Vec<u32>| table.iter().filter(|p| **p != NO_PAGE).count();
        let sizes = &self.shared.sizes;
        let pages: usize = self.tables.iter().zip(&sizes.pages).map(|(t, size)| held(t) * size).sum();
        let n_states = usize::from(self.state.is_some())
            + usize::from(self.before.is_some())
            + self.snapshots.states().count();
        pages + n_states * sizes.state
    }

    /// Another sequence of the same tokens. Pages are shared until one of both writes to them.
    ///
    /// # Errors
    /// [`Error::Closed`]; [`Error::CacheMemory`] where recurrent layers need a state of their own.
    pub fn fork(&self) -> Result<Sequence, Error> {
        let mut fork = Sequence::new(Arc::clone(&self.shared));
        if let Some(state) = self.state {
            let mut runner = self.shared.runner()?;
            let copy = runner.take_state(&self.shared)?;
            runner.devices.iter_mut().for_each(|d| d.copy_state(state, copy));
            fork.state = Some(copy);
        }
        fork.tokens.clone_from(&self.tokens);
        fork.tables.clone_from(&self.tables);
        fork.snapshots = self.snapshots.clone();
        fork.before = self.before;
        fork.shifted_at = self.shifted_at;
        fork.scales = Arc::clone(&self.scales);
        let pools = &mut *self.shared.pools();
        for (table, pages) in fork.tables.iter().zip(&mut pools.groups) {
            table.iter().filter(|p| **p != NO_PAGE).for_each(|p| pages.share(*p));
        }
        let states = fork.snapshots.states().chain(fork.before.map(|(_, s)| s));
        states.for_each(|s| pools.states.share(s));
        Ok(fork)
    }

    /// The largest position, at most `n`, that [`Sequence::truncate`] can go back to.
    pub fn rewindable(&self, n: usize) -> usize {
        if n >= self.n_past() {
            return self.n_past();
        }
        let n = self.rewindable_state(n).map_or(n, |(at, _)| at);
        match self.pages_reach(n) {
            true => n,
            false => 0,
        }
    }

    /// Where the recurrent state can go back to, and from which state; `None` where there is no such state.
    fn rewindable_state(&self, n: usize) -> Option<(usize, Option<u32>)> {
        let state = self.state?;
        let floor = |at: usize| self.shared.state_floor(at);
        if floor(self.n_past()) <= n {
            return Some((n, Some(state)));
        }
        let mut all = self.snapshots.clone();
        if let Some((at, state)) = self.before {
            // not behind a later one: it is only added to be asked
            let near = if floor(at) <= n && at > n { n } else { at };
            let other = all.nearest(n, floor);
            if near <= n && other.is_none_or(|(other, _)| other < near) {
                return Some((near, Some(state)));
            }
            all = self.snapshots.clone();
        }
        Some(all.nearest(n, floor).map_or((0, None), |(at, state)| (at, Some(state))))
    }

    /// Whether the pages that position `n` sees are all there.
    fn pages_reach(&self, n: usize) -> bool {
        let groups = self.tables.iter().zip(&self.shared.groups);
        n == 0
            || n >= self.shifted_at
                && groups.into_iter().all(|(table, group)| {
                    let first = (n + 1).saturating_sub(group.window.unwrap_or(usize::MAX));
                    (first / PAGE..n.div_ceil(PAGE)).all(|page| table[page] != NO_PAGE)
                })
    }

    /// Keeps the first `n` positions.
    ///
    /// # Errors
    /// [`Error::Rewind`] where recurrent layers or sliding windows do not lead back there (0 always works);
    /// [`Error::Closed`].
    pub fn truncate(&mut self, n: usize) -> Result<(), Error> {
        let at = self.n_past();
        if n >= at {
            return Ok(());
        }
        let nearest = self.rewindable(n);
        if nearest != n {
            let why = match self.state.is_some() {
                true => "recurrent layers only keep snapshots of their state",
                false => "layers with a sliding window have given back what lies behind it",
            };
            return Err(Error::Rewind { to: n, at, nearest, why });
        }
        if let Some((_, from)) = self.rewindable_state(n)
            && let Some(state) = self.state
        {
            let mut runner = self.shared.runner()?;
            for device in &mut runner.devices {
                match from {
                    Some(from) => {
                        if from != state {
                            device.copy_state(from, state);
                        }
                        device.truncate_state(state, n);
                    }
                    None => device.clear_state(state),
                }
            }
        }
        let pools = &mut *self.shared.pools();
        for (table, pages) in self.tables.iter_mut().zip(&mut pools.groups) {
            let kept = n.div_ceil(PAGE).min(table.len());
            table.drain(kept..).filter(|p| *p != NO_PAGE).for_each(|p| pages.give_back(p));
        }
        self.snapshots.truncate(n).into_iter().for_each(|s| pools.states.give_back(s));
        if let Some((at, state)) = self.before
            && at > n
        {
            pools.states.give_back(state);
            self.before = None;
        }
        self.tokens.truncate(n);
        if n == 0 {
            self.shifted_at = 0;
        }
        Ok(())
    }

    /// Context shift: forgets `n_discard` positions after the first `n_keep`; later ones move down, their keys
    /// turned to where they come to stand. Forgetting the last ones is [`Sequence::truncate`].
    ///
    /// Layers with a sliding window may have given the kept positions back. Where the next token would see those,
    /// it sees in these layers what stood as far before the end until now, so that the result does not depend on
    /// which pages happen to be there; the sequence cannot go back behind the shift then.
    ///
    /// # Errors
    /// [`Error::Shift`] when a layer is recurrent, [`Error::Turn`] where keys cannot be turned, [`Error::Discard`] when there are not as many positions;
    /// [`Error::Rewind`] for the last ones; [`Error::CacheMemory`], [`Error::Closed`].
    pub fn shift(&mut self, n_keep: usize, n_discard: usize) -> Result<(), Error> {
        let n_past = self.n_past();
        if self.shared.is_recurrent {
            return Err(Error::Shift);
        }
        if !self.shared.can_shift {
            return Err(Error::Turn);
        }
        let needed = n_keep.saturating_add(n_discard);
        if needed > n_past {
            return Err(Error::Discard { n_keep, n_discard, n_past });
        }
        if needed == n_past {
            return self.truncate(n_keep);
        }
        if n_discard == 0 {
            return Ok(());
        }
        let shared = Arc::clone(&self.shared);
        let mut runner = shared.runner()?;
        let mut tables = Vec::new();
        let mut all_moves = Vec::new();
        let mut all_shared = Vec::new();
        let mut has_given_back = self.shifted_at > 0;
        for (old, group) in self.tables.iter().zip(&shared.groups) {
            let window = group.window.filter(|w| !shared.swa_full && *w <= n_past);
            has_given_back |= window.is_some();
            let (table, moves) = match window {
                None => moved(old, n_keep, n_discard, n_past),
                Some(window) => moved_window(old, n_keep, n_discard, n_past, window),
            };
            tables.push(table);
            all_moves.push(moves);
            all_shared.push(if window.is_some() { 0 } else { n_keep / PAGE });
        }
        // new pages from the first that changes on: others may hold the old ones
        let mut taken = Vec::new();
        for (group, (table, moves)) in tables.iter_mut().zip(&mut all_moves).enumerate() {
            let mut fresh = std::collections::HashMap::new();
            for m in moves.iter_mut() {
                let index = m.to.0 as usize;
                let page = match fresh.get(&index) {
                    Some(page) => *page,
                    None => {
                        let page = match runner.take_page(&shared, group) {
                            Ok(page) => page,
                            Err(e) => {
                                let pools = &mut *shared.pools();
                                taken
                                    .into_iter()
                                    .for_each(|(g, p): (usize, u32)| pools.groups[g].give_back(p));
                                return Err(e);
                            }
                        };
                        taken.push((group, page));
                        fresh.insert(index, page);
                        page
                    }
                };
                m.to.0 = page;
                table[index] = page;
            }
            runner.devices.iter_mut().for_each(|d| d.move_rows(group, moves));
        }
        let pools = &mut *shared.pools();
        let both = self.tables.iter_mut().zip(tables).zip(all_shared);
        for (((old, new), first), pages) in both.zip(&mut pools.groups) {
            old[first.min(old.len())..].iter().filter(|p| **p != NO_PAGE).for_each(|p| pages.give_back(*p));
            *old = new;
        }
        self.tokens.drain(n_keep..n_keep + n_discard);
        if has_given_back {
            self.shifted_at = self.n_past();
        }
        Ok(())
    }

    /// What a step of `n` tokens that fails goes back to: while it runs, pages that it might give back are held.
    /// Others are not: the page that it writes on would be copied because it is shared.
    pub(crate) fn start(&self, n: usize) -> Start {
        let n_past = self.n_past();
        let mut held = Vec::new();
        let pools = &mut *self.shared.pools();
        for (group, (table, pages)) in self.tables.iter().zip(&mut pools.groups).enumerate() {
            let window = self.shared.groups[group].window.filter(|_| !self.shared.swa_full);
            let Some(window) = window else { continue };
            // none of the pages that the last of these tokens sees is given back
            let unseen = (n_past + n).saturating_sub(window) / PAGE;
            for (index, page) in table.iter().enumerate().take(unseen).filter(|(_, p)| **p != NO_PAGE) {
                pages.share(*page);
                held.push((group, index, *page));
            }
        }
        Start { n_past, held }
    }

    /// The end of a step. One that has failed gets back the pages that it had at the start.
    pub(crate) fn end(&mut self, start: Start, failed: bool) {
        let pools = &mut *self.shared.pools();
        for (group, index, page) in start.held {
            match self.tables[group].get_mut(index) {
                Some(given_back) if failed && *given_back == NO_PAGE => *given_back = page,
                _ => pools.groups[group].give_back(page),
            }
        }
    }

    /// Gives back pages that no token from position `first` on sees.
    pub(crate) fn give_back_unseen(&mut self, first: usize) {
        if self.shared.swa_full {
            return;
        }
        let pools = &mut *self.shared.pools();
        for ((table, group), pages) in self.tables.iter_mut().zip(&self.shared.groups).zip(&mut pools.groups)
        {
            let Some(window) = group.window else { continue };
            // a token sees its own position and those before, `window` in all
            let seen = (first + 1).saturating_sub(window) / PAGE;
            for page in table.iter_mut().take(seen).rev() {
                if *page == NO_PAGE {
                    break;
                }
                pages.give_back(std::mem::replace(page, NO_PAGE));
            }
        }
    }

    /// Gives all pages and states back to the pools.
    fn clear(&mut self, pools: &mut Pools) {
        for (table, pages) in self.tables.iter_mut().zip(&mut pools.groups) {
            table.drain(..).filter(|p| *p != NO_PAGE).for_each(|p| pages.give_back(p));
        }
        let states = self.state.take().into_iter().chain(self.before.take().map(|(_, s)| s));
        let snapshots = std::mem::take(&mut self.snapshots);
        states.chain(snapshots.states()).for_each(|s| pools.states.give_back(s));
        self.tokens.clear();
    }
}

impl Drop for Sequence {
    fn drop(&mut self) {
        let shared = Arc::clone(&self.shared);
        let pools = &mut *shared.pools.lock().unwrap_or_else(PoisonError::into_inner);
        self.clear(pools);
    }
}

/// A table after positions `n_keep..n_keep + n_discard` are gone, with [`NO_PAGE`] where new pages belong, and the rows to
/// copy to them; pages of targets are indices of the table.
fn moved(old: &[u32], n_keep: usize, n_discard: usize, n_past: usize) -> (Vec<u32>, Vec<Move>) {
    let first = n_keep / PAGE;
    let n_new = n_past - n_discard;
    let mut table = old[..first.min(old.len())].to_vec();
    table.resize(n_new.div_ceil(PAGE), NO_PAGE);
    let mut moves = Vec::new();
    span(old, &mut moves, first * PAGE..n_keep, 0);
    span(old, &mut moves, n_keep..n_new, n_discard);
    (table, moves)
}

/// [`moved`] in layers whose tokens see `window` positions, where earlier ones are given back page by page: of the old
/// positions only the last `window - 1` are there for certain, and as many are needed. Those of the kept ones that
/// are not among them are replaced by what stood `n_discard` later, as far from the end as they come to stand. One
/// position stays in any case: the page that is written to next must be there.
fn moved_window(
    old: &[u32],
    n_keep: usize,
    n_discard: usize,
    n_past: usize,
    window: usize,
) -> (Vec<u32>, Vec<Move>) {
    let (n_new, window) = (n_past - n_discard, window.max(2));
    let seen = (n_new + 1).saturating_sub(window);
    let held = (n_past + 1).saturating_sub(window);
    let mut moves = Vec::new();
    let stay = n_keep.min(held).max(seen);
    span(old, &mut moves, seen..stay, n_discard);
    span(old, &mut moves, stay..n_keep, 0);
    span(old, &mut moves, stay.max(n_keep)..n_new, n_discard);
    (vec![NO_PAGE; n_new.div_ceil(PAGE)], moves)
}

/// Adds moves to the positions `to`, each from `turn_back` later; pages of targets are indices.
fn span(old: &[u32], moves: &mut Vec<Move>, to: std::ops::Range<usize>, turn_back: usize) {
    let mut at = to.start;
    while at < to.end {
        let from = at + turn_back;
        let n = (to.end - at).min(PAGE - from % PAGE).min(PAGE - at % PAGE);
        if old[from / PAGE] != NO_PAGE {
            let from = (old[from / PAGE], from % PAGE);
            moves.push(Move { from, to: ((at / PAGE) as u32, at % PAGE), n, turn_back });
        }
        at += n;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_position_that_stays_is_moved_once() {
        for (n_keep, n_discard, n_past) in
            [(0, 300, 1000usize), (100, 7, 600), (256, 256, 1024), (5, 995, 1000)]
        {
            let old: Vec<u32> = (10..10 + n_past.div_ceil(PAGE) as u32).collect();
            let (table, moves) = moved(&old, n_keep, n_discard, n_past);
            assert_eq!(table.len(), (n_past - n_discard).div_ceil(PAGE));
            let mut from = vec![None; n_past - n_discard];
            for (page, at) in table.iter().enumerate().filter(|(_, p)| **p != NO_PAGE) {
                (0..PAGE).for_each(|i| from[page * PAGE + i] = Some((*at as usize - 10) * PAGE + i));
            }
            for m in &moves {
                assert_eq!(m.turn_back > 0, m.to.0 as usize * PAGE + m.to.1 >= n_keep);
                for i in 0..m.n {
                    let to = &mut from[m.to.0 as usize * PAGE + m.to.1 + i];
                    assert_eq!(to.replace((m.from.0 as usize - 10) * PAGE + m.from.1 + i), None);
                }
            }
            let expected = |i: usize| Some(if i < n_keep { i } else { i + n_discard });
            assert!(from.iter().enumerate().all(|(i, f)| *f == expected(i)), "{n_keep} {n_discard} {n_past}");
        }
    }

    /// The last `window - 1` positions are there, whatever was kept, and come from those that were.
    #[test]
    fn windows_stay_full() {
        for window in [2, 24, 300, 512] {
            for (n_keep, n_discard, n_past) in
                [(0, 300, 1000usize), (2, 570, 582), (600, 800, 1410), (5, 994, 1000), (255, 256, 513)]
            {
                if window > n_past {
                    continue;
                }
                let held = n_past + 1 - window;
                let old: Vec<u32> = (0..n_past.div_ceil(PAGE))
                    .map(|i| if (i + 1) * PAGE <= held { NO_PAGE } else { 10 + i as u32 })
                    .collect();
                let (table, moves) = moved_window(&old, n_keep, n_discard, n_past, window);
                let n_new = n_past - n_discard;
                assert_eq!(table, vec![NO_PAGE; n_new.div_ceil(PAGE)]);
                let mut from = vec![None; n_new];
                for m in &moves {
                    assert!(m.from.0 >= 10 && m.from.0 != NO_PAGE);
                    for i in 0..m.n {
                        let source = (m.from.0 as usize - 10) * PAGE + m.from.1 + i;
                        let target = m.to.0 as usize * PAGE + m.to.1 + i;
                        assert_eq!(source, target + m.turn_back);
                        assert_eq!(from[target].replace(source), None);
                    }
                }
                let seen = (n_new + 1).saturating_sub(window);
                for (to, from) in from.iter().enumerate() {
                    let own = if to < n_keep { to } else { to + n_discard };
                    let expected = if own >= held { own } else { to + n_discard };
                    assert_eq!(
                        *from,
                        (to >= seen).then_some(expected),
                        "{window} {n_keep} {n_discard} {n_past} {to}"
                    );
                }
            }
        }
    }

    #[test]
    fn pages_that_were_given_back_stay_away() {
        let (table, moves) = moved(&[NO_PAGE, NO_PAGE, 7, 8], 0, 256, 1024);
        assert_eq!(table, [NO_PAGE; 3]);
        assert_eq!(moves.iter().map(|m| (m.from.0, m.to.0)).collect::<Vec<_>>(), [(7, 1), (8, 2)]);
    }
}
