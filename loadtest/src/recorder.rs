//! What one worker measured: latency histograms, counts over time, how late it was itself.
//!
//! Histograms are added across workers and processes, never averaged. Knows no connection and no verdict.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use hdrhistogram::{
    Histogram,
    serialization::{Deserializer, Serializer, V2Serializer},
};
use serde::{Deserialize, Serialize};

use crate::clock::Nanos;

/// Latencies above this are recorded as this.
const LATENCY_NANOS_MAX: u64 = 120_000_000_000;
const SIGNIFICANT_DIGITS: u8 = 3;
/// A send this long after its intended time is the generator's fault.
const LATE_AFTER_NANOS: Nanos = 10_000_000;
/// Points in a report's plot over time; the bucket is as wide as that asks for.
const SERIES_POINTS: u64 = 240;
const SERIES_BUCKET_NANOS_MIN: Nanos = 100_000_000;

/// A latency histogram in nanoseconds that travels between processes.
#[derive(Debug, Clone)]
pub(crate) struct Latency(Histogram<u64>);

impl Default for Latency {
    fn default() -> Self {
        let histogram = Histogram::new_with_bounds(1, LATENCY_NANOS_MAX, SIGNIFICANT_DIGITS);
        Self(histogram.expect("constant bounds are valid"))
    }
}

impl Latency {
    /// Counts one latency.
    pub(crate) fn record(&mut self, nanos: Nanos) {
        self.0.saturating_record(nanos);
    }

    /// Adds what another worker counted.
    pub(crate) fn add(&mut self, other: &Self) {
        self.0.add(&other.0).expect("all histograms have the same bounds");
    }

    pub(crate) fn count(&self) -> u64 {
        self.0.len()
    }

    /// The latency which `quantile` (0 to 1) of the messages do not exceed, in nanoseconds; 0 when there are none.
    pub(crate) fn quantile(&self, quantile: f64) -> Nanos {
        if self.0.is_empty() { 0 } else { self.0.value_at_quantile(quantile) }
    }

    pub(crate) fn max(&self) -> Nanos {
        self.0.max()
    }
}

impl Serialize for Latency {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut bytes = Vec::new();
        V2Serializer::new().serialize(&self.0, &mut bytes).map_err(serde::ser::Error::custom)?;
        serializer.serialize_str(&BASE64.encode(bytes))
    }
}

impl<'de> Deserialize<'de> for Latency {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error as _;
        let text = String::deserialize(deserializer)?;
        let bytes = BASE64.decode(text).map_err(D::Error::custom)?;
        let read: Histogram<u64> = Deserializer::new().deserialize(&mut bytes.as_slice()).map_err(D::Error::custom)?;
        let mut latency = Self::default();
        latency.0.add(read).map_err(D::Error::custom)?;
        Ok(latency)
    }
}

/// The part of a run that is measured, on this process's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Window {
    /// When sending starts, warm-up included.
    pub(crate) start: Nanos,
    /// When measuring starts.
    pub(crate) measure: Nanos,
    /// When sending and measuring end.
    pub(crate) end: Nanos,
}

impl Window {
    pub(crate) fn is_measured(&self, at: Nanos) -> bool {
        (self.measure..self.end).contains(&at)
    }
}

/// Counts per slice of time since the start, for the plots.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub(crate) struct Series {
    pub(crate) bucket_nanos: Nanos,
    pub(crate) intended: Vec<u64>,
    pub(crate) sent: Vec<u64>,
    pub(crate) received: Vec<u64>,
}

impl Series {
    fn for_window(window: Window) -> Self {
        let length = window.end.saturating_sub(window.start);
        let bucket_nanos = (length / SERIES_POINTS).max(SERIES_BUCKET_NANOS_MIN);
        let buckets = usize::try_from(length.div_ceil(bucket_nanos)).unwrap_or(0);
        Self { bucket_nanos, intended: vec![0; buckets], sent: vec![0; buckets], received: vec![0; buckets] }
    }

    fn add(&mut self, other: &Self) {
        if self.bucket_nanos == 0 {
            *self = other.clone();
            return;
        }
        for (mine, theirs) in [
            (&mut self.intended, &other.intended),
            (&mut self.sent, &other.sent),
            (&mut self.received, &other.received),
        ] {
            mine.resize(mine.len().max(theirs.len()), 0);
            for (mine, theirs) in mine.iter_mut().zip(theirs) {
                *mine += theirs;
            }
        }
    }
}

/// One worker's measurements.
#[derive(Debug, Clone)]
pub(crate) struct Recorder {
    window: Window,
    series: Series,
    measures: Measures,
}

/// What is added up over all workers.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub(crate) struct Measures {
    /// From the intended time (open loop) or the send (closed loop) to the receipt.
    pub(crate) latency: Latency,
    /// From the actual send to the receipt; empty in a closed loop, where it is the same.
    pub(crate) raw_latency: Latency,
    /// From the intended time to the server's confirmation.
    pub(crate) ack_latency: Latency,
    /// From the start of connecting to the server's 101.
    pub(crate) handshake: Latency,
    /// Sends with an intended time within the measured window.
    pub(crate) sends: u64,
    /// Of those, the ones that left more than 10 ms late.
    pub(crate) late_sends: u64,
    /// Intended sends that were never made.
    pub(crate) missed_slots: u64,
    /// Messages that arrived within the measured window.
    pub(crate) received_in_window: u64,
    pub(crate) series: Series,
}

impl Measures {
    /// Adds another worker's measurements.
    pub(crate) fn add(&mut self, other: &Self) {
        self.latency.add(&other.latency);
        self.raw_latency.add(&other.raw_latency);
        self.ack_latency.add(&other.ack_latency);
        self.handshake.add(&other.handshake);
        self.sends += other.sends;
        self.late_sends += other.late_sends;
        self.missed_slots += other.missed_slots;
        self.received_in_window += other.received_in_window;
        self.series.add(&other.series);
    }
}

impl Recorder {
    /// A recorder before its run: nothing is measured until [`Recorder::open`].
    pub(crate) fn new() -> Self {
        let window = Window { start: u64::MAX, measure: u64::MAX, end: u64::MAX };
        Self { window, series: Series::default(), measures: Measures::default() }
    }

    /// The run has a window now.
    pub(crate) fn open(&mut self, window: Window) {
        self.window = window;
        self.series = Series::for_window(window);
    }

    pub(crate) fn window(&self) -> Window {
        self.window
    }

    /// The run ends at `now` instead: what was to come is not measured.
    pub(crate) fn cut_short(&mut self, now: Nanos) {
        self.window.end = self.window.end.min(now);
    }

    /// A message of an open loop, due at `intended`, leaves at `now`.
    pub(crate) fn record_send(&mut self, intended: Nanos, now: Nanos) {
        if let Some(bucket) = self.bucket(intended) {
            self.series.intended[bucket] += 1;
        }
        if let Some(bucket) = self.bucket(now) {
            self.series.sent[bucket] += 1;
        }
        if self.window.is_measured(intended) {
            self.measures.sends += 1;
            self.measures.late_sends += u64::from(now.saturating_sub(intended) > LATE_AFTER_NANOS);
        }
    }

    /// A message of an open loop was due at `intended` and could not be sent.
    pub(crate) fn record_missed(&mut self, intended: Nanos) {
        if let Some(bucket) = self.bucket(intended) {
            self.series.intended[bucket] += 1;
        }
        if self.window.is_measured(intended) {
            self.measures.missed_slots += 1;
        }
    }

    /// `count` messages of a closed loop leave at `now`.
    pub(crate) fn record_closed_sends(&mut self, count: u64, now: Nanos) {
        if let Some(bucket) = self.bucket(now) {
            self.series.sent[bucket] += count;
        }
        if self.window.is_measured(now) {
            self.measures.sends += count;
        }
    }

    /// `count` messages arrived at `now`.
    pub(crate) fn record_arrivals(&mut self, count: u64, now: Nanos) {
        if let Some(bucket) = self.bucket(now) {
            self.series.received[bucket] += count;
        }
        if self.window.is_measured(now) {
            self.measures.received_in_window += count;
        }
    }

    /// The latency of a message that was due at `intended` and left at `sent`.
    pub(crate) fn record_latency(&mut self, intended: Nanos, sent: Nanos, now: Nanos) {
        if self.window.is_measured(intended) {
            self.measures.latency.record(now.saturating_sub(intended));
            self.measures.raw_latency.record(now.saturating_sub(sent));
        }
    }

    /// The latency of a message of a closed loop, whose intended time is the time it left.
    pub(crate) fn record_closed_latency(&mut self, sent: Nanos, now: Nanos) {
        if self.window.is_measured(sent) {
            self.measures.latency.record(now.saturating_sub(sent));
        }
    }

    /// The server confirmed a message that was due at `intended`.
    pub(crate) fn record_ack(&mut self, intended: Nanos, now: Nanos) {
        if self.window.is_measured(intended) {
            self.measures.ack_latency.record(now.saturating_sub(intended));
        }
    }

    /// A connection was opened in this time.
    pub(crate) fn record_handshake(&mut self, nanos: Nanos) {
        self.measures.handshake.record(nanos);
    }

    /// What was measured.
    pub(crate) fn finish(mut self) -> Measures {
        self.measures.series = self.series;
        self.measures
    }

    fn bucket(&self, at: Nanos) -> Option<usize> {
        if !(self.window.start..self.window.end).contains(&at) {
            return None;
        }
        let bucket = usize::try_from((at - self.window.start) / self.series.bucket_nanos).ok()?;
        (bucket < self.series.received.len()).then_some(bucket)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Nanos = 1_000_000_000;

    fn recorder() -> Recorder {
        let mut recorder = Recorder::new();
        recorder.open(Window { start: SECOND, measure: 2 * SECOND, end: 4 * SECOND });
        recorder
    }

    #[test]
    fn nothing_is_measured_before_the_run_or_in_the_warm_up() {
        let mut unopened = Recorder::new();
        unopened.record_arrivals(3, 5);
        unopened.record_latency(5, 5, 9);
        assert_eq!(unopened.finish().received_in_window, 0);

        let mut recorder = recorder();
        recorder.record_send(SECOND + 5, SECOND + 5);
        recorder.record_latency(SECOND + 5, SECOND + 5, 3 * SECOND);
        let measures = recorder.finish();
        assert_eq!((measures.sends, measures.latency.count()), (0, 0));
        assert_eq!(measures.series.sent.iter().sum::<u64>(), 1);
    }

    #[test]
    fn latency_counts_from_the_intended_time_and_raw_from_the_send() {
        let mut recorder = recorder();
        let (intended, sent, now) = (2 * SECOND, 2 * SECOND + 5_000_000, 2 * SECOND + 6_000_000);
        recorder.record_send(intended, sent);
        recorder.record_latency(intended, sent, now);
        let measures = recorder.finish();
        assert_eq!(measures.latency.quantile(0.5) / 100_000, 60);
        assert_eq!(measures.raw_latency.quantile(0.5) / 100_000, 10);
        assert_eq!(measures.late_sends, 0);
    }

    #[test]
    fn a_send_over_ten_milliseconds_late_is_counted() {
        let mut recorder = recorder();
        for late in [0, LATE_AFTER_NANOS, LATE_AFTER_NANOS + 1] {
            recorder.record_send(3 * SECOND, 3 * SECOND + late);
        }
        let measures = recorder.finish();
        assert_eq!((measures.sends, measures.late_sends), (3, 1));
    }

    #[test]
    fn histograms_are_added_not_averaged_and_survive_the_pipe() {
        let mut sum = Measures::default();
        for worker in 1..=2 {
            let mut recorder = recorder();
            for _ in 0..worker {
                recorder.record_closed_latency(2 * SECOND, 2 * SECOND + worker * 1_000_000);
            }
            recorder.record_arrivals(worker, 2 * SECOND);
            let text = sonic_rs::to_string(&recorder.finish()).unwrap();
            sum.add(&sonic_rs::from_str(&text).unwrap());
        }
        assert_eq!((sum.latency.count(), sum.received_in_window), (3, 3));
        assert_eq!(sum.latency.quantile(0.3) / 100_000, 10);
        assert_eq!(sum.latency.quantile(1.0) / 100_000, 20);
        assert_eq!(sum.series.received.iter().sum::<u64>(), 3);
    }
}
