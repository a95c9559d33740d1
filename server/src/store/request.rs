//! What a shard asks of a store that is elsewhere, and what it answers: values only. The store works requests off in
//! order per client and answers each exactly once, however often it has to connect again.

use ring::NodeId;

use crate::bus::Holder;
use crate::protocol::ClientId;
use crate::shard::slab::Key;

use super::{BufferFull, Kept, Room};

/// Something for the store to do.
#[derive(Debug, Clone)]
pub enum StoreRequest {
    /// A client has logged in here.
    Claim {
        /// The client.
        client: ClientId,
        /// Of the client's logins this one; higher is newer.
        generation: u64,
        /// A new login is always the newest: it takes the next generation if another has this one or a higher one.
        /// A claim that is renewed, or made up for after an outage, loses to a higher one.
        kind: ClaimKind,
        /// Up to where this node wants to issue offsets.
        ceiling: u64,
    },
    /// A client has left; all that it had not acknowledged was appended before.
    Release {
        /// The client.
        client: ClientId,
        /// The login that ends.
        generation: u64,
        /// The last offset it was given.
        last_offset: u64,
    },
    /// Keep messages behind all that is kept for the client.
    Append {
        /// The client.
        client: ClientId,
        /// By what right.
        author: Author,
        /// The messages, in order. An offset of 0 is given by the store; so is one that is below an offset kept already,
        /// unless that very message is kept.
        messages: Vec<Kept>,
        /// Whether they may be refused.
        room: Room,
    },
    /// Read messages, oldest first.
    Page {
        /// The client.
        client: ClientId,
        /// After this offset.
        after: u64,
        /// Until they have about so many bytes; at least one message.
        bytes_max: usize,
    },
    /// Drop the messages up to and with `offset`: they are acknowledged. Nothing happens unless `generation` holds the client.
    Trim {
        /// The client.
        client: ClientId,
        /// The login that acknowledged.
        generation: u64,
        /// Up to here.
        offset: u64,
    },
    /// Drop one message: it is acknowledged. Nothing happens unless `generation` holds the client.
    Remove {
        /// The client.
        client: ClientId,
        /// The login that acknowledged.
        generation: u64,
        /// Its offset.
        offset: u64,
    },
}

impl StoreRequest {
    /// Whose session or buffer it is about.
    pub fn client(&self) -> &ClientId {
        match self {
            Self::Claim { client, .. }
            | Self::Release { client, .. }
            | Self::Append { client, .. }
            | Self::Page { client, .. }
            | Self::Trim { client, .. }
            | Self::Remove { client, .. } => client,
        }
    }
}

/// How a claim is to be judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClaimKind {
    /// A login that happens now.
    Fresh,
    /// One that stands already: renewed, or made up for.
    Again,
}

/// By what right messages are appended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Author {
    /// The holder of the session, in its own life, with this generation. Refused (`Elsewhere`) when that is outdated.
    Holder {
        /// Its login.
        generation: u64,
    },
    /// Anyone, if nobody holds the session, this node itself does, or its holder is `past`: a node's life that is over.
    Other {
        /// A holder that does not count.
        past: Option<(NodeId, u64)>,
    },
    /// Whoever holds the session: the message has been sent on too often.
    Anyone,
}

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreAnswer {
    /// The client is this node's.
    Claimed {
        /// Its generation now.
        generation: u64,
        /// Who held it before and has not released it yet, latest last; never this life of this node itself.
        unreleased: Vec<Holder>,
        /// Offsets up to this one may have been given away.
        last_offset: u64,
        /// The highest offset that was dropped unacknowledged; 0 for none.
        lost_offset: u64,
        /// False when the store had never heard of the client, or has forgotten it.
        is_known: bool,
        /// True when messages wait.
        has_messages: bool,
    },
    /// Not done: this one holds the client. Answers claims that lost, and appends without the right to.
    Elsewhere(Holder),
    /// The messages are kept; `last_offset` is that of the last one.
    Appended {
        /// The last one's offset.
        last_offset: u64,
    },
    /// Not kept: there is no room.
    Refused(BufferFull),
    /// Messages in order; none when there are no more.
    Page(Vec<Kept>),
    /// Done.
    Done,
}

/// Names whom an answer is for, within the shard that asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ticket(pub u64);

impl Ticket {
    /// Nobody waits for the answer.
    pub const NOBODY: Self = Self(u64::MAX);
    const WAITING: u64 = 1 << 63;
    const CLAIM: u64 = 1 << 62;
    const KINDS: u64 = Self::WAITING | Self::CLAIM;

    /// A session.
    pub fn session(key: Key) -> Self {
        Self(key.to_u64() & !Self::KINDS)
    }

    /// A session's claim.
    #[must_use]
    pub fn claim(self) -> Self {
        Self(self.0 | Self::CLAIM)
    }

    /// Messages that wait for a look-up.
    pub fn waiting(key: Key) -> Self {
        Self(key.to_u64() & !Self::KINDS | Self::WAITING)
    }

    /// Tells whom it names.
    pub fn whom(self) -> Whom {
        let key = Key::from_u64(self.0 & !Self::KINDS);
        match self.0 & Self::KINDS {
            _ if self == Self::NOBODY => Whom::Nobody,
            Self::WAITING => Whom::Waiting(key),
            Self::CLAIM => Whom::Claim(key),
            _ => Whom::Session(key),
        }
    }
}

/// Whom an answer is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whom {
    /// Nobody.
    Nobody,
    /// A session, which asked something about its messages.
    Session(Key),
    /// A session, which asked for its client.
    Claim(Key),
    /// Messages that wait for a look-up.
    Waiting(Key),
}
