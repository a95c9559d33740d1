//! All that one shard knows: its connections, its sessions, its store. Everything here runs on the shard's thread and
//! never waits; what must happen outside is left behind for the rim: tasks to start, mail to send.

use std::collections::VecDeque;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Waker;
use std::time::Duration;

use ring::NodeId;

use crate::bus::Bus;
use crate::cluster::Links;
use crate::metrics::Counters;
use crate::protocol::ClientId;
use crate::publish::PublishAnswers;
use crate::routing::Dispatcher;
use crate::store::StoreLimits;

use super::buffers::Pool;
use super::clock::Clock;
use super::connection::{Active, Connection, Ending, Purpose, Step};
use super::deadlines::Deadlines;
use super::disconnect::Disconnect;
use super::drain::Drain;
use super::handover::{ClientView, Mail};
use super::input::Patience;
use super::mailbox;
use super::opening::OpeningRules;
use super::relocate::Moves;
use super::session::{Session, SessionLimits};
use super::slab::{Key, Slab};

/// Replies that may wait for a peer that does not read; beyond that the node does not read from it either.
const REPLY_BYTES_MAX: usize = 64 * 1024;
/// A write takes more frames until it has this many bytes.
const WRITE_BYTES_MAX: usize = 64 * 1024;
/// Mail that may wait for another shard whose mailbox is full; beyond that the sources pause.
pub(super) const OUTGOING_MAX: usize = 4096;

/// What a shard is told at its start.
#[derive(Clone)]
pub struct Settings {
    /// This node.
    pub node_id: NodeId,
    /// How requests are judged.
    pub opening: OpeningRules,
    /// The longest payload, in bytes.
    pub message_bytes_max: usize,
    /// The longest frame or message of the echo, in bytes.
    pub echo_bytes_max: usize,
    /// The longest upgrade request, in bytes.
    pub request_bytes_max: usize,
    /// How long a request may take.
    pub handshake_timeout: Duration,
    /// How long a peer may be silent before it is pinged.
    pub ping_interval: Duration,
    /// How long it may then take to answer.
    pub pong_timeout: Duration,
    /// How long a message may take from its first byte to its last.
    pub message_timeout: Duration,
    /// How long an outbox may stand at its limit without moving.
    pub stall_timeout: Duration,
    /// What a session is held to.
    pub session: SessionLimits,
    /// Age limit of messages that name no shorter one, in milliseconds.
    pub message_ttl_ms: u64,
    /// What this shard's store is held to.
    pub store: StoreLimits,
    /// The most connections of the whole node.
    pub connections_max: usize,
    /// The most new connections of this shard in a second.
    pub accepts_per_second: u32,
    /// A client whose owner is elsewhere is redirected, not taken and advised.
    pub redirects: bool,
    /// The most clients that this shard advises to move in a second.
    pub moves_per_second: u32,
    /// How long a login waits for the store before it goes on without.
    pub claim_wait: Duration,
    /// How long it waits for the former holder of its client.
    pub takeover_wait: Duration,
    /// Partitions for clients in each node's topic.
    pub lanes: u16,
}

/// What the shards of a node share: only counts that are compared, never state.
#[derive(Debug, Default)]
pub struct Shared {
    /// Open connections of all shards.
    pub connections: AtomicUsize,
}

/// Everything a shard knows.
pub(super) struct State {
    pub index: usize,
    pub shards: NonZeroUsize,
    pub settings: Arc<Settings>,
    pub shared: Arc<Shared>,
    pub counters: Arc<Counters>,
    pub clock: Clock,
    pub pool: Pool,
    pub connections: Slab<Connection>,
    pub dispatch: Dispatcher,
    pub links: Option<Links>,
    pub end_by: Option<super::clock::Tick>,
    pub moves: Moves,
    pub publishers: PublishAnswers,
    pub drain: Option<Drain>,
    pub is_stopping: bool,
    pub mailboxes: Vec<mailbox::Sender<Mail>>,
    pub outgoing: Vec<VecDeque<Mail>>,
    // Parked connections that need a task.
    pub to_start: Vec<Key>,
    // Connections that hold input back until something else has moved.
    pub paused: Vec<Key>,
    pub accept_allowance: f64,
    pub deadlines: Deadlines,
    pub ticks: u64,
    pub names: u64,
    // Room for the id of whoever sends, reused.
    pub sender_id: String,
}

impl State {
    /// Hands over what is for the bus and the store, until one is full; the rest waits for the next turn.
    pub fn send_on(&mut self) {
        let Some(links) = &self.links else { return };
        let out = &mut self.dispatch.out;
        if !out.finished.is_empty() {
            links.bus.finish(&out.finished);
            out.finished.clear();
        }
        for fence in out.passed.drain(..) {
            links.bus.pass(fence);
        }
        while let Some(parcel) = out.parcels.pop_front() {
            if let Err(parcel) = links.bus.publish(parcel) {
                out.parcels.push_front(parcel);
                break;
            }
        }
        let shard = self.dispatch.me.shard;
        let Some(requests) = self.dispatch.requests() else { return };
        while let Some((ticket, request)) = requests.pop_front() {
            if let Err(request) = links.store.post(shard, ticket, request) {
                requests.push_front((ticket, request));
                break;
            }
        }
    }

    /// Once a second: who is alive.
    pub fn look_around(&mut self) {
        if let Some(links) = &self.links {
            let membership = links.membership.load();
            if membership.is_known() {
                let live = membership.iter().map(|(node, _)| node.clone()).collect();
                self.dispatch.note_live(live);
            }
        }
    }

    /// Begins a turn.
    pub fn refresh_clock(&mut self) {
        self.clock.refresh();
        self.dispatch.now = self.clock.now();
    }

    /// Puts a fresh connection into the table; the caller registers it with the poller and starts its task.
    pub fn add_connection(&mut self, purpose: Purpose, message_bytes_max: usize) -> Key {
        let mut active = Box::new(Active::new(message_bytes_max));
        active.has_task = true;
        self.shared.connections.fetch_add(1, Ordering::Relaxed);
        let connection = Connection {
            fd: None,
            is_in_hand: false,
            heard_at: self.clock.tick,
            is_pinged: false,
            purpose,
            active: Some(active),
        };
        let key = self.connections.insert(connection);
        self.deadlines.set(key.index, self.clock.tick);
        self.counters.connections.set(self.connections.len() as u64);
        key
    }

    /// The poller says that something changed.
    pub fn on_ready(&mut self, key: Key, is_readable: bool, is_hung_up: bool, is_writable: bool) {
        let limit = self.frame_bytes_max(key);
        let Some(connection) = self.connections.get_mut(key) else { return };
        // Every socket is writable when it is added: only who waits for it cares.
        if !is_readable && !is_hung_up && !connection.active.as_ref().is_some_and(|active| active.is_blocked) {
            return;
        }
        let active = activate(&mut connection.active, limit, || self.deadlines.hasten(key.index, self.clock.tick));
        active.is_readable |= is_readable || is_hung_up;
        active.is_hung_up |= is_hung_up;
        if is_writable || is_hung_up {
            active.is_blocked = false;
        }
        self.wake(key);
    }

    /// Makes sure a task looks at this connection.
    pub fn wake(&mut self, key: Key) {
        let limit = self.frame_bytes_max(key);
        let Some(connection) = self.connections.get_mut(key) else { return };
        if connection.is_in_hand {
            // Its task is at work on its input this very moment, and looks again after.
            return;
        }
        let active = activate(&mut connection.active, limit, || self.deadlines.hasten(key.index, self.clock.tick));
        if active.has_task {
            active.wake();
        } else {
            active.has_task = true;
            self.to_start.push(key);
        }
    }

    fn frame_bytes_max(&self, key: Key) -> usize {
        match self.connections.get(key).map(|connection| connection.purpose) {
            Some(Purpose::Echo) => self.settings.echo_bytes_max,
            // The envelope around the payload: a payload over its limit is told so, and the connection lives on.
            _ => self.settings.message_bytes_max.saturating_mul(2),
        }
    }

    /// The socket of a parked connection, for its new task.
    pub fn take_fd(&mut self, key: Key) -> Option<OwnedFd> {
        self.connections.get_mut(key)?.fd.take()
    }

    /// What the connection's task does next; none when it should wait for a wake.
    pub fn next_step(&mut self, key: Key, waker: &Waker) -> Option<Step> {
        self.resume(key);
        let Some(connection) = self.connections.get_mut(key) else { return Some(Step::Close) };
        let Some(active) = connection.active.as_deref_mut() else { return Some(Step::Close) };
        let session = match connection.purpose {
            Purpose::Session(key) => self.dispatch.session_mut(key),
            _ => None,
        };
        if !active.is_blocked {
            if !active.unsent.is_empty() {
                return Some(Step::Write(std::mem::take(&mut active.unsent), active.unsent_start));
            }
            let mut out = std::mem::take(&mut active.replies);
            if let Some(session) = session.filter(|session| session.has_unsent()) {
                if out.capacity() == 0 {
                    out = self.pool.take();
                }
                session.take_unsent(&mut out, WRITE_BYTES_MAX);
            }
            if !out.is_empty() {
                return Some(Step::Write(out, 0));
            }
            if let Ending::Flushing(reason) = active.ending {
                if reason.is_final() {
                    return Some(Step::Close);
                }
                active.ending = Ending::Lingering;
                return Some(Step::ShutDown);
            }
            if active.handover.is_some() {
                return Some(Step::HandOver);
            }
        }
        let wants_input = match active.ending {
            Ending::None => active.held.is_none() && active.replies.len() < REPLY_BYTES_MAX,
            Ending::Flushing(_) => false,
            Ending::Lingering => true,
        };
        // The echo writes before it reads on: its peer's pace is its own.
        let is_echo_blocked = active.is_blocked && connection.purpose == Purpose::Echo;
        if active.is_readable && wants_input && !is_echo_blocked {
            let buf = if active.reads_large { self.pool.take_large() } else { self.pool.take() };
            return Some(Step::Read(buf));
        }
        if active.must_park {
            active.must_park = false;
            if active.unsent.is_empty() && !active.is_readable && active.handover.is_none() {
                return Some(Step::Park);
            }
        }
        match &mut active.waker {
            Some(known) if known.will_wake(waker) => {}
            slot => *slot = Some(waker.clone()),
        }
        None
    }

    /// The task ends; the socket waits in the poller.
    pub fn park(&mut self, key: Key, fd: OwnedFd) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        connection.fd = Some(fd);
        if let Some(active) = &mut connection.active {
            active.has_task = false;
            active.waker = None;
            if active.is_spent() {
                connection.active = None;
            }
        }
    }

    /// True for a request to a node of several: its client may be with another one by now.
    pub fn may_be_late(&self, key: Key) -> bool {
        self.links.is_some()
            && self.connections.get(key).is_some_and(|connection| connection.purpose == Purpose::Opening)
    }

    /// The peer of a connection has gone before it was answered.
    pub fn give_up(&mut self, key: Key, buf: Vec<u8>) {
        self.pool.put(buf);
        self.close(key, Disconnect::PeerGone);
    }

    /// A read has completed.
    pub fn on_read(&mut self, key: Key, result: io::Result<usize>, buf: Vec<u8>) {
        let Some(connection) = self.connections.get_mut(key) else { return self.pool.put(buf) };
        let Some(active) = connection.active.as_deref_mut() else { return self.pool.put(buf) };
        let count = match result {
            Ok(0) => {
                active.is_readable = false;
                self.pool.put(buf);
                return self.close(key, Disconnect::PeerGone);
            }
            Ok(count) => count,
            Err(error) if is_transient(&error) => {
                active.is_readable = active.is_hung_up && error.kind() != io::ErrorKind::WouldBlock;
                return self.pool.put(buf);
            }
            Err(_) => {
                active.is_readable = false;
                self.pool.put(buf);
                return self.close(key, Disconnect::Io);
            }
        };
        // A short read has emptied the socket; the poller tells when there is more.
        let is_full = count == buf.capacity();
        active.is_readable = is_full || active.is_hung_up;
        active.reads_large = is_full;
        connection.heard_at = self.clock.tick;
        connection.is_pinged = false;
        self.counters.bytes_in.add(count as u64);
        self.take_input(key, buf, 0, Patience::Fresh);
    }

    /// A write has completed.
    pub fn on_written(&mut self, key: Key, result: io::Result<usize>, buf: Vec<u8>, start: usize) {
        let Some(connection) = self.connections.get_mut(key) else { return self.pool.put(buf) };
        let Some(active) = connection.active.as_deref_mut() else { return self.pool.put(buf) };
        let count = match result {
            Ok(count) => count,
            Err(error) if is_transient(&error) => 0,
            Err(_) => {
                self.pool.put(buf);
                return self.close(key, Disconnect::Io);
            }
        };
        self.counters.bytes_out.add(count as u64);
        let end = start + count;
        if end < buf.len() {
            active.is_blocked = true;
            active.unsent = buf;
            active.unsent_start = end;
            return;
        }
        self.pool.put(buf);
        if let Purpose::Session(session) = connection.purpose {
            self.on_session_written(session);
        }
    }

    /// Begins the end of a connection: a Close frame where one is due, then the socket.
    pub fn close(&mut self, key: Key, reason: Disconnect) {
        self.log_out(key);
        let Some(connection) = self.connections.get_mut(key) else { return };
        let limit = self.settings.message_bytes_max;
        let active = activate(&mut connection.active, limit, || self.deadlines.hasten(key.index, self.clock.tick));
        if active.ending == Ending::None {
            reason.counter(&self.counters).add(1);
            connection.heard_at = self.clock.tick;
            if let Some((code, text)) = reason.close() {
                websocket::encode_close(&mut active.replies, code, text);
            }
        }
        if let Some(held) = active.held.take() {
            self.pool.put(held.buf);
        }
        if reason.is_final() && !matches!(reason, Disconnect::PeerClosed(_)) {
            // Nobody is left to read it.
            active.replies = Vec::new();
            active.unsent = Vec::new();
            active.is_blocked = false;
        }
        active.ending = Ending::Flushing(reason);
        self.wake(key);
    }

    /// Ends a connection that has had its time: what is still to be written is not.
    pub fn abort(&mut self, key: Key) {
        if let Some(active) = self.connections.get_mut(key).and_then(|connection| connection.active.as_deref_mut()) {
            active.replies = Vec::new();
            active.unsent = Vec::new();
            active.is_blocked = false;
            active.ending = Ending::Flushing(Disconnect::PeerGone);
        }
        self.wake(key);
    }

    /// The socket is closed: drops the record.
    pub fn forget(&mut self, key: Key) {
        self.log_out(key);
        if self.connections.remove(key).is_some() {
            self.shared.connections.fetch_sub(1, Ordering::Relaxed);
            self.counters.connections.set(self.connections.len() as u64);
        }
    }

    /// The connection that carries a session. It outlives the session: its index is enough to name it.
    pub fn connection_of(&self, session: Key) -> Option<Key> {
        let index = self.dispatch.sessions().get(session)?.connection();
        self.connections.at(index).map(|(key, _)| key)
    }

    /// Which shard is the home of a client on this node.
    pub fn home_of(&self, hash: u64) -> usize {
        ring::shard_of(hash, self.shards)
    }

    /// Sends mail to another shard, behind what already waits for it.
    pub fn post(&mut self, shard: usize, mail: Mail) {
        let (Some(queue), Some(mailbox)) = (self.outgoing.get_mut(shard), self.mailboxes.get(shard)) else { return };
        if !queue.is_empty() {
            queue.push_back(mail);
        } else if let Err(back) = mailbox.post(mail) {
            self.counters.mailbox_full.add(1);
            queue.push_back(back);
        }
    }

    /// Sends what waits for room in other shards' mailboxes.
    pub fn post_waiting(&mut self) {
        for (queue, mailbox) in self.outgoing.iter_mut().zip(&self.mailboxes) {
            while let Some(mail) = queue.pop_front() {
                if let Err(back) = mailbox.post(mail) {
                    queue.push_front(back);
                    break;
                }
            }
        }
    }

    /// True when a shard is so far behind that nothing more should be read for it.
    pub fn is_congested(&self) -> bool {
        self.outgoing.iter().any(|queue| queue.len() >= OUTGOING_MAX) || self.dispatch.is_congested()
    }

    /// What this shard knows of a client.
    pub fn look(&mut self, client: &ClientId, hash: u64) -> ClientView {
        let kept_messages = self.dispatch.local_store().map_or(0, |store| store.messages_of(client.as_str()));
        let key = self.dispatch.find_session(hash, client.as_str());
        let session = key.and_then(|key| self.dispatch.sessions().get(key));
        let Some(session) = session else { return ClientView { kept_messages, ..ClientView::default() } };
        let (outbox_messages, outbox_bytes) = session.outbox_size();
        ClientView {
            is_connected: true,
            last_offset: session.last_offset(),
            outbox_messages,
            outbox_bytes,
            kept_messages,
            receiver_acks: session.receiver_acks(),
        }
    }
}

/// What a connection needs while it is busy; `hasten` is called for one that was idle.
fn activate(active: &mut Option<Box<Active>>, frame_bytes_max: usize, hasten: impl FnOnce()) -> &mut Active {
    active.get_or_insert_with(|| {
        hasten();
        Box::new(Active::new(frame_bytes_max))
    })
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

// An idle session is these two records and its id.
const _: () = assert!(size_of::<Option<Connection>>() <= 32 && size_of::<Option<Session>>() <= 48);
