//! One current ring for all shards: swapped whole, read without a lock, only ever forward.
//!
//! Does not build rings; that takes milliseconds and belongs off the shards' threads.

use std::sync::Arc;

use arc_swap::{ArcSwapOption, Cache};

use crate::{Ring, StaleRing};

/// The current ring, or none yet; clones share it.
#[derive(Debug, Clone, Default)]
pub struct SharedRing {
    current: Arc<ArcSwapOption<Ring>>,
}

impl SharedRing {
    /// Returns a place for a ring, still empty.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts `ring` in place of the current one, for every reader's next `load`.
    ///
    /// # Errors
    /// When it is not newer than the current one, which then stays: an update that was overtaken on its way, or one
    /// that came twice.
    #[allow(clippy::needless_pass_by_value, reason = "it is kept; the loop needs a clone per attempt")]
    pub fn publish(&self, ring: Arc<Ring>) -> Result<(), StaleRing> {
        loop {
            let current = self.current.load();
            if let Some(current) = current.as_ref().filter(|current| current.version() >= ring.version()) {
                return Err(StaleRing { current: current.version(), offered: ring.version() });
            }
            let found = self.current.compare_and_swap(&*current, Some(Arc::clone(&ring)));
            let was_swapped = match (found.as_ref(), current.as_ref()) {
                (Some(found), Some(current)) => Arc::ptr_eq(found, current),
                (found, current) => found.is_none() && current.is_none(),
            };
            if was_swapped {
                return Ok(());
            }
        }
    }

    /// Returns the current ring, for callers off the message path; shards keep a [`RingReader`].
    pub fn load(&self) -> Option<Arc<Ring>> {
        self.current.load_full()
    }

    /// Returns a reader of its own for one thread.
    pub fn reader(&self) -> RingReader {
        RingReader { cache: Cache::new(Arc::clone(&self.current)) }
    }
}

/// One thread's view of a [`SharedRing`]: a `load` is a pointer comparison until the ring changes.
///
/// Holds the ring it last saw until its next `load`.
#[derive(Debug, Clone)]
pub struct RingReader {
    cache: Cache<Arc<ArcSwapOption<Ring>>, Option<Arc<Ring>>>,
}

impl RingReader {
    /// Returns the current ring, or `None` before the first was published.
    #[inline]
    pub fn load(&mut self) -> Option<&Arc<Ring>> {
        self.cache.load().as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{NodeId, RingVersion, Weight};

    fn ring(version: u64) -> Arc<Ring> {
        let node = (NodeId::new("a").unwrap(), Weight::MIN);
        Arc::new(Ring::build(RingVersion::new(version).unwrap(), 0, [node]).unwrap())
    }

    #[test]
    fn reader_sees_nothing_then_each_published_ring() {
        let shared = SharedRing::new();
        let mut reader = shared.reader();
        assert!(reader.load().is_none());
        for version in [1, 2, 7] {
            shared.publish(ring(version)).unwrap();
            assert_eq!(reader.load().unwrap().version().get(), version);
        }
    }

    #[test]
    fn version_only_moves_forward() {
        let shared = SharedRing::new();
        shared.publish(ring(5)).unwrap();
        for offered in [0, 4, 5] {
            let error = shared.publish(ring(offered)).unwrap_err();
            assert_eq!((error.current.get(), error.offered.get()), (5, offered));
        }
        assert_eq!(shared.load().unwrap().version().get(), 5);
    }

    #[test]
    fn of_racing_publishers_the_newest_wins() {
        let shared = SharedRing::new();
        let rings: Vec<_> = (1..=16).map(ring).collect();
        std::thread::scope(|scope| {
            for half in [0, 1] {
                let (shared, rings) = (&shared, &rings);
                scope.spawn(move || {
                    let mut reader = shared.reader();
                    let mut seen = 0;
                    for ring in rings.iter().skip(half).step_by(2) {
                        // A refusal is right here whenever the other thread is ahead.
                        let _ = shared.publish(Arc::clone(ring));
                        let version = reader.load().unwrap().version().get();
                        assert!(version >= seen.max(ring.version().get()));
                        seen = version;
                    }
                });
            }
        });
        assert_eq!(shared.load().unwrap().version().get(), 16);
    }
}
