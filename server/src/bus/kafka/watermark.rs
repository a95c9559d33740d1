//! Which records of one partition are finished, and up to where that may be committed: everything before the first one
//! that is not. Pure.

use std::collections::VecDeque;

/// The most records of a partition that may be unfinished before it is paused.
pub const UNFINISHED_RECORDS_MAX: usize = 10_000;
/// The most bytes of a partition that may be unfinished before it is paused.
pub const UNFINISHED_BYTES_MAX: usize = 64 << 20;
/// The most records behind the first unfinished one, finished or not: so many are read again after a crash.
const SPAN_MAX: usize = 8 * UNFINISHED_RECORDS_MAX;
/// A paused partition is read again when it is down to this share of a bound.
const RESUME_DIVISOR: usize = 2;

/// How much of a partition may be unfinished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bound {
    /// Records.
    pub records: usize,
    /// Bytes of their values.
    pub bytes: usize,
    /// Records behind the first unfinished one.
    pub span: usize,
}

impl Default for Bound {
    fn default() -> Self {
        Self { records: UNFINISHED_RECORDS_MAX, bytes: UNFINISHED_BYTES_MAX, span: SPAN_MAX }
    }
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    offset: u64,
    bytes: u32,
    is_finished: bool,
}

/// The watermark of one partition, from where its reading began.
#[derive(Debug)]
pub struct Watermark {
    bound: Bound,
    // Read and not yet behind the watermark, by rising offset.
    // Invariant: the first, if there is one, is not finished.
    entries: VecDeque<Entry>,
    // Invariant: above every offset in `entries`.
    next: u64,
    unfinished_records: usize,
    unfinished_bytes: usize,
}

impl Watermark {
    /// Begins where the record to be read first has the offset `next`, or a higher one.
    pub fn new(next: u64, bound: Bound) -> Self {
        Self { bound, entries: VecDeque::new(), next, unfinished_records: 0, unfinished_bytes: 0 }
    }

    /// A record has been read. Offsets rise, with gaps where Kafka has none to give; one that does not rise means that the
    /// partition began anew, and everything before is forgotten.
    pub fn read(&mut self, offset: u64, bytes: usize) {
        if offset < self.next {
            *self = Self::new(offset, self.bound);
        }
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.entries.push_back(Entry { offset, bytes, is_finished: false });
        self.next = offset + 1;
        self.unfinished_records += 1;
        self.unfinished_bytes += bytes as usize;
    }

    /// A record is finished. Twice is once; one that was not read here is none.
    pub fn finish(&mut self, offset: u64) {
        let Some(index) = self.index_of(offset) else { return };
        let Some(entry) = self.entries.get_mut(index).filter(|entry| !entry.is_finished) else { return };
        entry.is_finished = true;
        self.unfinished_records -= 1;
        self.unfinished_bytes -= entry.bytes as usize;
        while self.entries.front().is_some_and(|entry| entry.is_finished) {
            self.entries.pop_front();
        }
    }

    fn index_of(&self, offset: u64) -> Option<usize> {
        let first = self.entries.front()?.offset;
        // Nearly always there are no gaps.
        let guess = usize::try_from(offset.checked_sub(first)?).ok()?;
        match self.entries.get(guess) {
            Some(entry) if entry.offset == offset => Some(guess),
            _ => self.entries.binary_search_by_key(&offset, |entry| entry.offset).ok(),
        }
    }

    /// The offset to commit: that of the first record that would have to be read again.
    pub fn position(&self) -> u64 {
        self.entries.front().map_or(self.next, |entry| entry.offset)
    }

    /// True when no more should be read.
    pub fn is_full(&self) -> bool {
        self.unfinished_records >= self.bound.records
            || self.unfinished_bytes >= self.bound.bytes
            || self.entries.len() >= self.bound.span
    }

    /// True when a partition that was paused for being full should be read again.
    pub fn has_room(&self) -> bool {
        self.unfinished_records <= self.bound.records / RESUME_DIVISOR
            && self.unfinished_bytes <= self.bound.bytes / RESUME_DIVISOR
            && self.entries.len() <= self.bound.span / RESUME_DIVISOR
    }

    /// Records that are read and not finished.
    pub fn unfinished_records(&self) -> usize {
        self.unfinished_records
    }

    /// Bytes of the records that are read and not finished.
    pub fn unfinished_bytes(&self) -> usize {
        self.unfinished_bytes
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_watermark_stops_before_the_first_unfinished_record() {
        let mut watermark = Watermark::new(5, Bound::default());
        assert_eq!(watermark.position(), 5);
        for offset in [5, 6, 9] {
            watermark.read(offset, 10);
        }
        watermark.finish(6);
        watermark.finish(6);
        watermark.finish(7);
        assert_eq!((watermark.position(), watermark.unfinished_records(), watermark.unfinished_bytes()), (5, 2, 20));
        watermark.finish(5);
        assert_eq!(watermark.position(), 9);
        watermark.finish(9);
        assert_eq!((watermark.position(), watermark.unfinished_records(), watermark.unfinished_bytes()), (10, 0, 0));
    }

    #[test]
    fn each_bound_is_reached_at_its_number_and_left_at_half() {
        let bound = Bound { records: 4, bytes: 100, span: 6 };
        let check = |bytes: &[usize], finished: &[u64], is_full, has_room| {
            let mut watermark = Watermark::new(0, bound);
            for (offset, bytes) in (0..).zip(bytes) {
                watermark.read(offset, *bytes);
            }
            for offset in finished {
                watermark.finish(*offset);
            }
            assert_eq!((watermark.is_full(), watermark.has_room()), (is_full, has_room), "{bytes:?} {finished:?}");
        };
        check(&[1, 1, 1], &[], false, false);
        check(&[1, 1, 1, 1], &[], true, false);
        check(&[1, 1, 1, 1], &[0], false, false);
        check(&[1, 1, 1, 1], &[0, 1], false, true);
        check(&[99], &[], false, false);
        check(&[50, 50], &[], true, false);
        check(&[50, 50], &[0], false, true);
        check(&[1, 1, 1, 1, 1, 1], &[1, 2, 3, 4, 5], true, false);
        check(&[1, 1, 1, 1, 1, 1], &[0, 1, 2, 3], false, true);
    }

    #[test]
    fn a_partition_that_begins_anew_is_followed() {
        let mut watermark = Watermark::new(100, Bound::default());
        watermark.read(100, 1);
        watermark.read(0, 1);
        assert_eq!((watermark.position(), watermark.unfinished_records()), (0, 1));
        watermark.finish(100);
        watermark.finish(0);
        assert_eq!(watermark.position(), 1);
    }

    proptest! {
        #[test]
        fn it_agrees_with_the_plain_definition(
            gaps in proptest::collection::vec(1u64..4, 1..40),
            order in proptest::collection::vec(any::<prop::sample::Index>(), 0..60),
        ) {
            let mut watermark = Watermark::new(0, Bound::default());
            let mut unfinished = BTreeSet::new();
            let mut offsets = Vec::new();
            let mut next = 0;
            for gap in gaps {
                next += gap;
                watermark.read(next, 1);
                unfinished.insert(next);
                offsets.push(next);
            }
            for index in order {
                let offset = *index.get(&offsets);
                watermark.finish(offset);
                unfinished.remove(&offset);
                prop_assert_eq!(watermark.position(), unfinished.first().copied().unwrap_or(next + 1));
                prop_assert_eq!(watermark.unfinished_records(), unfinished.len());
            }
        }
    }
}
