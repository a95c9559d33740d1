//! Which nodes are alive, and in which life: pure. Told by heartbeats that somebody else reads; read by every shard.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::{ArcSwap, Cache};
use ring::{NodeId, RingVersion};

/// A node is gone when it has been silent for so long, by the store's clock: three missed heartbeats.
pub const SILENCE_MS_MAX: u64 = 6_000;

/// What a live node has told about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Which life of it.
    pub incarnation: u64,
    /// Where clients reach it.
    pub url: Option<Box<str>>,
    /// Its availability zone.
    pub zone: Option<Box<str>>,
    /// The ring it follows.
    pub ring_version: Option<RingVersion>,
}

/// All live nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Membership {
    nodes: HashMap<NodeId, Member>,
    is_known: bool,
}

impl Membership {
    /// True once heartbeats have been read: before that, a node that is not here may well be alive.
    pub fn is_known(&self) -> bool {
        self.is_known
    }

    /// True when this life of `node` is alive.
    pub fn is_alive(&self, node: &NodeId, incarnation: u64) -> bool {
        self.nodes.get(node).is_some_and(|member| member.incarnation == incarnation)
    }

    /// True when this life of `node` is over: heartbeats have been read, and none of them is its.
    pub fn is_over(&self, node: &NodeId, incarnation: u64) -> bool {
        self.is_known && !self.is_alive(node, incarnation)
    }

    /// True when the same lives are alive in both, whatever they tell of themselves.
    pub fn has_same_lives(&self, other: &Self) -> bool {
        self.len() == other.len() && self.iter().all(|(node, member)| other.is_alive(node, member.incarnation))
    }

    /// What `node` has told.
    pub fn member(&self, node: &NodeId) -> Option<&Member> {
        self.nodes.get(node)
    }

    /// All live nodes, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&NodeId, &Member)> {
        self.nodes.iter()
    }

    /// How many nodes live.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// True when no node lives.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }
}

impl FromIterator<(NodeId, Member)> for Membership {
    /// These are alive, and no others.
    fn from_iter<I: IntoIterator<Item = (NodeId, Member)>>(nodes: I) -> Self {
        Self { nodes: nodes.into_iter().collect(), is_known: true }
    }
}

/// Turns what is read from the store into a membership. Nobody is declared gone until the store has answered for as
/// long as a node may be silent: after an outage of the store, or of this node, everyone's last heartbeat is old.
#[derive(Debug, Default)]
pub struct Observer {
    current: Membership,
    /// Since when and until when the store has answered without a gap, by its own clock.
    answers: Option<(u64, u64)>,
}

impl Observer {
    /// Takes the heartbeats that are no older than [`SILENCE_MS_MAX`] at `now_ms` of the store's clock.
    pub fn observe(&mut self, fresh: impl IntoIterator<Item = (NodeId, Member)>, now_ms: u64) -> &Membership {
        let since = match self.answers {
            Some((since, until)) if (until..=until.saturating_add(SILENCE_MS_MAX)).contains(&now_ms) => since,
            _ => now_ms,
        };
        self.answers = Some((since, now_ms));
        let mut next: Membership = fresh.into_iter().collect();
        if now_ms - since < SILENCE_MS_MAX {
            for (node, member) in std::mem::take(&mut self.current).nodes {
                next.nodes.entry(node).or_insert(member);
            }
        }
        self.current = next;
        &self.current
    }
}

/// The current membership; clones share it.
#[derive(Debug, Clone, Default)]
pub struct SharedMembership {
    current: Arc<ArcSwap<Membership>>,
}

impl SharedMembership {
    /// Nothing is known yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts `membership` in place of the current one.
    pub fn publish(&self, membership: Membership) {
        self.current.store(Arc::new(membership));
    }

    /// The current one, for callers off the message path.
    pub fn load(&self) -> Arc<Membership> {
        self.current.load_full()
    }

    /// A reader of its own for one thread.
    pub fn reader(&self) -> MembershipReader {
        MembershipReader { cache: Cache::new(Arc::clone(&self.current)) }
    }
}

/// One thread's view: a `load` is a pointer comparison until something changes.
#[derive(Debug, Clone)]
pub struct MembershipReader {
    cache: Cache<Arc<ArcSwap<Membership>>, Arc<Membership>>,
}

impl MembershipReader {
    /// The current membership.
    pub fn load(&mut self) -> &Membership {
        self.cache.load()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, incarnation: u64) -> (NodeId, Member) {
        (NodeId::new(name).unwrap(), Member { incarnation, url: None, zone: None, ring_version: None })
    }

    #[test]
    fn the_same_lives_may_tell_other_things() {
        let of = |members: Vec<(NodeId, Member)>| Membership { nodes: members.into_iter().collect(), is_known: true };
        let (a, before) = member("a", 1);
        let after = Member { ring_version: RingVersion::new(2).ok(), ..before.clone() };
        let (old, new) = (of(vec![(a.clone(), before)]), of(vec![(a, after)]));
        assert!(old != new && old.has_same_lives(&new));
        assert!(!old.has_same_lives(&of(vec![member("a", 2)])));
        assert!(!old.has_same_lives(&of(vec![member("a", 1), member("b", 1)])));
        assert!(!old.has_same_lives(&of(vec![])));
    }

    #[test]
    fn nobody_is_over_before_heartbeats_were_read() {
        let (a, _) = member("a", 1);
        let shared = SharedMembership::new();
        let mut reader = shared.reader();
        assert!(!reader.load().is_over(&a, 1));
        assert!(!reader.load().is_alive(&a, 1));
        shared.publish([member("a", 2)].into_iter().collect());
        assert!(reader.load().is_over(&a, 1));
        assert!(reader.load().is_alive(&a, 2));
    }

    #[test]
    fn a_silent_node_is_gone_only_when_the_store_has_answered_for_long_enough() {
        let (b, _) = member("b", 1);
        let mut observer = Observer::default();
        for now in (0..=6000).step_by(2000) {
            assert_eq!(observer.observe([member("a", 1), member("b", 1)], now).len(), 2);
        }
        assert!(observer.observe([member("a", 1)], 8000).is_over(&b, 1), "silent, and the store has always answered");
        observer.observe([member("a", 1), member("b", 1)], 10_000);
        // The store was away: all heartbeats are old when it is back.
        assert!(observer.observe([], 30_000).is_alive(&b, 1));
        assert!(observer.observe([member("a", 1)], 34_000).is_alive(&b, 1));
        assert!(observer.observe([member("a", 1), member("b", 2)], 35_000).is_over(&b, 1), "its next life is here");
        assert!(observer.observe([member("a", 1)], 36_000).is_over(&b, 2));
        // The store's clock was set back: as after an outage.
        observer.observe([member("a", 1), member("b", 2)], 38_000);
        assert!(observer.observe([member("a", 1)], 1000).is_alive(&b, 2));
    }
}
