//! What clients say and hear: messages and their confirmations, each entered into the ledger.

use std::{io::Write as _, rc::Rc};

use super::{Alarm, Client, Fleet, peer_of};
use crate::{
    client::{Conversation, Message, Outbox},
    clock::{Nanos, nanos},
    envelope::{self, Advice, Incoming},
    ledger::Insert,
    payload::{Stamp, sequence_of},
    scenario::roaming::{
        inbox::Arrival,
        outgoing::{Setback, Writing},
    },
    tally::count,
};

/// A connection that does not take its messages queues this much; the rest waits with the client.
const OUTBOX_BYTES_MAX: usize = 1024 * 1024;

impl Fleet {
    /// Writes what the client has to say, if it has a connection.
    pub(super) fn write(&self, client: usize, now: Nanos) {
        let client_state = &mut *self.clients[client].borrow_mut();
        let Some(sender) = client_state.live.as_ref().map(|live| Rc::clone(&live.sender)) else {
            return;
        };
        if !sender.is_open() {
            return;
        }
        let has_written = {
            let outbox = &mut *sender.outbox();
            self.fill(client, client_state, outbox, now);
            outbox.queued_bytes() > 0
        };
        if has_written {
            sender.flush_soon();
        }
    }

    fn fill(&self, client: usize, client_state: &mut Client, outbox: &mut Outbox, now: Nanos) {
        if !client_state.is_silent
            && let Some(offset) = client_state.inbox.take_ack()
        {
            let text = &mut client_state.ack_text;
            text.clear();
            write!(text, r#"{{"type":"ack","offset":{offset}}}"#).expect("writing to a vector cannot fail");
            outbox.text(text);
        }
        let (sender, recipient) = (self.index_of(client), self.index_of(peer_of(client)));
        while outbox.queued_bytes() < OUTBOX_BYTES_MAX {
            let Some(Writing { sequence, due, late, is_repeated, is_displaced }) = client_state.outgoing.next(now)
            else {
                break;
            };
            let stamp = Stamp { sender, sequence, due, late };
            outbox.text(self.template.borrow_mut().compose(stamp, recipient));
            self.journeys.borrow_mut().resent += u64::from(is_repeated);
            if let Some(live) = &client_state.live {
                client_state.stints.note(sequence, live.number, &live.node, now);
            }
            if is_displaced {
                self.streams.borrow_mut()[client].displace(sequence);
            }
        }
    }

    /// A message arrived on the client's connection.
    pub(super) fn receive(&self, client: usize, message: Message<'_>, now: Nanos) {
        let client_state = &mut *self.clients[client].borrow_mut();
        let mut unescaped = std::mem::take(&mut client_state.unescaped);
        let (text, incoming) = match message {
            Message::Text(text) => (text, envelope::read(text, &mut unescaped)),
            Message::Binary(_) => ("", None),
        };
        match incoming {
            Some(Incoming {
                kind: "message",
                from: Some(from),
                msg_id: Some(msg_id),
                payload,
                offset: Some(offset),
                ..
            }) => match client_state.inbox.receive(from, msg_id, offset) {
                Arrival::New => self.account(client, client_state, payload, now),
                Arrival::Repeat => {
                    let journeys = &mut *self.journeys.borrow_mut();
                    journeys.repeats += 1;
                    journeys.timeline.record_repeat(now);
                }
                Arrival::Stale => {
                    let errors = &mut self.desk.tally.borrow_mut().error_replies;
                    count(errors, "new message at an offset that was handled");
                }
            },
            Some(Incoming { kind: "ack", msg_id, .. }) => self.confirm(client, client_state, msg_id, now),
            Some(Incoming { kind: "error", code, msg_id, .. }) => {
                self.note_error(client, client_state, code, msg_id, now);
            }
            Some(Incoming { kind: "reconnect", .. }) => {
                if let (Some(advice), Some(live)) = (Advice::read(text), &client_state.live)
                    && let Some(server) = self.advised_server(client_state, &advice.url)
                {
                    self.set_alarm(client, now + nanos(advice.after()), Alarm::Move(live.number, server));
                }
            }
            Some(Incoming { kind: "pong", .. }) => {}
            Some(_) | None => self.desk.tally.borrow_mut().ledger.corrupt += 1,
        }
        client_state.unescaped = unescaped;
    }

    /// Enters a delivery into the ledger.
    fn account(&self, client: usize, client_state: &mut Client, payload: Option<&str>, now: Nanos) {
        let peer = peer_of(client);
        let verified = payload.and_then(|payload| self.template.borrow().verify(payload.as_bytes()));
        let Some(Stamp { sender, sequence, due, late }) = verified else {
            self.desk.tally.borrow_mut().ledger.corrupt += 1;
            return;
        };
        if sender != self.index_of(peer) {
            self.desk.tally.borrow_mut().ledger.misdelivered += 1;
            return;
        }
        let insert = {
            let stream = &mut self.streams.borrow_mut()[peer];
            let (newest, reordered) = (stream.newest_received(), stream.reordered());
            let insert = stream.receive(sequence);
            if stream.reordered() > reordered {
                self.note_reordered(client, client_state, sequence, newest.unwrap_or_default(), now);
            }
            insert
        };
        if insert == Some(Insert::Newest) {
            client_state.newest_at = now;
        }
        match insert {
            None => self.desk.tally.borrow_mut().ledger.corrupt += 1,
            Some(Insert::Repeat) => {}
            Some(Insert::Newest | Insert::Behind) => {
                client_state.arrived += 1;
                self.departures.borrow_mut()[peer].take(sequence);
                self.desk.recorder.borrow_mut().record_latency(due, due + u64::from(late), now);
                let journeys = &mut *self.journeys.borrow_mut();
                journeys.timeline.record_arrival(due, now);
                let nodes = self.nodes.borrow();
                journeys.across += u64::from(nodes[client] != nodes[peer]);
                self.note_caught_up(client, client_state, journeys, now);
            }
        }
    }

    /// Message `sequence` of the client's peer came after its `newest`.
    fn note_reordered(&self, client: usize, client_state: &Client, sequence: u64, newest: u64, now: Nanos) {
        self.journeys.borrow_mut().note_disorder(|| {
            let peer = peer_of(client);
            let [from, to] = [peer, client].map(|client| self.run.client_id(self.index_of(client)));
            let [at, newest_at] = [now, client_state.newest_at].map(|at| self.seconds(at));
            let over = client_state.live.as_ref().map_or_else(String::new, |live| {
                format!("{}#{} (since {:.3} s)", live.node, live.number, self.seconds(live.welcomed_at))
            });
            let sender = self.clients[peer].borrow();
            let [written, newest_written] = [sequence, newest].map(|it| sender.stints.of(it, |at| self.seconds(at)));
            format!(
                "{from} to {to}: {sequence} arrived at {at:.3} s over {over}, after {newest} at {newest_at:.3} s; \
                 {sequence} was written over {written}, {newest} over {newest_written}"
            )
        });
    }

    /// The server confirmed one of the client's messages.
    fn confirm(&self, client: usize, client_state: &mut Client, msg_id: Option<&str>, now: Nanos) {
        let sequence = msg_id.and_then(|msg_id| sequence_of(msg_id.as_bytes(), self.index_of(client)));
        let confirm = |sequence| self.streams.borrow_mut()[client].accept(sequence);
        if sequence.and_then(confirm).is_none() {
            count(&mut self.desk.tally.borrow_mut().error_replies, "ack of a message never sent");
            return;
        }
        // One that was sent again may be answered again.
        if let Some(letter) = sequence.and_then(|sequence| client_state.outgoing.confirm(sequence)) {
            self.desk.recorder.borrow_mut().record_ack(letter.due, now);
        }
    }

    /// The server refused something.
    fn note_error(
        &self,
        client: usize,
        client_state: &mut Client,
        code: Option<&str>,
        msg_id: Option<&str>,
        now: Nanos,
    ) {
        let code = code.unwrap_or("without a code");
        count(&mut self.desk.tally.borrow_mut().error_replies, code);
        let Some(sequence) = msg_id.and_then(|msg_id| sequence_of(msg_id.as_bytes(), self.index_of(client))) else {
            return;
        };
        let setback = match code {
            "overloaded" | "rate_limited" => Setback::Refused,
            "unconfirmed" => Setback::Unknown,
            _ => {
                if client_state.outgoing.refuse(sequence).is_some() {
                    self.streams.borrow_mut()[client].refuse(sequence);
                    self.departures.borrow_mut()[client].take(sequence);
                }
                return;
            }
        };
        let again_at = client_state.outgoing.set_back(sequence, setback, now, &mut self.random.borrow_mut());
        self.set_alarm(client, again_at, Alarm::Write);
    }

    /// All messages of one read were received.
    pub(super) fn finish_read(&self, client: usize, now: Nanos, outbox: &mut Outbox) {
        let client_state = &mut *self.clients[client].borrow_mut();
        if let Some(live) = &mut client_state.live {
            live.heard_at = now;
            live.pinged_at = None;
        }
        let arrived = std::mem::take(&mut client_state.arrived);
        if arrived > 0 {
            self.desk.received.set(self.desk.received.get() + arrived);
            self.desk.recorder.borrow_mut().record_arrivals(arrived, now);
        }
        self.fill(client, client_state, outbox, now);
    }
}

/// What hears one connection of a client, for as long as it is the client's.
pub(super) struct Ear {
    pub(super) fleet: Rc<Fleet>,
    pub(super) client: usize,
    pub(super) number: u32,
}

impl Conversation for Ear {
    fn handle_message(&mut self, message: Message<'_>, now: Nanos, _outbox: &mut Outbox) {
        if self.fleet.is_live(self.client, self.number) {
            self.fleet.receive(self.client, message, now);
        }
    }

    fn handle_read_end(&mut self, now: Nanos, outbox: &mut Outbox) {
        if self.fleet.is_live(self.client, self.number) {
            self.fleet.finish_read(self.client, now, outbox);
        }
    }
}
