//! Which reports count. A report that is absurd is refused whole: a number out of
//! its range is a mistake somewhere, and clamping would make it look like a measurement.
//!
//! Node clocks are not read: a report is as old as the moment it was gathered.

use std::collections::BTreeMap;

use ring::control::Heartbeat;
use ring::{ControlError, NODES_MAX, NodeId, Ring, RingVersion};

/// Versions rise by one at a time: a node that claims more than this has not counted there.
const BELIEVABLE_VERSION_MAX: u64 = 1 << 52;

/// How loaded a node is.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Load {
    /// Share of its processors in use, 0 to 1.
    pub cpu: f64,
    /// Share of its memory in use, 0 to 1.
    pub mem: f64,
    /// 95th percentile of delivery latency, in ms.
    pub latency_ms: f64,
    /// Age of what it reads from Kafka, in ms.
    pub lag_ms: f64,
    /// Open connections.
    pub connections: f64,
    /// Messages per second.
    pub mps: f64,
}

impl Load {
    /// Mixes each figure with the other load's.
    pub(crate) fn zip(self, other: Self, mix: impl Fn(f64, f64) -> f64) -> Self {
        Self {
            cpu: mix(self.cpu, other.cpu),
            mem: mix(self.mem, other.mem),
            latency_ms: mix(self.latency_ms, other.latency_ms),
            lag_ms: mix(self.lag_ms, other.lag_ms),
            connections: mix(self.connections, other.connections),
            mps: mix(self.mps, other.mps),
        }
    }
}

impl From<&Heartbeat> for Load {
    #[allow(clippy::cast_precision_loss, reason = "below 2^53")]
    fn from(heartbeat: &Heartbeat) -> Self {
        Self {
            cpu: heartbeat.cpu,
            mem: heartbeat.mem,
            latency_ms: heartbeat.p95_latency_ms,
            lag_ms: heartbeat.kafka_topic_lag_latency_ms,
            connections: heartbeat.active_conn as f64,
            mps: heartbeat.mps,
        }
    }
}

/// A node that is alive, and what is known of its load.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// Which node.
    pub node: NodeId,
    /// Its load; none where nothing is known, which is not the same as no load.
    pub load: Option<Load>,
    /// The ring it follows.
    pub ring_version: Option<RingVersion>,
}

impl From<&Heartbeat> for Report {
    fn from(heartbeat: &Heartbeat) -> Self {
        let load = Some(Load::from(heartbeat));
        Self { node: heartbeat.node_id.clone(), load, ring_version: heartbeat.ring_version }
    }
}

/// Why a report does not count.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// It cannot be read, or has a figure out of its range.
    #[error("{0}")]
    Unreadable(#[from] ControlError),
    /// The node has reported already in this round; the first report counts.
    #[error("the node has reported twice")]
    Duplicate,
    /// It speaks for another node than the one under whose name it stands.
    #[error("nodeId is {claimed}, which is another node")]
    Name {
        /// Whom it names.
        claimed: NodeId,
    },
    /// It claims a ring that there cannot be.
    #[error("ringVersion is {version}, no ring counts that far")]
    Version {
        /// What it claims.
        version: RingVersion,
    },
    /// A ring holds no more nodes.
    #[error("more nodes than a ring holds, limit {NODES_MAX}")]
    TooManyNodes,
}

impl Refusal {
    /// A stable word to count it under.
    pub fn cause(&self) -> &'static str {
        match self {
            Self::Unreadable(_) => "unreadable",
            Self::Duplicate => "duplicate",
            Self::Name { .. } => "name",
            Self::Version { .. } => "version",
            Self::TooManyNodes => "too_many_nodes",
        }
    }
}

/// Reads what a node has said, wherever it stood: in Redis under the name `node`, or in a recorded line.
///
/// # Errors
/// When it cannot be read, has a figure out of its range, claims an impossible ring or names another node. A node that is
/// alive all the same has its place by [`Reports::keep`].
pub fn read(body: &[u8], node: Option<&NodeId>) -> Result<Heartbeat, Refusal> {
    let heartbeat = Heartbeat::decode(body)?;
    check_version(heartbeat.ring_version)?;
    if node.is_some_and(|node| *node != heartbeat.node_id) {
        return Err(Refusal::Name { claimed: heartbeat.node_id });
    }
    Ok(heartbeat)
}

fn check_version(version: Option<RingVersion>) -> Result<(), Refusal> {
    match version.filter(|version| version.get() > BELIEVABLE_VERSION_MAX) {
        Some(version) => Err(Refusal::Version { version }),
        None => Ok(()),
    }
}

/// The reports of one round: sorted by name, each node once, at most [`NODES_MAX`].
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Reports {
    by_node: BTreeMap<NodeId, Report>,
}

impl Reports {
    /// Takes one more report.
    ///
    /// # Errors
    /// When it is the node's second, comes from one node too many, or claims an impossible ring.
    pub fn insert(&mut self, report: Report) -> Result<(), Refusal> {
        check_version(report.ring_version)?;
        if self.by_node.contains_key(&report.node) {
            return Err(Refusal::Duplicate);
        }
        if self.by_node.len() == NODES_MAX {
            return Err(Refusal::TooManyNodes);
        }
        self.by_node.insert(report.node.clone(), report);
        Ok(())
    }

    /// Keeps the place of a node that has spoken and was refused: if it is in the ring it stays there, and its load is not
    /// known; a node that was never understood is given no clients.
    pub fn keep(&mut self, node: &NodeId, ring: Option<&Ring>) {
        let is_in_ring = ring.is_some_and(|ring| ring.weights().weight(node).is_some());
        if is_in_ring && !self.by_node.contains_key(node) && self.by_node.len() < NODES_MAX {
            let report = Report { node: node.clone(), load: None, ring_version: None };
            self.by_node.insert(node.clone(), report);
        }
    }

    /// Iterates in order of name.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Report> + Clone {
        self.by_node.values()
    }

    /// Returns the report of `node`.
    pub fn report(&self, node: &NodeId) -> Option<&Report> {
        self.by_node.get(node)
    }

    /// Returns the number of nodes.
    pub fn len(&self) -> usize {
        self.by_node.len()
    }

    /// Returns whether nobody has reported.
    pub fn is_empty(&self) -> bool {
        self.by_node.is_empty()
    }

    /// Returns the newest ring that any node follows.
    pub fn ring_version_max(&self) -> Option<RingVersion> {
        self.iter().filter_map(|report| report.ring_version).max()
    }
}

impl FromIterator<Report> for Reports {
    /// Leaves out what [`Reports::insert`] refuses.
    fn from_iter<I: IntoIterator<Item = Report>>(reports: I) -> Self {
        let mut all = Self::default();
        for report in reports {
            let _ = all.insert(report);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(node: &str, cpu: f64) -> Report {
        let load = Some(Load { cpu, ..Load::default() });
        Report { node: NodeId::new(node).unwrap(), load, ring_version: None }
    }

    #[test]
    fn the_first_report_of_a_node_counts_and_impossible_versions_do_not() {
        let mut reports = Reports::default();
        assert_eq!(reports.insert(report("a", 0.1)), Ok(()));
        assert_eq!(reports.insert(report("a", 0.9)), Err(Refusal::Duplicate));
        for (version, counts) in [(BELIEVABLE_VERSION_MAX, true), (BELIEVABLE_VERSION_MAX + 1, false)] {
            let ring_version = Some(RingVersion::new(version).unwrap());
            let result = reports.insert(Report { ring_version, ..report(&format!("v{version}"), 0.0) });
            assert_eq!(result.is_ok(), counts, "{version}");
        }
        assert_eq!(reports.report(&NodeId::new("a").unwrap()).unwrap().load.unwrap().cpu, 0.1);
        assert_eq!(reports.ring_version_max().unwrap().get(), BELIEVABLE_VERSION_MAX);
    }

    #[test]
    fn one_node_more_than_a_ring_holds_is_refused() {
        let mut reports: Reports = (0..NODES_MAX).map(|number| report(&format!("n{number}"), 0.5)).collect();
        assert_eq!(reports.len(), NODES_MAX);
        assert_eq!(reports.insert(report("one-more", 0.5)), Err(Refusal::TooManyNodes));
    }
}
