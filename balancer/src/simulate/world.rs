//! The simulated nodes: which ring they follow, how the load on them follows it, and what they say of that.

use std::sync::Arc;

use ring::control::RingUpdate;
use ring::{NodeId, NodeWeights, Ring, RingVersion, SLOTS, Weight};

use super::noise::Noise;
use super::{Fleet, seconds};
use crate::heartbeats::{Load, Report, Reports};
use crate::policy::WEIGHT_AVERAGE;

/// Latency of an idle node, in ms; it grows as the queue in front of the node does.
const LATENCY_MS: f64 = 5.0;
/// Use from which latency grows no further.
const QUEUE_USE_MAX: f64 = 0.98;
/// What a node's memory shows where it does not follow its load.
const FLAT_MEM: f64 = 0.5;
/// Clients of the whole fleet.
const CLIENTS: u32 = 100_000;
/// What a node measures with noise: cpu, mem, latency, messages.
const MEASURES: usize = 4;

/// The nodes, the ring they follow, and the load on its way from one to the other.
pub(super) struct World<'a> {
    fleet: &'a Fleet,
    names: Vec<NodeId>,
    pub(super) ring: Arc<Ring>,
    // What of the whole load each slot brings; none where all bring the same.
    slot_loads: Option<Vec<f64>>,
    // By the ring, as if every client had followed it.
    settled: Split,
    // When each ring came, and what it gave each node, until all of that has arrived.
    moving: Vec<(u64, Split)>,
    noise: Noise,
    // The last deviates of every measure of every node: the next ones may resemble them.
    deviates: Vec<[f64; MEASURES]>,
}

/// What each node has of the whole.
#[derive(Debug, Clone)]
struct Split {
    clients: Vec<f64>,
    load: Vec<f64>,
}

impl Split {
    fn of(ring: &Ring, slot_loads: Option<&[f64]>) -> Self {
        let mut slots = vec![0_u32; ring.weights().len()];
        let mut load = vec![0.0; ring.weights().len()];
        for (slot, index) in ring.slot_owners().enumerate() {
            slots[index.get()] += 1;
            if let Some(loads) = slot_loads {
                load[index.get()] += loads[slot];
            }
        }
        #[allow(clippy::cast_precision_loss, reason = "a few hundred thousand slots")]
        let clients: Vec<f64> = slots.into_iter().map(|count| f64::from(count) / SLOTS as f64).collect();
        let load = if slot_loads.is_some() { load } else { clients.clone() };
        Self { clients, load }
    }

    fn zip(&self, other: &Self, mix: impl Fn(f64, f64) -> f64) -> Self {
        let zip = |one: &[f64], other: &[f64]| one.iter().zip(other).map(|(one, other)| mix(*one, *other)).collect();
        Self { clients: zip(&self.clients, &other.clients), load: zip(&self.load, &other.load) }
    }
}

impl<'a> World<'a> {
    /// All weights are equal at the start: nothing is known of the nodes.
    pub(super) fn new(fleet: &'a Fleet, seed: u64) -> Self {
        let names: Vec<NodeId> = (0..fleet.capacities.len())
            .map(|index| NodeId::new(&format!("node-{index:04}")).expect("letters and digits are allowed"))
            .collect();
        let average = Weight::new(u64::from(WEIGHT_AVERAGE)).expect("it is above 0");
        let weights = NodeWeights::new(names.iter().map(|name| (name.clone(), average)));
        let weights = weights.expect("a fleet has from one node to as many as a ring holds");
        let version = RingVersion::FIRST.next().expect("there are many versions");
        let update = RingUpdate::new(version, weights, 0, "cluster-started".to_owned(), 0);
        let ring = Arc::new(Ring::from_update(&update));
        let slot_loads = fleet.tail.map(|tail| slot_loads(tail, seed));
        let settled = Split::of(&ring, slot_loads.as_deref());
        let mut noise = Noise::new(seed);
        // Noise that remembers has been going on for long.
        let deviates = if fleet.noise_memory_ms > 0 {
            names.iter().map(|_| [(); MEASURES].map(|()| noise.normal())).collect()
        } else {
            vec![[0.0; MEASURES]; names.len()]
        };
        Self { fleet, names, ring, slot_loads, settled, moving: Vec::new(), noise, deviates }
    }

    pub(super) fn move_to(&mut self, ring: Arc<Ring>, now_ms: u64) {
        let settled = Split::of(&ring, self.slot_loads.as_deref());
        self.moving.push((now_ms, settled.zip(&self.settled, |new, old| new - old)));
        (self.ring, self.settled) = (ring, settled);
    }

    /// Each node's use, without noise, and what they report of it; a use above 1 is more to do than a node can.
    pub(super) fn step(&mut self, now_ms: u64) -> (Vec<f64>, Reports) {
        let offered = self.fleet.offered * self.fleet.capacities.iter().sum::<f64>();
        let now = self.now(now_ms);
        let uses: Vec<f64> =
            now.load.iter().zip(&self.fleet.capacities).map(|(share, capacity)| offered * share / capacity).collect();
        let reports = self.reports(&uses, &now.clients);
        (uses, reports)
    }

    /// The ring's split without what is still on its way.
    fn now(&mut self, now_ms: u64) -> Split {
        let drain_ms = self.fleet.drain_ms;
        self.moving.retain(|(since_ms, _)| now_ms - since_ms < drain_ms);
        let mut split = self.settled.clone();
        for (since_ms, gains) in &self.moving {
            let left = 1.0 - seconds(now_ms - since_ms) / seconds(drain_ms);
            split = split.zip(gains, |share, gain| share - gain * left);
        }
        split
    }

    fn reports(&mut self, uses: &[f64], clients: &[f64]) -> Reports {
        let (noise, flat) = (self.fleet.noise, self.fleet.flat);
        let kept = match self.fleet.noise_memory_ms {
            0 => 0.0,
            memory_ms => (-seconds(self.fleet.heartbeat_ms) / seconds(memory_ms)).exp(),
        };
        let mut reports = Reports::default();
        for (index, (name, share)) in self.names.iter().zip(uses).enumerate() {
            let deviates = &mut self.deviates[index];
            for deviate in deviates.iter_mut() {
                *deviate = *deviate * kept + self.noise.normal() * (1.0 - kept * kept).sqrt();
            }
            let measured = |measure: usize, value: f64| (value * (1.0 + noise * deviates[measure])).max(0.0);
            let follows = |value: f64, idle: f64| value * (1.0 - flat) + idle * flat;
            let latency_ms = LATENCY_MS / (1.0 - share.min(QUEUE_USE_MAX));
            let load = Load {
                cpu: measured(0, *share).min(1.0),
                mem: measured(1, follows(*share, FLAT_MEM)).min(1.0),
                latency_ms: measured(2, follows(latency_ms, LATENCY_MS)),
                lag_ms: 0.0,
                connections: (clients[index] * f64::from(CLIENTS)).round(),
                mps: measured(3, share * self.fleet.capacities[index] * 1000.0),
            };
            let report = Report { node: name.clone(), load: Some(load), ring_version: None };
            reports.insert(report).expect("each node reports once");
        }
        reports
    }
}

/// What each slot brings where clients differ: so many clients at random slots, each with a Pareto-distributed load.
fn slot_loads(tail: f64, seed: u64) -> Vec<f64> {
    // Another stream than that of the noise.
    let mut dice = Noise::new(!seed);
    let mut loads = vec![0.0; SLOTS];
    let mut sum = 0.0;
    for _ in 0..CLIENTS {
        let load = dice.uniform().powf(-1.0 / tail);
        loads[dice.index(SLOTS)] += load;
        sum += load;
    }
    for load in &mut loads {
        *load /= sum;
    }
    loads
}
