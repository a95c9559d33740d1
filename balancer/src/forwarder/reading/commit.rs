//! How far a reading has come goes back to Kafka: now and then while it reads, and for certain when it ends.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::bail;
use rdkafka::consumer::{CommitMode, Consumer as _};
use rdkafka::{Offset, TopicPartitionList};
use tracing::debug;

use super::offsets::committed;
use super::{Ending, Lease, REPORT_INTERVAL, Reading};

/// How often the watermark is committed while it moves.
const COMMIT_INTERVAL: Duration = Duration::from_millis(500);
/// How long the last confirmations and the last commit may take.
const LAST_TIMEOUT: Duration = Duration::from_secs(2);
/// How often the last commit is looked for.
const COMMIT_LOOK_INTERVAL: Duration = Duration::from_millis(5);

impl Reading {
    pub(super) fn commit_if_due(&mut self) {
        let now = Instant::now();
        if now >= self.commit_at {
            self.commit_at = now + COMMIT_INTERVAL;
            self.commit();
        }
    }

    fn commit(&mut self) {
        let failures = self.consumer.context().commit_failures.load(Ordering::Relaxed);
        if failures > self.commits_failed {
            // Which one does not matter: all of them are made again.
            self.commits_failed = failures;
            self.partitions.iter_mut().for_each(|partition| partition.committed = None);
        }
        let mut list = TopicPartitionList::new();
        for (index, partition) in (0..).zip(&mut self.partitions) {
            let position = partition.watermark.position();
            let Ok(offset) = i64::try_from(position) else { continue };
            if partition.committed == Some(position) {
                continue;
            }
            let mut element = list.add_partition(&self.topic, index);
            element.set_metadata(self.token.to_string());
            if element.set_offset(Offset::Offset(offset)).is_ok() {
                partition.committed = Some(position);
            }
        }
        if list.count() == 0 {
            return;
        }
        if let Err(error) = self.consumer.commit(&list, CommitMode::Async) {
            debug!(%error, "kafka commit failed");
            self.partitions.iter_mut().for_each(|partition| partition.committed = None);
        }
    }

    /// Waits a little for what is under way, commits, and lets go of the topic.
    pub(super) fn end(&mut self, lease: &mut Lease, outcome: anyhow::Result<Ending>) -> anyhow::Result<Ending> {
        let deadline = Instant::now() + LAST_TIMEOUT;
        let has_lease = |lease: &Lease, token| lease.token() == Some(token);
        if outcome.is_ok() {
            while self.sender.in_flight().0 > 0 && Instant::now() < deadline && has_lease(lease, self.token) {
                std::thread::sleep(REPORT_INTERVAL);
                self.hear()?;
            }
        }
        let mut is_committed = false;
        // Without the lease somebody else may read already, and commit further on.
        if has_lease(lease, self.token) {
            self.commit();
            is_committed = self.await_commit(deadline);
        }
        if let Err(error) = self.consumer.unassign() {
            debug!(%error, "kafka unassign");
        }
        if !is_committed && matches!(outcome, Ok(Ending::Drained(_))) {
            bail!("the last commit is not confirmed");
        }
        outcome
    }

    /// Waits until what was committed is what Kafka has: nothing else tells when an asynchronous commit is done.
    fn await_commit(&self, deadline: Instant) -> bool {
        let count = u16::try_from(self.partitions.len()).unwrap_or(u16::MAX);
        while Instant::now() < deadline {
            let Ok((positions, _)) = committed(&self.consumer, &self.topic, count) else { continue };
            let wanted = self.partitions.iter().map(|partition| partition.watermark.position());
            if positions.iter().zip(wanted).all(|(position, wanted)| position.unwrap_or(0) >= wanted) {
                return true;
            }
            std::thread::sleep(COMMIT_LOOK_INTERVAL);
        }
        false
    }
}
