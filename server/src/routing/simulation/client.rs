//! What the clients do: connect anywhere, send and send again, read, fall silent, give up. They keep the protocol, and
//! check what any client can see: its own messages only, under offsets that rise.

use sonic_rs::JsonValueTrait;
use websocket::{Decoder, Event, Role};

use super::{Connection, World, client_id, tell};
use crate::protocol::{Envelope, PayloadField};
use crate::routing::{Arrival, Login};
use crate::shard::origin::Origin;
use crate::shard::recent::identity;
use crate::shard::session::{Inbound, Newcomer, Wishes};
use crate::shard::slab::Key;

/// So many clients wait for a node that is silent.
const PATIENT_CLIENTS: usize = 2;

impl World {
    pub(super) fn step_client(&mut self, index: usize, is_troubled: bool) {
        let now = self.now;
        if self.clients[index].connection.is_none() {
            if self.clients[index].connect_at <= now {
                self.connect(index);
            }
            return;
        }
        let Some(connection) = &mut self.clients[index].connection else { return };
        let (at, session) = (connection.node, connection.session);
        if self.nodes[at].paused_until > now {
            let since = *connection.stalled_since.get_or_insert(now);
            // The client's own patience: a ping that is not answered. Some have a lot of it.
            let patience = if self.kind.has_balancer() && index < PATIENT_CLIENTS { 20_000 } else { 3_000 };
            if now - since > patience && self.dice.one_in(20) {
                tell!(self, "c{index} gives n{at} up");
                self.cut(index);
            }
            return;
        }
        connection.stalled_since = None;
        if !connection.is_welcomed {
            if now - connection.opened_at > 25_000 {
                self.cut(index);
            }
            return;
        }
        self.read_and_ack(index, at, session, is_troubled);
        if self.clients[index].connection.is_some() {
            self.send_due(index, at, session);
        }
    }

    fn connect(&mut self, index: usize) {
        let at = self.dice.below(self.kind.nodes());
        let now = self.now;
        if self.nodes[at].dispatcher.is_none() || self.is_paused(at) {
            self.clients[index].connect_at = now + 300;
            return;
        }
        self.next_slot += 1;
        let slot = self.next_slot;
        let client = &self.clients[index];
        let id = client.id.clone();
        let wishes = Wishes { acks: true, receiver_acks: true, resume_offset: Some(client.position) };
        let node = &mut self.nodes[at];
        let Some(dispatcher) = &mut node.dispatcher else { return };
        let hash = dispatcher.hash_of(id.as_str());
        if let Some(older) = dispatcher.find_session(hash, id.as_str()) {
            dispatcher.log_out(older);
        }
        let newcomer = Newcomer { id, hash, connection: Key { index: slot, life: 0 }, wishes };
        let Login::Waits(session) = dispatcher.log_in(newcomer) else { panic!("not a node that runs alone") };
        tell!(self, "c{index} connects to n{at} from {}", self.clients[index].position);
        self.clients[index].connection = Some(Connection {
            node: at,
            incarnation: self.nodes[at].incarnation,
            session,
            slot,
            is_welcomed: false,
            opened_at: now,
            stalled_since: None,
            in_flight: Vec::new(),
        });
    }

    fn send_due(&mut self, index: usize, at: usize, session: Key) {
        let now = self.now;
        let due: Vec<(usize, u64)> = self.clients[index]
            .sent
            .iter()
            .filter(|(_, message)| message.accepted.is_none() && !message.is_under_way && message.retry_at <= now)
            .map(|(key, _)| *key)
            .take(8)
            .collect();
        for (to, number) in due {
            let msg_id = format!("c{index}-c{to}-{number}");
            let Some(message) = self.clients[index].sent.get_mut(&(to, number)) else { continue };
            let given_to = (at, self.nodes[at].incarnation);
            message.is_clean = message.first_sent == 0;
            if message.first_sent == 0 {
                message.first_sent = now;
                message.given_to = Some(given_to);
            } else if message.given_to != Some(given_to) {
                message.given_to = None;
            }
            message.is_under_way = true;
            tell!(self, "c{index} sends {msg_id} at n{at}");
            let node = &mut self.nodes[at];
            let wall_ms = node.wall_ms;
            let Some(dispatcher) = &mut node.dispatcher else { return };
            let (from, recipient) = (client_id(index), client_id(to));
            let sender = dispatcher.hash_of(from.as_str());
            let hash = dispatcher.hash_of(recipient.as_str());
            let login = dispatcher.came_with(session);
            if let Some(session) = dispatcher.session_mut(session) {
                session.expect_ack();
            }
            let inbound = Inbound {
                envelope: Envelope {
                    msg_id: &msg_id,
                    from: from.as_str(),
                    to: recipient.as_str(),
                    field: PayloadField::Payload,
                    payload: "\"some text to give it a length\"",
                    ts_ms: wall_ms,
                },
                origin: Origin::session(0, session),
                wants_ack: true,
                sender,
                identity: identity(sender, &msg_id),
                expires_ms: dispatcher.expiry(wall_ms, None),
            };
            let outcome = dispatcher.deliver(&Arrival {
                inbound,
                msg_id: &msg_id,
                from: from.as_str(),
                to: recipient.as_str(),
                hash,
                hops: 0,
                trail: &[],
                login,
            });
            if let Some(outcome) = outcome {
                self.hear(at, session, &msg_id, outcome.is_ok());
            }
        }
    }

    /// A sender hears what became of its message.
    pub(super) fn hear(&mut self, at: usize, session: Key, msg_id: &str, is_good: bool) {
        let now = self.now;
        let incarnation = self.nodes[at].incarnation;
        if let Some(dispatcher) = &mut self.nodes[at].dispatcher
            && let Some(session) = dispatcher.session_mut(session)
        {
            session.count_ack();
        }
        let later = now + 200 + self.dice.up_to(800);
        let (sender, to, number) = parse_name(msg_id);
        let client = &mut self.clients[sender];
        let is_here = client.connection.as_ref().is_some_and(|connection| {
            connection.node == at && connection.incarnation == incarnation && connection.session == session
        });
        let Some(message) = client.sent.get_mut(&(to, number)).filter(|_| is_here) else { return };
        message.is_under_way = false;
        if is_good {
            message.accepted.get_or_insert(now);
        } else {
            message.is_clean = false;
            message.was_refused = true;
            message.retry_at = later;
        }
        tell!(self, "{msg_id} {}", if is_good { "accepted" } else { "refused" });
    }

    fn read_and_ack(&mut self, index: usize, at: usize, session: Key, is_troubled: bool) {
        let mut bytes = Vec::new();
        let is_cut = is_troubled && self.dice.one_in(300);
        let Some(dispatcher) = &mut self.nodes[at].dispatcher else { return };
        let Some(there) = dispatcher.session_mut(session) else { return };
        if there.has_unsent() {
            there.take_unsent(&mut bytes, 2_000);
        }
        if !is_cut {
            dispatcher.with_session(session, |session, store, limits, answers, now_ms| {
                session.on_written(store, now_ms, answers, |_| ());
                session.read_on_if_room(store, limits, now_ms);
            });
        }
        if let Some(connection) = &mut self.clients[index].connection {
            connection.in_flight = bytes;
        }
        self.client_reads(index);
        if is_cut {
            return self.cut(index);
        }
        let must_ack =
            self.clients[index].has_unacked && self.clients[index].silent_until <= self.now && self.dice.one_in(3);
        if must_ack {
            let position = self.clients[index].position;
            self.clients[index].has_unacked = false;
            let Some(dispatcher) = &mut self.nodes[at].dispatcher else { return };
            dispatcher.with_session(session, |session, store, limits, answers, now_ms| {
                session.on_ack_offset(position, store, now_ms, answers);
                session.read_on_if_room(store, limits, now_ms);
            });
        }
    }

    fn client_reads(&mut self, index: usize) {
        let mut decoder = Decoder::new(Role::Client, 100_000);
        let Some(connection) = &mut self.clients[index].connection else { return };
        let mut bytes = std::mem::take(&mut connection.in_flight);
        let mut start = 0;
        while start < bytes.len() {
            let frame = decoder.decode(&mut bytes[start..]).unwrap();
            start += frame.consumed;
            let Some(Event::Text(text)) = frame.event else { break };
            let value: sonic_rs::Value = sonic_rs::from_str(text).unwrap();
            let offset = value["offset"].as_u64().unwrap();
            let msg_id = value["msgId"].as_str().unwrap();
            let (sender, to, number) = parse_name(msg_id);
            let seed = self.seed;
            assert_eq!(to, index, "seed {seed}: {msg_id} came to c{index}");
            let client = &mut self.clients[index];
            assert!(offset > client.position, "seed {seed}: c{index} got offset {offset} after {}", client.position);
            client.position = offset;
            client.has_unacked = true;
            let received = client.received.entry(sender).or_default();
            if received.contains(&number) {
                client.repeats += 1;
                tell!(self, "c{index} gets {msg_id} again");
                continue;
            }
            received.push(number);
            self.deliveries += 1;
            let order = self.deliveries;
            tell!(self, "c{index} gets {msg_id} at {offset}");
            let now = self.now;
            if let Some(message) = self.clients[sender].sent.get_mut(&(to, number)) {
                message.delivered = Some(order);
                message.delivered_at = now;
            }
        }
    }

    /// A client's connection ends; its node hears of it later, if at all.
    pub(super) fn cut(&mut self, client: usize) {
        let later = self.now + self.dice.up_to(3_000);
        if let Some(connection) = &self.clients[client].connection {
            let node = &mut self.nodes[connection.node];
            if node.incarnation == connection.incarnation {
                node.hangups.push((later, connection.session, connection.slot));
            }
        }
        self.drop_connection(client);
    }

    pub(super) fn drop_connection(&mut self, client: usize) {
        let wait = self.dice.up_to(1_500);
        let now = self.now;
        let client = &mut self.clients[client];
        client.connection = None;
        client.connect_at = now + wait;
        client.has_unacked = false;
        for message in client.sent.values_mut().filter(|message| message.is_under_way) {
            message.is_under_way = false;
            message.is_clean = false;
            message.retry_at = now;
        }
    }
}

fn parse_name(msg_id: &str) -> (usize, usize, u64) {
    let mut parts = msg_id.split('-');
    let mut index = || parts.next().and_then(|part| part.trim_start_matches('c').parse().ok()).unwrap();
    let (sender, to) = (index(), index());
    (sender, to, index() as u64)
}
