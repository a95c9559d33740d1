//! What nodes read that others may have written, and how they start.

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Header, Message, OwnedHeaders};
use rdkafka::{Offset, TopicPartitionList};
use ring::NodeId;
use ring::control::{DrainRequest, Heartbeat};
use sonic_rs::JsonValueTrait;

use crate::fleet::{Fleet, RING_TOPIC, Services, fresh, metric, now_ms, ring_of};
use crate::people::{Inbox, Sender};
use crate::support::{eventually, get, run};

/// A node that nobody has heard of is gone for good when who asks has listened for so long.
const RETIRED_MS: u64 = 60_000;
const DRAIN_TOPIC: &str = "rtc.control.drain";
const DEAD_LETTER_TOPIC: &str = "rtc.dead-letter";
/// Nobody listens on it.
const NOWHERE: &str = "127.0.0.1:1";

#[test]
fn a_session_of_a_life_that_is_gone_counts_as_absent() {
    const MESSAGES: u64 = 20;
    let Some(fleet) = Fleet::shared("stale session") else { return };
    let has_listened = |node| get(node, "/healthz").json()["uptimeMs"].as_u64().unwrap() > RETIRED_MS;
    eventually("a node without a beat counts as gone", || fleet.nodes.iter().all(|node| has_listened(node.admin)));
    // A node that is no more, and an earlier life of one that is there.
    for node in [fresh("gone"), fleet.nodes[1].node_id.clone()] {
        let id = fresh("b");
        let last_seen = now_ms().to_string();
        let key = format!("sess:{{{id}}}");
        let set = ["HSET", &*key, "nodeId", &*node, "incarnation", "77", "generation", "5", "lastSeen", &*last_seen];
        let _: i64 = fleet.services.redis(&[&set[..], &["ceiling", "9", "lastOffset", "3"]].concat());
        let mut sender = Sender::log_in(&fleet.nodes[0], &fresh("a"));
        for _ in 0..MESSAGES {
            sender.send(&id);
        }
        sender.settle();
        assert_eq!(sender.statuses.keys().collect::<Vec<_>>(), ["stored"]);
        let mut inbox = Inbox::log_in(&fleet.nodes[2], &id);
        inbox.await_from(&sender.id, MESSAGES);
        sender.send(&id);
        inbox.await_from(&sender.id, MESSAGES + 1);
        assert_eq!(inbox.repeats, 0);
    }
}

#[test]
fn poison_goes_to_the_dead_letters_and_the_others_flow() {
    let Some(fleet) = Fleet::shared("poison record") else { return };
    let node = &fleet.nodes[1];
    let topic = format!("delivery_node_{}", node.node_id);
    let poison = |cause: &str| metric(node, &format!("rtc_socket_kafka_poison_total{{cause=\"{cause}\"}}"));
    let before = poison("malformed");
    let mark = fresh("mark");
    let kind = |value| OwnedHeaders::new().insert(Header { key: "rtc-kind", value: Some(value) });
    fleet.services.produce(&topic, format!("{{\"type\":\"message\",\"{mark}\"").as_bytes(), OwnedHeaders::new());
    fleet.services.produce(&topic, "[".repeat(20_000).as_bytes(), OwnedHeaders::new());
    fleet.services.produce(&topic, b"{\"type\":\"riddle\"}", kind("riddle"));
    eventually("the poison is counted", || poison("malformed") == before + 2 && poison("unknown_kind") >= 1);
    let mut inbox = Inbox::log_in(node, &fresh("b"));
    let mut sender = Sender::log_in(&fleet.nodes[0], &fresh("a"));
    for _ in 0..50 {
        sender.send(&inbox.id);
    }
    inbox.await_from(&sender.id, 50);
    sender.settle();

    let mut config = ClientConfig::new();
    let consumer: BaseConsumer =
        config.set("bootstrap.servers", &fleet.services.kafka).set("group.id", &mark).create().unwrap();
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(DEAD_LETTER_TOPIC, 0, Offset::Beginning).unwrap();
    consumer.assign(&list).unwrap();
    eventually("the dead letter is there", || {
        let letter = consumer.poll(std::time::Duration::from_millis(200));
        let Some(Ok(letter)) = letter else { return false };
        letter.payload().is_some_and(|value| String::from_utf8_lossy(value).contains(&mark))
    });
}

#[test]
fn a_newer_ring_is_adopted_and_an_older_or_malformed_one_refused_and_counted() {
    let Some(fleet) = Fleet::shared("rings") else { return };
    let (_, stale) = fleet.update([1, 1, 1]);
    let version = fleet.announce([100, 50, 150]);
    for node in &fleet.nodes {
        let ring = ring_of(node);
        assert_eq!(ring["isInitialized"].as_bool(), Some(true));
        assert_eq!(ring["weights"][&*fleet.nodes[2].node_id].as_u64(), Some(150));
    }
    let refused = |metric_name: &str| fleet.nodes.iter().map(|node| metric(node, metric_name)).collect::<Vec<_>>();
    let (older, malformed) =
        (refused("rtc_socket_ring_refused_total"), refused("rtc_socket_kafka_control_refused_total"));
    fleet.services.produce(RING_TOPIC, &stale, OwnedHeaders::new());
    let empty = format!(
        r#"{{"version":{{"version":{},"issuedAt":1,"versionHash":"{}"}},"nodeWeights":{{}},"seed":0,"reason":"r","ts":1}}"#,
        version + 1_000_000,
        "0".repeat(16)
    );
    let nonsense = [b"{\"version\":3}".to_vec(), "[".repeat(20_000).into_bytes(), empty.into_bytes()];
    for value in &nonsense {
        fleet.services.produce(RING_TOPIC, value, OwnedHeaders::new());
    }
    eventually("the older ring is counted", || {
        let now = refused("rtc_socket_ring_refused_total");
        now.iter().zip(&older).all(|(now, before)| now > before)
    });
    eventually("the malformed ones are counted", || {
        let now = refused("rtc_socket_kafka_control_refused_total");
        now.iter().zip(&malformed).all(|(now, before)| *now >= before + nonsense.len() as u64)
    });
    assert!(fleet.ring_versions().iter().all(|has| *has == version), "{:?}", fleet.ring_versions());
    // The last record of the topic is what a starting node reads first.
    fleet.announce([100; 3]);
}

#[test]
fn the_balancers_drain_is_kept_to_by_the_life_it_is_meant_for() {
    // One a second: the deadline lies so far ahead that it has not passed when the node reads of it, however late.
    const CLIENTS: u64 = 60;
    let Some(services) = Services::find("drain by the balancer") else { return };
    let id = fresh("drained");
    let node = services.node(&id);
    let _clients: Vec<_> = (0..CLIENTS).map(|_| Inbox::log_in(&node, &fresh("c"))).collect();
    let heartbeat: String = services.redis(&["GET", &format!("{{rtc}}:node:{id}")]);
    let incarnation = Heartbeat::decode(heartbeat.as_bytes()).unwrap().incarnation;
    let ask = |incarnation| {
        let (node_id, reason) = (NodeId::new(&id).unwrap(), "new kernel".to_owned());
        let (ts, deadline) = (now_ms(), now_ms() + 1000 * (CLIENTS - 10));
        let request = DrainRequest { node_id, deadline, max_disconnects: 1, reason, ts, incarnation };
        services.produce(DRAIN_TOPIC, &request.encode().unwrap(), OwnedHeaders::new());
    };
    let drained_before = metric(&node, "rtc_socket_kafka_control_total{kind=\"drain\"}");
    ask(incarnation.map(|number| number - 1));
    eventually("it is read", || metric(&node, "rtc_socket_kafka_control_total{kind=\"drain\"}") > drained_before);
    assert_eq!(get(node.admin, "/readyz").status, 200, "another life was meant");
    ask(incarnation);
    eventually("it drains", || get(node.admin, "/readyz").status == 503);
    let status = get(node.admin, "/drain/status").json();
    assert_eq!(status["maxDisconnects"].as_u64(), Some(1), "{status:?}");
    assert_eq!(status["connectionsAtStart"].as_u64(), Some(CLIENTS));
    assert_eq!(status["windowMs"].as_u64(), Some(1000 * CLIENTS), "the deadline gives way: {status:?}");
}

#[test]
fn kafka_and_redis_are_given_together() {
    for (flag, value, named) in [("--kafka", NOWHERE, "redis"), ("--redis", "redis://127.0.0.1:1", "kafka")] {
        let run = run(&["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", flag, value], &[]);
        assert_eq!(run.code, Some(2), "{run:?}");
        assert!(run.stderr.contains(&format!("without {named}")), "{run:?}");
        assert_eq!(run.stdout, "");
    }
}

#[test]
fn a_node_id_in_use_is_refused_by_its_name() {
    let Some(fleet) = Fleet::shared("node id in use") else { return };
    let id = &*fleet.nodes[0].node_id;
    let (kafka, redis) = (&*fleet.services.kafka, &*fleet.services.redis);
    let flags = [
        "--listen",
        "127.0.0.1:0",
        "--admin-listen",
        "127.0.0.1:0",
        "--node-id",
        id,
        "--kafka",
        kafka,
        "--redis",
        redis,
    ];
    let run = run(&flags, &[]);
    assert_eq!(run.code, Some(2), "{run:?}");
    assert!(run.stderr.contains(&format!("node id {id} is in use")), "{run:?}");
    assert_eq!(get(fleet.nodes[0].admin, "/readyz").status, 200);
}

#[test]
fn a_node_that_finds_a_server_missing_starts_and_says_which() {
    let Some(services) = Services::find("wrong addresses") else { return };
    let nowhere = (NOWHERE.to_owned(), format!("redis://{NOWHERE}"));
    for (kafka, redis, missing) in [
        (&nowhere.0, &services.redis, "kafka does not answer"),
        (&services.kafka, &nowhere.1, "redis does not answer"),
        (&nowhere.0, &nowhere.1, "redis and kafka do not answer"),
    ] {
        let services = Services { kafka: kafka.clone(), redis: redis.clone() };
        let node = services.starting_node(&fresh("lost"));
        eventually("it says what is missing", || {
            let ready = get(node.admin, "/readyz");
            ready.status == 503 && ready.json()["reason"].as_str() == Some(missing)
        });
        assert_eq!(get(node.admin, "/livez").status, 200);
    }
}
