//! What nodes tell each other over the bus, as values: messages on their way to a recipient, and the few notices that
//! keep their order when a path or a session moves. The codec is in `codec.rs`.

use ring::NodeId;

use crate::shard::handover::Posted;

/// A node's mark in a trail: a hash of its name.
pub fn node_mark(node: &NodeId) -> u64 {
    xxhash_rust::xxh3::xxh3_64(node.as_str().as_bytes())
}

/// One shard of one life of one node: where a notice is answered to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Address {
    /// The node.
    pub node: NodeId,
    /// Which life of it: an answer to an earlier one is nobody's.
    pub incarnation: u64,
    /// The shard.
    pub shard: u16,
}

/// Who holds a client's session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The node.
    pub node: NodeId,
    /// Which life of it.
    pub incarnation: u64,
    /// Of the client's logins, the one it holds.
    pub generation: u64,
}

/// Something for another node (or, relayed back, for this one).
#[derive(Debug, Clone)]
pub struct Parcel {
    /// Whose topic it goes to.
    pub to: NodeId,
    /// Where in the topic.
    pub lane: Lane,
    /// Who sends it.
    pub origin: Address,
    /// What it is.
    pub record: Record,
    /// Comes back, once, when the bus has confirmed the parcel; `None` if nobody waits for that.
    pub ticket: Option<u64>,
}

/// Which partition of a node's topic: a client's records stay in order because they share one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// Partition 0, which is never paused: answers that others wait for.
    Control,
    /// This partition; those of the clients come behind partition 0: see `Paths::lane_of`.
    Partition(u16),
}

/// What travels.
#[derive(Debug, Clone)]
pub enum Record {
    /// A message for a client. `hops`: nodes it has passed, itself included.
    Message(Box<Posted>),
    /// Stands behind the last record of a recipient's old path. Whoever reads the topic echoes it (as
    /// [`Record::Fenced`], in the same partition of the origin's topic, so behind all that was sent back) once all that
    /// was ahead of it is in order where it belongs.
    Fence {
        /// The origin's name for it.
        id: u64,
        /// Hash of the recipient whose path changes.
        hash: u64,
        /// Hash of sender, accepting node and recipient: the messages that it stands behind.
        pair: u64,
        /// Marks of the nodes that it has come by, the origin included: see [`node_mark`].
        trail: Vec<u64>,
    },
    /// The echo of a fence.
    Fenced {
        /// The origin's name for it.
        id: u64,
        /// Which shard of the origin waits.
        shard: u16,
        /// Which life of the origin waits.
        incarnation: u64,
    },
    /// Another node has claimed a client whose session is here: keep what is unacknowledged, then release it.
    Claimed {
        /// The client.
        client: Box<str>,
        /// The login that claims; lower ones must go.
        generation: u64,
    },
    /// All that the former holder had of a client is kept: the claimant may replay.
    Released {
        /// The client.
        client: Box<str>,
        /// The claiming login.
        generation: u64,
    },
    /// A recipient's session is elsewhere: send there.
    Moved {
        /// The recipient.
        client: Box<str>,
        /// Where it is.
        holder: Holder,
    },
    /// Something was kept for a client whose session is here, by a node that took this one for dead: look.
    Nudge {
        /// The client.
        client: Box<str>,
    },
}

/// A place in this node's own topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RecordRef {
    /// The partition.
    pub partition: u16,
    /// The offset in it.
    pub offset: u64,
}

/// A record read from this node's topic, on its way to a shard.
#[derive(Debug)]
pub struct Arrived {
    /// Where it was read. The reader commits it once every shard it was given to has finished it.
    pub at: RecordRef,
    /// Who sent it.
    pub origin: Address,
    /// What it is.
    pub record: Record,
}
