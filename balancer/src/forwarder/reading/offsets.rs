//! Where a dead node's topic is committed to and where it ends, as Kafka tells it. Reads nothing and commits nothing.

use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context as _;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::{ClientContext, Offset, TopicPartitionList};
use tracing::debug;

use super::Ends;
use crate::kafka::ANSWER_TIMEOUT;
use crate::sys;

/// Hears the library on the thread that polls it.
#[derive(Debug, Default)]
pub(super) struct ReadContext {
    /// Commits that the library has told of as failed.
    pub(super) commit_failures: AtomicU64,
}

impl ClientContext for ReadContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        // The library's log is the only place that tells of a failed commit.
        if facility == "COMMITFAIL" {
            self.commit_failures.fetch_add(1, Ordering::Relaxed);
        }
        debug!(?level, facility, line, "kafka, reading a dead node's topic");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        debug!(%error, reason, "kafka has trouble with a dead node's topic");
    }
}

impl ConsumerContext for ReadContext {}

/// The committed offset of each partition, and the highest token that any was committed by.
pub(super) fn committed(
    consumer: &BaseConsumer<ReadContext>,
    topic: &str,
    count: u16,
) -> anyhow::Result<(Vec<Option<u64>>, u64)> {
    let mut list = TopicPartitionList::new();
    for partition in 0..count {
        list.add_partition(topic, i32::from(partition));
    }
    let list = consumer.committed_offsets(list, ANSWER_TIMEOUT).context("kafka does not tell what is committed")?;
    let (mut positions, mut highest) = (vec![None; usize::from(count)], 0);
    for (index, element) in list.elements().iter().enumerate() {
        element.error().context("kafka does not tell what is committed")?;
        let token = std::str::from_utf8(sys::committed_metadata(&list, index)).ok().and_then(|text| text.parse().ok());
        highest = highest.max(token.unwrap_or(0));
        let position = usize::try_from(element.partition()).ok().and_then(|index| positions.get_mut(index));
        if let (Some(position), Offset::Offset(offset)) = (position, element.offset()) {
            *position = u64::try_from(offset).ok();
        }
    }
    Ok((positions, highest))
}

/// Where the partitions end now.
pub(super) fn ends_of(consumer: &BaseConsumer<ReadContext>, topic: &str, count: u16) -> anyhow::Result<Ends> {
    let mut list = TopicPartitionList::new();
    for partition in 0..count {
        list.add_partition_offset(topic, i32::from(partition), Offset::End)?;
    }
    let list = consumer.offsets_for_times(list, ANSWER_TIMEOUT).context("kafka does not tell where a topic ends")?;
    let mut ends = vec![0; usize::from(count)];
    for element in list.elements() {
        element.error().context("kafka does not tell where a topic ends")?;
        let end = usize::try_from(element.partition()).ok().and_then(|index| ends.get_mut(index));
        if let (Some(end), Offset::Offset(offset)) = (end, element.offset()) {
            *end = offset;
        }
    }
    Ok(ends)
}

/// Whether each partition is committed to its end.
pub(super) fn is_drained(positions: &[Option<u64>], ends: &[i64]) -> bool {
    let reaches = |(position, end): (&Option<u64>, &i64)| {
        u64::try_from(*end).is_ok_and(|end| end == 0 || position.is_some_and(|position| position >= end))
    };
    positions.len() == ends.len() && positions.iter().zip(ends).all(reaches)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_is_drained_when_each_partition_is_committed_to_its_end() {
        let check = |positions: &[Option<u64>], ends: &[i64], expected| {
            assert_eq!(is_drained(positions, ends), expected, "{positions:?} {ends:?}");
        };
        check(&[None, None], &[0, 0], true);
        check(&[None, Some(3)], &[0, 3], true);
        check(&[None, Some(2)], &[0, 3], false);
        check(&[None, None], &[0, 3], false);
        check(&[Some(4)], &[3], true);
        check(&[Some(3)], &[3, 0], false);
    }
}
