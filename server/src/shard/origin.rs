//! Where a message came from, so that its sender can be answered.

use crate::bus::RecordRef;

use super::slab::Key;

/// The sender of a message: a session on some shard of this node, a publisher, or nobody who waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    shard: u16,
    key: Key,
}

/// An [`Origin`], told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sender {
    /// Nobody waits.
    Nobody,
    /// A session: the shard it lives on and its key there.
    Session(usize, Key),
    /// A message published over HTTP: the number of its answer.
    Publisher(u64),
    /// A record of this node's topic, which is finished by the answer.
    Record(RecordRef),
}

impl Origin {
    /// The most shards a node may have: three numbers are taken.
    pub const SHARDS_MAX: usize = u16::MAX as usize - 2;
    const NOBODY_SHARD: u16 = u16::MAX;
    const PUBLISHER_SHARD: u16 = u16::MAX - 1;
    const RECORD_SHARD: u16 = u16::MAX - 2;
    /// Bits of a record's offset; a partition of 300,000 records a second fills them in thirty years.
    const OFFSET_BITS: u32 = 48;

    /// Nobody waits for an answer.
    pub const NOBODY: Self = Self { shard: Self::NOBODY_SHARD, key: Key { index: 0, life: 0 } };

    /// A session of shard `shard`.
    pub fn session(shard: usize, key: Key) -> Self {
        u16::try_from(shard).map_or(Self::NOBODY, |shard| Self { shard, key })
    }

    /// A message published over HTTP.
    pub fn publisher(answer: u64) -> Self {
        Self { shard: Self::PUBLISHER_SHARD, key: Key::from_u64(answer) }
    }

    /// A record of this node's topic.
    pub fn record(at: RecordRef) -> Self {
        let offset = at.offset & ((1 << Self::OFFSET_BITS) - 1);
        Self { shard: Self::RECORD_SHARD, key: Key::from_u64(u64::from(at.partition) << Self::OFFSET_BITS | offset) }
    }

    /// True for a record: it is kept already, by the bus.
    pub fn is_record(self) -> bool {
        self.shard == Self::RECORD_SHARD
    }

    /// Tells which it is.
    pub fn sender(self) -> Sender {
        match self.shard {
            Self::NOBODY_SHARD => Sender::Nobody,
            Self::PUBLISHER_SHARD => Sender::Publisher(self.key.to_u64()),
            Self::RECORD_SHARD => {
                let value = self.key.to_u64();
                let partition = u16::try_from(value >> Self::OFFSET_BITS).unwrap_or(u16::MAX);
                Sender::Record(RecordRef { partition, offset: value & ((1 << Self::OFFSET_BITS) - 1) })
            }
            shard => Sender::Session(usize::from(shard), self.key),
        }
    }
}
