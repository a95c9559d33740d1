//! Following the control topics of a real broker.

use crossbeam::channel::{Receiver, unbounded};
use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use ring::control::{DrainRequest, RingUpdate};
use rtc_server::bus::control::{Control, Follower};
use rtc_server::bus::kafka::{Config, DRAIN_TOPIC, RING_TOPIC};

use crate::rig::{Node, PATIENCE, brokers, eventually, fresh_id};

fn follow(brokers: &str, node: &Node) -> (Follower, Receiver<Control>) {
    let (sender, controls) = unbounded();
    let config = Config::new(brokers, 256 << 10);
    let follower = Follower::start(&config, &node.id, node.bus().clone(), move |control| _ = sender.send(control));
    (follower.unwrap(), controls)
}

/// As the balancer writes it; told apart from the rings of others by its reason.
fn ring_update(version: u64, reason: &str) -> Vec<u8> {
    format!(
        r#"{{"version":{{"version":{version},"issuedAt":1,"versionHash":"{}"}},"nodeWeights":{{"n1":100}},"seed":0,"reason":"{reason}","ts":1}}"#,
        "0".repeat(16)
    )
    .into_bytes()
}

#[track_caller]
fn next_ring(controls: &Receiver<Control>, reason: &str) -> RingUpdate {
    loop {
        match controls.recv_timeout(PATIENCE).expect("no ring came") {
            Control::Ring(update) if update.reason == reason => return update,
            _ => {}
        }
    }
}

#[test]
fn rings_and_drains_are_handed_on_and_nonsense_is_counted() {
    let Some(brokers) = brokers("control topics") else { return };
    let id = fresh_id("c");
    let node = Node::start(&brokers, &id, 1, |_| {});
    let reason = id.to_string();
    let (follower, controls) = follow(&brokers, &node);
    let producer: BaseProducer = ClientConfig::new().set("bootstrap.servers", &brokers).create().unwrap();
    let send = |topic: &str, value: &[u8]| {
        producer.send(BaseRecord::<(), [u8]>::to(topic).payload(value)).map_err(|(error, _)| error).unwrap();
        producer.flush(PATIENCE).unwrap();
    };
    // The topics are there when the follower has them created.
    eventually("the control topics are there", || {
        let topics = [RING_TOPIC, DRAIN_TOPIC];
        topics.iter().all(|topic| {
            let metadata = producer.client().fetch_metadata(Some(topic), PATIENCE).unwrap();
            metadata.topics().first().is_some_and(|topic| !topic.partitions().is_empty())
        })
    });
    let first = ring_update(1, &reason);
    assert!(RingUpdate::decode(&first).is_ok(), "{:?}", RingUpdate::decode(&first));
    send(RING_TOPIC, &first);
    assert_eq!(next_ring(&controls, &reason).version.version.get(), 1);
    send(RING_TOPIC, b"{\"version\":3}");
    send(RING_TOPIC, &"[".repeat(20_000).into_bytes());
    send(RING_TOPIC, &ring_update(2, &reason));
    assert_eq!(next_ring(&controls, &reason).version.version.get(), 2);
    assert!(follower.counters().malformed.value() >= 1);
    assert!(follower.counters().too_deep.value() >= 1);

    let request = |deadline| DrainRequest {
        node_id: id.clone(),
        deadline,
        max_disconnects: 10,
        reason: reason.clone(),
        ts: 1,
        incarnation: Some(7),
    };
    send(DRAIN_TOPIC, &request(1).encode().unwrap());
    let wanted = request(1 << 50);
    send(DRAIN_TOPIC, &wanted.encode().unwrap());
    let drained = loop {
        match controls.recv_timeout(PATIENCE).expect("no drain came") {
            Control::Drain(request) if request.node_id == id => break request,
            _ => {}
        }
    };
    assert_eq!(drained, wanted);
    assert!(follower.counters().drains_over.value() >= 1);

    // One that starts later begins with the last one.
    drop(follower);
    let (_follower, controls) = follow(&brokers, &node);
    assert_eq!(next_ring(&controls, &reason).version.version.get(), 2);
}
