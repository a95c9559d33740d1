//! Who is silent, and what follows: nodes hear of it, the balancer takes the silent one out of the ring, and its
//! forwarder reads the topic in its place, under the lease, until the node is back. What it does with a record is in
//! `balancer/src/forwarder/plan.rs`, when it reads in `watch.rs` beside that; here both are told once more, over values.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use ring::Ring;

use super::node::index_of;
use super::story::name;
use super::{LANES, NODES, RingName, World, node_id, ring, tell};
use crate::bus::record::node_mark;
use crate::bus::{Address, Lane, Parcel, Record};
use crate::routing::membership::{Member, SILENCE_MS_MAX};

/// A node tells so often that it is alive, and keeps its lease.
const BEAT_MS: u64 = 2_000;
const LEASE_MS: u64 = 10_000;
/// Its holder stops so much earlier.
const LEASE_MARGIN_MS: u64 = 2_000;
/// The balancer looks around so often.
const LOOK_MS: u64 = 500;
/// Silence of so much more, and the forwarder reads.
const ABSENT_MS: u64 = 3_000;
const RETRY_MS: u64 = 2_000;
const PATH_IDLE_MS: u64 = 60_000;
const COMMIT_MS: u64 = 500;
const READ_PER_STEP: usize = 4;
const TRAIL_MAX: usize = 16;

/// Who may read a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reader {
    /// This life of its node.
    Node(u64),
    /// This reading of the forwarder's.
    Forwarder(u64),
}

#[derive(Debug, Clone, Copy)]
struct Lease {
    reader: Reader,
    until: u64,
}

/// The leader of the balancers, with its forwarder.
#[derive(Default)]
pub(super) struct Balancer {
    look_at: u64,
    // Since when Redis has answered it without a gap.
    since: Option<u64>,
    redis_away_until: u64,
    dead_until: u64,
    leases: [Option<Lease>; NODES],
    absent: [Absent; NODES],
    readings: u64,
}

#[derive(Default)]
struct Absent {
    since: Option<u64>,
    retry_at: u64,
    // What the last reading that came to an end has seen.
    drained: Vec<usize>,
    // By which ring it was read, and when that had records.
    ring: Option<(RingName, u64)>,
    reading: Option<Reading>,
}

/// One reading of one silent node's topic.
struct Reading {
    id: u64,
    ring: RingName,
    has_lease: bool,
    is_stopping: bool,
    commit_at: u64,
    partitions: Vec<Place>,
    // What is on its way: lane, offset and what becomes of that record.
    sending: VecDeque<(usize, usize, Parcel)>,
    confirmed: VecDeque<(u64, usize, usize)>,
}

/// How far a partition is read.
#[derive(Default)]
struct Place {
    next: usize,
    unfinished: BTreeSet<usize>,
    // Sent on and not confirmed: the claims behind wait for them, not for each other.
    copies: BTreeSet<usize>,
    claims: VecDeque<(usize, Parcel)>,
}

impl Place {
    fn position(&self) -> usize {
        self.unfinished.first().copied().unwrap_or(self.next)
    }
}

/// What becomes of a record.
enum Plan {
    Send(Parcel),
    // Once all ahead of it is confirmed.
    Release(Parcel),
    Drop,
}

fn plan(parcel: &Parcel, lane: usize, dead: usize, ring: &Ring) -> Plan {
    let lane = if lane == 0 { Lane::Control } else { Lane::Partition(u16::try_from(lane).unwrap()) };
    // In the name of no life of the node, so that nobody answers.
    let nobody = Address { node: node_id(dead), incarnation: 0, shard: 0 };
    let notice = |to, record| Parcel { to, lane, origin: nobody.clone(), record, ticket: None };
    let owner = |hash| ring.weights().node(ring.owner_of_hash(hash)).clone();
    let copy = |to, record| Parcel { to, lane, origin: parcel.origin.clone(), record, ticket: None };
    match &parcel.record {
        Record::Message(posted) => {
            let mut posted = posted.clone();
            posted.hops = posted.hops.saturating_add(1);
            if posted.trail.len() < TRAIL_MAX {
                posted.trail.push(node_mark(&node_id(dead)));
            }
            Plan::Send(copy(owner(posted.hash), Record::Message(posted)))
        }
        Record::Fence { id, hash, .. } if owner(*hash) == parcel.origin.node => {
            let Address { node, incarnation, shard } = parcel.origin.clone();
            Plan::Send(notice(node, Record::Fenced { id: *id, shard, incarnation }))
        }
        Record::Fence { hash, .. } => Plan::Send(copy(owner(*hash), parcel.record.clone())),
        Record::Claimed { client, generation } if parcel.origin.node != node_id(dead) => {
            let released = Record::Released { client: client.clone(), generation: *generation };
            Plan::Release(notice(parcel.origin.node.clone(), released))
        }
        _ => Plan::Drop,
    }
}

impl World {
    /// A node tells that it is alive, hears who else is, and keeps its topic.
    pub(super) fn keep_alive(&mut self, at: usize) {
        let now = self.now;
        if !self.kind.has_balancer() {
            self.nodes[at].is_reading = true;
            return;
        }
        if self.nodes[at].is_reading && now >= self.nodes[at].lease_until {
            tell!(self, "n{at} lets go of its topic");
            (self.nodes[at].is_reading, self.nodes[at].has_let_go) = (false, true);
        }
        let incarnation = self.nodes[at].incarnation;
        let due = self.nodes[at].beat_at == 0 || now - self.nodes[at].beat_at >= BEAT_MS;
        if due && self.nodes[at].store_away_until <= now {
            self.nodes[at].beat_at = now;
            let lease = &mut self.balancer.leases[at];
            let reader = Reader::Node(incarnation);
            if lease.is_none_or(|lease| lease.reader == reader || lease.until <= now) {
                *lease = Some(Lease { reader, until: now + LEASE_MS });
                self.nodes[at].lease_until = now + LEASE_MS - LEASE_MARGIN_MS;
            } else {
                self.nodes[at].lease_until = 0;
            }
            let fresh: Vec<_> = (0..NODES)
                .filter(|other| self.is_heard(*other))
                .map(|other| (node_id(other), member(self.nodes[other].incarnation)))
                .collect();
            let node = &mut self.nodes[at];
            let live = node.observer.observe(fresh, now).iter().map(|(node, _)| node.clone()).collect();
            if let Some(dispatcher) = &mut node.dispatcher {
                dispatcher.note_live(live);
            }
        }
        let node = &mut self.nodes[at];
        if !node.is_reading && now < node.lease_until {
            node.is_reading = true;
            if node.has_let_go || node.was_forwarded {
                self.handovers.push(now);
            }
            for partition in &mut node.topic {
                partition.next = partition.committed;
                partition.unfinished.clear();
            }
            if std::mem::take(&mut node.was_forwarded)
                && let Some(dispatcher) = &mut node.dispatcher
            {
                dispatcher.look_everywhere();
            }
        }
    }

    fn is_heard(&self, at: usize) -> bool {
        self.nodes[at].beat_at != 0 && self.now - self.nodes[at].beat_at <= SILENCE_MS_MAX
    }

    pub(super) fn lose_balancers_redis(&mut self, until: u64) {
        self.balancer.redis_away_until = until;
        self.balancer.since = None;
    }

    /// Another balancer leads from here on; or a reading has failed, and begins again.
    pub(super) fn crash_forwarder(&mut self) {
        let now = self.now;
        let has_died = self.dice.one_in(2);
        tell!(self, "the forwarder {}", if has_died { "dies" } else { "fails" });
        if has_died {
            self.balancer.dead_until = now + self.dice.up_to(4_000);
            self.balancer.since = None;
        }
        for at in 0..NODES {
            let Some(mut reading) = self.balancer.absent[at].reading.take() else { continue };
            let carried = self.dice.below(4);
            for _ in 0..carried {
                self.forward_one(&mut reading);
            }
            self.balancer.absent[at].retry_at = now + RETRY_MS;
            if has_died {
                self.balancer.absent[at] = Absent::default();
            } else {
                self.give_lease_back(at, reading.id);
            }
        }
    }

    fn give_lease_back(&mut self, at: usize, id: u64) {
        let lease = &mut self.balancer.leases[at];
        if lease.is_some_and(|lease| lease.reader == Reader::Forwarder(id)) {
            *lease = None;
        }
    }

    pub(super) fn step_balancer(&mut self, is_troubled: bool) {
        let now = self.now;
        if self.balancer.dead_until <= now && self.balancer.look_at <= now {
            self.balancer.look_at = now + LOOK_MS;
            self.look_around();
        }
        if !is_troubled {
            for node in &self.nodes {
                let _ = node.ring.publish(ring(self.newest_ring));
            }
        }
        for at in 0..NODES {
            if let Some(reading) = self.balancer.absent[at].reading.take() {
                self.step_reading(at, reading);
            }
        }
    }

    fn look_around(&mut self) {
        let now = self.now;
        if now < self.balancer.redis_away_until {
            return;
        }
        let since = *self.balancer.since.get_or_insert(now);
        if now - since < SILENCE_MS_MAX {
            return;
        }
        let alive: [bool; NODES] = std::array::from_fn(|at| self.is_heard(at));
        if alive != self.newest_ring.1 && alive.contains(&true) {
            self.newest_ring = (self.newest_ring.0 + 1, alive);
            tell!(self, "ring {:?}", self.newest_ring);
        }
        for (at, is_alive) in alive.into_iter().enumerate() {
            let ends: Vec<usize> = self.nodes[at].topic.iter().map(|partition| partition.records.len()).collect();
            let absent = &mut self.balancer.absent[at];
            // One that no others are left to take the place of stays in the ring.
            if is_alive || self.newest_ring.1[at] {
                absent.since = None;
                if let Some(reading) = &mut absent.reading {
                    reading.is_stopping = true;
                } else {
                    *absent = Absent::default();
                }
                continue;
            }
            let silent_since = *absent.since.get_or_insert(now);
            let is_due = now - silent_since >= ABSENT_MS && now >= absent.retry_at && absent.drained != ends;
            if absent.reading.is_some() || !is_due {
                continue;
            }
            // Records of one sender for one recipient must not take two paths at once.
            let kept = absent.ring.filter(|(_, carried_at)| now - carried_at < PATH_IDLE_MS);
            let ring = kept.map_or(self.newest_ring, |(ring, _)| ring);
            self.balancer.readings += 1;
            absent.reading = Some(Reading {
                id: self.balancer.readings,
                ring,
                has_lease: false,
                is_stopping: false,
                commit_at: now,
                partitions: Vec::new(),
                sending: VecDeque::new(),
                confirmed: VecDeque::new(),
            });
        }
    }

    fn step_reading(&mut self, at: usize, mut reading: Reading) {
        let now = self.now;
        let reader = Reader::Forwarder(reading.id);
        let lease = &mut self.balancer.leases[at];
        if lease.is_none_or(|lease| lease.reader == reader || lease.until <= now) {
            *lease = Some(Lease { reader, until: now + LEASE_MS });
        } else if reading.is_stopping {
            self.balancer.absent[at] = Absent::default();
            return;
        } else {
            self.balancer.absent[at].reading = Some(reading);
            return;
        }
        if !reading.has_lease {
            tell!(self, "n{at}'s topic is forwarded by {:?}", reading.ring);
            reading.has_lease = true;
            self.nodes[at].was_forwarded = true;
            self.handovers.push(now);
            let place = |partition: &super::Partition| Place { next: partition.committed, ..Place::default() };
            reading.partitions = self.nodes[at].topic.iter().map(place).collect();
        }
        while let Some((due, lane, offset)) = reading.confirmed.front().copied()
            && due <= now
        {
            reading.confirmed.pop_front();
            reading.partitions[lane].copies.remove(&offset);
            reading.partitions[lane].unfinished.remove(&offset);
        }
        let ring = ring(reading.ring);
        for lane in 0..=usize::from(LANES) {
            if !reading.is_stopping && reading.sending.is_empty() {
                self.read_for(at, lane, &mut reading, &ring);
            }
            let place = &mut reading.partitions[lane];
            while let Some((offset, _)) = place.claims.front()
                && place.copies.first().is_none_or(|first| first > offset)
                && let Some((offset, parcel)) = place.claims.pop_front()
            {
                reading.sending.push_back((lane, offset, parcel));
            }
        }
        for _ in 0..8 {
            if self.forward_one(&mut reading) {
                self.balancer.absent[at].ring = Some((reading.ring, now));
            }
        }
        let is_idle = reading.sending.is_empty() && reading.confirmed.is_empty();
        let ends: Vec<usize> = self.nodes[at].topic.iter().map(|partition| partition.records.len()).collect();
        let positions: Vec<usize> = reading.partitions.iter().map(Place::position).collect();
        let is_drained = is_idle && positions == ends;
        let is_over = is_drained || (reading.is_stopping && is_idle);
        if is_over || now >= reading.commit_at {
            reading.commit_at = now + COMMIT_MS;
            for (partition, position) in self.nodes[at].topic.iter_mut().zip(positions) {
                partition.committed = position;
            }
        }
        if !is_over {
            self.balancer.absent[at].reading = Some(reading);
            return;
        }
        self.give_lease_back(at, reading.id);
        tell!(self, "n{at}'s topic is {}", if is_drained { "drained" } else { "let go of" });
        let absent = &mut self.balancer.absent[at];
        absent.retry_at = now;
        absent.drained = ends;
        if reading.is_stopping {
            *absent = Absent::default();
        }
    }

    fn read_for(&mut self, at: usize, lane: usize, reading: &mut Reading, ring: &Arc<Ring>) {
        for _ in 0..READ_PER_STEP {
            let place = &mut reading.partitions[lane];
            let offset = place.next;
            let Some(parcel) = self.nodes[at].topic[lane].records.get(offset) else { return };
            tell!(self, "forwarder reads n{at} {lane}/{offset} from {}: {}", parcel.origin.node, name(&parcel.record));
            place.next += 1;
            match plan(parcel, lane, at, ring) {
                Plan::Send(parcel) => {
                    place.unfinished.insert(offset);
                    place.copies.insert(offset);
                    reading.sending.push_back((lane, offset, parcel));
                }
                Plan::Release(parcel) => {
                    place.unfinished.insert(offset);
                    place.claims.push_back((offset, parcel));
                }
                Plan::Drop => {}
            }
        }
    }

    fn forward_one(&mut self, reading: &mut Reading) -> bool {
        let Some((lane, offset, parcel)) = reading.sending.pop_front() else { return false };
        let to = index_of(&parcel.to);
        self.nodes[to].topic[lane].records.push(parcel);
        reading.confirmed.push_back((self.now + self.dice.up_to(30), lane, offset));
        true
    }
}

fn member(incarnation: u64) -> Member {
    Member { incarnation, url: None, zone: None, ring_version: None }
}
