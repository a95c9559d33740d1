//! Which records of one partition are finished, and up to where that may be committed: everything before the first one
//! that is not. Pure.

use std::collections::BTreeSet;

/// The watermark of one partition, from where its reading began.
#[derive(Debug, Clone)]
pub struct Watermark {
    // Invariant: every offset in it is below `next`.
    unfinished: BTreeSet<u64>,
    next: u64,
}

impl Watermark {
    /// Begins where the record to be read first has the offset `next`, or a higher one.
    pub fn new(next: u64) -> Self {
        Self { unfinished: BTreeSet::new(), next }
    }

    /// A record has been read.
    pub fn read(&mut self, offset: u64) {
        self.unfinished.insert(offset);
        self.next = self.next.max(offset.saturating_add(1));
    }

    /// A record is finished. Twice is once.
    pub fn finish(&mut self, offset: u64) {
        self.unfinished.remove(&offset);
    }

    /// The offset to commit: that of the first record that would have to be read again.
    pub fn position(&self) -> u64 {
        self.unfinished.first().copied().unwrap_or(self.next)
    }

    /// Whether all that was read is finished.
    pub fn is_done(&self) -> bool {
        self.unfinished.is_empty()
    }

    /// How many records are read and not finished.
    pub fn unfinished(&self) -> usize {
        self.unfinished.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watermark_stops_before_the_first_unfinished_record() {
        let mut watermark = Watermark::new(5);
        assert_eq!((watermark.position(), watermark.is_done()), (5, true));
        for offset in [5, 6, 9] {
            watermark.read(offset);
        }
        watermark.finish(6);
        watermark.finish(6);
        watermark.finish(7);
        assert_eq!((watermark.position(), watermark.is_done()), (5, false));
        watermark.finish(5);
        assert_eq!((watermark.position(), watermark.is_done()), (9, false));
        watermark.finish(9);
        assert_eq!((watermark.position(), watermark.is_done()), (10, true));
    }
}
