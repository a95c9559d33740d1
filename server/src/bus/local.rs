//! A bus within one process: nodes that share it post straight into each other's mailboxes.

use std::num::NonZeroUsize;
use std::sync::RwLock;

use hashbrown::HashMap;
use ring::NodeId;
use xxhash_rust::xxh3::Xxh3Builder;

use crate::shard::handover::{Mail, Posted};
use crate::shard::mailbox::Sender;

use super::{Bus, Unpublished};

/// Mailboxes of the nodes in this process. Bounded as they are; in order per recipient, whose home is one mailbox.
#[derive(Default)]
pub struct LocalBus {
    nodes: RwLock<HashMap<NodeId, Vec<Sender<Mail>>, Xxh3Builder>>,
}

impl LocalBus {
    /// Makes `node` reachable by its shards' mailboxes; a node of that name is replaced.
    pub(crate) fn join(&self, node: NodeId, mailboxes: Vec<Sender<Mail>>) {
        // A panic elsewhere leaves the map whole: it is only ever inserted into.
        let mut nodes = self.nodes.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        nodes.insert(node, mailboxes);
    }
}

impl Bus for LocalBus {
    fn publish(&self, node: &NodeId, message: Box<Posted>) -> Result<(), Unpublished> {
        let nodes = self.nodes.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        let Some((mailboxes, shards)) =
            nodes.get(node).and_then(|mailboxes| Some((mailboxes, NonZeroUsize::new(mailboxes.len())?)))
        else {
            return Err(Unpublished::Unreachable(message));
        };
        let Some(mailbox) = mailboxes.get(ring::shard_of(message.hash, shards)) else {
            return Err(Unpublished::Unreachable(message));
        };
        match mailbox.post(Mail::Message(message)) {
            Err(Mail::Message(message)) => Err(Unpublished::Full(message)),
            // A full mailbox gives back what it was given, so that this is the other outcome.
            _ => Ok(()),
        }
    }
}
