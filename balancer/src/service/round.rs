//! One look at Redis, read: who is alive, and what each node says of its load.

use std::collections::BTreeMap;

use ring::NodeId;
use ring::control::Heartbeat;
use tracing::{error, warn};

use super::Service;
use crate::heartbeats::{self, Refusal, Report, Reports};
use crate::presence::Alive;
use crate::store::Look;
use crate::view::Counters;

/// One look, read.
pub(super) struct Round {
    pub(super) look: Look,
    pub(super) alive: Alive,
    pub(super) heartbeats: BTreeMap<NodeId, Heartbeat>,
    pub(super) reports: Reports,
}

impl Service {
    pub(super) fn read(&mut self, look: Look) -> Round {
        let now_ms = self.since_start_ms();
        let ring = self.state.ring().cloned();
        let in_ring = ring.iter().flat_map(|ring| ring.weights().iter().map(|(node, _)| node));
        let alive = self.presence.judge(&self.presence_rules, &look.beats, in_ring, look.redis_ms, now_ms);
        if alive.is_mass && !self.is_mass {
            Counters::add(&self.view.counters.mass_holds);
            error!(silent = ?alive.held, "many nodes have vanished at once: the ring is held for a second timeout");
        }
        self.is_mass = alive.is_mass;
        let mut heartbeats = BTreeMap::new();
        let mut reports = Reports::default();
        for node in alive.beating.iter().chain(&alive.held) {
            let body = look.bodies.get(node);
            let heartbeat = body.and_then(|body| self.heartbeat(node, body));
            let is_draining = look.draining.get(node).is_some_and(|meant| {
                let now = heartbeat.as_ref().and_then(|heartbeat| heartbeat.incarnation);
                meant.is_none() || now.is_none() || *meant == now
            });
            if is_draining {
                // No report: it leaves the ring.
            } else if body.is_some() && heartbeat.is_none() {
                reports.keep(node, ring.as_deref());
            } else {
                let unknown = || Report { node: node.clone(), load: None, ring_version: None };
                let mut report = heartbeat.as_ref().map_or_else(unknown, Report::from);
                if let (Some(answers), Some(load)) = (&self.answers, &mut report.load) {
                    answers.overlay(node, load);
                }
                if let Err(refusal) = reports.insert(report) {
                    self.complain(node, &refusal);
                }
            }
            heartbeats.extend(heartbeat.map(|heartbeat| (node.clone(), heartbeat)));
        }
        self.complained.retain(|node| look.beats.contains_key(node));
        Round { look, alive, heartbeats, reports }
    }

    /// Reads what a node says.
    fn heartbeat(&mut self, node: &NodeId, body: &[u8]) -> Option<Heartbeat> {
        match heartbeats::read(body, Some(node)) {
            Ok(heartbeat) => {
                self.complained.remove(node);
                Some(heartbeat)
            }
            Err(refusal) => {
                self.complain(node, &refusal);
                None
            }
        }
    }

    /// Counts every time, logs once until it is well again.
    fn complain(&mut self, node: &NodeId, refusal: &Refusal) {
        self.view.counters.count_refused(refusal.cause());
        if self.complained.insert(node.clone()) {
            warn!(%node, %refusal, "heartbeat refused: its load is not known");
        }
    }
}
