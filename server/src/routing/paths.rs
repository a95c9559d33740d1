//! By which node's topic the messages for a recipient go, and how that changes without any of them overtaking another.
//! Pure. Does not know what waits for a fence, nor sends anything.
//!
//! Order is kept for what one sender gives one node for one recipient: a pair, known here by one hash of all three.
//!
//! A recipient's path is where a hint says its session is, else the owner by the ring. When it differs from the path of
//! the pair's latest message, a fence is written behind that message, and whatever comes next waits for its echo.

use hashbrown::HashMap;
use ring::{NodeId, Ring};
use xxhash_rust::xxh3::Xxh3Builder;

use crate::bus::Holder;

/// How long a path is remembered after its latest message: longer than a node may be stopped, or without its store, and
/// go on as if nothing had been.
const MEMORY_MS: u64 = 60_000;
/// Paths remembered in each half of the memory. Beyond that a recipient counts as one that was never written to.
const RECENT_MAX: usize = 500_000;
/// Recipients whose whereabouts are remembered. Beyond that messages to others take the way over the ring's owner.
const HINTS_MAX: usize = 200_000;
/// How long an echo is waited for. The reader of the old topic may be gone with nobody in its place: then messages go
/// on, and their order is no longer certain.
const FENCE_WAIT_MS: u64 = 120_000;

#[derive(Debug, Clone, Copy)]
struct Recent {
    node: u16,
    // Of the parcels this shard has sent, the recipient's latest.
    sequence: u64,
    // The latest of those that had come from another node; 0 if none had.
    sent_on: u64,
    at_ms: u64,
    // Where messages from ahead of the fence were sent on to meanwhile: the path once the fence has come back.
    next: Option<(u16, u64)>,
}

#[derive(Debug)]
struct Hint {
    holder: Holder,
    used_ms: u64,
}

#[derive(Debug)]
struct Fence {
    id: u64,
    hash: u64,
    node: u16,
    // Parcels up to this one are ahead of it.
    sequence: u64,
    since_ms: u64,
    // Marks of the nodes that it does not follow parcels back to.
    trail: Vec<u64>,
}

impl Fence {
    // True if it stands behind all up to a parcel, and goes wherever one with this trail would go.
    fn covers(&self, sequence: u64, trail: &[u64]) -> bool {
        self.sequence >= sequence && self.trail.iter().all(|mark| trail.contains(mark))
    }
}

/// What a message for a recipient has to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passage {
    /// Go.
    Free,
    /// Wait for the echo of this fence, which is under way.
    Wait(u64),
    /// The same, but the fence has to be written first, to this node's topic.
    Fence {
        /// Its name.
        id: u64,
        /// An index for [`Paths::node`].
        node: u16,
    },
}

/// One shard's paths.
pub struct Paths {
    lanes: u16,
    nodes: Vec<NodeId>,
    // The places of those.
    indexes: HashMap<NodeId, u16, Xxh3Builder>,
    younger: HashMap<u64, Recent, Xxh3Builder>,
    older: HashMap<u64, Recent, Xxh3Builder>,
    turned_ms: u64,
    hints: HashMap<Box<str>, Hint, Xxh3Builder>,
    // By recipient and node.
    fences: HashMap<(u64, u16), Fence, Xxh3Builder>,
    names: HashMap<u64, (u64, u16), Xxh3Builder>,
    // Fences whose place a later one has taken.
    replaced: Vec<(u64, u64)>,
    sequence: u64,
    next_fence: u64,
}

impl Paths {
    /// No path yet; topics have `lanes` partitions for clients.
    pub fn new(lanes: u16) -> Self {
        Self {
            lanes: lanes.max(1),
            nodes: Vec::new(),
            indexes: HashMap::default(),
            younger: HashMap::default(),
            older: HashMap::default(),
            turned_ms: 0,
            hints: HashMap::default(),
            fences: HashMap::default(),
            names: HashMap::default(),
            replaced: Vec::new(),
            sequence: 0,
            next_fence: 1,
        }
    }

    /// The partition of the clients with this hash.
    pub fn lane_of(&self, hash: u64) -> u16 {
        let lane = hash % u64::from(self.lanes);
        1 + u16::try_from(lane).unwrap_or(0)
    }

    /// A node by its index.
    pub fn node(&self, index: u16) -> Option<&NodeId> {
        self.nodes.get(usize::from(index))
    }

    /// The other node that messages for a client without a session here go to; none for this one.
    pub fn target(
        &mut self,
        client: &str,
        hash: u64,
        ring: Option<&Ring>,
        this: &NodeId,
        now_ms: u64,
    ) -> Option<NodeId> {
        if let Some(hint) = self.hints.get_mut(client) {
            hint.used_ms = now_ms;
            return (hint.holder.node != *this).then(|| hint.holder.node.clone());
        }
        let ring = ring?;
        let owner = ring.weights().node(ring.owner_of_hash(hash));
        (owner != this).then(|| owner.clone())
    }

    /// Where a hint says that the client is.
    pub fn hint(&self, client: &str) -> Option<&Holder> {
        self.hints.get(client).map(|hint| &hint.holder)
    }

    /// A recipient's session is with `holder`: a newer login than any known before replaces the hint. True if it did.
    pub fn learn(&mut self, client: &str, holder: &Holder, now_ms: u64) -> bool {
        if let Some(hint) = self.hints.get_mut(client) {
            let is_newer = holder.generation > hint.holder.generation;
            if is_newer {
                *hint = Hint { holder: holder.clone(), used_ms: now_ms };
            }
            return is_newer;
        }
        if self.hints.len() >= HINTS_MAX {
            self.hints.retain(|_, hint| now_ms.saturating_sub(hint.used_ms) < MEMORY_MS);
            if self.hints.len() >= HINTS_MAX {
                return false;
            }
        }
        let hint = Hint { holder: holder.clone(), used_ms: now_ms };
        self.hints.insert(client.into(), hint);
        true
    }

    /// What was known of a recipient's whereabouts holds no longer.
    pub fn forget(&mut self, client: &str) {
        self.hints.remove(client);
    }

    /// No recipient is looked for any more at a node for which this holds.
    pub fn forget_nodes(&mut self, is_lost: impl Fn(&NodeId) -> bool) {
        self.hints.retain(|_, hint| !is_lost(&hint.holder.node));
    }

    /// Hints that are held.
    pub fn hints(&self) -> usize {
        self.hints.len()
    }

    /// Whether a message for the pair with this hash may go to `target` (none: to this node) now.
    pub fn passage(&mut self, hash: u64, target: Option<&NodeId>, now_ms: u64) -> Passage {
        let Some(recent) = self.recent(hash) else { return Passage::Free };
        if self.node(recent.node) == target {
            return Passage::Free;
        }
        // One that was written for another node does not do: what was sent back to where that came from, it leaves to
        // those who wait there.
        if let Some(fence) = self.fences.get(&(hash, recent.node))
            && fence.covers(recent.sequence, &[])
        {
            return Passage::Wait(fence.id);
        }
        if now_ms.saturating_sub(recent.at_ms) >= MEMORY_MS {
            return Passage::Free;
        }
        let id = self.new_fence(hash, recent.node, &[], now_ms);
        Passage::Fence { id, node: recent.node }
    }

    /// The node that the latest messages for the pair with this hash were sent on to, as far as is remembered; then the
    /// one that others from ahead of a fence have gone to since. What was accepted here does not count: it is ahead of
    /// no other node's fence, and may wait over there for the very fence that asks.
    pub fn latest(&self, hash: u64) -> (Option<u16>, Option<u16>) {
        let recent = self.recent(hash);
        let latest = recent.filter(|recent| recent.sent_on != 0).map(|recent| recent.node);
        (latest, recent.and_then(|recent| recent.next).map(|(node, _)| node))
    }

    /// A fence behind the messages for the pair with this hash that went to `node`, for one that came by the nodes of
    /// `trail`: its name, and whether it must be written first.
    pub fn fence_behind(&mut self, hash: u64, node: u16, trail: &[u64], now_ms: u64) -> (u64, bool) {
        let sequence = match self.recent(hash) {
            Some(Recent { next: Some((next, sequence)), .. }) if next == node => sequence,
            Some(recent) => recent.sequence,
            None => self.sequence,
        };
        match self.fences.get(&(hash, node)) {
            Some(fence) if fence.covers(sequence, trail) => (fence.id, false),
            _ => (self.new_fence(hash, node, trail, now_ms), true),
        }
    }

    /// The nodes that a fence has come by, as far as it does not follow messages back there.
    pub fn trail(&self, id: u64) -> &[u64] {
        self.names.get(&id).and_then(|key| self.fences.get(key)).map_or(&[], |fence| &fence.trail)
    }

    /// A name for what comes back as a fence does.
    pub fn name_fence(&mut self) -> u64 {
        self.next_fence += 1;
        self.next_fence - 1
    }

    fn new_fence(&mut self, hash: u64, node: u16, trail: &[u64], now_ms: u64) -> u64 {
        let id = self.next_fence;
        self.next_fence += 1;
        // Whoever waits for an earlier one will wait for this: it has to go wherever that would have gone.
        let earlier = self.fences.get(&(hash, node));
        let is_common = |mark: &u64| earlier.is_none_or(|earlier| earlier.trail.contains(mark));
        let trail = trail.iter().copied().filter(is_common).collect();
        let fence = Fence { id, hash, node, sequence: self.sequence, since_ms: now_ms, trail };
        // An earlier one is covered by this one: its own echo finds it no more, and whoever waits for it asks again.
        if let Some(earlier) = self.fences.insert((hash, node), fence) {
            self.names.remove(&earlier.id);
            self.replaced.push((earlier.id, id));
        }
        self.names.insert(id, (hash, node));
        id
    }

    /// A message for the pair with this hash has gone to `node`; `is_sent_on` if it had come from another.
    pub fn note(&mut self, hash: u64, node: &NodeId, is_sent_on: bool, now_ms: u64) {
        self.sequence += 1;
        let Some(node) = self.index_of(node) else { return };
        // What waits for an echo must not be forgotten before it comes.
        let is_time = now_ms.saturating_sub(self.turned_ms) >= MEMORY_MS && self.fences.is_empty();
        if is_time || self.younger.len() >= RECENT_MAX {
            std::mem::swap(&mut self.younger, &mut self.older);
            self.younger.clear();
            self.turned_ms = now_ms;
        }
        let sequence = self.sequence;
        let sent_on = match self.recent(hash) {
            _ if is_sent_on => sequence,
            Some(recent) if recent.node == node => recent.sent_on,
            _ => 0,
        };
        self.younger.insert(hash, Recent { node, sequence, sent_on, at_ms: now_ms, next: None });
    }

    /// A message from ahead of the fence has gone to `node`, past those that wait for it.
    pub fn note_ahead(&mut self, hash: u64, node: &NodeId, now_ms: u64) {
        let index = self.index_of(node);
        match self.recent(hash).zip(index) {
            Some((recent, index)) if recent.node != index => {
                self.sequence += 1;
                let recent = Recent { next: Some((index, self.sequence)), at_ms: now_ms, ..recent };
                self.younger.insert(hash, recent);
            }
            _ => self.note(hash, node, true, now_ms),
        }
    }

    fn index_of(&mut self, node: &NodeId) -> Option<u16> {
        if let Some(index) = self.indexes.get(node) {
            return Some(*index);
        }
        // Names come from other nodes, too: there is no end to what could be made up. One more is not remembered.
        let index = u16::try_from(self.nodes.len()).ok()?;
        self.nodes.push(node.clone());
        self.indexes.insert(node.clone(), index);
        Some(index)
    }

    fn recent(&self, hash: u64) -> Option<Recent> {
        let recent = self.younger.get(&hash).or_else(|| self.older.get(&hash)).copied()?;
        Some(recent)
    }

    /// The echo of a fence has come: its recipient may take its new path. False if nobody waits.
    pub fn on_fenced(&mut self, id: u64) -> bool {
        let Some(fence) = self.names.remove(&id).and_then(|key| self.fences.remove(&key)) else { return false };
        if !fence.trail.is_empty() {
            // It tells the other node enough; what was sent back there may not be placed yet, so the path is as it was.
            return true;
        }
        for half in [&mut self.younger, &mut self.older] {
            if let Some(recent) = half.get(&fence.hash).copied()
                && recent.node == fence.node
            {
                match recent.next {
                    _ if recent.sequence > fence.sequence => {
                        if recent.sent_on <= fence.sequence {
                            half.insert(fence.hash, Recent { sent_on: 0, ..recent });
                        }
                    }
                    Some((node, sequence)) => {
                        half.insert(fence.hash, Recent { node, sequence, sent_on: sequence, next: None, ..recent });
                    }
                    None => _ = half.remove(&fence.hash),
                }
            }
        }
        true
    }

    /// Fences whose place a later one has taken since the last call: their names, and the later ones'.
    pub fn take_replaced(&mut self) -> Vec<(u64, u64)> {
        std::mem::take(&mut self.replaced)
    }

    /// Fences that nobody has echoed in time; the caller passes each to [`Paths::on_fenced`].
    pub fn overdue(&self, now_ms: u64) -> Vec<u64> {
        let is_overdue = |fence: &&Fence| now_ms.saturating_sub(fence.since_ms) >= FENCE_WAIT_MS;
        self.fences.values().filter(is_overdue).map(|fence| fence.id).collect()
    }
}

#[cfg(test)]
mod tests {
    use ring::{RingVersion, Weight};

    use super::*;

    fn node(name: &str) -> NodeId {
        NodeId::new(name).unwrap()
    }

    fn holder(name: &str, generation: u64) -> Holder {
        Holder { node: node(name), incarnation: 1, generation }
    }

    #[test]
    fn a_path_changes_behind_a_fence() {
        let mut paths = Paths::new(4);
        paths.note(4, &node("a"), false, 0);
        assert_eq!(paths.passage(4, Some(&node("a")), 1), Passage::Free);
        let Passage::Fence { id, node: old } = paths.passage(4, Some(&node("b")), 1) else { panic!("no fence") };
        assert_eq!(paths.node(old), Some(&node("a")));
        assert_eq!(paths.passage(4, Some(&node("b")), 1), Passage::Wait(id));
        assert_eq!(paths.passage(4, None, 1), Passage::Wait(id));
        assert!(paths.on_fenced(id) && !paths.on_fenced(id));
        assert_eq!(paths.passage(4, Some(&node("b")), 1), Passage::Free);
    }

    #[test]
    fn what_was_sent_past_the_fence_is_the_path_behind_it() {
        let mut paths = Paths::new(4);
        paths.note(4, &node("a"), false, 0);
        let Passage::Fence { id, .. } = paths.passage(4, Some(&node("b")), 1) else { panic!("no fence") };
        paths.note_ahead(4, &node("b"), 1);
        assert_eq!(paths.passage(4, Some(&node("b")), 1), Passage::Wait(id));
        paths.on_fenced(id);
        assert_eq!(paths.passage(4, Some(&node("b")), 1), Passage::Free);
        assert_ne!(paths.passage(4, None, 1), Passage::Free);
    }

    #[test]
    fn a_fence_for_another_node_does_not_do_for_this_one() {
        let mut paths = Paths::new(4);
        paths.note(4, &node("a"), true, 0);
        let (foreign, is_new) = paths.fence_behind(4, 0, &[7], 1);
        assert!(is_new);
        assert_eq!(paths.fence_behind(4, 0, &[7, 8], 1), (foreign, false));
        // One with another trail leaves out other nodes: the one that serves both leaves out none.
        let (both, is_new) = paths.fence_behind(4, 0, &[9], 1);
        assert!(is_new && paths.trail(both).is_empty());
        assert_eq!(paths.take_replaced(), [(foreign, both)]);
        assert_eq!(paths.passage(4, None, 1), Passage::Wait(both));
    }

    #[test]
    fn the_echo_for_another_node_leaves_the_path_as_it_was() {
        let mut paths = Paths::new(4);
        paths.note(4, &node("a"), true, 0);
        let (foreign, _) = paths.fence_behind(4, 0, &[7], 1);
        assert!(paths.on_fenced(foreign));
        assert!(matches!(paths.passage(4, None, 1), Passage::Fence { .. }));
    }

    #[test]
    fn what_was_accepted_here_is_not_followed() {
        let mut paths = Paths::new(4);
        paths.note(4, &node("a"), false, 0);
        assert_eq!(paths.latest(4), (None, None));
        paths.note(4, &node("a"), true, 0);
        paths.note(4, &node("a"), false, 0);
        assert_eq!(paths.latest(4), (Some(0), None));
    }

    #[test]
    fn an_idle_path_changes_at_once() {
        let mut paths = Paths::new(4);
        paths.note(4, &node("a"), false, 0);
        paths.note(8, &node("a"), false, 0);
        assert_ne!(paths.passage(4, None, MEMORY_MS - 1), Passage::Free);
        assert_eq!(paths.passage(8, None, MEMORY_MS), Passage::Free);
    }

    #[test]
    fn an_echo_that_never_comes_is_not_waited_for_for_ever() {
        let mut paths = Paths::new(4);
        paths.note(4, &node("a"), false, 0);
        let Passage::Fence { id, .. } = paths.passage(4, None, 0) else { panic!("no fence") };
        assert!(paths.overdue(FENCE_WAIT_MS - 1).is_empty());
        assert_eq!(paths.overdue(FENCE_WAIT_MS), [id]);
    }

    #[test]
    fn the_newest_hint_wins_over_the_ring() {
        let mut paths = Paths::new(4);
        let ring = Ring::build(RingVersion::new(1).unwrap(), 0, [(node("a"), Weight::MIN)]).unwrap();
        let this = node("me");
        assert_eq!(paths.target("c", 1, Some(&ring), &this, 0), Some(node("a")));
        assert_eq!(paths.target("c", 1, None, &this, 0), None);
        assert!(paths.learn("c", &holder("b", 7), 0));
        assert!(!paths.learn("c", &holder("d", 6), 0));
        assert_eq!(paths.target("c", 1, Some(&ring), &this, 0), Some(node("b")));
        assert!(paths.learn("c", &holder("me", 8), 0));
        assert_eq!(paths.target("c", 1, Some(&ring), &this, 0), None);
        paths.forget("c");
        assert_eq!(paths.target("c", 1, Some(&ring), &this, 0), Some(node("a")));
    }
}
