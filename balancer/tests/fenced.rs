//! A Kafka broker that its own controller takes for dead, again and again: it beats less often than it must. So it happens to
//! one that was stopped for a while and goes on. A client that asks meanwhile is told of no broker at all, and forgets its own.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ring::control::RingUpdate;
use ring::{NodeId, NodeWeights, Ring, RingVersion, Weight};
use rtc_balancer::forwarder::watch::Sight;
use rtc_balancer::forwarder::{Forwarded, Forwarder, Settings};
use rtc_balancer::kafka::Kafka;
use rtc_balancer::publisher::{Outgoing, Publisher, RING_TOPIC, SCALE_TOPIC};
use support::{Services, eventually_or};

/// Seven seconds of every ten it is in the metadata: again when clients that were silent since the start are asked.
const FENCED: &str = "broker.session.timeout.ms=7000 broker.heartbeat.interval.ms=10000";
/// Far shorter than the other three, so that every client asks in them.
const REFRESH_MS: &str = "300";
/// What follows the ring's topic, and what writes rings and news.
const PUBLISHERS_CLIENTS: u64 = 3;

fn ring_of(version: u64) -> Outgoing {
    let weights = NodeWeights::new([(NodeId::new("living").unwrap(), Weight::new(100).unwrap())]).unwrap();
    let update = RingUpdate::new(RingVersion::new(version).unwrap(), weights, 0, "test".to_owned(), 1);
    Outgoing { topic: RING_TOPIC, key: "ring".to_owned(), payload: update.encode().unwrap() }
}

#[test]
fn clients_that_were_told_of_no_broker_are_replaced() {
    let Some(services) = Services::start_with("clients_that_were_told_of_no_broker", FENCED) else { return };
    let mut kafka = Kafka::new(&services.kafka);
    // The library's own cure works most of the time. What is tested is the rest, where it is cancelled by the very answer that
    // took the brokers away.
    let options = [("topic.metadata.refresh.interval.ms", REFRESH_MS), ("metadata.recovery.strategy", "none")];
    kafka.options = options.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();

    let publisher = Publisher::start(&kafka).unwrap();
    let progress = publisher.progress();
    assert!(publisher.send(ring_of(1)));
    assert!(publisher.send(Outgoing { topic: SCALE_TOPIC, key: "scale".to_owned(), payload: b"{}".to_vec() }));
    let counted = Arc::new(Forwarded::default());
    let settings = Settings {
        name: NodeId::new("balancer").unwrap(),
        kafka,
        redis: services.redis.url.clone(),
        heartbeat_timeout: Duration::from_millis(500),
    };
    let forwarder = Forwarder::start(settings, Arc::clone(&counted)).unwrap();
    let living = NodeId::new("living").unwrap();
    let weights = NodeWeights::new([(living.clone(), Weight::new(100).unwrap())]).unwrap();
    let ring = Arc::new(Ring::from_weights(RingVersion::FIRST, 0, weights));
    let sight = Sight { alive: BTreeSet::from([living]), ring };

    let (delivered, replaced) = (&progress.delivered, &progress.replaced);
    let (of_publisher, of_forwarder) =
        (|| replaced.load(Ordering::Relaxed), || counted.replaced.load(Ordering::Relaxed));
    let are_replaced = || {
        forwarder.see(sight.clone());
        (of_publisher() >= PUBLISHERS_CLIENTS && of_forwarder() >= 1).then_some(())
    };
    eventually_or(are_replaced, || format!("clients are replaced: {} and {}", of_publisher(), of_forwarder()));

    let before = delivered.load(Ordering::Relaxed);
    assert!(publisher.send(ring_of(2)));
    let is_followed = || (delivered.load(Ordering::Relaxed) > before && progress.newest().get() == 2).then_some(());
    eventually_or(is_followed, || format!("the ring is written and read: {}", progress.newest()));
}
