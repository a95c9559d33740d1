//! Between nodes. A shard hands a parcel over and goes on; where the bus is full the parcel comes back and its source
//! pauses. A node that runs alone has no bus: nothing is ever for another node.

pub mod codec;
pub mod control;
pub mod kafka;
pub mod record;

pub use record::{Address, Arrived, Holder, Lane, Parcel, Record, RecordRef};

/// Carries parcels to other nodes, in order per lane, and hears what became of the records of this node's own topic.
pub trait Bus: Send + Sync {
    /// Hands `parcel` over. Taken means that its ticket comes back by mail, once, when it is kept; until then the bus
    /// tries, in order, through whatever happens to the broker.
    ///
    /// # Errors
    /// Gives the parcel back: the bus is full. Try again on the next turn; what follows must wait behind it.
    fn publish(&self, parcel: Box<Parcel>) -> Result<(), Box<Parcel>>;

    /// A shard is done with these records: they may be committed when all before them are.
    fn finish(&self, records: &[RecordRef]);

    /// All that was ahead of this fence is placed. The reader echoes it, and finishes it by itself.
    fn pass(&self, fence: RecordRef);
}
