//! A broker that its own controller takes for dead, again and again: it beats less often than it must. So it happens to one
//! that was stopped for a while and goes on; here it happens for certain.

use std::time::{Duration, Instant};

use rtc_server::bus::control::Follower;

use crate::restart::Broker;
use crate::rig::{Node, PATIENCE, brokers, finish, fresh_id, read};

/// Four seconds of every seven it is in the metadata; in the other three these name no broker at all.
const FENCED: &str = "broker.session.timeout.ms=4000 broker.heartbeat.interval.ms=7000";
/// Far shorter than those three, so that every client asks in them.
const REFRESH_MS: &str = "300";
const SILENCE_MAX: Duration = Duration::from_secs(1);

#[test]
fn clients_that_were_told_of_no_broker_get_theirs_again_and_nothing_is_lost_or_reordered() {
    if brokers("fenced broker").is_none() {
        return;
    }
    let broker = Broker::start("fenced", FENCED);
    let id = fresh_id("fenced");
    let mut config = None;
    let mut node = Node::start(&broker.address, &id, 1, |settings| {
        settings.silence_max = SILENCE_MAX;
        settings.options = vec![
            ("topic.metadata.refresh.interval.ms".to_owned(), REFRESH_MS.to_owned()),
            // The library's own cure works most of the time. What is tested is the rest, where it is cancelled by the very
            // answer that took the brokers away.
            ("metadata.recovery.strategy".to_owned(), "none".to_owned()),
        ];
        config = Some(settings.clone());
    });
    let _follower = Follower::start(&config.unwrap(), &id, node.bus().clone(), |_| {}).unwrap();

    let deadline = Instant::now() + PATIENCE;
    let (mut sent, mut expected) = (0, 0);
    let mut take = |node: &mut Node, patience| {
        while let Some((_, arrived)) = node.next_within(patience) {
            let number = read(&arrived).1;
            assert!(number <= expected, "{number} came before {expected}");
            expected = expected.max(number + 1);
            finish(node, arrived.at);
        }
        expected
    };
    let have_all_lost = |node: &Node| {
        let given = &node.bus().counters().rebootstraps;
        [&given.reader, &given.producer, &given.control].iter().all(|counter| counter.value() > 0)
    };
    while !have_all_lost(&node) {
        assert!(Instant::now() < deadline, "{:?}", node.bus().counters().rebootstraps);
        node.send(&id, "client", sent);
        sent += 1;
        take(&mut node, Duration::from_millis(20));
    }
    while take(&mut node, Duration::from_millis(20)) < sent {
        assert!(Instant::now() < deadline, "some of {sent} records did not come");
    }
    let mut tickets = node.produced(usize::try_from(sent).unwrap());
    tickets.sort_unstable();
    assert!(tickets.into_iter().eq(0..sent));
}
