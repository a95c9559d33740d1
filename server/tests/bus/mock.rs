//! Against the client library's model of a cluster, which can be told to fail.

use std::time::Duration;

use rdkafka::mocking::MockCluster;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use rtc_server::bus::kafka::node_topic;

use crate::rig::{Node, PATIENCE, eventually, finish, fresh_id, read};

const PARTITIONS: i32 = 9;

#[test]
fn a_producer_that_fails_for_good_is_rebuilt_and_nothing_is_lost_or_reordered() {
    const MESSAGES: u64 = 2000;
    let cluster = MockCluster::new(1).unwrap();
    let id = fresh_id("m");
    cluster.create_topic(&node_topic(&id), PARTITIONS, 1).unwrap();
    let mut node = Node::start(&cluster.bootstrap_servers(), &id, 1, |_| {});
    node.send(&id, "client", 0);
    assert_eq!(read(&node.next().1).1, 0);
    for number in 1..MESSAGES {
        if number == 500 {
            // Neither can be got over by trying again: the producer's state at the broker is gone.
            cluster.request_errors(
                RDKafkaApiKey::Produce,
                &[
                    RDKafkaRespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER,
                    RDKafkaRespErr::RD_KAFKA_RESP_ERR_INVALID_RECORD,
                ],
            );
        }
        node.send(&id, "client", number);
    }
    // At least once: what comes again comes in order too, and the first of each comes in order.
    let mut expected = 1;
    let mut last = 0;
    while expected < MESSAGES {
        let (_, arrived) = node.next();
        let number = read(&arrived).1;
        assert!(number <= expected, "{expected} was overtaken by {number}");
        assert!(number == last + 1 || number <= last, "{last} is followed by {number}");
        last = number;
        expected = expected.max(number + 1);
        finish(&node, arrived.at);
    }
    let mut tickets = node.produced(usize::try_from(MESSAGES).unwrap());
    tickets.sort_unstable();
    tickets.dedup();
    assert!(tickets.into_iter().eq(0..MESSAGES));
    assert!(node.bus().counters().producer.rebuilds.value() > 0, "no producer failed");
}

#[test]
fn while_brokers_are_away_records_wait_and_then_go_in_order() {
    let cluster = MockCluster::new(1).unwrap();
    let id = fresh_id("d");
    cluster.create_topic(&node_topic(&id), PARTITIONS, 1).unwrap();
    let mut node = Node::start(&cluster.bootstrap_servers(), &id, 1, |_| {});
    node.send(&id, "client", 0);
    assert_eq!(read(&node.next().1).1, 0);
    assert!(node.bus().is_up());
    cluster.broker_down(-1).unwrap();
    for number in 1..500 {
        node.send(&id, "client", number);
    }
    eventually("the node knows that kafka is away", || !node.bus().is_up());
    cluster.broker_up(-1).unwrap();
    let mut expected = 1;
    while expected < 500 {
        let number = read(&node.next().1).1;
        assert!(number <= expected);
        expected = expected.max(number + 1);
    }
    eventually("the node knows that kafka is back", || node.bus().is_up());
}

#[test]
fn a_wrong_address_is_tried_on_and_the_end_comes_all_the_same() {
    // Nobody ever listens there; a port that was free a moment ago may be another test's by now.
    const NOBODY: &str = "127.0.0.1:1";
    let id = fresh_id("nobody");
    let node = Node::start(NOBODY, &id, 1, |_| {});
    node.send(&id, "client", 0);
    assert!(!node.kafka.wait(Duration::from_millis(300)).unwrap());
    assert!(!node.bus().is_up());
    eventually("the cause is known", || node.bus().last_error().contains(NOBODY));
    assert_eq!(node.kafka.stop(Duration::from_millis(100)), 1);
}

#[test]
fn a_full_bus_gives_parcels_back_until_there_is_room() {
    use rtc_server::bus::{Address, Bus, Lane, Parcel, Record};
    let cluster = MockCluster::new(1).unwrap();
    let id = fresh_id("full");
    cluster.create_topic(&node_topic(&id), PARTITIONS, 1).unwrap();
    cluster.broker_down(-1).unwrap();
    let mut node = Node::start(&cluster.bootstrap_servers(), &id, 1, |config| config.in_flight_records = 50);
    let parcel = |number: u64| {
        let origin = Address { node: id.clone(), incarnation: 77, shard: 0 };
        let record = Record::Nudge { client: number.to_string().into() };
        Box::new(Parcel { to: id.clone(), lane: Lane::Control, origin, record, ticket: Some(number) })
    };
    for number in 0..50 {
        assert!(node.bus().publish(parcel(number)).is_ok());
    }
    let back = node.bus().publish(parcel(50)).unwrap_err();
    assert_eq!(back.ticket, Some(50));
    assert_eq!(node.bus().counters().full(), 1);
    cluster.broker_up(-1).unwrap();
    let mut parcel = Some(back);
    eventually("there is room again", || {
        let taken = node.bus().publish(parcel.take().unwrap());
        taken.map_err(|back| parcel = Some(back)).is_ok()
    });
    assert_eq!(node.produced(51).len(), 51);
    assert_eq!(node.kafka.stop(PATIENCE), 0);
}
