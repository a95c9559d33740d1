//! When each connection must be looked at next: one number a slot, in an array of its own, so that a round over all of
//! them reads four bytes of each and touches only those that may be due. It does not know what is due there.
//!
//! A timing wheel (Varghese and Lauck, 1987) would not even read those four bytes; but it moves an entry for each
//! deadline, and a thousand of these numbers are compared in a fraction of a microsecond.
//!
//! Invariant: nothing is due on a connection before its number says so. It may say so too early: what is heard of a peer
//! moves its deadlines without a word here, and whoever looks then sets the number anew.

use super::clock::Tick;

/// The numbers, by slot.
#[derive(Debug, Default)]
pub(super) struct Deadlines {
    due: Vec<Tick>,
    next: usize,
}

impl Deadlines {
    /// Nothing is due in this slot before `at`.
    pub fn set(&mut self, slot: u32, at: Tick) {
        let slot = slot as usize;
        if self.due.len() <= slot {
            self.due.resize(slot + 1, Tick::NEVER);
        }
        if let Some(due) = self.due.get_mut(slot) {
            *due = at;
        }
    }

    /// Something may be due in this slot at `at`, or earlier.
    pub fn hasten(&mut self, slot: u32, at: Tick) {
        let known = self.due.get(slot as usize).copied().unwrap_or(Tick::NEVER);
        self.set(slot, known.min(at));
    }

    /// How many slots it knows.
    pub fn slots(&self) -> usize {
        self.due.len()
    }

    /// Goes on with the round through up to `share` slots, as far as one that may be due, and takes that off `share`;
    /// none once the share is used up.
    pub fn next_due(&mut self, share: &mut usize, now: Tick) -> Option<u32> {
        while *share > 0 {
            if self.next >= self.due.len() {
                self.next = 0;
            }
            let part = self.due.get(self.next..).unwrap_or_default();
            let part = part.get(..*share).unwrap_or(part);
            let Some(ahead) = part.iter().position(|due| *due <= now) else {
                if part.is_empty() {
                    return None;
                }
                self.next += part.len();
                *share -= part.len();
                continue;
            };
            let found = self.next + ahead;
            self.next = found + 1;
            *share -= ahead + 1;
            return u32::try_from(found).ok();
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(seconds: u64) -> Tick {
        Tick::default().after(Duration::from_secs(seconds))
    }

    /// All that a share finds.
    fn find(deadlines: &mut Deadlines, mut share: usize, now: Tick) -> Vec<u32> {
        std::iter::from_fn(|| deadlines.next_due(&mut share, now)).collect()
    }

    #[test]
    fn what_is_due_is_found_once_a_round_and_nothing_else_is() {
        let mut deadlines = Deadlines::default();
        for slot in 0..10 {
            deadlines.set(slot, at(u64::from(slot)));
        }
        assert_eq!(find(&mut deadlines, 10, at(3)), [0, 1, 2, 3]);
        assert_eq!(find(&mut deadlines, 10, at(3)), [0, 1, 2, 3], "whoever looks says when next");
        for slot in 0..4 {
            deadlines.set(slot, at(20));
        }
        assert_eq!(find(&mut deadlines, 10, at(4)), [4]);
        assert_eq!(find(&mut deadlines, 10, Tick::default()), [0; 0]);
    }

    #[test]
    fn a_round_goes_on_where_its_last_share_ended() {
        let mut deadlines = Deadlines::default();
        for slot in 0..10 {
            deadlines.set(slot, at(0));
        }
        assert_eq!(find(&mut deadlines, 4, at(0)), [0, 1, 2, 3]);
        assert_eq!(find(&mut deadlines, 4, at(0)), [4, 5, 6, 7]);
        assert_eq!(find(&mut deadlines, 4, at(0)), [8, 9, 0, 1]);
    }

    #[test]
    fn a_slot_can_be_hastened_and_not_put_off() {
        let mut deadlines = Deadlines::default();
        deadlines.set(2, at(5));
        deadlines.hasten(2, at(9));
        assert_eq!(find(&mut deadlines, 3, at(5)), [2]);
        deadlines.hasten(2, at(1));
        assert_eq!(find(&mut deadlines, 3, at(1)), [2]);
        assert_eq!(find(&mut deadlines, 3, at(0)), [0; 0]);
        // Slots that nobody has set are never due.
        assert_eq!(find(&mut deadlines, 3, at(1_000_000)), [2]);
    }

    #[test]
    fn nothing_is_found_where_nothing_is() {
        assert_eq!(find(&mut Deadlines::default(), 100, at(1)), [0; 0]);
    }
}
