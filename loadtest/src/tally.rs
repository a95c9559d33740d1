//! What a worker hands back, and the sum over all workers and processes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{clock::Nanos, journeys::Journeys, ledger::Ledger, recorder::Measures};

/// Causes and how often each occurred.
pub(crate) type Causes = BTreeMap<String, u64>;

/// Pairs of clients at the end of the run, and how many of them were on two nodes, by what the nodes call themselves.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pairs {
    pub(crate) total: u64,
    pub(crate) crossing: u64,
}

/// Everything one worker counted; also the sum of several.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub(crate) struct Tally {
    pub(crate) ledger: Ledger,
    pub(crate) measures: Measures,
    /// What became of connections that were left, cut or broken.
    pub(crate) journeys: Journeys,
    /// Welcomes by the name of the node.
    pub(crate) nodes: Causes,
    pub(crate) pairs: Pairs,
    /// Connections opened.
    pub(crate) opened: u64,
    /// Connections that could not be opened, by cause.
    pub(crate) open_failures: Causes,
    /// Connections that ended before the run did, by cause.
    pub(crate) endings: Causes,
    /// Error messages of the server, by code.
    pub(crate) error_replies: Causes,
    /// How long the slowest worker took to open its connections.
    pub(crate) opening: Nanos,
    /// Connections opened within the measured window (storm).
    pub(crate) opened_in_window: u64,
    /// CPU of the generator within the measured window.
    pub(crate) cpu_cores: f64,
    /// How long was measured; less than planned if the run was interrupted.
    pub(crate) measured: Nanos,
    /// Workers that fell back to epoll.
    pub(crate) workers_on_epoll: u32,
    /// Workers or processes that died.
    pub(crate) faults: Vec<String>,
}

impl Tally {
    /// Adds what another worker or process counted.
    pub(crate) fn add(&mut self, other: Self) {
        self.ledger.add(&other.ledger);
        self.measures.add(&other.measures);
        self.journeys.add(&other.journeys);
        add_causes(&mut self.nodes, &other.nodes);
        self.pairs.total += other.pairs.total;
        self.pairs.crossing += other.pairs.crossing;
        self.opened += other.opened;
        add_causes(&mut self.open_failures, &other.open_failures);
        add_causes(&mut self.endings, &other.endings);
        add_causes(&mut self.error_replies, &other.error_replies);
        self.opening = self.opening.max(other.opening);
        self.opened_in_window += other.opened_in_window;
        self.cpu_cores += other.cpu_cores;
        self.measured = self.measured.max(other.measured);
        self.workers_on_epoll += other.workers_on_epoll;
        self.faults.extend(other.faults);
    }

    /// Connections that could not be opened or ended early.
    pub(crate) fn failed(&self) -> u64 {
        self.open_failures.values().chain(self.endings.values()).sum()
    }
}

/// Counts one more of `cause`.
pub(crate) fn count(causes: &mut Causes, cause: &str) {
    match causes.get_mut(cause) {
        Some(count) => *count += 1,
        None => {
            causes.insert(cause.to_owned(), 1);
        }
    }
}

/// Adds what another worker counted.
pub(crate) fn add_causes(causes: &mut Causes, others: &Causes) {
    for (cause, count) in others {
        *causes.entry(cause.clone()).or_default() += count;
    }
}
