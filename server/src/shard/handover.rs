//! What goes from one shard to another.

use std::os::fd::OwnedFd;

use crate::bus::Arrived;
use crate::protocol::{AckStatus, ClientId, ErrorCode, PayloadField};

use crate::store::request::{StoreAnswer, Ticket};

use super::opening::Login;
use super::origin::Origin;
use super::slab::Key;

/// A connection on its way to its client's home shard.
#[derive(Debug)]
pub struct Handover {
    /// The socket; the accepting shard's operations on it have all completed.
    pub fd: Option<OwnedFd>,
    /// Who wants to log in, and how.
    pub login: Login,
    /// The client's id, given or assigned.
    pub client_id: ClientId,
    /// Its hash.
    pub hash: u64,
    /// Bytes that came behind the request.
    pub surplus: Vec<u8>,
}

/// A message on its way to its recipient's home shard.
#[derive(Debug, Clone)]
pub struct Posted {
    /// The sender's name for it.
    pub msg_id: Box<str>,
    /// Who sent it.
    pub from: Box<str>,
    /// Hash of who sent it.
    pub sender: u64,
    /// Who is to get it.
    pub to: Box<str>,
    /// Hash of who is to get it.
    pub hash: u64,
    /// Under which name the payload came.
    pub field: PayloadField,
    /// A whole JSON value.
    pub payload: Box<str>,
    /// Who is to be told.
    pub origin: Origin,
    /// True when the sender waits for an ack.
    pub wants_ack: bool,
    /// When it was accepted, in milliseconds since 1970.
    pub ts_ms: u64,
    /// How long it is worth delivering, in milliseconds.
    pub ttl_ms: Option<u64>,
    /// How many nodes it has been sent on by.
    pub hops: u8,
    /// Their marks, in order.
    pub trail: Vec<u64>,
    /// The login with which its sender came here from another node just now; 0 if it did not. Not told to other nodes.
    pub login: u64,
}

/// One piece of mail between shards.
#[derive(Debug)]
pub enum Mail {
    /// A connection for a client whose home is here.
    Handover(Box<Handover>),
    /// A message for a client whose home is here.
    Message(Box<Posted>),
    /// What became of a message that a session here sent.
    Answer(Box<Answer>),
    /// A session here asked for the same answer twice, and gets it once.
    AskedTwice(Key),
    /// Something an operator wants.
    Order(Order),
    /// A record from this node's topic, for a client whose home is here or for every shard.
    Record(Box<Arrived>),
    /// Somebody else has read this node's topic for a while; the records that follow are read by this node again.
    ReadAgain,
    /// The bus has kept the parcel with this ticket.
    Produced(u64),
    /// What became of a request to the store.
    Stored(Ticket, Box<StoreAnswer>),
}

/// What became of a message.
#[derive(Debug)]
pub struct Answer {
    /// The session that sent it.
    pub key: Key,
    /// The sender's name for it, as it stands in JSON.
    pub escaped_msg_id: Box<str>,
    /// Accepted, or why not.
    pub outcome: Result<AckStatus, (ErrorCode, &'static str)>,
}

/// From the node to its shards.
#[derive(Debug)]
pub enum Order {
    /// Take no new connection, advise the open ones to move, close them over `window_ms`.
    Drain {
        /// How long the closing is spread over, in milliseconds.
        window_ms: u64,
    },
    /// Close everything now and end.
    Stop,
    /// Deliver a message that came over HTTP, and tell what became of it.
    Publish {
        /// The message.
        posted: Box<Posted>,
        /// Where the answer goes.
        reply: crossbeam::channel::Sender<crate::publish::Published>,
        /// Which of the publisher's messages it is.
        index: usize,
    },
    /// Tell what is known of a client.
    Look {
        /// Whom it is about.
        client_id: ClientId,
        /// Where the answer goes.
        reply: crossbeam::channel::Sender<ClientView>,
    },
}

/// What a node knows of a client.
#[derive(Debug, Clone, Default)]
pub struct ClientView {
    /// True when it is logged in here.
    pub is_connected: bool,
    /// The last offset it was given.
    pub last_offset: u64,
    /// Messages in its outbox.
    pub outbox_messages: usize,
    /// Bytes in its outbox.
    pub outbox_bytes: usize,
    /// Messages in its replay buffer.
    pub kept_messages: usize,
    /// True when it acknowledges what it receives.
    pub receiver_acks: bool,
}
