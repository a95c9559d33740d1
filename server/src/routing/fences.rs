//! The order of what one sender gives one node for one recipient, a pair, across changes of its path: fences that this
//! shard writes and waits for, and those of others that have been read here. Who waits for an echo, and what goes on
//! when it comes, is for `queues`.
//!
//! Invariant: a fence passes once all that was ahead of it is placed: here, or where it was sent on to.

use ring::NodeId;

use crate::bus::record::node_mark;
use crate::bus::{Address, Lane, Parcel, Record, RecordRef};

use super::arrival::Arrival;
use super::dispatcher::Dispatcher;
use super::paths::Passage;
use super::waiting::{Placing, Why, pair};

/// A fence of another shard that has been read here and not passed yet.
pub(super) struct PassingFence {
    placing: Placing,
    at: RecordRef,
    /// Hash of the recipient.
    hash: u64,
    trail: Vec<u64>,
    // A fence of this shard's own, behind what was sent on from ahead of it; known once all of that is placed, and
    // again when what has come back was sent on, too.
    further: Option<u64>,
    is_further_known: bool,
    // Where that fence went.
    followed_to: Option<u16>,
    // What has come back here before this arrival is ahead of it.
    returned_before: u64,
}

impl Dispatcher {
    /// What a message shares with those that it must not overtake, its recipient aside: its sender, and the node that
    /// accepted it. Were it the sender alone, what one node has sent on could wait for what it has accepted itself,
    /// and that for the former elsewhere: for ever.
    pub(super) fn source(&self, sender: u64, trail: &[u64]) -> u64 {
        sender ^ trail.first().copied().unwrap_or(self.mark)
    }

    /// What a message has to wait for before it may take the path to `target`.
    pub(super) fn way(&mut self, source: u64, hash: u64, target: Option<&NodeId>) -> Option<Why> {
        let pair = pair(source, hash);
        match self.paths.passage(pair, target, self.now.steady_ms) {
            Passage::Free => None,
            Passage::Wait(id) => Some(Why::Fence(id)),
            Passage::Fence { id, node } => {
                self.write_fence(id, node, hash, pair);
                self.follow_replaced();
                Some(Why::Fence(id))
            }
        }
    }

    /// Whoever waits for a fence whose place a later one has taken waits for that.
    fn follow_replaced(&mut self) {
        for (earlier, later) in self.paths.take_replaced() {
            for fence in self.fences.iter_mut().filter(|fence| fence.further == Some(earlier)) {
                fence.further = Some(later);
            }
        }
    }

    fn write_fence(&mut self, id: u64, node: u16, hash: u64, pair: u64) {
        self.counters.fences.add(1);
        let Some(to) = self.paths.node(node).cloned() else { return };
        let trail = self.paths.trail(id).iter().copied().chain([self.mark]).collect();
        self.out.parcels.push_back(Box::new(Parcel {
            to,
            lane: Lane::Partition(self.paths.lane_of(hash)),
            origin: self.me.clone(),
            record: Record::Fence { id, hash, pair, trail },
            ticket: None,
        }));
    }

    /// The place of a record that is not where it belongs yet: fences behind it have to wait.
    pub(super) fn await_placing(&mut self, sent_by: &Address, arrival: &Arrival<'_>) -> Placing {
        let source = self.source(arrival.inbound.sender, arrival.trail);
        let placing = self.next_placing(sent_by, pair(source, arrival.hash));
        self.unplaced.insert(placing);
        if arrival.trail.contains(&self.mark) {
            let (_, pair, number) = placing;
            self.returned.insert((pair, number));
        }
        placing
    }

    /// The place of what comes now among what a shard has sent of a pair.
    fn next_placing(&mut self, sent_by: &Address, pair: u64) -> Placing {
        self.arrivals += 1;
        let life = sent_by.incarnation.wrapping_mul(0x1_0001) ^ u64::from(sent_by.shard);
        (ring::hash_key(sent_by.node.as_str().as_bytes(), life), pair, self.arrivals)
    }

    /// A record is where it belongs: fences behind it may pass.
    pub(super) fn place(&mut self, placing: Option<Placing>) {
        let Some(placing) = placing else { return };
        self.unplaced.remove(&placing);
        let (_, pair, number) = placing;
        self.returned.remove(&(pair, number));
        self.pass_fences();
    }

    /// A fence of another shard has been read.
    pub(super) fn on_fence(&mut self, at: RecordRef, sent_by: &Address, hash: u64, pair: u64, trail: Vec<u64>) {
        let placing = self.next_placing(sent_by, pair);
        let (_, _, returned_before) = placing;
        self.fences.push(PassingFence {
            placing,
            at,
            hash,
            trail,
            further: None,
            is_further_known: false,
            followed_to: None,
            returned_before,
        });
        self.pass_fences();
    }

    /// Fences pass when what was ahead of them is placed; where that was sent on to another node, when it is placed
    /// there, and so on; where it came back from there, when it is placed here, or wherever it was sent on to then.
    /// What has come back waits for no fence, so no two fences wait for each other.
    fn pass_fences(&mut self) {
        if self.fences.is_empty() {
            return;
        }
        for mut fence in std::mem::take(&mut self.fences) {
            let (sender, pair, arrival) = fence.placing;
            let is_waiting = self.unplaced.range((sender, pair, 0)..(sender, pair, arrival)).next().is_some()
                || self.returned.range((pair, 0)..(pair, fence.returned_before)).next().is_some();
            if !is_waiting && fence.further.is_none() && !fence.is_further_known {
                self.fence_further(&mut fence);
            }
            if is_waiting || fence.further.is_some() {
                self.fences.push(fence);
            } else {
                self.out.passed.push(fence.at);
            }
        }
        self.follow_replaced();
    }

    /// A message of a pair that has come back goes on: fences that it is ahead of follow it.
    pub(super) fn let_fences_follow(&mut self, pair: u64) {
        for fence in self.fences.iter_mut().filter(|fence| fence.placing.1 == pair) {
            fence.is_further_known = false;
            fence.followed_to = None;
        }
    }

    /// Writes a fence behind what was sent on of a pair's records, unless the fence has come by that node: what was
    /// sent back there stands ahead of the echo, and whoever passes the echo on there waits for it.
    fn fence_further(&mut self, fence: &mut PassingFence) {
        let (_, pair, _) = fence.placing;
        let (latest, next) = self.paths.latest(pair);
        let is_new_to_it =
            |node: &u16| self.paths.node(*node).is_some_and(|node| !fence.trail.contains(&node_mark(node)));
        let (latest, next) = (latest.filter(is_new_to_it), next.filter(is_new_to_it));
        let latest = latest.filter(|node| fence.followed_to != Some(*node));
        fence.is_further_known = latest.is_none() || next.is_none();
        let Some(node) = latest.or(next) else { return };
        let (id, is_new) = self.paths.fence_behind(pair, node, &fence.trail, self.now.steady_ms);
        if is_new {
            self.write_fence(id, node, fence.hash, pair);
        }
        fence.further = Some(id);
        fence.followed_to = Some(node);
    }

    /// An echo is not waited for for ever.
    pub(super) fn tick_fences(&mut self) {
        for id in self.paths.overdue(self.now.steady_ms) {
            self.counters.fences_given_up.add(1);
            self.paths.on_fenced(id);
            self.on_echo(id);
        }
    }

    /// A fence has come back, or is given up.
    pub(super) fn on_echo(&mut self, id: u64) {
        for fence in self.fences.iter_mut().filter(|fence| fence.further == Some(id)) {
            fence.further = None;
            fence.returned_before = self.arrivals + 1;
        }
        self.pass_fences();
        for key in self.waiting.keys(|queue| queue.why == Why::Fence(id)) {
            self.go_on(key);
        }
    }
}
