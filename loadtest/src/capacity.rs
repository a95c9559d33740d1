//! `capacity`: the highest rate at which a server meets the targets, found by whole runs of `p2p` at one rate after the
//! other.
//!
//! [`Search`] is pure: it only knows which rates held. A rate holds when its run passes. One that does not is tried a
//! second time, since on a busy machine a single run may fail for reasons of its own.

use std::sync::Arc;

use anyhow::Result;
use serde::Serialize;

use crate::{
    args::Scenario,
    config::{Config, Load},
    report::{Report, text::grouped_float},
    schedule::Rate,
    targets::Outcome,
};

/// While every rate holds, the next is so many times higher.
const GROWTH: f64 = 2.0;
/// The answer is no more than this below a rate that did not hold.
const PRECISION: f64 = 1.1;
/// Below this a server holds nothing.
const RATE_MIN: f64 = 1.0;
/// Enough to get from any rate to any other and to settle on 10 %.
const RATES_MAX: usize = 48;

/// Why the search went no higher.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LimitedBy {
    /// The next higher rate missed a target, or the ledger.
    Server,
    /// The next higher rate was more than the generator could send in time: the server may hold more.
    Generator,
    /// The user, or the number of rates that are tried.
    Search,
}

/// One rate that was tried.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Step {
    /// Messages per second.
    pub(crate) rate: f64,
    pub(crate) verdict: Outcome,
    pub(crate) p99_us: f64,
    /// What spoke against it.
    pub(crate) reasons: Vec<String>,
}

/// What a search found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Capacity {
    /// The highest rate that held; `null` if none did.
    pub(crate) rate: Option<f64>,
    pub(crate) limited_by: LimitedBy,
    pub(crate) steps: Vec<Step>,
}

/// Which rate to try next.
#[derive(Debug, Clone, Copy)]
struct Search {
    next: f64,
    held: Option<f64>,
    /// The lowest rate that did not hold, and how it ended.
    failed: Option<(f64, Outcome)>,
}

impl Search {
    fn from(rate: f64) -> Self {
        Self { next: rate, held: None, failed: None }
    }

    /// A run at `self.next` ended like this.
    fn note(&mut self, outcome: Outcome) {
        if outcome == Outcome::Pass {
            self.held = Some(self.next);
        } else {
            self.failed = Some((self.next, outcome));
        }
        self.next = match (self.held, self.failed) {
            // In the middle by ratio.
            (Some(held), Some((failed, _))) => (held * failed).sqrt().round(),
            (Some(held), None) => held * GROWTH,
            (None, Some((failed, _))) => failed / GROWTH,
            (None, None) => self.next,
        };
    }

    fn is_over(&self) -> bool {
        match (self.held, self.failed) {
            (Some(held), Some((failed, _))) => failed <= held * PRECISION || self.next <= held || self.next >= failed,
            _ => !(RATE_MIN..=Rate::PER_SECOND_MAX).contains(&self.next),
        }
    }

    fn limited_by(&self) -> LimitedBy {
        match self.failed {
            Some((_, Outcome::Void)) if self.is_over() => LimitedBy::Generator,
            Some(_) if self.is_over() => LimitedBy::Server,
            _ => LimitedBy::Search,
        }
    }
}

/// Searches, and returns the report of the run at the highest rate that held, or else of the last one.
///
/// `run` makes one whole run, and says whether the user has had enough.
///
/// # Errors
/// Those of `run`.
pub(crate) fn search(
    config: &Arc<Config>,
    mut run: impl FnMut(&Arc<Config>) -> Result<(Report, bool)>,
) -> Result<Report> {
    let first = config.load.rate_per_second().unwrap_or(RATE_MIN);
    let mut search = Search::from(first);
    let (mut steps, mut best, mut last) = (Vec::new(), None, None);
    for _ in 0..RATES_MAX {
        let mut is_enough = false;
        for _ in 0..2 {
            let mut at = Config::clone(config);
            at.scenario = Scenario::P2p;
            at.load = Load::Open { per_second: search.next };
            // No two runs may take each other's messages for their own.
            at.seed = config.seed.wrapping_add(steps.len() as u64);
            let report;
            (report, is_enough) = run(&Arc::new(at))?;
            let step = Step::new(search.next, &report);
            if !config.quiet {
                eprintln!("{step}");
            }
            let has_held = step.verdict == Outcome::Pass;
            steps.push(step);
            last = Some(report);
            if has_held || is_enough {
                break;
            }
        }
        let Some(report) = last.take_if(|_| !is_enough) else {
            // What was interrupted says nothing about its rate.
            break;
        };
        search.note(report.verdict);
        if report.verdict == Outcome::Pass {
            best = Some(report);
        } else {
            last = Some(report);
        }
        if search.is_over() {
            break;
        }
    }
    let mut report = best.or(last).expect("at least one rate was tried");
    report.scenario = Scenario::Capacity.name();
    report.capacity = Some(Capacity { rate: search.held, limited_by: search.limited_by(), steps });
    Ok(report)
}

impl Step {
    fn new(rate: f64, report: &Report) -> Self {
        Self {
            rate,
            verdict: report.verdict,
            p99_us: report.latency_us.p99,
            reasons: report.void_reasons.iter().chain(&report.failures).cloned().collect(),
        }
    }
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let p99 = crate::report::text::micros(self.p99_us);
        match self.verdict {
            Outcome::Pass => write!(f, "{}/s held: p99 {p99}", grouped_float(self.rate)),
            Outcome::Fail | Outcome::Void => {
                write!(f, "{}/s did not hold: {}", grouped_float(self.rate), self.reasons.join("; "))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Where a search that starts at `first` ends, if rates up to `capacity` hold.
    fn found(first: f64, capacity: f64, beyond: Outcome) -> (Search, usize) {
        let mut search = Search::from(first);
        let mut rates = 0;
        while rates < RATES_MAX && !search.is_over() {
            search.note(if search.next <= capacity { Outcome::Pass } else { beyond });
            rates += 1;
        }
        (search, rates)
    }

    proptest! {
        #[test]
        fn the_highest_rate_that_holds_is_found_to_a_tenth(first in 1.0f64..1e6, capacity in 20.0f64..1e7) {
            let (search, rates) = found(first, capacity, Outcome::Fail);
            let held = search.held.expect("some rate holds");
            prop_assert!(held <= capacity && capacity <= held * PRECISION * 1.03, "{held} of {capacity}");
            prop_assert!(rates < RATES_MAX, "{rates}");
            prop_assert_eq!(search.limited_by(), LimitedBy::Server);
        }
    }

    #[test]
    fn a_server_that_holds_nothing_ends_the_search() {
        let (search, rates) = found(1000.0, 0.0, Outcome::Fail);
        assert_eq!(search.held, None);
        assert!(rates < 15, "{rates}");
    }

    #[test]
    fn a_generator_that_falls_short_is_named_as_the_limit() {
        assert_eq!(found(1000.0, 5000.0, Outcome::Void).0.limited_by(), LimitedBy::Generator);
        assert_eq!(found(1000.0, f64::INFINITY, Outcome::Fail).0.limited_by(), LimitedBy::Search);
    }
}
