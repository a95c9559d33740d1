//! How long deliveries took: one histogram per shard, with one writer, summed when somebody asks.

use std::sync::Arc;

use super::{Counter, Counters};

/// The upper bounds of the buckets, in milliseconds: two to a doubling where latency is felt, as fine at their lower end
/// as the shards' clock.
pub const BOUNDS_MS: [u64; 28] = [
    1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 8192,
    16384, 32768, 65536,
];
/// One more, for what took longer.
const BUCKETS: usize = BOUNDS_MS.len() + 1;

/// One shard's deliveries by how long they took.
#[derive(Debug, Default)]
pub struct Latency {
    buckets: [Counter; BUCKETS],
    sum_ms: Counter,
}

impl Latency {
    /// Counts one delivery. Only ever called by the one writer.
    pub fn record(&self, ms: u64) {
        // Five steps, without a branch that could be guessed wrong.
        if let Some(bucket) = self.buckets.get(BOUNDS_MS.partition_point(|bound| *bound < ms)) {
            bucket.add(1);
        }
        self.sum_ms.add(ms);
    }
}

/// All shards' deliveries at one moment, or between two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Latencies {
    /// How many took no longer than the bound at the same place, and longer than the one before; the last have no bound.
    pub counts: [u64; BUCKETS],
    /// How long all of them took together, in milliseconds.
    pub sum_ms: u64,
}

impl Latencies {
    /// Those of all shards until now.
    pub fn of(shards: &[Arc<Counters>]) -> Self {
        let mut all = Self::default();
        for latency in shards.iter().map(|shard| &shard.delivery_latency) {
            for (count, bucket) in all.counts.iter_mut().zip(&latency.buckets) {
                *count = count.wrapping_add(bucket.value());
            }
            all.sum_ms = all.sum_ms.wrapping_add(latency.sum_ms.value());
        }
        all
    }

    /// Those that came after `earlier`.
    #[must_use]
    pub fn since(mut self, earlier: &Self) -> Self {
        for (count, before) in self.counts.iter_mut().zip(earlier.counts) {
            *count = count.wrapping_sub(before);
        }
        self.sum_ms = self.sum_ms.wrapping_sub(earlier.sum_ms);
        self
    }

    /// The 95th percentile in milliseconds, read between the bounds as Prometheus reads it; 0 of none.
    #[allow(clippy::cast_precision_loss, reason = "an estimate")]
    pub fn p95_ms(&self) -> f64 {
        let rank = self.counts.iter().sum::<u64>() as f64 * 0.95;
        let (mut below, mut lower) = (0.0, 0.0);
        for (count, bound) in self.counts.iter().zip(BOUNDS_MS) {
            let (count, upper) = (*count as f64, bound as f64);
            if count > 0.0 && below + count >= rank {
                return lower + (upper - lower) * (rank - below) / count;
            }
            (below, lower) = (below + count, upper);
        }
        if rank > 0.0 { lower } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shards(of_each: &[&[u64]]) -> Vec<Arc<Counters>> {
        let shard = |all: &&[u64]| {
            let counters = Counters::default();
            all.iter().for_each(|ms| counters.delivery_latency.record(*ms));
            Arc::new(counters)
        };
        of_each.iter().map(shard).collect()
    }

    #[test]
    fn each_delivery_is_in_the_bucket_of_the_first_bound_it_does_not_exceed() {
        for ms in (0..70_000).chain([u64::MAX]) {
            let counts = Latencies::of(&shards(&[&[ms]])).counts;
            let at = BOUNDS_MS.iter().position(|bound| ms <= *bound).unwrap_or(BUCKETS - 1);
            assert_eq!((counts[at], counts.iter().sum::<u64>()), (1, 1), "{ms}");
        }
    }

    #[test]
    fn the_percentile_is_within_the_bucket_of_the_true_one() {
        assert!(Latencies::default().p95_ms().abs() < f64::EPSILON);
        for sample in [&[0; 7][..], &[5], &[1, 2, 3, 900], &[70_000, 80_000]] {
            let p95 = Latencies::of(&shards(&[sample])).p95_ms();
            let mut sorted = sample.to_vec();
            sorted.sort_unstable();
            let truth = sorted[(sorted.len() * 95).div_ceil(100) - 1];
            let at = BOUNDS_MS.partition_point(|bound| *bound < truth);
            let lower = if at == 0 { 0 } else { BOUNDS_MS[at - 1] };
            let upper = BOUNDS_MS.get(at).unwrap_or(&lower);
            #[allow(clippy::cast_precision_loss)]
            let range = lower as f64..=*upper as f64;
            assert!(range.contains(&p95), "{sample:?}: {p95} is not in {range:?}");
        }
    }

    #[test]
    fn what_came_before_does_not_count_and_the_shards_are_summed() {
        let shards = shards(&[&[1000; 100], &[3]]);
        let before = Latencies::of(&shards);
        assert_eq!(before.sum_ms, 100_003);
        shards[0].delivery_latency.record(2);
        shards[1].delivery_latency.record(2);
        let after = Latencies::of(&shards).since(&before);
        assert_eq!((after.counts.iter().sum::<u64>(), after.sum_ms), (2, 4));
        assert!(after.p95_ms() > 1.0 && after.p95_ms() <= 2.0);
        assert_eq!(before.since(&before), Latencies::default());
    }
}
