//! A message as the core looks at it, wherever it comes from: a client here, another shard, another node's record, or a
//! queue it has waited in. What is posted owns its text; an arrival borrows it.

use crate::bus::Address;
use crate::bus::record::node_mark;
use crate::protocol::{Envelope, escape};
use crate::shard::handover::Posted;
use crate::shard::recent::identity;
use crate::shard::session::Inbound;

/// A message as its recipient's home shard gets it.
pub struct Arrival<'a> {
    /// As the recipient's session takes it.
    pub inbound: Inbound<'a>,
    /// The sender's name for it: plain text, as against the envelope's.
    pub msg_id: &'a str,
    /// Who sent it, likewise.
    pub from: &'a str,
    /// Who is to get it, likewise.
    pub to: &'a str,
    /// Hash of who is to get it.
    pub hash: u64,
    /// How many nodes it has been sent on by.
    pub hops: u8,
    /// Their marks.
    pub trail: &'a [u64],
    /// See [`Posted::login`].
    pub login: u64,
}

impl Arrival<'_> {
    pub(super) fn to_posted(&self) -> Posted {
        let Inbound { envelope, origin, wants_ack, sender, expires_ms, .. } = self.inbound;
        Posted {
            msg_id: self.msg_id.into(),
            from: self.from.into(),
            sender,
            to: self.to.into(),
            hash: self.hash,
            field: envelope.field,
            payload: envelope.payload.into(),
            origin,
            wants_ack,
            ts_ms: envelope.ts_ms,
            ttl_ms: Some(expires_ms.saturating_sub(envelope.ts_ms)),
            hops: self.hops,
            trail: self.trail.to_vec(),
            login: self.login,
        }
    }
}

/// Shows a posted message as an arrival.
pub fn with_arrival<R>(posted: &Posted, expires_ms: u64, work: impl FnOnce(&Arrival<'_>) -> R) -> R {
    let inbound = Inbound {
        envelope: Envelope {
            msg_id: &escape(&posted.msg_id),
            from: &escape(&posted.from),
            to: &escape(&posted.to),
            field: posted.field,
            payload: &posted.payload,
            ts_ms: posted.ts_ms,
        },
        origin: posted.origin,
        wants_ack: posted.wants_ack,
        sender: posted.sender,
        identity: identity(posted.sender, &posted.msg_id),
        expires_ms,
    };
    work(&Arrival {
        inbound,
        msg_id: &posted.msg_id,
        from: &posted.from,
        to: &posted.to,
        hash: posted.hash,
        hops: posted.hops,
        trail: &posted.trail,
        login: posted.login,
    })
}

/// The mark of the node whose topic a message was forwarded from: its reader has signed last, in the name of that node,
/// where a node signs what it sends itself.
pub(super) fn forwarded_from(trail: &[u64], sent_by: Option<&Address>) -> Option<u64> {
    let (last, sent_by) = (trail.last()?, sent_by?);
    (*last != node_mark(&sent_by.node)).then_some(*last)
}
