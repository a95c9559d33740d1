//! The command line, the environment and the configuration file, as they were given.
//!
//! [`Args`] is all `Option`, so that "not given" stays visible; `config.rs` turns it into a [`Config`](crate::config::Config).

use std::{fmt, net::IpAddr, path::PathBuf, str::FromStr, time::Duration};

use clap::{Parser, ValueEnum};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{fault::Fault, targets::Target};

/// What to do to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Scenario {
    /// Send frames to /ws/echo and check what comes back
    Echo,
    /// Virtual clients in pairs send each other messages; a ledger accounts for each
    P2p,
    /// Open sessions and hold them silently
    Idle,
    /// Connect and leave as fast as possible
    Storm,
    /// As p2p, but connections are cut, and clients return and take up where they were
    Resume,
    /// As p2p, but clients move from server to server while messages flow
    Churn,
    /// p2p at one rate after the other, in search of the highest that holds
    Capacity,
}

impl Scenario {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Echo => "echo",
            Self::P2p => "p2p",
            Self::Idle => "idle",
            Self::Storm => "storm",
            Self::Resume => "resume",
            Self::Churn => "churn",
            Self::Capacity => "capacity",
        }
    }

    /// True where virtual clients in pairs send each other messages.
    pub(crate) fn has_pairs(self) -> bool {
        matches!(self, Self::P2p | Self::Resume | Self::Churn | Self::Capacity)
    }

    /// True where clients break off their connections as part of the run.
    pub(crate) fn is_restless(self) -> bool {
        matches!(self, Self::Resume | Self::Churn)
    }
}

/// Where the two clients of a pair connect to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Pairs {
    /// To different servers, where there are several
    Cross,
    /// To the same server
    Local,
    /// In every combination equally often, as clients that know nothing of each other would
    Mixed,
}

/// What carries the I/O.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum DriverChoice {
    /// `io_uring`, or epoll where the kernel refuses it
    Auto,
    /// epoll, to measure as older kernels would
    Epoll,
}

/// Drives WebSocket servers and proves, message by message, what became of the load.
///
/// Flags win over environment variables, those over the file given by --config, and that over the defaults.
/// Exit code: 0 every target met, 1 a target or the ledger missed, 2 bad usage or a limit of this machine,
/// 3 void: the generator itself fell short.
#[derive(Debug, Default, Clone, Parser, Serialize, Deserialize)]
#[command(name = "rtc-loadtest", version, max_term_width = 110)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Args {
    /// What to do to the server
    #[arg(value_enum, env = "RTC_LOADTEST_SCENARIO")]
    pub(crate) scenario: Option<Scenario>,

    /// Servers, taken in turn: `ws://HOST:PORT[/PATH],…` [default: `ws://127.0.0.1:8080`]
    #[arg(long, value_delimiter = ',', env = "RTC_LOADTEST_URL", value_name = "URL")]
    pub(crate) url: Option<Vec<String>>,

    /// In place of --url: ask this balancer before each connection which server the client belongs to, `http://HOST:PORT` [default: none]
    #[arg(long, env = "RTC_LOADTEST_BALANCER", value_name = "URL", conflicts_with = "url")]
    pub(crate) balancer: Option<String>,

    /// p2p, resume, churn, capacity: where the two clients of a pair connect to [default: cross]
    #[arg(long, value_enum, env = "RTC_LOADTEST_PAIRS", value_name = "WHERE")]
    pub(crate) pairs: Option<Pairs>,

    /// Virtual clients [default: 100; storm: no limit, or 1000 with --hold]
    #[arg(long, env = "RTC_LOADTEST_CONNECTIONS", value_name = "N")]
    pub(crate) connections: Option<u32>,

    /// Open loop: messages per second in total, each with an intended time; storm: connects per second; capacity: the first to try [default: p2p, resume, churn, capacity 1000; storm: as fast as possible]
    #[arg(long, env = "RTC_LOADTEST_RATE", value_name = "PER_S", conflicts_with = "depth")]
    pub(crate) rate: Option<f64>,

    /// Closed loop: messages in flight per connection, a new one for each that arrives [default: echo 1]
    #[arg(long, env = "RTC_LOADTEST_DEPTH", value_name = "N")]
    pub(crate) depth: Option<u32>,

    /// Size of a message in bytes: the echoed payload, or the whole JSON text of p2p and its kin [default: echo 16, else 200]
    #[arg(long, env = "RTC_LOADTEST_PAYLOAD", value_name = "BYTES")]
    pub(crate) payload: Option<u32>,

    /// How long to measure, in capacity each rate: 500ms, 10s, 5m, 1h [default: 10s]
    #[arg(long, env = "RTC_LOADTEST_DURATION", value_name = "SPAN")]
    pub(crate) duration: Option<Span>,

    /// How long to run before measuring [default: 1s; idle, storm 0s]
    #[arg(long, env = "RTC_LOADTEST_WARM_UP", value_name = "SPAN")]
    pub(crate) warm_up: Option<Span>,

    /// How long to wait at the end for messages still under way [default: 5s; resume, churn and with --fault 30s]
    #[arg(long, env = "RTC_LOADTEST_DRAIN", value_name = "SPAN")]
    pub(crate) drain: Option<Span>,

    /// How long opening one connection may take, handshake and welcome included [default: 10s]
    #[arg(long, env = "RTC_LOADTEST_CONNECT_TIMEOUT", value_name = "SPAN")]
    pub(crate) connect_timeout: Option<Span>,

    /// Connections being opened at once, per thread [default: 64]
    #[arg(long, env = "RTC_LOADTEST_IN_FLIGHT", value_name = "N")]
    pub(crate) in_flight: Option<u32>,

    /// Storm: keep the connections open to the end of the run instead of closing each at once [default: false]
    #[arg(long, env = "RTC_LOADTEST_HOLD", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub(crate) hold: Option<bool>,

    /// resume: how long a connection lives before it is cut, with and without a goodbye in turn; at random from half to one and a half of this [default: 2s]
    #[arg(long, env = "RTC_LOADTEST_CUT_INTERVAL", value_name = "SPAN")]
    pub(crate) cut_interval: Option<Span>,

    /// churn: how long a client stays with a server before it moves to the next, at random from half to one and a half of this [default: 5s]
    #[arg(long, env = "RTC_LOADTEST_HOP_INTERVAL", value_name = "SPAN")]
    pub(crate) hop_interval: Option<Span>,

    /// churn: share of the clients that acknowledge nothing for seconds at a time, though they read [default: 0%]
    #[arg(long, env = "RTC_LOADTEST_SILENT_SHARE", value_name = "PERCENT")]
    pub(crate) silent_share: Option<Share>,

    /// p2p, resume, churn: send a signal to a process on this machine, so long after measuring began: 'at=10s kill=PID', or stop, cont, term; may be repeated [default: none]
    #[arg(long, value_delimiter = ',', env = "RTC_LOADTEST_FAULT", value_name = "FAULT")]
    pub(crate) fault: Option<Vec<Fault>>,

    /// p2p, capacity: ask the server to confirm each message to its sender, and account for it; resume and churn always do [default: false]
    #[arg(long, env = "RTC_LOADTEST_SENDER_ACKS", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub(crate) sender_acks: Option<bool>,

    /// p2p, capacity: recipients acknowledge what they receive; in resume and churn they always do [default: false]
    #[arg(long, env = "RTC_LOADTEST_RECEIVER_ACKS", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub(crate) receiver_acks: Option<bool>,

    /// Processes to spread the connections over [default: 1]
    #[arg(long, env = "RTC_LOADTEST_PROCESSES", value_name = "N")]
    pub(crate) processes: Option<u32>,

    /// Threads per process [default: 1]
    #[arg(long, env = "RTC_LOADTEST_THREADS", value_name = "N")]
    pub(crate) threads: Option<u32>,

    /// CPUs to pin the threads to, taken in turn: 1 or 0,2,3 [default: not pinned]
    #[arg(long, value_delimiter = ',', env = "RTC_LOADTEST_CPUS", value_name = "CPU")]
    pub(crate) cpus: Option<Vec<u32>>,

    /// What carries the I/O [default: auto]
    #[arg(long, value_enum, env = "RTC_LOADTEST_DRIVER", value_name = "DRIVER")]
    pub(crate) driver: Option<DriverChoice>,

    /// Local addresses to connect from, taken in turn [default: 127.1.0.1, 127.1.0.2, … towards a loopback server, else the system's choice]
    #[arg(long, value_delimiter = ',', env = "RTC_LOADTEST_SOURCE_ADDRESSES", value_name = "IP")]
    pub(crate) source_addresses: Option<Vec<IpAddr>>,

    /// Seed of the run's identity, payloads and mask keys [default: random]
    #[arg(long, env = "RTC_LOADTEST_SEED", value_name = "N")]
    pub(crate) seed: Option<u64>,

    /// A condition such as 'p99<10ms', 'lost=0', 'rate>1000'; may be repeated [default: the ledger alone judges; capacity p99<100ms]
    #[arg(long, value_delimiter = ',', env = "RTC_LOADTEST_TARGET", value_name = "CONDITION")]
    pub(crate) target: Option<Vec<Target>>,

    /// Process id of a server on this machine, whose CPU and memory are to be reported [default: none]
    #[arg(long, env = "RTC_LOADTEST_SERVER_PID", value_name = "PID")]
    pub(crate) server_pid: Option<u32>,

    /// Write the result as JSON to this file, or to standard output with - [default: none]
    #[arg(long, env = "RTC_LOADTEST_JSON", value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,

    /// Write the result as one self-contained HTML page to this file [default: none]
    #[arg(long, env = "RTC_LOADTEST_HTML", value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,

    /// No progress and no text report, only the exit code and what was asked for in files [default: false]
    #[arg(long, env = "RTC_LOADTEST_QUIET", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub(crate) quiet: Option<bool>,

    /// TOML file with any of these settings, named as the flags with _ for -
    #[arg(long, env = "RTC_LOADTEST_CONFIG", value_name = "FILE")]
    #[serde(skip)]
    pub(crate) config: Option<PathBuf>,

    /// Show the settings that would be used, as TOML, and exit
    #[arg(long)]
    #[serde(skip)]
    pub(crate) print_config: bool,

    /// One process of several, told what to do on its standard input.
    #[arg(long, hide = true)]
    #[serde(skip)]
    pub(crate) child: bool,
}

impl Args {
    /// These settings, with `fallback`'s where nothing was given.
    pub(crate) fn or(self, fallback: Self) -> Self {
        // Rate and depth exclude each other: one given here hides the other there.
        let paced = self.rate.is_some() || self.depth.is_some();
        // So do the servers and who names them.
        let names_servers = self.url.is_some() || self.balancer.is_some();
        Self {
            scenario: self.scenario.or(fallback.scenario),
            url: if names_servers { self.url } else { fallback.url },
            balancer: if names_servers { self.balancer } else { fallback.balancer },
            pairs: self.pairs.or(fallback.pairs),
            connections: self.connections.or(fallback.connections),
            rate: if paced { self.rate } else { fallback.rate },
            depth: if paced { self.depth } else { fallback.depth },
            payload: self.payload.or(fallback.payload),
            duration: self.duration.or(fallback.duration),
            warm_up: self.warm_up.or(fallback.warm_up),
            drain: self.drain.or(fallback.drain),
            connect_timeout: self.connect_timeout.or(fallback.connect_timeout),
            in_flight: self.in_flight.or(fallback.in_flight),
            hold: self.hold.or(fallback.hold),
            cut_interval: self.cut_interval.or(fallback.cut_interval),
            hop_interval: self.hop_interval.or(fallback.hop_interval),
            silent_share: self.silent_share.or(fallback.silent_share),
            fault: self.fault.or(fallback.fault),
            sender_acks: self.sender_acks.or(fallback.sender_acks),
            receiver_acks: self.receiver_acks.or(fallback.receiver_acks),
            processes: self.processes.or(fallback.processes),
            threads: self.threads.or(fallback.threads),
            cpus: self.cpus.or(fallback.cpus),
            driver: self.driver.or(fallback.driver),
            source_addresses: self.source_addresses.or(fallback.source_addresses),
            seed: self.seed.or(fallback.seed),
            target: self.target.or(fallback.target),
            server_pid: self.server_pid.or(fallback.server_pid),
            json: self.json.or(fallback.json),
            html: self.html.or(fallback.html),
            quiet: self.quiet.or(fallback.quiet),
            config: self.config,
            print_config: self.print_config,
            child: self.child,
        }
    }
}

/// A length of time as people write it: a number and one of the units of [`UNITS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span(Duration);

/// Longer units first where one ends in another, and the largest first for showing.
const UNITS: &[(&str, f64)] =
    &[("ns", 1e-9), ("us", 1e-6), ("µs", 1e-6), ("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];
const SPAN_SECONDS_MAX: f64 = 7.0 * 24.0 * 3600.0;

/// Why a length of time could not be read.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum SpanError {
    #[error("{0:?} has no unit: write 10ms, 5s, 2m or 1h")]
    NoUnit(String),
    #[error("{0:?} is no length of time from 0 to 7 days: write 10ms, 5s, 2m or 1h")]
    BadNumber(String),
}

impl FromStr for Span {
    type Err = SpanError;

    fn from_str(text: &str) -> Result<Self, SpanError> {
        let (number, seconds) = UNITS
            .iter()
            .find_map(|(unit, seconds)| Some((text.strip_suffix(unit)?, seconds)))
            .ok_or_else(|| SpanError::NoUnit(text.to_owned()))?;
        let number: f64 = number.trim().parse().map_err(|_| SpanError::BadNumber(text.to_owned()))?;
        let seconds = number * seconds;
        if !(0.0..=SPAN_SECONDS_MAX).contains(&seconds) {
            return Err(SpanError::BadNumber(text.to_owned()));
        }
        Ok(Self(Duration::from_secs_f64(seconds)))
    }
}

impl From<Span> for Duration {
    fn from(span: Span) -> Self {
        span.0
    }
}

impl From<Duration> for Span {
    fn from(duration: Duration) -> Self {
        Self(duration)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.subsec_nanos() == 0 {
            write!(f, "{}s", self.0.as_secs())
        } else if self.0.subsec_nanos().is_multiple_of(1_000_000) {
            write!(f, "{}ms", self.0.as_millis())
        } else {
            write!(f, "{}ns", self.0.as_nanos())
        }
    }
}

impl Serialize for Span {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A share of a whole, written as a percentage.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Share(f64);

/// Why a share could not be read.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{0:?} is no share from 0% to 100%")]
pub(crate) struct ShareError(String);

impl FromStr for Share {
    type Err = ShareError;

    fn from_str(text: &str) -> Result<Self, ShareError> {
        let percent = text.strip_suffix('%').and_then(|number| number.trim().parse::<f64>().ok());
        let percent = percent.filter(|percent| (0.0..=100.0).contains(percent));
        percent.map(|percent| Self(percent / 100.0)).ok_or_else(|| ShareError(text.to_owned()))
    }
}

impl Share {
    /// From 0 to 1.
    pub(crate) fn fraction(self) -> f64 {
        self.0
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0 * 100.0)
    }
}

impl Serialize for Share {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Share {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn spans_are_read_with_their_unit() {
        for (text, expected) in [
            ("10s", Some(10_000_000)),
            ("0s", Some(0)),
            ("1.5ms", Some(1500)),
            ("250us", Some(250)),
            ("2m", Some(120_000_000)),
            ("1h", Some(3_600_000_000)),
            ("10", None),
            ("-1s", None),
            ("s", None),
            ("NaNs", None),
            ("1e30h", None),
            ("", None),
        ] {
            let read = text.parse::<Span>().ok().map(|span| span.0.as_micros());
            assert_eq!(read, expected, "{text}");
        }
    }

    #[test]
    fn a_shown_span_reads_back_the_same() {
        for text in ["0s", "10s", "1500ms", "1h", "250us", "1ns"] {
            let span: Span = text.parse().unwrap();
            assert_eq!(span.to_string().parse::<Span>().unwrap(), span, "{text}");
        }
    }

    #[test]
    fn shares_are_percentages() {
        for (text, expected) in [
            ("1%", Some("1%")),
            ("0.5 %", Some("0.5%")),
            ("100%", Some("100%")),
            ("1", None),
            ("101%", None),
            ("NaN%", None),
        ] {
            let shown = text.parse::<Share>().ok().map(|share| share.to_string());
            assert_eq!(shown.as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn a_rate_given_on_the_command_line_hides_a_depth_in_the_file() {
        let file = Args { depth: Some(4), connections: Some(7), ..Args::default() };
        let line = Args { rate: Some(10.0), ..Args::default() };
        let merged = line.or(file);
        assert_eq!((merged.rate, merged.depth, merged.connections), (Some(10.0), None, Some(7)));
    }

    #[test]
    fn a_balancer_given_on_the_command_line_hides_servers_in_the_file() {
        let file = Args { url: Some(vec!["ws://a:1".to_owned()]), ..Args::default() };
        let line = Args { balancer: Some("http://b:2".to_owned()), ..Args::default() };
        let merged = line.or(file);
        assert_eq!((merged.url, merged.balancer.as_deref()), (None, Some("http://b:2")));
    }

    #[test]
    fn unknown_keys_in_the_file_are_refused() {
        let error = toml::from_str::<Args>("connexions = 3").unwrap_err().to_string();
        assert!(error.contains("connexions"), "{error}");
    }
}
