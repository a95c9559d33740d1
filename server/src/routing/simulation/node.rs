//! What a shard's rim does for its core: the time, ticks, a topic to read, a store to ask, and whatever it leaves behind.

use std::sync::Arc;

use ring::NodeId;

use super::story::{brief, name, outcome};
use super::{LANES, NODES, RULES, STARTED_MS, UNFINISHED_MAX, World, node_id, tell};
use crate::bus::{Address, Arrived, Lane, Parcel, Record, RecordRef};
use crate::metrics::Counters;
use crate::routing::membership::Observer;
use crate::routing::{Dispatcher, Now};
use crate::shard::origin::{Origin, Sender};
use crate::shard::slab::Key;
use crate::store::{AnyStore, RemoteStore};

impl World {
    pub(super) fn step_node(&mut self, at: usize) {
        let now = self.now;
        if self.nodes[at].dispatcher.is_none() && self.nodes[at].restart_at.is_some_and(|time| time <= now) {
            self.start(at);
        }
        if self.nodes[at].dispatcher.is_none() || self.is_paused(at) {
            return;
        }
        let node = &mut self.nodes[at];
        let wall = (STARTED_MS + now).saturating_add_signed(node.skew_ms);
        node.wall_ms = node.wall_ms.max(wall);
        let time = Now { wall_ms: node.wall_ms, steady_ms: now - node.started_ms };
        let Some(dispatcher) = &mut node.dispatcher else { return };
        dispatcher.now = time;
        // The store answers, in order.
        while node.store_away_until <= now && node.answered.front().is_some_and(|(due, ..)| *due <= now) {
            let Some((_, ticket, _, answer)) = node.answered.pop_front() else { break };
            dispatcher.on_store(ticket, answer);
        }
        while node.produced.front().is_some_and(|(due, _)| *due <= now) {
            let Some((_, ticket)) = node.produced.pop_front() else { break };
            dispatcher.on_produced(ticket);
        }
        self.keep_alive(at);
        if self.nodes[at].is_reading && self.nodes[at].bus_away_until <= now {
            self.read_topic(at);
        }
        let node = &mut self.nodes[at];
        let Some(dispatcher) = &mut node.dispatcher else { return };
        let due: Vec<_> = node.hangups.iter().filter(|(due, ..)| *due <= now).copied().collect();
        node.hangups.retain(|(due, ..)| *due > now);
        for (_, session, slot) in due {
            if dispatcher.sessions().get(session).is_some_and(|session| session.connection() == slot) {
                dispatcher.log_out(session);
            }
        }
        if node.next_tick <= now {
            node.next_tick = now + 500;
            dispatcher.tick();
            // What a shard's sweep does.
            let sessions: Vec<Key> = (0..dispatcher.sessions().slots())
                .filter_map(|index| dispatcher.sessions().at(u32::try_from(index).unwrap()))
                .map(|(key, _)| key)
                .collect();
            for key in sessions {
                let right = dispatcher.right(key);
                dispatcher.with_session(key, |session, store, limits, answers, now_ms| {
                    if right.is_claimed && !session.is_detached() {
                        session.spill_overdue(store, limits, now_ms, answers);
                        session.read_on_if_room(store, limits, now_ms);
                    }
                });
            }
        }
    }

    fn start(&mut self, at: usize) {
        let now = self.now;
        let node = &mut self.nodes[at];
        node.restart_at = None;
        node.incarnation = now + 1;
        node.started_ms = now;
        node.next_tick = now;
        node.beat_at = 0;
        node.observer = Observer::default();
        (node.lease_until, node.is_reading, node.has_let_go) = (0, false, false);
        let me = Address { node: node_id(at), incarnation: node.incarnation, shard: 0 };
        let time = Now { wall_ms: node.wall_ms, steady_ms: 0 };
        let store = AnyStore::Remote(RemoteStore::default());
        let counters = Arc::new(Counters::default());
        node.dispatcher = Some(Dispatcher::new(me, RULES, store, node.ring.reader(), counters, time));
        tell!(self, "n{at} starts");
    }

    pub(super) fn is_paused(&self, at: usize) -> bool {
        self.nodes[at].paused_until > self.now
    }

    fn read_topic(&mut self, at: usize) {
        for lane in 0..=usize::from(LANES) {
            for _ in 0..4 {
                let node = &mut self.nodes[at];
                let partition = &mut node.topic[lane];
                if lane != 0 && partition.unfinished.len() >= UNFINISHED_MAX {
                    break;
                }
                let Some(parcel) = partition.records.get(partition.next) else { break };
                let offset = partition.next;
                partition.next += 1;
                partition.unfinished.insert(offset);
                let reference = RecordRef { partition: u16::try_from(lane).unwrap(), offset: offset as u64 };
                let (origin, record) = (parcel.origin.clone(), parcel.record.clone());
                if self.tells {
                    println!("{:>7} n{at} reads {lane}/{offset} from {}: {}", self.now, origin.node, name(&record));
                }
                if let Some(dispatcher) = &mut self.nodes[at].dispatcher {
                    dispatcher.on_record(Arrived { at: reference, origin, record });
                }
            }
        }
    }

    pub(super) fn execute_one(&mut self, at: usize) {
        let delay = self.dice.up_to(30);
        let now = self.now;
        let Some((ticket, request)) = self.nodes[at].requests.pop_front() else { return };
        let incarnation = self.nodes[at].incarnation;
        let answer = self.store.apply(&node_id(at), incarnation, &request, STARTED_MS + now);
        tell!(self, "n{at} store {} -> {}", brief(&request), outcome(&answer));
        self.nodes[at].answered.push_back((now + delay, ticket, request, answer));
    }

    pub(super) fn produce_one(&mut self, at: usize) {
        let delay = self.dice.up_to(30);
        let Some(parcel) = self.nodes[at].producing.pop_front() else { return };
        if let Some(ticket) = parcel.ticket {
            self.nodes[at].produced.push_back((self.now + delay, ticket));
        }
        let lane = match parcel.lane {
            Lane::Control => 0,
            Lane::Partition(lane) => usize::from(lane),
        };
        let to = index_of(&parcel.to);
        self.nodes[to].topic[lane].records.push(*parcel);
    }

    /// Takes what a node has left to do, and lets the store and the bus work.
    pub(super) fn settle(&mut self, at: usize) {
        if self.is_paused(at) {
            return;
        }
        loop {
            let Some(dispatcher) = &mut self.nodes[at].dispatcher else { return };
            let out = std::mem::take(&mut dispatcher.out);
            let mut answers = std::mem::take(&mut dispatcher.answers);
            let requests: Vec<_> = dispatcher.requests().unwrap().drain(..).collect();
            let is_nothing = out.parcels.is_empty()
                && out.finished.is_empty()
                && out.passed.is_empty()
                && out.welcomes.is_empty()
                && out.closes.is_empty()
                && out.refusals.is_empty()
                && answers.is_empty()
                && requests.is_empty();
            if is_nothing {
                break;
            }
            self.nodes[at].requests.extend(requests);
            self.nodes[at].producing.extend(out.parcels);
            let told: Vec<(Origin, String, bool)> = answers
                .iter()
                .map(|(origin, msg_id, _)| (origin, msg_id.to_owned(), true))
                .chain(out.refusals.iter().map(|(origin, msg_id, ..)| (*origin, msg_id.to_string(), false)))
                .collect();
            answers.clear();
            for (origin, msg_id, is_good) in told {
                match origin.sender() {
                    Sender::Record(record) => self.finish(at, record),
                    Sender::Session(_, key) => self.hear(at, key, &msg_id, is_good),
                    Sender::Nobody | Sender::Publisher(_) => {}
                }
            }
            for record in out.finished {
                self.finish(at, record);
            }
            for record in out.passed {
                let lane = usize::from(record.partition);
                if !self.nodes[at].topic[lane].unfinished.contains(&usize::try_from(record.offset).unwrap()) {
                    // It was read once more by somebody, since this node has let go of its topic.
                    self.finish(at, record);
                    continue;
                }
                let parcel = &self.nodes[at].topic[lane].records[usize::try_from(record.offset).unwrap()];
                let Record::Fence { id, .. } = parcel.record else { panic!("only fences pass") };
                let origin = parcel.origin.clone();
                let (shard, incarnation) = (origin.shard, origin.incarnation);
                let echo = Parcel {
                    to: origin.node,
                    // Behind whatever was sent back from ahead of it.
                    lane: Lane::Partition(record.partition),
                    origin: Address { node: node_id(at), incarnation: 0, shard: 0 },
                    record: Record::Fenced { id, shard, incarnation },
                    ticket: None,
                };
                self.nodes[at].producing.push_back(Box::new(echo));
                self.finish(at, record);
            }
            for (session, start) in out.welcomes {
                let tells = self.tells;
                let incarnation = self.nodes[at].incarnation;
                let now = self.now;
                for client in &mut self.clients {
                    if let Some(connection) = &mut client.connection
                        && connection.node == at
                        && connection.incarnation == incarnation
                        && connection.session == session
                    {
                        connection.is_welcomed = true;
                        if tells {
                            println!("{now:>7} n{at} welcomes {} at {start:?}", client.id.as_str());
                        }
                    }
                }
            }
            for (slot, reason) in out.closes {
                let index = self.clients.iter().position(|client| {
                    client
                        .connection
                        .as_ref()
                        .is_some_and(|connection| connection.node == at && connection.slot == slot)
                });
                if let Some(index) = index {
                    tell!(self, "n{at} closes c{index}: {reason:?}");
                    self.drop_connection(index);
                }
            }
        }
        let away = self.nodes[at].store_away_until > self.now;
        for _ in 0..8 {
            if !away {
                self.execute_one(at);
            }
            if self.nodes[at].bus_away_until <= self.now {
                self.produce_one(at);
            }
        }
    }

    fn finish(&mut self, at: usize, record: RecordRef) {
        let partition = &mut self.nodes[at].topic[usize::from(record.partition)];
        let offset = usize::try_from(record.offset).unwrap();
        let was_unfinished = partition.unfinished.remove(&offset);
        assert!(
            was_unfinished || self.nodes[at].has_let_go,
            "seed {}: record {record:?} of n{at} was finished twice",
            self.seed
        );
        let partition = &mut self.nodes[at].topic[usize::from(record.partition)];
        if was_unfinished {
            partition.committed = partition.unfinished.first().copied().unwrap_or(partition.next);
        }
    }
}

pub(super) fn index_of(node: &NodeId) -> usize {
    (0..NODES).find(|index| node_id(*index) == *node).expect("a node of this world")
}
