//! What goes into the producer, and how much of it may be on its way at once: what is taken here stays counted until
//! Kafka has confirmed it, so that one bound holds for the queue, for what is in flight, and for what waits for a topic.

use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam::channel::{Receiver, Sender, TrySendError, bounded};
use rdkafka::message::OwnedHeaders;

use crate::bus::record::{Parcel, Record, RecordRef};

/// What a record takes beside its payload, about.
const RECORD_BYTES: usize = 256;

/// Something to send.
#[derive(Debug)]
pub enum Item {
    /// A shard's parcel; the shard hears of its confirmation.
    Parcel(Box<Parcel>),
    /// The echo of the fence at `at`, which is finished when the echo is confirmed.
    Echo {
        /// The echo.
        parcel: Box<Parcel>,
        /// The fence.
        at: RecordRef,
    },
    /// A record that nobody can use; it is finished when it is among the dead letters.
    DeadLetter(Box<DeadLetter>),
}

/// A record that nobody can use, as it was found.
#[derive(Debug)]
pub struct DeadLetter {
    /// Where it stood.
    pub at: RecordRef,
    /// Its key.
    pub key: Option<Vec<u8>>,
    /// Its value, perhaps cut.
    pub value: Option<Vec<u8>>,
    /// Its headers, and why it is here.
    pub headers: OwnedHeaders,
}

impl Item {
    /// What it counts for while it is on its way.
    pub fn bytes(&self) -> usize {
        RECORD_BYTES
            + match self {
                Self::Parcel(parcel) | Self::Echo { parcel, .. } => match &parcel.record {
                    Record::Message(posted) => posted.payload.len(),
                    _ => 0,
                },
                Self::DeadLetter(letter) => letter.value.as_ref().map_or(0, Vec::len),
            }
    }
}

/// The way in. Shared by all threads.
#[derive(Debug)]
pub struct Intake {
    queue: Sender<Item>,
    records: AtomicUsize,
    bytes: AtomicUsize,
    records_max: usize,
    bytes_max: usize,
}

impl Intake {
    /// For so many records and bytes on their way.
    pub fn new(records_max: usize, bytes_max: usize) -> (Self, Receiver<Item>) {
        let (queue, items) = bounded(records_max.max(1));
        (Self { queue, records: AtomicUsize::new(0), bytes: AtomicUsize::new(0), records_max, bytes_max }, items)
    }

    /// Takes `item`, or gives it back: too much is on its way.
    ///
    /// # Errors
    /// Gives the item back.
    pub fn take(&self, item: Item) -> Result<(), Item> {
        let bytes = item.bytes();
        let records_before = self.records.fetch_add(1, Ordering::Relaxed);
        let bytes_before = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        // A record larger than the bound must get through when it is alone.
        let is_full = records_before >= self.records_max || (bytes_before > 0 && bytes_before + bytes > self.bytes_max);
        if is_full {
            self.release(1, bytes);
            return Err(item);
        }
        self.queue.try_send(item).map_err(|error| {
            self.release(1, bytes);
            match error {
                TrySendError::Full(item) | TrySendError::Disconnected(item) => item,
            }
        })
    }

    /// So much is on its way no more.
    pub fn release(&self, records: usize, bytes: usize) {
        self.records.fetch_sub(records, Ordering::Relaxed);
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// How many records are on their way.
    pub fn records(&self) -> usize {
        self.records.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter(bytes: usize) -> Item {
        Item::DeadLetter(Box::new(DeadLetter {
            at: RecordRef { partition: 0, offset: 0 },
            key: None,
            value: Some(vec![0; bytes]),
            headers: OwnedHeaders::new(),
        }))
    }

    #[test]
    fn what_is_taken_counts_until_it_is_released() {
        let (intake, items) = Intake::new(2, 1_000_000);
        assert!(intake.take(letter(10)).is_ok());
        assert!(intake.take(letter(10)).is_ok());
        assert!(intake.take(letter(10)).is_err());
        let taken = items.recv().unwrap();
        assert!(intake.take(letter(10)).is_err(), "it left the queue and is still on its way");
        intake.release(1, taken.bytes());
        assert!(intake.take(letter(10)).is_ok());
        assert_eq!(intake.records(), 2);
    }

    #[test]
    fn bytes_are_bounded_but_for_one_record_alone() {
        let (intake, _items) = Intake::new(10, 1000);
        assert!(intake.take(letter(5000)).is_ok());
        assert!(intake.take(letter(1)).is_err());
        intake.release(1, letter(5000).bytes());
        assert!(intake.take(letter(1)).is_ok());
    }
}
