//! What is shown of the balancer's work: one snapshot that the loop replaces and every request reads.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ring::{NodeId, Ring, SLOTS, SharedRing};
use serde::Serialize;

/// Rebalances that are remembered for the page.
pub const HISTORY_MAX: usize = 100;
/// A look that is older says nothing of now.
const FRESH_FOR: Duration = Duration::from_secs(5);

/// A node as it is shown.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the names are those of the heartbeat and the ring")]
pub struct NodeView {
    pub node_id: NodeId,
    /// `up`, `held` (silent, and kept in the ring for now), `draining`, `gone` (still in the ring) or `joining`.
    pub state: &'static str,
    pub weight: Option<u16>,
    /// Share of all keys, 0 to 1.
    pub share: Option<f64>,
    pub score: Option<f64>,
    pub cpu: Option<f64>,
    pub mem: Option<f64>,
    pub active_conn: Option<f64>,
    pub mps: Option<f64>,
    pub p95_latency_ms: Option<f64>,
    pub kafka_topic_lag_latency_ms: Option<f64>,
    pub heartbeat_age_ms: Option<u64>,
    pub ring_version: Option<u64>,
    pub url: Option<String>,
    pub zone: Option<String>,
    pub incarnation: Option<u64>,
}

/// A ring that this balancer has published or seen.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the names are those of the ring update")]
pub struct Rebalance {
    pub ts: u64,
    pub version: u64,
    pub nodes: usize,
    pub reason: String,
    /// What made the balancer compute weights anew, for people.
    pub cause: Option<String>,
    /// Share of all keys that moved, 0 to 1; none where the ring before is not known.
    pub moved_share: Option<f64>,
    /// Peak over mean load before, and as expected after.
    pub peak_before: Option<f64>,
    pub peak_after: Option<f64>,
}

/// The state of things at one moment.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// When Redis last answered.
    pub looked: Option<Instant>,
    /// By Redis' clock, in ms since 1970.
    pub redis_ms: u64,
    /// This balancer leads.
    pub is_leader: bool,
    /// Who leads.
    pub leader: String,
    /// Every node that is known, in order of name.
    pub nodes: Vec<NodeView>,
    /// The latest rebalances, newest first.
    pub history: VecDeque<Rebalance>,
}

/// What the loop counts.
#[derive(Debug, Default)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Counters {
    pub recalculations: AtomicU64,
    pub scale_out: AtomicU64,
    pub scale_in: AtomicU64,
    pub redis_errors: AtomicU64,
    pub strange_rings: AtomicU64,
    pub fenced: AtomicU64,
    pub take_overs: AtomicU64,
    pub mass_holds: AtomicU64,
    pub decision_micros: AtomicU64,
    pub decisions: AtomicU64,
    /// Share of keys moved by all updates, in millionths.
    pub moved_millionths: AtomicU64,
    refused: Mutex<BTreeMap<&'static str, u64>>,
}

impl Counters {
    /// Adds one.
    pub fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a heartbeat that does not count.
    pub fn count_refused(&self, cause: &'static str) {
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner).entry(cause).or_insert(0) += 1;
    }

    /// Returns how many heartbeats were refused, by cause.
    pub fn refused(&self) -> BTreeMap<&'static str, u64> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What the loop writes and requests read.
#[derive(Debug, Default)]
pub struct View {
    snapshot: Mutex<Arc<Snapshot>>,
    /// The ring that look-ups go by.
    pub ring: SharedRing,
    /// What is counted.
    pub counters: Counters,
}

impl View {
    /// Returns the latest snapshot.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshot.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces it.
    pub fn show(&self, snapshot: Snapshot) {
        *self.snapshot.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(snapshot);
    }
}

impl Snapshot {
    /// Returns whether Redis has answered lately.
    pub fn is_fresh(&self) -> bool {
        self.looked.is_some_and(|at| at.elapsed() < FRESH_FOR)
    }

    /// Returns a node by name.
    pub fn node(&self, node: &NodeId) -> Option<&NodeView> {
        self.nodes.binary_search_by(|view| view.node_id.cmp(node)).ok().map(|index| &self.nodes[index])
    }
}

/// Returns each node's share of the keys, in order of name.
pub fn shares(ring: &Ring) -> Vec<f64> {
    let mut slots = vec![0_u32; ring.weights().len()];
    for index in ring.slot_owners() {
        slots[index.get()] += 1;
    }
    #[allow(clippy::cast_precision_loss, reason = "a few hundred thousand slots")]
    slots.into_iter().map(|count| f64::from(count) / SLOTS as f64).collect()
}
