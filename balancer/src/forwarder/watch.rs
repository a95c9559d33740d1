//! Whose topics are to be forwarded, and when. Pure: time, topics and who is alive are arguments.
//!
//! A topic is forwarded while its node is silent, out of the ring, and has records that no earlier reading has seen.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ring::{NodeId, Ring};

/// Topics that are read at once; the others wait their turn.
pub const READ_MAX: usize = 16;
/// Silence of so much more than the timeout: whoever lives beats meanwhile, whatever Redis has forgotten.
pub const ABSENT_MIN: Duration = Duration::from_secs(3);
/// A topic whose reading failed is tried again so much later.
pub const RETRY_PAUSE: Duration = Duration::from_secs(2);
/// A path that carried nothing for so long holds nothing any more: what comes next may take another.
pub const PATH_IDLE: Duration = Duration::from_secs(60);

/// Where each partition of a topic ends: the offset of its next record.
pub type Ends = Vec<i64>;

/// Who is there, as the leader sees it.
#[derive(Debug, Clone)]
pub struct Sight {
    /// Nodes that beat, and those that count as alive all the same.
    pub alive: BTreeSet<NodeId>,
    /// The ring by which others send.
    pub ring: Arc<Ring>,
}

/// How a reading ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// All up to these ends is forwarded.
    Drained(Ends),
    /// It was told to stop, or could not go on.
    Stopped,
}

/// What to do now.
#[derive(Debug, Default)]
pub struct Orders {
    /// Begin to read these nodes' topics, by these rings.
    pub start: Vec<(NodeId, Arc<Ring>)>,
    /// Stop reading these.
    pub stop: Vec<NodeId>,
}

#[derive(Debug)]
struct Absent {
    since: Instant,
    is_read: bool,
    // What the last reading that came to an end has seen.
    drained: Ends,
    retry_at: Instant,
    // Records of one sender for one recipient must not take two paths at once: the ring of the last reading, and until
    // when that had records.
    ring: Option<Arc<Ring>>,
    carried_at: Option<Instant>,
}

/// Remembers what was read of whom.
#[derive(Debug, Default)]
pub struct Watch {
    absent: BTreeMap<NodeId, Absent>,
    // Since when the leader has looked without a gap.
    since: Option<Instant>,
}

impl Watch {
    /// Compares who is there with the topics there are. Nobody is gone before the leader has looked for
    /// `timeout`, for then it may be the beats that are missing, not the nodes.
    pub fn look(&mut self, sight: &Sight, topics: &BTreeMap<NodeId, Ends>, timeout: Duration, now: Instant) -> Orders {
        let mut orders = Orders::default();
        let since = *self.since.get_or_insert(now);
        let is_gone = |node: &NodeId| !sight.alive.contains(node) && sight.ring.weights().index(node).is_none();
        self.absent.retain(|node, absent| {
            let stays = is_gone(node) && topics.contains_key(node);
            if !stays && absent.is_read {
                absent.since = now;
                orders.stop.push(node.clone());
            }
            // One that is being read is forgotten when its reading has ended.
            stays || absent.is_read
        });
        for node in topics.keys().filter(|node| is_gone(node)) {
            self.absent.entry(node.clone()).or_insert_with(|| Absent {
                since: now,
                is_read: false,
                drained: Ends::new(),
                retry_at: now,
                ring: None,
                carried_at: None,
            });
        }
        let mut room = READ_MAX.saturating_sub(self.reading());
        for (node, absent) in &mut self.absent {
            let Some(ends) = topics.get(node).filter(|_| is_gone(node)) else { continue };
            let has_more = ends.iter().any(|end| *end > 0) && absent.drained != *ends;
            let is_due = now.duration_since(since) >= timeout
                && now.duration_since(absent.since) >= ABSENT_MIN
                && now >= absent.retry_at;
            if absent.is_read || !has_more || !is_due || room == 0 {
                continue;
            }
            let is_under_way = absent.carried_at.is_some_and(|at| now.duration_since(at) < PATH_IDLE);
            let kept = absent.ring.take().filter(|_| is_under_way);
            let ring = kept.unwrap_or_else(|| Arc::clone(&sight.ring));
            absent.ring = Some(Arc::clone(&ring));
            absent.is_read = true;
            room -= 1;
            orders.start.push((node.clone(), ring));
        }
        orders
    }

    /// A reading has ended, and has sent something on or not.
    pub fn ended(&mut self, node: &NodeId, ending: Ending, has_carried: bool, now: Instant) {
        let Some(absent) = self.absent.get_mut(node) else { return };
        absent.is_read = false;
        if has_carried {
            absent.carried_at = Some(now);
        }
        match ending {
            Ending::Drained(ends) => absent.drained = ends,
            Ending::Stopped => absent.retry_at = now + RETRY_PAUSE,
        }
    }

    /// Nobody is known to be gone any more: what comes next counts from its own start. Returns what to stop.
    pub fn forget(&mut self) -> Vec<NodeId> {
        self.since = None;
        self.absent.retain(|_, absent| absent.is_read);
        self.absent.keys().cloned().collect()
    }

    /// How many topics are being read.
    pub fn reading(&self) -> usize {
        self.absent.values().filter(|absent| absent.is_read).count()
    }
}

#[cfg(test)]
mod tests {
    use ring::{NodeWeights, RingVersion, Weight};

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(6);

    fn id(name: &str) -> NodeId {
        NodeId::new(name).unwrap()
    }

    fn sight(version: u64, ring: &[&str], alive: &[&str]) -> Sight {
        let weights = NodeWeights::new(ring.iter().map(|name| (id(name), Weight::new(100).unwrap()))).unwrap();
        let ring = Ring::from_weights(RingVersion::new(version).unwrap(), 0, weights);
        Sight { alive: alive.iter().map(|name| id(name)).collect(), ring: Arc::new(ring) }
    }

    fn topics(ends: &[(&str, i64)]) -> BTreeMap<NodeId, Ends> {
        ends.iter().map(|(name, end)| (id(name), vec![0, *end])).collect()
    }

    struct Clock {
        watch: Watch,
        start: Instant,
    }

    impl Clock {
        fn new() -> Self {
            Self { watch: Watch::default(), start: Instant::now() }
        }

        fn at(&self, seconds: u64) -> Instant {
            self.start + Duration::from_secs(seconds)
        }

        /// Which are started, by rings of which version, and which are stopped.
        fn look(&mut self, seconds: u64, sight: &Sight, ends: &[(&str, i64)]) -> (Vec<(String, u64)>, Vec<NodeId>) {
            let orders = self.watch.look(sight, &topics(ends), TIMEOUT, self.at(seconds));
            let start = orders.start.iter().map(|(node, ring)| (node.to_string(), ring.version().get())).collect();
            (start, orders.stop)
        }
    }

    fn start(name: &str, version: u64) -> (Vec<(String, u64)>, Vec<NodeId>) {
        (vec![(name.to_owned(), version)], vec![])
    }

    const NOTHING: (Vec<(String, u64)>, Vec<NodeId>) = (vec![], vec![]);

    #[test]
    fn a_topic_is_read_when_its_node_is_silent_for_the_timeout_and_out_of_the_ring() {
        let mut clock = Clock::new();
        let ends = [("a", 5), ("dead", 3), ("fresh", 0)];
        // Still in the ring: the new owner would be the dead node itself.
        assert_eq!(clock.look(0, &sight(1, &["a", "dead"], &["a"]), &ends), NOTHING);
        assert_eq!(clock.look(10, &sight(1, &["a", "dead"], &["a"]), &ends), NOTHING);
        let gone = sight(2, &["a"], &["a"]);
        assert_eq!(clock.look(11, &gone, &ends), NOTHING);
        assert_eq!(clock.look(13, &gone, &ends), NOTHING);
        assert_eq!(clock.look(14, &gone, &ends), start("dead", 2));
        assert_eq!(clock.look(15, &gone, &ends), NOTHING);
        // Alive and out of the ring: it drains by itself.
        let mut clock = Clock::new();
        let draining = sight(2, &["a"], &["a", "dead"]);
        assert_eq!(clock.look(0, &draining, &ends), NOTHING);
        assert_eq!(clock.look(60, &draining, &ends), NOTHING);
    }

    #[test]
    fn what_is_drained_is_read_again_only_for_late_records_and_by_the_same_ring_while_these_may_be_under_way() {
        let mut clock = Clock::new();
        let gone = |version| sight(version, &["a"], &["a"]);
        clock.look(0, &gone(1), &[("dead", 3)]);
        assert_eq!(clock.look(6, &gone(1), &[("dead", 3)]), start("dead", 1));
        clock.watch.ended(&id("dead"), Ending::Drained(vec![0, 3]), true, clock.at(7));
        assert_eq!(clock.look(8, &gone(2), &[("dead", 3)]), NOTHING);
        assert_eq!(clock.look(9, &gone(2), &[("dead", 4)]), start("dead", 1));
        clock.watch.ended(&id("dead"), Ending::Drained(vec![0, 4]), true, clock.at(10));
        assert_eq!(clock.look(70, &gone(3), &[("dead", 5)]), start("dead", 3));
    }

    #[test]
    fn a_node_that_is_back_is_left_alone() {
        let mut clock = Clock::new();
        let gone = sight(1, &["a"], &["a"]);
        let back = sight(1, &["a"], &["a", "dead"]);
        clock.look(0, &gone, &[("dead", 3)]);
        assert_eq!(clock.look(6, &gone, &[("dead", 3)]), start("dead", 1));
        assert_eq!(clock.look(7, &back, &[("dead", 3)]), (vec![], vec![id("dead")]));
        clock.watch.ended(&id("dead"), Ending::Stopped, true, clock.at(8));
        assert_eq!(clock.look(9, &back, &[("dead", 3)]), NOTHING);
        assert_eq!(clock.watch.reading(), 0);
        // Gone once more: the silence counts from its own start.
        assert_eq!(clock.look(10, &gone, &[("dead", 3)]), NOTHING);
        assert_eq!(clock.look(12, &gone, &[("dead", 3)]), NOTHING);
        assert_eq!(clock.look(13, &gone, &[("dead", 3)]), start("dead", 1));
    }

    #[test]
    fn what_failed_is_tried_again_after_a_pause() {
        let mut clock = Clock::new();
        let gone = sight(1, &["a"], &["a"]);
        clock.look(0, &gone, &[("dead", 3)]);
        assert_eq!(clock.look(6, &gone, &[("dead", 3)]), start("dead", 1));
        clock.watch.ended(&id("dead"), Ending::Stopped, true, clock.at(6));
        assert_eq!(clock.look(7, &gone, &[("dead", 3)]), NOTHING);
        assert_eq!(clock.look(8, &gone, &[("dead", 3)]), start("dead", 1));
    }

    #[test]
    fn no_more_than_so_many_are_read_at_once_and_all_are_read_in_the_end() {
        let mut clock = Clock::new();
        let gone = sight(1, &["a"], &["a"]);
        let names: Vec<String> = (0..40).map(|number| format!("dead-{number:02}")).collect();
        let ends: Vec<(&str, i64)> = names.iter().map(|name| (name.as_str(), 1)).collect();
        clock.look(0, &gone, &ends);
        let mut read = Vec::new();
        for seconds in 6..9 {
            let (started, _) = clock.look(seconds, &gone, &ends);
            assert!(clock.watch.reading() <= READ_MAX);
            for (name, _) in started {
                clock.watch.ended(&id(&name), Ending::Drained(vec![0, 1]), true, clock.at(seconds));
                read.push(name);
            }
        }
        assert_eq!(read, names);
    }

    #[test]
    fn without_the_lead_all_is_stopped_and_absence_counts_anew() {
        let mut clock = Clock::new();
        let gone = sight(1, &["a"], &["a"]);
        clock.look(0, &gone, &[("dead", 3), ("other", 0)]);
        clock.look(6, &gone, &[("dead", 3), ("other", 0)]);
        assert_eq!(clock.watch.forget(), vec![id("dead")]);
        clock.watch.ended(&id("dead"), Ending::Stopped, true, clock.at(7));
        assert_eq!(clock.watch.forget(), vec![]);
        assert_eq!(clock.look(20, &gone, &[("dead", 3)]), NOTHING);
        assert_eq!(clock.look(26, &gone, &[("dead", 3)]), start("dead", 1));
    }
}
