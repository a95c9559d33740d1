//! The result of a run, made once from the tally and then written in three forms.

mod environment;
pub(crate) mod html;
pub(crate) mod json;
mod plot;
pub(crate) mod text;

use serde::Serialize;

use self::environment::Environment;

use crate::{
    args::Scenario,
    capacity::Capacity,
    clock::Nanos,
    config::{Config, Load, Server},
    fault::{Aftermath, Fault, aftermaths},
    journeys::Journeys,
    recorder::{Latency, Measures},
    tally::{Causes, Tally},
    targets::{Delivery, Judged, Pacing, Quantiles, Verdict, approximate, judge},
};

const NANOS_PER_MICRO: f64 = 1000.0;
const NANOS_PER_SECOND: f64 = 1e9;
const MICROS_PER_SECOND: f64 = 1e6;

/// Version of the JSON report.
const SCHEMA: u32 = 1;

/// What the server's process used.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct ServerUsage {
    pub(crate) pid: u32,
    /// Within the measured window.
    pub(crate) cpu_cores: f64,
    /// Before the first connection, and when all were open.
    pub(crate) rss_before_bytes: u64,
    pub(crate) rss_open_bytes: u64,
    pub(crate) rss_end_bytes: u64,
}

/// A whole result, and the exact shape of the JSON report.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) schema: u32,
    pub(crate) scenario: &'static str,
    pub(crate) verdict: crate::targets::Outcome,
    #[serde(rename = "loop")]
    pub(crate) pacing: &'static str,
    pub(crate) urls: Vec<String>,
    pub(crate) connections: u32,
    pub(crate) opened: u64,
    pub(crate) failed: u64,
    pub(crate) depth: Option<u32>,
    pub(crate) payload_bytes: u32,
    pub(crate) duration_s: f64,
    pub(crate) warm_up_s: f64,
    pub(crate) seed: u64,
    pub(crate) sent: u64,
    pub(crate) received: u64,
    pub(crate) lost: u64,
    pub(crate) duplicated: u64,
    pub(crate) reordered: u64,
    pub(crate) displaced: u64,
    pub(crate) corrupt: u64,
    pub(crate) misdelivered: u64,
    pub(crate) refused: u64,
    pub(crate) accepted: Option<u64>,
    pub(crate) unconfirmed: Option<u64>,
    pub(crate) rate: RateReport,
    pub(crate) connects: ConnectsReport,
    pub(crate) latency_us: LatencyReport,
    pub(crate) raw_latency_us: LatencyReport,
    pub(crate) ack_latency_us: Option<LatencyReport>,
    pub(crate) handshake_us: LatencyReport,
    pub(crate) late_sends: u64,
    pub(crate) missed_slots: u64,
    /// Welcomes by the name of the node.
    pub(crate) nodes: Causes,
    pub(crate) pairs: Option<PairsReport>,
    pub(crate) roaming: Option<RoamingReport>,
    pub(crate) faults: Vec<FaultReport>,
    /// Of a search; the other figures are those of the run at the highest rate that held.
    pub(crate) capacity: Option<Capacity>,
    pub(crate) errors: Causes,
    pub(crate) void_reasons: Vec<String>,
    pub(crate) failures: Vec<String>,
    pub(crate) targets: Vec<String>,
    pub(crate) generator: GeneratorReport,
    pub(crate) server: Option<ServerReport>,
    pub(crate) environment: Environment,
    #[serde(skip)]
    pub(crate) measures: Measures,
    /// Messages overdue in each tenth of a second since the start, the drain included.
    #[serde(skip)]
    pub(crate) overdue: Vec<u64>,
}

/// Pairs of clients at the end of the run.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct PairsReport {
    pub(crate) total: u64,
    /// Pairs whose clients were on two nodes, by what the nodes call themselves.
    pub(crate) crossing: u64,
}

/// What became of connections, where clients outlive them.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct RoamingReport {
    pub(crate) returns: u64,
    pub(crate) cuts: u64,
    pub(crate) goodbyes: u64,
    pub(crate) moves: u64,
    pub(crate) advised: u64,
    /// Connections that ended without our doing, and were opened again, by cause.
    pub(crate) breaks: Causes,
    /// Attempts to connect that failed and were followed by another, by cause.
    pub(crate) retries: Causes,
    /// Returns to a `recovered:false`.
    pub(crate) unrecovered: u64,
    pub(crate) resent: u64,
    pub(crate) repeats_dropped: u64,
    /// Messages that arrived while sender and recipient were on two nodes.
    pub(crate) across: u64,
    pub(crate) silent_clients: u64,
    /// Messages that came after later ones, and clients told to stay away: which, when and over which nodes.
    pub(crate) disorders: Vec<String>,
    pub(crate) return_us: LatencyReport,
    pub(crate) catch_up_us: LatencyReport,
}

/// One fault, and what the time after it showed.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct FaultReport {
    pub(crate) at_s: f64,
    pub(crate) action: &'static str,
    pub(crate) pid: i32,
    /// Until no message was overdue any more; `null` if some were at the next fault or the end.
    pub(crate) recovery_s: Option<f64>,
    pub(crate) lost: u64,
    pub(crate) repeats_dropped: u64,
}

#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct RateReport {
    /// Messages per second asked for; `null` in a closed loop.
    pub(crate) intended: Option<f64>,
    /// Messages received per second of the measured window.
    pub(crate) achieved: f64,
}

#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct ConnectsReport {
    pub(crate) per_second: f64,
    pub(crate) opening_s: f64,
}

/// Microseconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct LatencyReport {
    pub(crate) count: u64,
    pub(crate) p50: f64,
    pub(crate) p90: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
    pub(crate) max: f64,
}

#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct GeneratorReport {
    pub(crate) processes: u32,
    pub(crate) threads: u32,
    /// Of the cores it was given.
    pub(crate) cpu_share: f64,
    pub(crate) cpu_us_per_message: Option<f64>,
    pub(crate) driver: &'static str,
}

#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct ServerReport {
    pub(crate) pid: u32,
    /// Cores in use within the measured window.
    pub(crate) cpu_cores: f64,
    pub(crate) cpu_us_per_message: Option<f64>,
    pub(crate) rss_before_bytes: u64,
    pub(crate) rss_open_bytes: u64,
    pub(crate) rss_end_bytes: u64,
    /// Growth of its memory while the connections were opened, by their number.
    pub(crate) rss_bytes_per_connection: Option<f64>,
}

impl Report {
    /// Judges the run and puts everything that was counted in order.
    pub(crate) fn new(config: &Config, tally: Tally, server: Option<ServerUsage>, faults: &[Fault]) -> Self {
        let figures = Figures::new(config, &tally);
        let aftermaths = aftermaths(faults, &tally.journeys.timeline, config.warm_up);
        let judged = figures.judged(config, &tally, &aftermaths);
        let Verdict { outcome, void_reasons, failures } = judge(&judged, &config.targets);
        let generator = GeneratorReport::new(config, &tally, &figures);
        let server = server.map(|usage| ServerReport::new(usage, &tally, &figures));
        let (failed, errors) = (tally.failed(), errors(&tally));
        let roaming = config.is_roaming().then(|| RoamingReport::new(&tally.journeys, &judged));
        let pairs = PairsReport { total: tally.pairs.total, crossing: tally.pairs.crossing };
        let overdue = tally.journeys.timeline.overdue();
        let Tally { ledger, measures, opened, nodes, .. } = tally;
        let latency = latency_report(&judged.messages);
        let (intended, depth, pacing) = match config.load {
            Load::Open { per_second } => (Some(per_second), None, "open"),
            Load::Closed { depth } => (None, Some(depth), "closed"),
            Load::Silent => (None, None, "none"),
        };
        Self {
            schema: SCHEMA,
            scenario: config.scenario.name(),
            verdict: outcome,
            pacing,
            urls: config.servers.iter().map(Server::url).collect(),
            connections: config.connections,
            opened,
            failed,
            depth,
            payload_bytes: config.payload_bytes,
            duration_s: figures.measured_s,
            warm_up_s: config.warm_up.as_secs_f64(),
            seed: config.seed,
            sent: ledger.sent,
            received: ledger.received,
            lost: ledger.lost,
            duplicated: ledger.duplicated,
            reordered: ledger.reordered,
            displaced: ledger.displaced,
            corrupt: ledger.corrupt,
            misdelivered: ledger.misdelivered,
            refused: ledger.refused,
            nodes,
            pairs: config.scenario.has_pairs().then_some(pairs),
            roaming,
            faults: aftermaths.iter().map(FaultReport::new).collect(),
            capacity: None,
            accepted: config.sender_acks.then_some(ledger.accepted),
            unconfirmed: config.sender_acks.then_some(ledger.unconfirmed),
            rate: RateReport { intended, achieved: figures.rate },
            connects: ConnectsReport { per_second: figures.connects_per_second, opening_s: figures.opening_s },
            latency_us: latency,
            raw_latency_us: match config.load.pacing() {
                Pacing::OpenLoop => latency_report(&quantiles(&measures.raw_latency)),
                // A closed loop has no intended times: a message is due when it leaves.
                Pacing::ClosedLoop => latency,
            },
            ack_latency_us: config.sender_acks.then(|| latency_report(&judged.acks)),
            handshake_us: latency_report(&judged.handshakes),
            late_sends: measures.late_sends,
            missed_slots: measures.missed_slots,
            errors,
            void_reasons,
            failures,
            targets: config.targets.iter().map(ToString::to_string).collect(),
            generator,
            server,
            environment: Environment::read(),
            measures,
            overdue,
        }
    }

    /// The process's exit code.
    pub(crate) fn exit_code(&self) -> u8 {
        self.verdict.exit_code()
    }
}

/// What follows from the counts alone.
struct Figures {
    measured_s: f64,
    opening_s: f64,
    rate: f64,
    connects_per_second: f64,
    cpu_share: f64,
}

impl Figures {
    fn new(config: &Config, tally: &Tally) -> Self {
        let (measured_s, opening_s) = (seconds(tally.measured), seconds(tally.opening));
        let is_storm = config.scenario == Scenario::Storm;
        Self {
            measured_s,
            opening_s,
            rate: per_second(tally.measures.received_in_window, measured_s),
            connects_per_second: if is_storm {
                per_second(tally.opened_in_window, measured_s)
            } else {
                per_second(tally.opened, opening_s)
            },
            cpu_share: tally.cpu_cores / f64::from(config.workers()),
        }
    }

    fn judged(&self, config: &Config, tally: &Tally, aftermaths: &[Aftermath]) -> Judged {
        let (measures, journeys) = (&tally.measures, &tally.journeys);
        Judged {
            returns: quantiles(&journeys.to_welcome),
            catch_ups: quantiles(&journeys.to_caught_up),
            recoveries: aftermaths.iter().map(|after| after.recovery).collect(),
            repeats: journeys.repeats,
            unrecovered: journeys.unrecovered,
            breaks: journeys.breaks.values().sum(),
            crossing: tally.pairs.crossing,
            delivery: if config.is_roaming() { Delivery::Once } else { Delivery::AtLeastOnce },
            messages: quantiles(&measures.latency),
            acks: quantiles(&measures.ack_latency),
            handshakes: quantiles(&measures.handshake),
            ledger: tally.ledger.clone(),
            opened: tally.opened,
            failed: tally.failed(),
            failures_allowed: config.scenario == Scenario::Storm,
            rate: self.rate,
            connects_per_second: self.connects_per_second,
            sends: measures.sends,
            late_sends: measures.late_sends,
            missed_slots: measures.missed_slots,
            cpu_share: self.cpu_share,
            pacing: config.load.pacing(),
            faults: tally.faults.clone(),
        }
    }
}

impl RoamingReport {
    fn new(journeys: &Journeys, judged: &Judged) -> Self {
        Self {
            returns: journeys.returns,
            cuts: journeys.cuts,
            goodbyes: journeys.goodbyes,
            moves: journeys.moves,
            advised: journeys.advised,
            breaks: journeys.breaks.clone(),
            retries: journeys.retries.clone(),
            unrecovered: journeys.unrecovered,
            resent: journeys.resent,
            repeats_dropped: journeys.repeats,
            across: journeys.across,
            silent_clients: journeys.silent,
            disorders: journeys.disorders.clone(),
            return_us: latency_report(&judged.returns),
            catch_up_us: latency_report(&judged.catch_ups),
        }
    }
}

impl FaultReport {
    fn new(after: &Aftermath) -> Self {
        Self {
            at_s: after.fault.at.as_secs_f64(),
            action: after.fault.action.name(),
            pid: after.fault.pid(),
            recovery_s: after.recovery.map(|recovery| recovery.as_secs_f64()),
            lost: after.lost,
            repeats_dropped: after.repeats,
        }
    }
}

impl GeneratorReport {
    fn new(config: &Config, tally: &Tally, figures: &Figures) -> Self {
        Self {
            processes: config.processes,
            threads: config.threads,
            cpu_share: figures.cpu_share,
            cpu_us_per_message: cpu_us_per_message(tally.cpu_cores, figures),
            driver: if tally.workers_on_epoll == 0 { "io_uring" } else { "epoll" },
        }
    }
}

impl ServerReport {
    fn new(usage: ServerUsage, tally: &Tally, figures: &Figures) -> Self {
        let growth = approximate(usage.rss_open_bytes) - approximate(usage.rss_before_bytes);
        Self {
            pid: usage.pid,
            cpu_cores: usage.cpu_cores,
            cpu_us_per_message: cpu_us_per_message(usage.cpu_cores, figures),
            rss_before_bytes: usage.rss_before_bytes,
            rss_open_bytes: usage.rss_open_bytes,
            rss_end_bytes: usage.rss_end_bytes,
            rss_bytes_per_connection: (tally.opened > 0).then(|| growth / approximate(tally.opened)),
        }
    }
}

fn seconds(nanos: Nanos) -> f64 {
    approximate(nanos) / NANOS_PER_SECOND
}

/// 0 where no time has passed.
fn per_second(count: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { approximate(count) / seconds } else { 0.0 }
}

/// Messages, or in a storm connections, share what was used of `cores`.
fn cpu_us_per_message(cores: f64, figures: &Figures) -> Option<f64> {
    (figures.rate > 0.0).then(|| cores * MICROS_PER_SECOND / figures.rate)
}

/// Everything that went wrong, by cause.
fn errors(tally: &Tally) -> Causes {
    let mut errors = tally.open_failures.clone();
    for (cause, count) in &tally.endings {
        *errors.entry(cause.clone()).or_default() += count;
    }
    for (code, count) in &tally.error_replies {
        *errors.entry(format!("error message: {code}")).or_default() += count;
    }
    errors
}

fn quantiles(latency: &Latency) -> Quantiles {
    Quantiles {
        count: latency.count(),
        p50: latency.quantile(0.5),
        p90: latency.quantile(0.9),
        p99: latency.quantile(0.99),
        p999: latency.quantile(0.999),
        max: latency.max(),
    }
}

fn latency_report(quantiles: &Quantiles) -> LatencyReport {
    // Tenths of a microsecond are finer than the histogram.
    let micros = |nanos: Nanos| (approximate(nanos) / NANOS_PER_MICRO * 10.0).round() / 10.0;
    LatencyReport {
        count: quantiles.count,
        p50: micros(quantiles.p50),
        p90: micros(quantiles.p90),
        p99: micros(quantiles.p99),
        p999: micros(quantiles.p999),
        max: micros(quantiles.max),
    }
}
