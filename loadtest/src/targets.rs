//! Targets such as `p99<10ms` and the verdict over a run: pure functions of its summary.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    args::{Span, SpanError},
    clock::{Nanos, nanos},
    report::text::micros,
};

/// Sends that may leave late before the generator, not the server, is what was measured.
const LATE_SHARE_MAX: f64 = 0.01;
/// CPU the generator may use of its cores before its own queueing shows in the latencies.
const CPU_SHARE_MAX: f64 = 0.90;

/// Something a target can be set on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Quantity {
    Latency(Source, Statistic),
    /// The slowest recovery from a fault.
    Recovery,
    Count(Count),
    Rate(RateOf),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Messages,
    Acks,
    Handshakes,
    Returns,
    CatchUps,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Statistic {
    P50,
    P90,
    P99,
    P999,
    Max,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Count {
    Lost,
    Duplicated,
    Reordered,
    Corrupt,
    Misdelivered,
    Refused,
    Unconfirmed,
    Failed,
    Received,
    Accepted,
    Displaced,
    Repeats,
    Unrecovered,
    Breaks,
    Crossing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RateOf {
    Messages,
    Connects,
}

/// Every name a target may use. The first of two names for one thing is the one that is shown.
const QUANTITIES: &[(&str, Quantity)] = &[
    ("p50", Quantity::Latency(Source::Messages, Statistic::P50)),
    ("p90", Quantity::Latency(Source::Messages, Statistic::P90)),
    ("p99", Quantity::Latency(Source::Messages, Statistic::P99)),
    ("p999", Quantity::Latency(Source::Messages, Statistic::P999)),
    ("max", Quantity::Latency(Source::Messages, Statistic::Max)),
    ("ack-p50", Quantity::Latency(Source::Acks, Statistic::P50)),
    ("ack-p99", Quantity::Latency(Source::Acks, Statistic::P99)),
    ("ack-max", Quantity::Latency(Source::Acks, Statistic::Max)),
    ("handshake-p50", Quantity::Latency(Source::Handshakes, Statistic::P50)),
    ("handshake-p99", Quantity::Latency(Source::Handshakes, Statistic::P99)),
    ("handshake-max", Quantity::Latency(Source::Handshakes, Statistic::Max)),
    ("return-p50", Quantity::Latency(Source::Returns, Statistic::P50)),
    ("return-p99", Quantity::Latency(Source::Returns, Statistic::P99)),
    ("return-max", Quantity::Latency(Source::Returns, Statistic::Max)),
    ("catch-up-p50", Quantity::Latency(Source::CatchUps, Statistic::P50)),
    ("catch-up-p99", Quantity::Latency(Source::CatchUps, Statistic::P99)),
    ("catch-up-max", Quantity::Latency(Source::CatchUps, Statistic::Max)),
    ("recovery", Quantity::Recovery),
    ("lost", Quantity::Count(Count::Lost)),
    ("duplicated", Quantity::Count(Count::Duplicated)),
    ("reordered", Quantity::Count(Count::Reordered)),
    ("corrupt", Quantity::Count(Count::Corrupt)),
    ("misdelivered", Quantity::Count(Count::Misdelivered)),
    ("refused", Quantity::Count(Count::Refused)),
    ("unconfirmed", Quantity::Count(Count::Unconfirmed)),
    ("failed", Quantity::Count(Count::Failed)),
    ("received", Quantity::Count(Count::Received)),
    ("accepted", Quantity::Count(Count::Accepted)),
    ("displaced", Quantity::Count(Count::Displaced)),
    ("repeats", Quantity::Count(Count::Repeats)),
    ("unrecovered", Quantity::Count(Count::Unrecovered)),
    ("breaks", Quantity::Count(Count::Breaks)),
    ("crossing", Quantity::Count(Count::Crossing)),
    ("rate", Quantity::Rate(RateOf::Messages)),
    ("connects", Quantity::Rate(RateOf::Connects)),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Relation {
    Below,
    AtMost,
    Equal,
    AtLeast,
    Above,
}

/// Longer operators first, so that `<=` is not read as `<`.
const RELATIONS: &[(&str, Relation)] = &[
    ("<=", Relation::AtMost),
    (">=", Relation::AtLeast),
    ("<", Relation::Below),
    (">", Relation::Above),
    ("=", Relation::Equal),
];

impl Relation {
    fn holds(self, measured: f64, bound: f64) -> bool {
        match self {
            Self::Below => measured < bound,
            Self::AtMost => measured <= bound,
            Self::Equal => (measured - bound).abs() < f64::EPSILON,
            Self::AtLeast => measured >= bound,
            Self::Above => measured > bound,
        }
    }
}

/// Why a target could not be read.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum TargetError {
    #[error("target {0:?} has no operator: write NAME<VALUE, with one of < <= = >= >")]
    NoRelation(String),
    #[error("target {0:?} is unknown: known are {known}", known = known_names())]
    UnknownName(String),
    #[error("target {name:?}: {cause}")]
    BadSpan { name: String, cause: SpanError },
    #[error("target {name:?} compares with {value:?}, which is no number of 0 or more")]
    BadNumber { name: String, value: String },
}

fn known_names() -> String {
    QUANTITIES.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
}

/// A condition on the outcome of a run, as the user wrote it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Target {
    text: String,
    quantity: Quantity,
    relation: Relation,
    /// Nanoseconds, a count, or a number per second.
    bound: f64,
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let found = text.find(['<', '>', '=']).ok_or_else(|| TargetError::NoRelation(text.to_owned()))?;
        let (name, rest) = text.split_at(found);
        let (name, known) = (name.trim(), |(known, _): &&(&str, Quantity)| *known == name.trim());
        let &(_, quantity) = QUANTITIES.iter().find(known).ok_or_else(|| TargetError::UnknownName(name.to_owned()))?;
        let &(operator, relation) = RELATIONS
            .iter()
            .find(|(operator, _)| rest.starts_with(operator))
            .ok_or_else(|| TargetError::NoRelation(text.to_owned()))?;
        let value = rest[operator.len()..].trim();
        let bound = match quantity {
            Quantity::Latency(..) | Quantity::Recovery => {
                let span: Span =
                    value.parse().map_err(|cause| TargetError::BadSpan { name: name.to_owned(), cause })?;
                approximate(nanos(Duration::from(span)))
            }
            Quantity::Count(_) | Quantity::Rate(_) => value
                .parse()
                .ok()
                .filter(|number: &f64| number.is_finite() && *number >= 0.0)
                .ok_or_else(|| TargetError::BadNumber { name: name.to_owned(), value: value.to_owned() })?,
        };
        Ok(Self { text: text.to_owned(), quantity, relation, bound })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Serialize for Target {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Target {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The statistics of one histogram, in nanoseconds. All 0 when `count` is 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Quantiles {
    pub(crate) count: u64,
    pub(crate) p50: Nanos,
    pub(crate) p90: Nanos,
    pub(crate) p99: Nanos,
    pub(crate) p999: Nanos,
    pub(crate) max: Nanos,
}

/// What a verdict is founded on.
#[derive(Debug, Clone, Default)]
pub(crate) struct Judged {
    pub(crate) messages: Quantiles,
    pub(crate) acks: Quantiles,
    pub(crate) handshakes: Quantiles,
    /// From the end of a connection to the next welcome.
    pub(crate) returns: Quantiles,
    /// From the end of a connection until nothing was missed any more.
    pub(crate) catch_ups: Quantiles,
    /// How long each fault took to recover from; `None` is for ever.
    pub(crate) recoveries: Vec<Option<Duration>>,
    pub(crate) repeats: u64,
    pub(crate) unrecovered: u64,
    pub(crate) breaks: u64,
    /// Pairs of clients on two nodes.
    pub(crate) crossing: u64,
    pub(crate) delivery: Delivery,
    pub(crate) ledger: crate::ledger::Ledger,
    pub(crate) opened: u64,
    /// Connections that could not be opened, or ended before the run did.
    pub(crate) failed: u64,
    /// A storm provokes refusals; elsewhere each is a failure of the run.
    pub(crate) failures_allowed: bool,
    /// Messages received per second of the measured window.
    pub(crate) rate: f64,
    pub(crate) connects_per_second: f64,
    pub(crate) sends: u64,
    pub(crate) late_sends: u64,
    pub(crate) missed_slots: u64,
    /// CPU the generator used, as a share of the cores it was given.
    pub(crate) cpu_share: f64,
    pub(crate) pacing: Pacing,
    /// Faults of the generator itself: a worker or process that died.
    pub(crate) faults: Vec<String>,
}

/// What recipients do with a message that comes again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// They count it: at-least-once delivery allows it.
    #[default]
    AtLeastOnce,
    /// They drop it by its name. One that comes through all the same has another name, or came very late.
    Once,
}

/// Whether messages leave by the clock or in answer to others.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Pacing {
    #[default]
    ClosedLoop,
    OpenLoop,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Outcome {
    Pass,
    Fail,
    /// The generator fell short: the numbers say nothing about the server.
    Void,
}

/// The outcome and everything that speaks against a pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) outcome: Outcome,
    pub(crate) void_reasons: Vec<String>,
    pub(crate) failures: Vec<String>,
}

impl Outcome {
    /// The process's exit code: 0 pass, 1 fail, 3 void. (2 is bad usage.)
    pub(crate) fn exit_code(self) -> u8 {
        match self {
            Self::Pass => 0,
            Self::Fail => 1,
            Self::Void => 3,
        }
    }
}

/// Judges a run by its ledger, then by `targets`. A run the generator spoiled is void whatever it measured.
pub(crate) fn judge(judged: &Judged, targets: &[Target]) -> Verdict {
    let void_reasons = void_reasons(judged);
    let mut failures = connection_failures(judged);
    failures.extend(ledger_failures(judged));
    for target in targets {
        failures.extend(target.failure(judged));
    }
    let outcome = match (void_reasons.is_empty(), failures.is_empty()) {
        (false, _) => Outcome::Void,
        (true, false) => Outcome::Fail,
        (true, true) => Outcome::Pass,
    };
    Verdict { outcome, void_reasons, failures }
}

fn void_reasons(judged: &Judged) -> Vec<String> {
    let mut reasons = judged.faults.clone();
    if judged.pacing == Pacing::OpenLoop {
        let due = judged.sends + judged.missed_slots;
        let late = judged.late_sends;
        if approximate(late) > approximate(due) * LATE_SHARE_MAX {
            reasons.push(format!(
                "{late} of {due} sends left more than 10 ms late, limit 1 %: lower --rate or add --threads"
            ));
        }
        if judged.cpu_share > CPU_SHARE_MAX {
            let percent = judged.cpu_share * 100.0;
            reasons.push(format!(
                "the generator used {percent:.0} % of its cores, limit 90 %: lower --rate or add --threads"
            ));
        }
    }
    reasons
}

/// A run that could not take place as asked has not passed, whatever the rest of it measured.
fn connection_failures(judged: &Judged) -> Vec<String> {
    let mut failures = Vec::new();
    if judged.opened == 0 {
        failures.push("no connection could be opened".to_owned());
    } else if judged.failed > 0 && !judged.failures_allowed {
        failures.push(format!("{} connections could not be opened or ended early", judged.failed));
    }
    if judged.missed_slots > 0 {
        failures.push(format!("{} sends could not be made when due", judged.missed_slots));
    }
    failures
}

/// The ledger judges every run, with or without targets.
fn ledger_failures(judged: &Judged) -> Vec<String> {
    let ledger = &judged.ledger;
    let must_be_zero = [
        ("lost", ledger.lost),
        ("reordered", ledger.reordered),
        ("corrupt", ledger.corrupt),
        ("misdelivered", ledger.misdelivered),
    ];
    let duplicated = match judged.delivery {
        Delivery::AtLeastOnce => 0,
        Delivery::Once => ledger.duplicated,
    };
    let must_be_zero = must_be_zero.into_iter().chain([("duplicated", duplicated)]);
    let broken = must_be_zero.filter(|(_, count)| *count > 0);
    let mut failures: Vec<_> = broken.map(|(name, count)| format!("ledger: {count} {name}")).collect();
    if judged.delivery == Delivery::Once && ledger.sent > 0 && ledger.accepted == 0 {
        // Only accepted messages can be lost: a server that accepts none would look flawless.
        failures.push(format!("ledger: none of {} messages was confirmed", ledger.sent));
    }
    failures
}

impl Target {
    /// Why the run misses this target, if it does.
    fn failure(&self, judged: &Judged) -> Option<String> {
        let Some(measured) = self.quantity.measure(judged) else {
            return Some(format!("target {self}: nothing was measured"));
        };
        if self.relation.holds(measured, self.bound) {
            return None;
        }
        let shown = match self.quantity {
            Quantity::Recovery if measured.is_infinite() => "none before the end or the next fault".to_owned(),
            Quantity::Latency(..) | Quantity::Recovery => micros(measured / 1000.0),
            Quantity::Count(_) => format!("{measured:.0}"),
            Quantity::Rate(_) => format!("{measured:.1}/s"),
        };
        Some(format!("target {self}: measured {shown}"))
    }
}

impl Quantity {
    /// `None` if no message, ack or handshake was measured: a latency nobody had meets no target.
    fn measure(self, judged: &Judged) -> Option<f64> {
        let ledger = &judged.ledger;
        match self {
            Self::Latency(source, statistic) => {
                let quantiles = match source {
                    Source::Messages => judged.messages,
                    Source::Acks => judged.acks,
                    Source::Handshakes => judged.handshakes,
                    Source::Returns => judged.returns,
                    Source::CatchUps => judged.catch_ups,
                };
                (quantiles.count > 0).then_some(approximate(match statistic {
                    Statistic::P50 => quantiles.p50,
                    Statistic::P90 => quantiles.p90,
                    Statistic::P99 => quantiles.p99,
                    Statistic::P999 => quantiles.p999,
                    Statistic::Max => quantiles.max,
                }))
            }
            Self::Recovery => {
                let recoveries = judged.recoveries.iter().map(|recovery| match recovery {
                    Some(recovery) => approximate(nanos(*recovery)),
                    None => f64::INFINITY,
                });
                recoveries.reduce(f64::max)
            }
            Self::Count(count) => Some(approximate(match count {
                Count::Lost => ledger.lost,
                Count::Duplicated => ledger.duplicated,
                Count::Reordered => ledger.reordered,
                Count::Corrupt => ledger.corrupt,
                Count::Misdelivered => ledger.misdelivered,
                Count::Refused => ledger.refused,
                Count::Unconfirmed => ledger.unconfirmed,
                Count::Received => ledger.received,
                Count::Failed => judged.failed,
                Count::Accepted => ledger.accepted,
                Count::Displaced => ledger.displaced,
                Count::Repeats => judged.repeats,
                Count::Unrecovered => judged.unrecovered,
                Count::Breaks => judged.breaks,
                Count::Crossing => judged.crossing,
            })),
            Self::Rate(RateOf::Messages) => Some(judged.rate),
            Self::Rate(RateOf::Connects) => Some(judged.connects_per_second),
        }
    }
}

/// A count as a float, for ratios and comparisons.
#[expect(clippy::cast_precision_loss, reason = "ratios need no more than 52 bits")]
pub(crate) fn approximate(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Ledger;

    fn judged() -> Judged {
        Judged {
            messages: Quantiles {
                count: 1000,
                p50: 1_000_000,
                p90: 2_000_000,
                p99: 5_000_000,
                p999: 9_000_000,
                max: 20_000_000,
            },
            ledger: Ledger { sent: 1000, received: 1000, ..Ledger::default() },
            opened: 10,
            rate: 1000.0,
            sends: 1000,
            pacing: Pacing::OpenLoop,
            ..Judged::default()
        }
    }

    fn outcome(judged: &Judged, targets: &[&str]) -> (Outcome, u8) {
        let targets: Vec<_> = targets.iter().map(|text| text.parse().unwrap()).collect();
        let verdict = judge(judged, &targets);
        (verdict.outcome, verdict.outcome.exit_code())
    }

    #[test]
    fn targets_hold_or_fail() {
        for (target, expected) in [
            ("p50<2ms", Outcome::Pass),
            ("p99<=5ms", Outcome::Pass),
            ("p99<5ms", Outcome::Fail),
            ("p999 < 8ms", Outcome::Fail),
            ("max<0.1s", Outcome::Pass),
            ("max<100us", Outcome::Fail),
            ("lost=0", Outcome::Pass),
            ("duplicated=0", Outcome::Pass),
            ("rate>999", Outcome::Pass),
            ("rate>=1000.5", Outcome::Fail),
            ("connects>20000", Outcome::Fail),
            ("handshake-p99<1s", Outcome::Fail),
        ] {
            assert_eq!(outcome(&judged(), &[target]).0, expected, "{target}");
        }
    }

    #[test]
    fn bad_targets_name_what_is_known() {
        let message = |text: &str| text.parse::<Target>().unwrap_err().to_string();
        assert!(message("p98<1ms").contains("known are p50, p90, p99"));
        assert!(message("p99").contains("no operator"));
        assert!(message("p99<10").contains("unit"));
        assert!(message("lost<-1").contains("\"-1\""));
        assert!(message("rate>NaN").contains("NaN"));
        assert!(message("").contains("no operator"));
    }

    #[test]
    fn with_no_targets_the_ledger_alone_judges() {
        assert_eq!(outcome(&judged(), &[]), (Outcome::Pass, 0));
        let broken: [fn(&mut Ledger); 4] =
            [|l| l.lost = 1, |l| l.reordered = 1, |l| l.corrupt = 1, |l| l.misdelivered = 1];
        for break_it in broken {
            let mut judged = judged();
            break_it(&mut judged.ledger);
            assert_eq!(outcome(&judged, &[]), (Outcome::Fail, 1));
        }
        let mut repeated = judged();
        repeated.ledger.duplicated = 1;
        assert_eq!(outcome(&repeated, &[]), (Outcome::Pass, 0), "at-least-once allows repeats");
        assert_eq!(outcome(&repeated, &["duplicated=0"]), (Outcome::Fail, 1));
    }

    #[test]
    fn where_clients_drop_repeats_one_that_comes_through_fails_the_run() {
        let mut once = judged();
        once.delivery = Delivery::Once;
        assert_eq!(outcome(&once, &[]), (Outcome::Fail, 1), "nothing was accepted");
        once.ledger.accepted = 1000;
        assert_eq!(outcome(&once, &[]), (Outcome::Pass, 0));
        once.ledger.duplicated = 1;
        assert_eq!(outcome(&once, &[]), (Outcome::Fail, 1));
    }

    #[test]
    fn the_slowest_recovery_is_judged() {
        let mut faulty = judged();
        assert_eq!(outcome(&faulty, &["recovery<10s"]).0, Outcome::Fail, "there was no fault");
        faulty.recoveries = vec![Some(Duration::from_secs(2)), Some(Duration::from_millis(9900))];
        assert_eq!(outcome(&faulty, &["recovery<10s"]).0, Outcome::Pass);
        assert_eq!(outcome(&faulty, &["recovery<9s"]).0, Outcome::Fail);
        faulty.recoveries.push(None);
        assert_eq!(outcome(&faulty, &["recovery<10h"]).0, Outcome::Fail);
        assert_eq!(outcome(&faulty, &["recovery>10s"]).0, Outcome::Pass);
    }

    #[test]
    fn connections_that_failed_fail_the_run_except_in_a_storm() {
        let mut broken = judged();
        broken.failed = 1;
        assert_eq!(outcome(&broken, &[]), (Outcome::Fail, 1));
        broken.failures_allowed = true;
        assert_eq!(outcome(&broken, &[]), (Outcome::Pass, 0));
        broken.opened = 0;
        assert_eq!(outcome(&broken, &[]), (Outcome::Fail, 1), "nothing was tried");
    }

    #[test]
    fn a_generator_that_fell_short_voids_the_run() {
        let mut late = judged();
        late.late_sends = 10;
        assert_eq!(outcome(&late, &[]), (Outcome::Pass, 0), "1 % is allowed");
        late.late_sends = 11;
        assert_eq!(outcome(&late, &["p50<1us"]), (Outcome::Void, 3), "void even when a target is missed");

        let mut busy = judged();
        busy.cpu_share = 0.91;
        assert_eq!(outcome(&busy, &[]).0, Outcome::Void);
        busy.pacing = Pacing::ClosedLoop;
        assert_eq!(outcome(&busy, &[]).0, Outcome::Pass, "a closed loop is meant to be busy");

        let mut died = judged();
        died.faults.push("process 1 was killed".into());
        assert_eq!(outcome(&died, &[]).0, Outcome::Void);
    }
}
