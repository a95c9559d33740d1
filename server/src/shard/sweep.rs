//! What happens with time: pings, deadlines, overdue acks, rest. A coarse round twice a second, a slice of it per tick, over
//! the connections that may be due: busy ones each time, an idle one when its silence has been long enough.

use std::time::Duration;

use websocket::{Opcode, encode_frame};

use super::clock::{TICK, Tick};
use super::connection::{Ending, Purpose};
use super::disconnect::Disconnect;
use super::slab::Key;
use super::state::State;

/// A round over all connections: how late a deadline may be noticed.
const ROUND: Duration = Duration::from_millis(500);
/// How long a busy connection lingers in its task after its last bytes.
const PARK_AFTER: Duration = Duration::from_millis(1500);
/// How long a closing socket may take to flush, or its peer to close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a quiet session remembers the names of its latest messages, in milliseconds.
const REMEMBER_MS: u64 = 120_000;
/// Replay buffers looked at in one tick.
const BUFFERS_PER_TICK: usize = 1_000;

impl State {
    /// One tick's share of a round.
    pub(super) fn sweep(&mut self) {
        let ticks = usize::try_from(ROUND.as_millis() / TICK.as_millis()).unwrap_or(1).max(1);
        let mut share = self.deadlines.slots().div_ceil(ticks);
        while let Some(index) = self.deadlines.next_due(&mut share, self.clock.tick) {
            let key = self.connections.at(index).map(|(key, _)| key);
            let next = key.map_or(Tick::NEVER, |key| {
                self.look_at(key);
                self.next_look(key)
            });
            self.deadlines.set(index, next);
        }
        if let Some(store) = self.dispatch.local_store() {
            self.counters.expired.add(store.expire(self.clock.wall_ms, BUFFERS_PER_TICK));
            self.counters.kept_messages.set(store.messages() as u64);
            self.counters.kept_bytes.set(store.bytes() as u64);
        }
        self.dispatch.tick();
        self.settle_dispatch();
    }

    /// When a connection must be looked at next, if nothing is heard of its peer until then. A busy one in each round.
    fn next_look(&self, key: Key) -> Tick {
        let now = self.clock.tick;
        let Some(connection) = self.connections.get(key) else { return Tick::NEVER };
        if connection.active.is_some() {
            return now;
        }
        let settings = &self.settings;
        let silence = match connection.purpose {
            Purpose::Opening => settings.handshake_timeout,
            _ if connection.is_pinged => settings.ping_interval + settings.pong_timeout,
            _ => settings.ping_interval,
        };
        let heard = connection.heard_at.after(silence);
        let Purpose::Session(session) = connection.purpose else { return heard };
        let rests_in =
            self.dispatch.sessions().get(session).and_then(|session| session.rests_in(REMEMBER_MS, self.clock.wall_ms));
        rests_in.map_or(heard, |millis| heard.min(now.after(Duration::from_millis(millis))))
    }

    fn look_at(&mut self, key: Key) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        let silent = self.clock.tick.since(connection.heard_at);
        if let Some(active) = connection.active.as_deref_mut() {
            if active.ending != Ending::None {
                if silent >= CLOSE_TIMEOUT {
                    self.abort(key);
                }
                return;
            }
            if active.half_since.is_some_and(|since| self.clock.tick.since(since) >= self.settings.message_timeout) {
                return self.close(key, Disconnect::MessageTimeout);
            }
            if active.has_task && silent >= PARK_AFTER && !active.must_park {
                active.must_park = true;
                active.wake();
            }
        }
        match connection.purpose {
            Purpose::Opening => {
                if silent >= self.settings.handshake_timeout {
                    self.counters.refused_deadline.add(1);
                    self.close(key, Disconnect::Handshake);
                }
            }
            Purpose::Echo => self.keep_alive(key, silent),
            Purpose::Session(session) => {
                self.sweep_session(key, session);
                self.keep_alive(key, silent);
            }
        }
    }

    fn sweep_session(&mut self, connection: Key, key: Key) {
        let stall_ms = u64::try_from(self.settings.stall_timeout.as_millis()).unwrap_or(u64::MAX);
        let right = self.dispatch.right(key);
        let swept = self.dispatch.with_session(key, |session, store, limits, answers, now_ms| {
            session.rest(REMEMBER_MS, now_ms);
            if session.receiver_acks() && right.is_claimed {
                session.spill_overdue(store, limits, now_ms, answers);
            }
            let has_more = right.is_claimed && session.read_on_if_room(store, limits, now_ms);
            (has_more, session.is_stuck(limits, stall_ms, now_ms))
        });
        match swept {
            Some((_, true)) => self.close(connection, Disconnect::SlowConsumer),
            Some((true, false)) => self.wake(connection),
            _ => {}
        }
    }

    /// Its task ends when what is to be written is written.
    fn park_soon(&mut self, key: Key) {
        if let Some(active) = self.connections.get_mut(key).and_then(|connection| connection.active.as_deref_mut()) {
            active.must_park = true;
        }
    }

    fn keep_alive(&mut self, key: Key, silent: Duration) {
        if silent < self.settings.ping_interval {
            return;
        }
        let Some(connection) = self.connections.get_mut(key) else { return };
        if !connection.is_pinged {
            connection.is_pinged = true;
            self.reply(key, |replies| encode_frame(replies, Opcode::Ping, b""));
            self.park_soon(key);
        } else if silent >= self.settings.ping_interval + self.settings.pong_timeout {
            self.close(key, Disconnect::NoPong);
        }
    }
}
