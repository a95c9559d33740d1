//! What comes from a socket: the upgrade request, then frames, each acted on as it is decoded.

use websocket::handshake::{Request, encode_response};
use websocket::{Event, Opcode, encode_frame};

use crate::protocol::{ClientId, ClientRequest, ErrorCode, Replies, escape, escape_found, parse};

use super::connection::{Active, Ending, Held, Purpose};
use super::delivery::SenderId;
use super::disconnect::Disconnect;
use super::handover::Handover;
use super::opening::{Opening, Refusal, open};
use super::slab::Key;
use super::state::State;

/// Confirmations that one session may wait for; beyond that its reading pauses.
pub const UNCONFIRMED_MAX: u16 = 256;
/// How long it pauses before further messages are refused.
const PAUSE_MAX: std::time::Duration = std::time::Duration::from_secs(2);
/// Bytes thrown away from a peer that goes on sending after its Close frame is out.
const LINGER_BYTES_MAX: usize = 1024 * 1024;

/// Whether input has been held back for as long as it may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    /// It may be held back.
    Fresh,
    /// It may not: a message that finds no room is refused.
    Spent,
}

impl State {
    /// Acts on `buf[start..]`, which came from this connection, and takes the buffer home.
    pub(super) fn take_input(&mut self, key: Key, mut buf: Vec<u8>, start: usize, patience: Patience) {
        // The connection's own things are out of the table while its input is acted on, so that what the input does to
        // other connections, or to this one's session, finds the table free.
        let Some(connection) = self.connections.get_mut(key) else { return self.pool.put(buf) };
        let purpose = connection.purpose;
        let Some(mut active) = connection.active.take() else { return self.pool.put(buf) };
        connection.is_in_hand = true;
        let mut end = Ok(buf.len());
        match active.ending {
            Ending::Lingering => {
                active.lingered_bytes += buf.len();
                if active.lingered_bytes > LINGER_BYTES_MAX {
                    active.ending = Ending::Flushing(Disconnect::PeerGone);
                }
            }
            Ending::Flushing(_) => {}
            Ending::None => {
                end = match purpose {
                    Purpose::Opening => {
                        self.take_request(key, &mut active, &buf);
                        Ok(buf.len())
                    }
                    Purpose::Echo => self.take_echo(&mut active, &mut buf, start),
                    Purpose::Session(session) => self.take_frames(session, &mut active, &mut buf, start, patience),
                };
            }
        }
        active.half_since =
            if active.decoder.is_between_messages() { None } else { active.half_since.or(Some(self.clock.tick)) };
        if let Ok(at) = end
            && at < buf.len()
        {
            active.held = Some(Held { buf, start: at, since: self.clock.tick });
            self.paused.push(key);
        } else {
            self.pool.put(buf);
        }
        if let Some(connection) = self.connections.get_mut(key) {
            connection.active = Some(active);
            connection.is_in_hand = false;
        }
        if let Err(reason) = end {
            self.close(key, reason);
        }
        self.settle_dispatch();
    }

    /// Acts on input that was held back, if nothing holds it back any more.
    pub(super) fn resume(&mut self, key: Key) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        let purpose = connection.purpose;
        let Some(active) = connection.active.as_deref_mut() else { return };
        let Some(held) = &active.held else { return };
        let since = held.since;
        let is_overdue = self.clock.tick.since(since) >= PAUSE_MAX;
        let Purpose::Session(session) = purpose else { return };
        if self.is_congested() || (self.must_pause(session) && !is_overdue) {
            self.paused.push(key);
            return;
        }
        let held = self.connections.get_mut(key).and_then(|connection| connection.active.as_deref_mut()?.held.take());
        if let Some(held) = held {
            let patience = if is_overdue { Patience::Spent } else { Patience::Fresh };
            self.take_input(key, held.buf, held.start, patience);
            let again =
                self.connections.get_mut(key).and_then(|connection| connection.active.as_deref_mut()?.held.as_mut());
            if let Some(again) = again {
                again.since = since;
            }
        }
    }

    fn must_pause(&self, session: Key) -> bool {
        self.dispatch.sessions().get(session).is_some_and(|session| session.unconfirmed() >= UNCONFIRMED_MAX)
    }

    fn take_echo(&mut self, active: &mut Active, buf: &mut [u8], start: usize) -> Result<usize, Disconnect> {
        let mut at = start;
        if active.replies.capacity() == 0 {
            active.replies = self.pool.take();
        }
        let mut echoed = 0;
        while at < buf.len() {
            let decoded = active.decoder.decode(&mut buf[at..]).map_err(Disconnect::Protocol)?;
            at += decoded.consumed;
            match decoded.event {
                None => break,
                Some(Event::Text(text)) => encode_frame(&mut active.replies, Opcode::Text, text.as_bytes()),
                Some(Event::Binary(bytes)) => encode_frame(&mut active.replies, Opcode::Binary, bytes),
                Some(Event::Ping(bytes)) => encode_frame(&mut active.replies, Opcode::Pong, bytes),
                Some(Event::Pong(_)) => continue,
                Some(Event::Close(frame)) => return Err(Disconnect::PeerClosed(frame.map(|frame| frame.code))),
            }
            echoed += 1;
        }
        self.counters.echoed.add(echoed);
        if active.replies.is_empty() {
            self.pool.put(std::mem::take(&mut active.replies));
        }
        Ok(buf.len())
    }

    pub(super) fn take_frames(
        &mut self,
        session: Key,
        active: &mut Active,
        buf: &mut [u8],
        start: usize,
        patience: Patience,
    ) -> Result<usize, Disconnect> {
        // Copied once for all that the buffer holds: the session must not stay borrowed.
        let mut id = std::mem::take(&mut self.sender_id);
        id.clear();
        id.push_str(self.dispatch.sessions().get(session).map_or("", |session| session.id().as_str()));
        let sender = SenderId { session, id: &id, escaped_id: &escape(&id) };
        let result = self.take_frames_of(sender, active, buf, start, patience);
        self.sender_id = id;
        result
    }

    fn take_frames_of(
        &mut self,
        sender: SenderId<'_>,
        active: &mut Active,
        buf: &mut [u8],
        start: usize,
        patience: Patience,
    ) -> Result<usize, Disconnect> {
        let mut at = start;
        let mut has_text = false;
        while at < buf.len() {
            if self.is_congested() || (patience == Patience::Fresh && self.must_pause(sender.session)) {
                return Ok(at);
            }
            let decoded = active.decoder.decode(&mut buf[at..]).map_err(Disconnect::Protocol)?;
            at += decoded.consumed;
            match decoded.event {
                None => break,
                Some(Event::Text(text)) => {
                    has_text = true;
                    self.take_text(sender, &mut active.replies, text);
                }
                Some(Event::Binary(_)) => return Err(Disconnect::Binary),
                Some(Event::Ping(bytes)) => encode_frame(&mut active.replies, Opcode::Pong, bytes),
                Some(Event::Pong(_)) => {}
                Some(Event::Close(frame)) => return Err(Disconnect::PeerClosed(frame.map(|frame| frame.code))),
            }
        }
        // A peer that only says that it is there has no more to say for a while: its task need not wait for it.
        active.must_park |= !has_text && active.decoder.is_between_messages();
        Ok(buf.len())
    }

    fn take_text(&mut self, sender: SenderId<'_>, replies: &mut Vec<u8>, text: &str) {
        let key = sender.session;
        match parse(text, self.settings.message_bytes_max) {
            Ok(ClientRequest::Message(message)) => self.send(sender, replies, &message),
            Ok(ClientRequest::AckOffset(offset)) => {
                self.dispatch.with_session(key, |session, store, limits, answers, now_ms| {
                    session.on_ack_offset(offset, store, now_ms, answers);
                    session.read_on_if_room(store, limits, now_ms);
                });
            }
            Ok(ClientRequest::AckMessage(msg_id)) => {
                self.dispatch.with_session(key, |session, store, limits, answers, now_ms| {
                    session.on_ack_message(&escape(&msg_id), store, now_ms, answers);
                    session.read_on_if_room(store, limits, now_ms);
                });
            }
            Ok(ClientRequest::Ping) => Replies::pong(replies),
            Err(refusal) => {
                let counter = match refusal.code {
                    ErrorCode::TooLarge => &self.counters.dropped_too_large,
                    _ => &self.counters.dropped_malformed,
                };
                counter.add(1);
                let msg_id = refusal.msg_id.as_ref().map(escape_found);
                Replies::error(replies, refusal.code, refusal.reason, msg_id.as_deref());
            }
        }
    }

    /// Reads on in the upgrade request, and acts on it once it is whole.
    fn take_request(&mut self, key: Key, active: &mut Active, bytes: &[u8]) {
        let limit = self.settings.request_bytes_max;
        // Nearly always the whole request comes at once: it is read where it lies.
        let gathered;
        let input = if active.request.is_empty() {
            bytes
        } else {
            active.request.extend_from_slice(bytes);
            gathered = std::mem::take(&mut active.request);
            &gathered
        };
        let refusal = match Request::parse(input) {
            Ok(None) if input.len() >= limit => Refusal::TooLong(limit),
            Ok(None) => {
                active.request = input.to_vec();
                return;
            }
            Ok(Some((_, consumed))) if consumed > limit => Refusal::TooLong(limit),
            Ok(Some((request, consumed))) => {
                let surplus = input.get(consumed..).unwrap_or_default();
                match self.open(key, active, &request, surplus) {
                    Ok(()) => return,
                    Err(refusal) => refusal,
                }
            }
            Err(error) => Refusal::Request(error),
        };
        self.refuse(active, refusal);
    }

    /// Answers a request that cannot have what it asks for, and ends the connection.
    pub(super) fn refuse(&self, active: &mut Active, refusal: Refusal) {
        refusal.counter(&self.counters).add(1);
        refusal.write_response(&mut active.replies);
        active.ending = Ending::Flushing(Disconnect::Handshake);
    }

    fn open(&mut self, key: Key, active: &mut Active, request: &Request<'_>, surplus: &[u8]) -> Result<(), Refusal> {
        let settings = std::sync::Arc::clone(&self.settings);
        match open(request, &settings.opening, &mut active.replies)? {
            Opening::Answered => active.ending = Ending::Flushing(Disconnect::Handshake),
            Opening::Echo => {
                self.check_admission(active).inspect_err(|_| active.replies.clear())?;
                self.set_purpose(key, Purpose::Echo);
                active.decoder = websocket::Decoder::new(websocket::Role::Server, settings.echo_bytes_max);
                // As after a login: the task stays only if there is more to do.
                active.must_park = true;
                let mut rest = surplus.to_vec();
                if let Err(reason) = self.take_echo(active, &mut rest, 0) {
                    end_with(active, reason);
                }
            }
            Opening::Login(login) => {
                self.check_admission(active)?;
                let client_id = match &login.client_id {
                    Some(id) => id.clone(),
                    None => self.assign_client_id(),
                };
                let hash = self.hash_of(client_id.as_str());
                if let Some(url) = self.elsewhere(hash) {
                    self.counters.redirected.add(1);
                    let location = format!("{}{}?{}", url.trim_end_matches('/'), request.path(), request.query());
                    let body = b"the client's node is elsewhere\n";
                    encode_response(&mut active.replies, 307, &[("Location", &location)], body);
                    active.ending = Ending::Flushing(Disconnect::Handshake);
                    return Ok(());
                }
                let home = self.home_of(hash);
                let handover =
                    Box::new(Handover { fd: None, login: *login, client_id, hash, surplus: surplus.to_vec() });
                if home == self.index {
                    self.log_in(key, active, *handover);
                } else if self.outgoing.get(home).is_some_and(|queue| queue.len() >= super::state::OUTGOING_MAX) {
                    return Err(Refusal::Mailbox);
                } else {
                    active.handover = Some(handover);
                }
            }
        }
        Ok(())
    }

    /// Whether this node takes another WebSocket now.
    pub(super) fn check_admission(&self, active: &Active) -> Result<(), Refusal> {
        if let Some(refusal) = active.refusal {
            return Err(refusal);
        }
        if self.drain.is_some() || self.is_stopping { Err(Refusal::Draining) } else { Ok(()) }
    }

    pub(super) fn set_purpose(&mut self, key: Key, purpose: Purpose) {
        if let Some(connection) = self.connections.get_mut(key) {
            connection.purpose = purpose;
        }
    }

    fn assign_client_id(&mut self) -> ClientId {
        let mut random = [0u8; 16];
        // Without randomness from the system ids are still unique on this node, only guessable.
        if getrandom::fill(&mut random).is_err() {
            self.names += 1;
            random[..8].copy_from_slice(&self.names.to_le_bytes());
            random[8..].copy_from_slice(&(self.clock.wall_ms ^ (self.index as u64) << 48).to_le_bytes());
        }
        let mut text = String::with_capacity(34);
        text.push_str("c-");
        for byte in random {
            text.push(char::from(b"0123456789abcdef"[usize::from(byte >> 4)]));
            text.push(char::from(b"0123456789abcdef"[usize::from(byte & 15)]));
        }
        ClientId::try_from(text.as_str()).expect("34 hexadecimal digits are a client id")
    }
}

/// Ends a connection whose belongings are out of the table.
pub(super) fn end_with(active: &mut Active, reason: Disconnect) {
    if let Some((code, text)) = reason.close() {
        websocket::encode_close(&mut active.replies, code, text);
    }
    active.ending = Ending::Flushing(reason);
}
