//! Who is alive. Pure: times come from Redis, and how long it has answered from the caller.
//!
//! A node is gone after three missed beats; but nobody is declared gone by a Redis that has only just begun to answer,
//! for then it is the beats that are missing, not the nodes. And if many vanish at once the ring is held a second time.

use std::collections::BTreeMap;

use ring::NodeId;

/// How patient the rules are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PresenceRules {
    /// Silence after which a node is gone.
    pub heartbeat_timeout_ms: u64,
    /// More than this share at once is held for a second timeout.
    pub vanished_share_max: f64,
    /// A gap between two answers after which Redis counts as having been away.
    pub gap_ms: u64,
}

/// What is remembered between two looks.
#[derive(Debug, Clone, Default)]
pub struct Presence {
    // When Redis began to answer without a gap, and when it last did.
    answering_since_ms: Option<u64>,
    answered_ms: u64,
    // Since when more than the allowed share has been missing.
    mass_since_ms: Option<u64>,
}

/// Who is alive, and who is taken to be although it is silent.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Alive {
    /// Nodes with a beat in time.
    pub beating: Vec<NodeId>,
    /// Nodes of the ring that are silent and kept all the same.
    pub held: Vec<NodeId>,
    /// They are held because too many have vanished at once: a person should look.
    pub is_mass: bool,
}

impl Presence {
    /// Judges one answer of Redis: `beats` are the times of the nodes' last beats, `in_ring` the nodes of the ring.
    ///
    /// `redis_ms` is Redis' own clock, `now_ms` any clock of this process that only rises.
    pub fn judge<'a>(
        &mut self,
        rules: &PresenceRules,
        beats: &BTreeMap<NodeId, u64>,
        in_ring: impl Iterator<Item = &'a NodeId>,
        redis_ms: u64,
        now_ms: u64,
    ) -> Alive {
        let had_gap = now_ms.saturating_sub(self.answered_ms) > rules.gap_ms;
        let since_ms = match self.answering_since_ms {
            Some(since_ms) if !had_gap => since_ms,
            _ => now_ms,
        };
        self.answering_since_ms = Some(since_ms);
        self.answered_ms = now_ms;

        let is_beating = |beat_ms: &u64| redis_ms.saturating_sub(*beat_ms) <= rules.heartbeat_timeout_ms;
        let beating: Vec<NodeId> =
            beats.iter().filter(|(_, beat_ms)| is_beating(beat_ms)).map(|(node, _)| node.clone()).collect();
        let mut ring_nodes = 0_usize;
        let mut silent = Vec::new();
        for node in in_ring {
            ring_nodes += 1;
            if beating.binary_search(node).is_err() {
                silent.push(node.clone());
            }
        }
        let answers_long_enough = now_ms - since_ms >= rules.heartbeat_timeout_ms;
        if !answers_long_enough {
            self.mass_since_ms = None;
            return Alive { beating, held: silent, is_mass: false };
        }
        #[allow(clippy::cast_precision_loss, reason = "a few thousand nodes")]
        let is_mass = silent.len() > 1 && silent.len() as f64 > rules.vanished_share_max * ring_nodes as f64;
        if !is_mass {
            self.mass_since_ms = None;
            return Alive { beating, held: Vec::new(), is_mass: false };
        }
        let mass_since_ms = *self.mass_since_ms.get_or_insert(now_ms);
        if now_ms - mass_since_ms >= rules.heartbeat_timeout_ms {
            return Alive { beating, held: Vec::new(), is_mass: true };
        }
        Alive { beating, held: silent, is_mass: true }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: PresenceRules = PresenceRules { heartbeat_timeout_ms: 6_000, vanished_share_max: 0.34, gap_ms: 2_000 };
    /// Redis' clock is far from this process'.
    const REDIS_AHEAD: u64 = 1_000_000;

    struct Watch {
        presence: Presence,
        ring: Vec<NodeId>,
    }

    fn id(name: &str) -> NodeId {
        NodeId::new(name).unwrap()
    }

    impl Watch {
        fn new(ring: &[&str]) -> Self {
            Self { presence: Presence::default(), ring: ring.iter().map(|name| id(name)).collect() }
        }

        /// Who counts as alive, beating or held, at `now_ms` with beats that were so many ms ago.
        fn at(&mut self, now_ms: u64, ages: &[(&str, u64)]) -> (Vec<String>, Vec<String>) {
            let redis_ms = now_ms + REDIS_AHEAD;
            let beats = ages.iter().map(|(name, age)| (id(name), redis_ms - age)).collect();
            let alive = self.presence.judge(&RULES, &beats, self.ring.iter(), redis_ms, now_ms);
            let names = |nodes: Vec<NodeId>| nodes.iter().map(ToString::to_string).collect();
            (names(alive.beating), names(alive.held))
        }

        /// Looks every half second, everyone beating, so that Redis has answered for long.
        fn settle(&mut self, until_ms: u64, ages: &[(&str, u64)]) {
            for now_ms in (0..until_ms).step_by(500) {
                self.at(now_ms, ages);
            }
        }
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_node_is_gone_after_three_missed_beats() {
        let mut watch = Watch::new(&["a", "b", "c"]);
        watch.settle(20_000, &[("a", 0), ("b", 0), ("c", 0)]);
        assert_eq!(watch.at(20_000, &[("a", 0), ("b", 1), ("c", 6_000)]), (names(&["a", "b", "c"]), vec![]));
        assert_eq!(watch.at(20_500, &[("a", 0), ("b", 1), ("c", 6_001)]), (names(&["a", "b"]), vec![]));
        assert_eq!(watch.at(21_000, &[("a", 0), ("b", 1)]), (names(&["a", "b"]), vec![]));
    }

    #[test]
    fn nobody_is_gone_before_redis_has_answered_for_a_whole_timeout() {
        let mut watch = Watch::new(&["a", "b", "c"]);
        for now_ms in (0..6_000).step_by(500) {
            assert_eq!(watch.at(now_ms, &[("a", 0), ("b", 0)]), (names(&["a", "b"]), names(&["c"])), "{now_ms}");
        }
        assert_eq!(watch.at(6_000, &[("a", 0), ("b", 0)]), (names(&["a", "b"]), vec![]));
        // Redis was away, or this process was stopped: the same again.
        assert_eq!(watch.at(8_001, &[("a", 9_000), ("b", 9_000)]), (vec![], names(&["a", "b", "c"])));
        // A newcomer need not wait.
        assert_eq!(watch.at(8_500, &[("d", 0)]), (names(&["d"]), names(&["a", "b", "c"])));
    }

    #[test]
    fn if_many_vanish_at_once_they_are_held_for_a_second_timeout() {
        let mut watch = Watch::new(&["a", "b", "c", "d"]);
        let all = [("a", 0), ("b", 0), ("c", 0), ("d", 0)];
        watch.settle(20_000, &all);
        for now_ms in (20_000..26_000).step_by(500) {
            assert_eq!(watch.at(now_ms, &all[..2]).1, names(&["c", "d"]), "{now_ms}");
        }
        assert_eq!(watch.at(26_000, &all[..2]).1, names(&[]));
        // They come back in time: the next time counts from its own start.
        let mut watch = Watch::new(&["a", "b", "c", "d"]);
        watch.settle(20_000, &all);
        assert_eq!(watch.at(20_000, &all[..2]).1.len(), 2);
        assert_eq!(watch.at(21_000, &all).1.len(), 0);
        assert_eq!(watch.at(22_000, &all[..1]).1.len(), 3);
        for now_ms in (22_500..28_000).step_by(500) {
            assert_eq!(watch.at(now_ms, &all[..1]).1.len(), 3, "{now_ms}");
        }
        assert_eq!(watch.at(28_000, &all[..1]).1.len(), 0);
    }

    #[test]
    fn one_node_is_no_mass_however_small_the_fleet() {
        let mut watch = Watch::new(&["a", "b"]);
        watch.settle(20_000, &[("a", 0), ("b", 0)]);
        assert_eq!(watch.at(20_000, &[("a", 0)]), (names(&["a"]), vec![]));
    }
}
