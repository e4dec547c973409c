//! Page numbers and states, with the number of their holders.

/// Numbers that are handed out, shared, and given back.
#[derive(Debug, Default)]
pub struct Slots {
    /// How many hold each number; one without holders is free.
    holders: Vec<u32>,
    free: Vec<u32>,
}

impl Slots {
    /// A free number, now with one holder.
    pub fn take(&mut self) -> u32 {
        if let Some(slot) = self.free.pop() {
            self.holders[slot as usize] = 1;
            return slot;
        }
        self.holders.push(1);
        (self.holders.len() - 1) as u32
    }

    /// Adds a holder to a number.
    pub fn share(&mut self, slot: u32) {
        self.holders[slot as usize] += 1;
    }

    /// Takes a holder from a number, which is free when it was the last.
    pub fn give_back(&mut self, slot: u32) {
        let holders = &mut self.holders[slot as usize];
        *holders -= 1;
        if *holders == 0 {
            self.free.push(slot);
        }
    }

    /// Takes back a number that was just taken and for which there is no memory: it was not handed out.
    pub fn withdraw(&mut self, slot: u32) {
        match slot as usize + 1 == self.holders.len() {
            true => drop(self.holders.pop()),
            false => self.give_back(slot),
        }
    }

    /// Whether more than one holds it.
    pub fn is_shared(&self, slot: u32) -> bool {
        self.holders[slot as usize] > 1
    }

    /// How many numbers were ever handed out: memory is needed for so many.
    pub fn len(&self) -> usize {
        self.holders.len()
    }

    pub fn is_empty(&self) -> bool {
        self.holders.is_empty()
    }

    /// Numbers that somebody holds.
    pub fn n_held(&self) -> usize {
        self.holders.len() - self.free.len()
    }
}

/// Numbers of the pages and states that the sequences of a model share.
#[derive(Debug, Default)]
pub struct Pools {
    /// Pages, group after group.
    pub groups: Vec<Slots>,
    pub states: Slots,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_back_by_all_is_handed_out_again() {
        let mut slots = Slots::default();
        let (a, b) = (slots.take(), slots.take());
        slots.share(a);
        assert!(slots.is_shared(a) && !slots.is_shared(b));
        slots.give_back(a);
        assert_eq!((slots.n_held(), slots.take(), slots.len()), (2, 2, 3));
        slots.give_back(a);
        assert_eq!((slots.n_held(), slots.take(), slots.len()), (2, a, 3));
    }

    #[test]
    fn what_is_withdrawn_needs_no_memory() {
        let mut slots = Slots::default();
        let (a, b) = (slots.take(), slots.take());
        slots.withdraw(b);
        assert_eq!((slots.n_held(), slots.len()), (1, 1));
        // a number that has memory stays one
        slots.give_back(a);
        assert_eq!((slots.take(), slots.take()), (a, b));
        slots.withdraw(a);
        assert_eq!((slots.n_held(), slots.len(), slots.take()), (1, 2, a));
    }
}
