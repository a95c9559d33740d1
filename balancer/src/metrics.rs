//! Numbers for Prometheus, made from the latest snapshot when they are asked for.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::{Atomic, ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::Registry;

use crate::publisher::Progress;
use crate::view::View;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NodeLabel {
    node_id: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ActionLabel {
    action: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CauseLabel {
    cause: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OwnerLabel {
    owner: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

/// A counter that was counted elsewhere.
fn counted(value: u64) -> Counter {
    let counter = Counter::<u64, AtomicU64>::default();
    Atomic::inc_by(counter.inner(), value);
    counter
}

fn count_forwarded(registry: &mut Registry, view: &View) {
    let forwarded = &view.forwarded;
    let topics = i64::try_from(forwarded.topics.load(Ordering::Relaxed)).unwrap_or(i64::MAX);
    registry.register(
        "rtc_lb_forwarder_topics",
        "Dead nodes' topics that are being forwarded",
        ConstGauge::new(topics),
    );
    let sent = Family::<KindLabel, Counter>::default();
    let dropped = Family::<KindLabel, Counter>::default();
    for (kind, count) in forwarded.sent() {
        sent.get_or_create(&KindLabel { kind }).inc_by(count);
    }
    for (kind, count) in forwarded.dropped() {
        dropped.get_or_create(&KindLabel { kind }).inc_by(count);
    }
    registry.register("rtc_lb_forwarded", "Dead nodes' records sent on or answered, by kind", sent);
    registry.register("rtc_lb_forwarder_dropped", "Dead nodes' records that only they could use, by kind", dropped);
    let buried = Family::<CauseLabel, Counter>::default();
    for (cause, count) in forwarded.buried() {
        buried.get_or_create(&CauseLabel { cause }).inc_by(count);
    }
    registry.register("rtc_lb_forwarder_poison", "Dead nodes' records that went to the dead letters, by cause", buried);
    let failures = counted(forwarded.failures.load(Ordering::Relaxed));
    registry.register("rtc_lb_forwarder_failures", "Readings of dead nodes' topics that could not go on", failures);
}

/// The whole page of numbers.
pub fn text(
    view: &View,
    progress: &Progress,
    prometheus_failures: u64,
    requests_refused: &BTreeMap<&'static str, u64>,
) -> String {
    let (snapshot, counters) = (view.snapshot(), &view.counters);
    let ring = view.ring.load();
    let mut registry = Registry::default();
    let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);

    let weights = Family::<NodeLabel, Gauge>::default();
    let shares = Family::<NodeLabel, Gauge<f64, AtomicU64>>::default();
    let scores = Family::<NodeLabel, Gauge<f64, AtomicU64>>::default();
    for node in &snapshot.nodes {
        let label = NodeLabel { node_id: node.node_id.to_string() };
        if let Some(weight) = node.weight {
            weights.get_or_create(&label).set(i64::from(weight));
        }
        if let Some(share) = node.share {
            shares.get_or_create(&label).set(share);
        }
        if let Some(score) = node.score {
            scores.get_or_create(&label).set(score);
        }
    }
    registry.register("rtc_lb_node_weight", "A node's weight in the ring", weights);
    registry.register("rtc_lb_node_share_ratio", "A node's share of the keys", shares);
    registry.register("rtc_lb_node_score", "A node's load score, on the leader", scores);

    let nodes = ring.as_ref().map_or(0, |ring| ring.weights().len());
    let version = ring.as_ref().map_or(0, |ring| ring.version().get());
    let gauge = |registry: &mut Registry, name: &str, help: &str, value: u64| {
        registry.register(name, help, ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)));
    };
    gauge(&mut registry, "rtc_lb_ring_nodes", "Nodes in the ring", nodes as u64);
    gauge(&mut registry, "rtc_lb_ring_version", "Version of the ring", version);
    gauge(&mut registry, "rtc_lb_leader", "1 on the balancer that leads", u64::from(snapshot.is_leader));
    gauge(&mut registry, "rtc_lb_redis_up", "1 while Redis answers", u64::from(snapshot.is_fresh()));

    let scaling = Family::<ActionLabel, Counter>::default();
    for (action, counter) in [("scale_out", &counters.scale_out), ("scale_in", &counters.scale_in)] {
        scaling.get_or_create(&ActionLabel { action }).inc_by(of(counter));
    }
    registry.register("rtc_lb_scaling_decisions", "Scale signals, by action", scaling);
    let refused = Family::<CauseLabel, Counter>::default();
    for (cause, count) in counters.refused() {
        refused.get_or_create(&CauseLabel { cause }).inc_by(count);
    }
    registry.register("rtc_lb_refused_heartbeats", "Heartbeats that did not count, by cause", refused);
    let refused = Family::<CauseLabel, Counter>::default();
    for (&cause, &count) in requests_refused {
        refused.get_or_create(&CauseLabel { cause }).inc_by(count);
    }
    registry.register("rtc_lb_http_refused", "Requests and connections refused on this port, by cause", refused);
    for (name, help, value) in [
        ("rtc_lb_weight_recalculations", "Rings published", of(&counters.recalculations)),
        ("rtc_lb_decisions", "Decisions made", of(&counters.decisions)),
        ("rtc_lb_redis_errors", "Questions that Redis did not answer", of(&counters.redis_errors)),
        ("rtc_lb_strange_rings", "Rings in Redis that could not be read", of(&counters.strange_rings)),
        ("rtc_lb_fenced", "Rings that were not published because a newer leader was there", of(&counters.fenced)),
        ("rtc_lb_take_overs", "Times this balancer began to lead", of(&counters.take_overs)),
        ("rtc_lb_mass_holds", "Times the ring was held because many nodes vanished at once", of(&counters.mass_holds)),
        ("rtc_lb_kafka_delivered", "Control messages that Kafka took", of(&progress.delivered)),
        ("rtc_lb_kafka_failures", "Attempts that Kafka did not take", of(&progress.failed)),
        ("rtc_lb_kafka_dropped", "Control messages given up", of(&progress.dropped)),
        ("rtc_lb_prometheus_failures", "Queries that Prometheus did not answer", prometheus_failures),
    ] {
        registry.register(name, help, counted(value));
    }
    count_forwarded(&mut registry, view);
    let replaced = Family::<OwnerLabel, Counter>::default();
    for (owner, count) in [("publisher", &progress.replaced), ("forwarder", &view.forwarded.replaced)] {
        replaced.get_or_create(&OwnerLabel { owner }).inc_by(of(count));
    }
    registry.register("rtc_lb_kafka_clients_replaced", "Clients of Kafka that were not answered, by owner", replaced);
    #[allow(clippy::cast_precision_loss, reason = "sums of microseconds and millionths")]
    for (name, help, value) in [
        ("rtc_lb_decision_seconds", "Time spent on decisions", of(&counters.decision_micros) as f64 / 1e6),
        ("rtc_lb_moved_keys_ratio", "Sum of the shares of keys moved", of(&counters.moved_millionths) as f64 / 1e6),
    ] {
        registry.register(name, help, ConstCounter::new(value));
    }
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = encode(&mut out, &registry);
    out
}
