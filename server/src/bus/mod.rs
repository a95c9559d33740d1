//! Between nodes. A shard hands a message over and goes on; where the bus is full the message comes back and its source
//! pauses. [`LocalBus`] joins nodes of one process; with a single node nothing ever goes over it.

mod local;

use ring::NodeId;

use crate::shard::handover::Posted;

pub use local::LocalBus;

/// Why the bus did not take a message.
#[derive(Debug)]
pub enum Unpublished {
    /// It is full: try again when it has moved.
    Full(Box<Posted>),
    /// It does not reach that node.
    Unreachable(Box<Posted>),
}

/// Carries messages to other nodes, in order per recipient.
pub trait Bus: Send + Sync {
    /// Hands `message` over for `node`. Taken means kept: as safe as this bus keeps things.
    ///
    /// # Errors
    /// Gives the message back.
    fn publish(&self, node: &NodeId, message: Box<Posted>) -> Result<(), Unpublished>;
}
