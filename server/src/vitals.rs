//! How this node is doing, measured by one thread for all who tell it: heartbeats and the page of metrics never disagree.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::load::{Load, LoadMeter};
use crate::metrics::{Counters, Latencies};

/// Between two measurements: as often as a heartbeat tells them.
const INTERVAL: Duration = Duration::from_secs(2);
/// The latency is that of so many intervals.
const LATENCY_INTERVALS: usize = 5;

/// The last measurement. Until the second, the processors count as idle.
#[derive(Debug, Default)]
pub struct Vitals {
    cpu: Figure,
    mem: Figure,
    p95_ms: Figure,
}

/// A fraction with one writer.
#[derive(Debug, Default)]
struct Figure(AtomicU64);

impl Figure {
    fn set(&self, value: f64) {
        self.0.store(value.to_bits(), Ordering::Relaxed);
    }

    fn value(&self) -> f64 {
        f64::from_bits(self.0.load(Ordering::Relaxed))
    }
}

impl Vitals {
    /// Starts the thread that measures; it ends after the last holder has let go.
    ///
    /// # Errors
    /// When the thread cannot be had.
    pub fn start(shards: Vec<Arc<Counters>>) -> io::Result<Arc<Self>> {
        let vitals = Arc::new(Self::default());
        let mut meter = LoadMeter::start(Instant::now());
        // No time has passed: of the two only memory can be told.
        vitals.mem.set(meter.read(Instant::now()).mem);
        let mut earlier = VecDeque::from([Latencies::of(&shards)]);
        let measured = Arc::downgrade(&vitals);
        std::thread::Builder::new().name("vitals".to_owned()).spawn(move || {
            loop {
                std::thread::sleep(INTERVAL);
                let Some(vitals) = measured.upgrade() else { return };
                let load = meter.read(Instant::now());
                vitals.cpu.set(load.cpu);
                vitals.mem.set(load.mem);
                vitals.p95_ms.set(p95_ms(&mut earlier, Latencies::of(&shards)));
            }
        })?;
        Ok(vitals)
    }

    /// How busy the machine is.
    pub fn load(&self) -> Load {
        Load { cpu: self.cpu.value(), mem: self.mem.value() }
    }

    /// The 95th percentile of the latency of the last ten seconds' deliveries, in milliseconds; 0 if there were none.
    pub fn p95_latency_ms(&self) -> f64 {
        self.p95_ms.value()
    }
}

/// The percentile of what came since the oldest of `earlier`; `now` takes its place among them.
fn p95_ms(earlier: &mut VecDeque<Latencies>, now: Latencies) -> f64 {
    let since = earlier.front().map_or(now, |oldest| now.since(oldest));
    earlier.push_back(now);
    if earlier.len() > LATENCY_INTERVALS {
        earlier.pop_front();
    }
    since.p95_ms()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_delivery_is_forgotten_after_the_window() {
        let shards = [Arc::new(Counters::default())];
        let mut earlier = VecDeque::from([Latencies::of(&shards)]);
        shards[0].delivery_latency.record(1000);
        for _ in 0..LATENCY_INTERVALS {
            assert!(p95_ms(&mut earlier, Latencies::of(&shards)) > 768.0);
        }
        assert!(p95_ms(&mut earlier, Latencies::of(&shards)).abs() < f64::EPSILON);
        assert_eq!(earlier.len(), LATENCY_INTERVALS);
    }
}
