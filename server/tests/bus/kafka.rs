//! Against a real broker.

use std::collections::HashMap;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{BorrowedHeaders, Header, Headers, Message, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{Offset, TopicPartitionList};
use rtc_server::bus::kafka::watermark::Bound;
use rtc_server::bus::kafka::{DEAD_LETTER_TOPIC, StartError, node_topic};
use rtc_server::bus::{Bus, Holder, Lane, Record};

use crate::rig::{Node, PATIENCE, brokers, eventually, finish, fresh_id, home, lane_of, message, read};

/// How long nothing must come before it counts as nothing.
const SILENCE: Duration = Duration::from_millis(700);

#[test]
fn messages_reach_the_home_shard_in_order_and_their_sender_hears_of_it() {
    const CLIENTS: u64 = 20;
    const MESSAGES: u64 = 4000;
    let Some(brokers) = brokers("order per recipient") else { return };
    let (a, b) = (fresh_id("a"), fresh_id("b"));
    let mut sender = Node::start(&brokers, &a, 1, |_| {});
    let mut reader = Node::start(&brokers, &b, 3, |_| {});
    for number in 0..MESSAGES {
        sender.send(&b, &format!("client-{}", number % CLIENTS), number);
        sender.collect();
    }
    let mut next: HashMap<String, u64> = (0..CLIENTS).map(|client| (format!("client-{client}"), client)).collect();
    for _ in 0..MESSAGES {
        let (shard, arrived) = reader.next();
        let (client, number) = read(&arrived);
        assert_eq!(shard, home(&client, 3));
        let expected = next.get_mut(&client).unwrap();
        assert_eq!(number, *expected, "out of order for {client}");
        *expected += CLIENTS;
        assert_eq!((&arrived.origin.node, arrived.origin.incarnation), (&a, 77));
        finish(&reader, arrived.at);
    }
    let mut tickets = sender.produced(usize::try_from(MESSAGES).unwrap());
    tickets.sort_unstable();
    assert!(tickets.into_iter().eq(0..MESSAGES));
    assert_eq!(sender.kafka.stop(PATIENCE), 0);
    reader.kafka.stop(PATIENCE);
    // All of it is committed: the next life has nothing to read.
    let mut reader = Node::start(&brokers, &b, 3, |_| {});
    eventually("the topic is read", || reader.bus().counters().reader.assignments.value() == 1);
    assert!(reader.next_within(SILENCE).is_none());
}

#[test]
fn after_a_restart_reading_begins_at_the_first_unfinished_record() {
    let Some(brokers) = brokers("watermark after restart") else { return };
    let id = fresh_id("w");
    let mut node = Node::start(&brokers, &id, 2, |_| {});
    for number in 0..10 {
        node.send(&id, "client", number);
    }
    for expected in 0..10 {
        let (_, arrived) = node.next();
        assert_eq!(read(&arrived).1, expected);
        if expected != 3 {
            finish(&node, arrived.at);
        }
    }
    node.kafka.stop(PATIENCE);
    let mut node = Node::start(&brokers, &id, 2, |_| {});
    let mut last = None;
    for expected in 3..10 {
        let (_, arrived) = node.next();
        assert_eq!(read(&arrived).1, expected);
        finish(&node, arrived.at);
        last = Some(arrived.at);
    }
    // Without a stop, too: the watermark is committed while it runs.
    let last = last.unwrap();
    let expected = (Offset::Offset(i64::try_from(last.offset).unwrap() + 1), "1".to_owned());
    eventually("offset and fencing token are committed", || {
        let offsets = committed(&brokers, &id, last.partition);
        let element = &offsets.elements()[0];
        (element.offset(), element.metadata().to_owned()) == expected
    });
}

fn committed(brokers: &str, id: &ring::NodeId, partition: u16) -> TopicPartitionList {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", format!("rtc-delivery-{id}"))
        .create()
        .unwrap();
    let mut list = TopicPartitionList::new();
    list.add_partition(&node_topic(id), i32::from(partition));
    consumer.committed_offsets(list, PATIENCE).unwrap()
}

#[test]
fn nothing_is_read_without_the_lease_nor_by_an_outdated_one() {
    let Some(brokers) = brokers("reading under the lease") else { return };
    let id = fresh_id("l");
    let mut node = Node::start(&brokers, &id, 1, |_| {});
    node.lease.set(7);
    node.send(&id, "client", 0);
    let (_, arrived) = node.next();
    assert_eq!(node.bus().counters().reader.reading.value(), 1);
    node.lease.set(0);
    eventually("reading has ended", || node.bus().counters().reader.unfinished.value() == 0);
    assert_eq!(node.bus().counters().reader.reading.value(), 0);
    node.send(&id, "client", 1);
    node.produced(2);
    assert!(node.next_within(SILENCE).is_none());
    // A new lease reads again what was not finished under the old one.
    node.lease.set(8);
    assert_eq!(read(&node.next().1).1, 0);
    let (_, second) = node.next();
    assert_eq!(read(&second).1, 1);
    finish(&node, arrived.at);
    finish(&node, second.at);
    node.kafka.stop(PATIENCE);
    // The rig's lease has token 1: somebody with 8 was here since.
    let mut outdated = Node::start(&brokers, &id, 1, |_| {});
    outdated.send(&id, "client", 2);
    outdated.produced(1);
    assert!(outdated.next_within(SILENCE).is_none());
    assert_eq!(outdated.bus().counters().reader.reading.value(), 0);
    outdated.lease.set(9);
    assert_eq!(read(&outdated.next().1).1, 2);
}

#[test]
fn a_fence_is_echoed_when_its_shard_has_passed_it() {
    let Some(brokers) = brokers("fence echo") else { return };
    let (a, b) = (fresh_id("fa"), fresh_id("fb"));
    let mut origin = Node::start(&brokers, &a, 2, |_| {});
    let mut reader = Node::start(&brokers, &b, 3, |_| {});
    let fence = Record::Fence { id: 42, hash: u64::MAX / 2, pair: 2, trail: vec![9] };
    origin.publish(&b, Lane::Partition(2), fence, Some(5));
    let (shard, arrived) = reader.next();
    assert_eq!(shard, ring::shard_of(u64::MAX / 2, std::num::NonZeroUsize::new(3).unwrap()));
    assert!(matches!(arrived.record, Record::Fence { id: 42, .. }));
    assert_eq!(arrived.at.partition, 2);
    assert_eq!(origin.produced(1), [5]);
    assert!(origin.next_within(SILENCE).is_none(), "it has not been passed yet");
    assert_eq!(reader.bus().counters().reader.unfinished.value(), 1);
    reader.bus().pass(arrived.at);
    let (shard, echo) = origin.next();
    assert_eq!((shard, echo.at.partition), (0, 2), "the echo comes in the fence's own partition");
    assert!(matches!(echo.record, Record::Fenced { id: 42, shard: 0, incarnation: 77 }), "{echo:?}");
    assert_eq!(echo.origin.node, b);
    eventually("the fence is finished", || reader.bus().counters().reader.unfinished.value() == 0);
}

#[test]
fn notices_come_to_the_home_shard_of_their_client() {
    let Some(brokers) = brokers("notices") else { return };
    let id = fresh_id("n");
    let mut node = Node::start(&brokers, &id, 4, |_| {});
    let holder = Holder { node: id.clone(), incarnation: 3, generation: 4 };
    let client = |number: u32| -> Box<str> { format!("client {number}").into() };
    node.publish(&id, Lane::Control, Record::Claimed { client: client(1), generation: 9 }, None);
    node.publish(&id, Lane::Control, Record::Released { client: client(2), generation: 9 }, None);
    node.publish(&id, Lane::Control, Record::Moved { client: client(3), holder }, None);
    node.publish(&id, Lane::Control, Record::Nudge { client: client(4) }, None);
    node.publish(&id, Lane::Control, Record::Fenced { id: 1, shard: 9, incarnation: 77 }, None);
    for _ in 0..4 {
        let (shard, arrived) = node.next();
        let (Record::Claimed { client, .. }
        | Record::Released { client, .. }
        | Record::Moved { client, .. }
        | Record::Nudge { client }) = &arrived.record
        else {
            panic!("{arrived:?}")
        };
        assert_eq!(shard, home(client, 4));
        finish(&node, arrived.at);
    }
    eventually("the echo for a shard that is not there is finished", || {
        let counters = &node.bus().counters().reader;
        counters.no_shard.value() == 1 && counters.unfinished.value() == 0
    });
}

#[test]
fn poison_goes_to_the_dead_letters_and_holds_nothing_up() {
    let Some(brokers) = brokers("dead letters") else { return };
    let id = fresh_id("p");
    let mut node = Node::start(&brokers, &id, 2, |_| {});
    node.send(&id, "client", 0);
    let (_, first) = node.next();
    finish(&node, first.at);
    let mut config = ClientConfig::new();
    let foreign: BaseProducer =
        config.set("bootstrap.servers", &brokers).set("enable.idempotence", "true").create().unwrap();
    let topic = node_topic(&id);
    let partition = i32::from(first.at.partition);
    let marker = format!("poison of {id}");
    let deep = "[".repeat(100_000);
    let bad_hops = OwnedHeaders::new().insert(Header { key: "rtc-hops", value: Some("many") });
    let bad_kind = OwnedHeaders::new().insert(Header { key: "rtc-kind", value: Some("dance") });
    let good = br#"{"type":"message","msgId":"1","from":"x","toClientId":"client","payload":1}"#;
    let records: [(&[u8], Option<OwnedHeaders>); 5] = [
        (marker.as_bytes(), None),
        (deep.as_bytes(), None),
        (good, Some(bad_hops)),
        (br#"{"type":"dance"}"#, Some(bad_kind)),
        // As the system before wrote them, and with a header that is not even text.
        (good, Some(header_that_is_not_text())),
    ];
    let count = records.len() - 1;
    for (value, headers) in records {
        let mut record = BaseRecord::to(&topic).partition(partition).key("client").payload(value);
        record.headers = headers;
        foreign.send(record).map_err(|(error, _)| error).unwrap();
    }
    foreign.flush(PATIENCE).unwrap();
    let (_, arrived) = node.next();
    assert_eq!(read(&arrived), ("client".to_owned(), 1));
    finish(&node, arrived.at);
    eventually("the dead letters are written and finished", || {
        node.bus().counters().reader.unfinished.value() == 0 && node.bus().counters().producer.unconfirmed.value() == 0
    });
    let reader = &node.bus().counters().reader;
    assert_eq!(reader.poison_malformed.value(), 2);
    assert_eq!(reader.poison_header.value(), 1);
    assert_eq!(reader.poison_unknown_kind.value(), 1);
    let source = format!("{topic}/{partition}/");
    let letters = dead_letters(&brokers, &source, count);
    let mut causes: Vec<&str> = letters.iter().map(|(cause, _)| cause.as_str()).collect();
    causes.sort_unstable();
    assert_eq!(causes, ["header", "malformed", "malformed", "unknown_kind"]);
    assert!(letters.iter().any(|(_, value)| *value == marker.as_bytes()));
}

/// What an evil producer may send: the name of the header is not UTF-8.
#[allow(unsafe_code, reason = "the safe face of the library cannot write what it cannot read")]
fn header_that_is_not_text() -> OwnedHeaders {
    let headers = OwnedHeaders::new().insert(Header { key: "x", value: Some("y") });
    let borrowed: *const BorrowedHeaders = headers.as_borrowed();
    // SAFETY: the library's borrowed headers are its native ones by another name; name and value are copied.
    let result = unsafe {
        rdkafka::bindings::rd_kafka_header_add(
            borrowed.cast_mut().cast(),
            c"\xff\xfe".as_ptr(),
            2,
            c"z".as_ptr().cast(),
            1,
        )
    };
    assert_eq!(result, rdkafka::types::RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR);
    headers
}

/// Cause and value of the dead letters from this source.
fn dead_letters(brokers: &str, source: &str, count: usize) -> Vec<(String, Vec<u8>)> {
    let consumer: BaseConsumer =
        ClientConfig::new().set("bootstrap.servers", brokers).set("group.id", "dead-letter-test").create().unwrap();
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(DEAD_LETTER_TOPIC, 0, Offset::Beginning).unwrap();
    consumer.assign(&list).unwrap();
    let mut letters = Vec::new();
    while letters.len() < count {
        let letter = consumer.poll(PATIENCE).expect("a dead letter is missing").unwrap();
        let header = |name: &str| -> String {
            let headers = letter.headers().unwrap();
            let found = headers.iter().find(|header| header.key == name).unwrap();
            String::from_utf8(found.value.unwrap().to_vec()).unwrap()
        };
        if header("rtc-source").starts_with(source) {
            letters.push((header("rtc-cause"), letter.payload().unwrap_or_default().to_vec()));
        }
    }
    letters
}

#[test]
fn a_partition_at_its_bound_is_paused_and_read_on_when_there_is_room() {
    const MESSAGES: u64 = 300;
    let Some(brokers) = brokers("partition bound") else { return };
    let id = fresh_id("b");
    let mut node =
        Node::start(&brokers, &id, 1, |config| config.bound = Bound { records: 10, bytes: 1 << 20, span: 100 });
    for number in 0..MESSAGES {
        node.send(&id, "client", number);
    }
    node.produced(usize::try_from(MESSAGES).unwrap());
    let reader = |node: &Node| node.bus().counters().reader.paused.value();
    eventually("the partition is paused", || reader(&node) == 1);
    node.collect();
    // The control lane goes on.
    node.publish(&id, Lane::Control, Record::Nudge { client: "client".into() }, None);
    let mut expected = 0;
    let mut unfinished = Vec::new();
    let mut has_nudge = false;
    while !has_nudge {
        let (_, arrived) = node.next();
        if let Record::Nudge { .. } = arrived.record {
            has_nudge = true;
        } else {
            assert_eq!(read(&arrived).1, expected);
            expected += 1;
            unfinished.push(arrived.at);
        }
    }
    assert!(expected < MESSAGES, "all of them came at once");
    node.bus().finish(&unfinished);
    while expected < MESSAGES {
        let (_, arrived) = node.next();
        assert_eq!(read(&arrived).1, expected);
        expected += 1;
        finish(&node, arrived.at);
    }
    eventually("the pause is over", || reader(&node) == 0);
    assert!(node.bus().counters().reader.pauses.value() > 0);
}

#[test]
fn a_full_mailbox_makes_reading_wait_and_loses_nothing() {
    // More than a mailbox holds and more than may wait for it together.
    const MESSAGES: u64 = 9000;
    let Some(brokers) = brokers("full mailbox") else { return };
    let (a, b) = (fresh_id("ma"), fresh_id("mb"));
    let mut sender = Node::start(&brokers, &a, 1, |_| {});
    let mut reader = Node::start(&brokers, &b, 1, |_| {});
    for number in 0..MESSAGES {
        sender.send(&b, "client", number);
        sender.collect();
    }
    sender.produced(usize::try_from(MESSAGES).unwrap());
    eventually("records wait for the mailbox", || reader.bus().counters().reader.waiting_mail.value() >= 4096);
    for expected in 0..MESSAGES {
        let (_, arrived) = reader.next();
        assert_eq!(read(&arrived).1, expected);
        finish(&reader, arrived.at);
    }
}

#[test]
fn a_topic_that_takes_less_than_the_message_limit_is_refused_with_the_cure() {
    let Some(brokers) = brokers("limits of topics") else { return };
    let id = fresh_id("s");
    let small = Node::start(&brokers, &id, 1, |_| {});
    assert!(small.kafka.wait(PATIENCE).unwrap());
    drop(small);
    let large = Node::start(&brokers, &id, 1, |config| config.payload_bytes_max = 4 << 20);
    let error = large.kafka.wait(PATIENCE).unwrap_err();
    assert!(matches!(error, StartError::Misfit(_)));
    let text = error.to_string();
    assert!(text.contains("max.message.bytes=") && text.contains(&node_topic(&id)), "{text}");
}

#[test]
fn the_largest_message_gets_through_and_a_larger_one_is_counted() {
    let Some(brokers) = brokers("largest message") else { return };
    let id = fresh_id("x");
    let mut node = Node::start(&brokers, &id, 1, |_| {});
    let mut posted = message("client", 1);
    posted.payload = format!("\"{}\"", "x".repeat((256 << 10) - 2)).into();
    let expected = posted.payload.clone();
    let lane = lane_of(&posted);
    node.publish(&id, lane, Record::Message(Box::new(posted)), Some(1));
    let mut too_large = message("client", 2);
    too_large.payload = format!("\"{}\"", "x".repeat(300 << 10)).into();
    node.publish(&id, lane, Record::Message(Box::new(too_large)), Some(2));
    node.send(&id, "client", 3);
    let (_, arrived) = node.next();
    let Record::Message(message) = &arrived.record else { panic!("{arrived:?}") };
    assert!(message.payload == expected);
    assert_eq!(read(&node.next().1).1, 3);
    assert_eq!(node.produced(2), [1, 3]);
    assert_eq!(node.bus().counters().producer.too_large.value(), 1);
}
