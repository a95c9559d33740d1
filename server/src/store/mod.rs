//! Sessions and replay buffers: what is kept for clients that are away or slow.
//! The [`Store`] is a seam: a shard asks and goes on; an answer that is not there at once comes back by mail.
//! [`LocalStore`] keeps all of it in this process, under the same bounds and ages.

pub mod bounds;
mod local;
pub mod model;
pub mod redis;
mod remote;
pub mod request;

use std::task::Poll;

use crate::protocol::{ClientId, Envelope};
use crate::shard::Entry;

pub use local::{LocalStore, StoreLimits};
pub use remote::{AnyStore, RemoteStore};

/// A message in a replay buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// Its place in the recipient's stream; 0 until the store gives it one.
    pub offset: u64,
    /// Hash of who sent it under which name.
    pub identity: u64,
    /// Hash of who sent it.
    pub sender: u64,
    /// When it was accepted, in milliseconds since 1970.
    pub ts_ms: u64,
    /// When it is dropped, and counted as expired, in milliseconds since 1970.
    pub expires_ms: u64,
    /// The envelope's JSON up to where the offset belongs.
    pub body: Box<[u8]>,
}

impl Kept {
    /// The message of a frame that an outbox holds.
    pub(crate) fn from_frame(frame: &[u8], entry: &Entry) -> Self {
        Self {
            offset: entry.offset,
            identity: entry.identity,
            sender: 0,
            ts_ms: entry.ts_ms,
            expires_ms: entry.expires_ms,
            body: Envelope::body_of_frame(frame, entry.offset, entry.ts_ms).into(),
        }
    }

    /// Appends the WebSocket frame that delivers it.
    pub(crate) fn write_frame(&self, out: &mut Vec<u8>) {
        Envelope::frame_of_body(&self.body, self.offset, self.ts_ms, out);
    }
}

/// Whether a message may still be refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// A new message: refused where the buffer is full.
    IfFree,
    /// An accepted one, which must be kept: its room is bounded by the outbox it comes from.
    Owed,
}

/// Which limit a new message ran into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BufferFull {
    /// The recipient's buffer.
    Recipient,
    /// All that is kept of one sender.
    Sender,
    /// All that this node keeps.
    Node,
}

/// What became of a new message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Appended {
    /// It is kept.
    Kept,
    /// The same sender's message of the same name is kept already.
    Repeated,
    /// It is refused.
    Refused(BufferFull),
}

/// What a login finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Claimed {
    /// Offsets up to this one are given away.
    pub last_offset: u64,
    /// The highest offset that was dropped unacknowledged.
    pub lost_offset: u64,
    /// True when messages wait.
    pub has_messages: bool,
}

/// Where sessions and replay buffers live.
pub trait Store {
    /// A client has logged in here.
    fn claim(&mut self, client: &ClientId) -> Poll<Claimed>;
    /// A client has left; `last_offset` is the last one it was given.
    fn release(&mut self, client: &ClientId, last_offset: u64, now_ms: u64);
    /// Keeps a message behind all that is kept for `client`.
    fn append(&mut self, client: &ClientId, message: &Kept, room: Room, now_ms: u64) -> Poll<Appended>;
    /// Keeps accepted messages, in order: all of them.
    fn append_all(&mut self, client: &ClientId, messages: Vec<Kept>, now_ms: u64) -> Poll<()>;
    /// Reads the messages after `offset`, oldest first, up to about `bytes_max`; empty when there are no more.
    fn page(&mut self, client: &ClientId, offset: u64, bytes_max: usize) -> Poll<Vec<Kept>>;
    /// Drops the messages up to and with `offset`: they are acknowledged.
    fn trim(&mut self, client: &ClientId, offset: u64);
    /// Drops one message: it is acknowledged.
    fn remove(&mut self, client: &ClientId, offset: u64);
}
