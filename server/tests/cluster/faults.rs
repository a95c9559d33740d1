//! Servers and nodes that die in the middle, between a pair of servers of the test's own.

use rustix::process::Signal;

use crate::fleet::{Fleet, Pair, fresh};
use crate::people::{Inbox, Sender};
use crate::support::{eventually, get};

/// Sends while `fault` happens, from two nodes to a recipient on the third and one that comes only afterwards.
fn keeps_all_while(fleet: &Fleet, fault: impl FnOnce()) {
    const MESSAGES: u64 = 100;
    let absent = fresh("absent");
    let mut inbox = Inbox::log_in(&fleet.nodes[2], &fresh("b"));
    let mut pairs: Vec<[Sender; 2]> = fleet.nodes[..2]
        .iter()
        .map(|node| [Sender::log_in(node, &fresh("a")), Sender::log_in(node, &fresh("a"))])
        .collect();
    let mut send = || {
        for [to_present, to_absent] in &mut pairs {
            for _ in 0..MESSAGES {
                to_present.send(&inbox.id);
            }
            for _ in 0..MESSAGES / 2 {
                to_absent.send(&absent);
            }
        }
    };
    send();
    fault();
    send();
    let mut late = Inbox::log_in(&fleet.nodes[0], &absent);
    for [to_present, to_absent] in &mut pairs {
        inbox.await_from(&to_present.id, to_present.sent());
        late.await_from(&to_absent.id, to_absent.sent());
        to_present.settle();
        to_absent.settle();
    }
}

#[test]
fn redis_dies_and_comes_back_and_live_delivery_goes_on_meanwhile() {
    const MESSAGES: u64 = 100;
    let Some(pair) = Pair::start("redis restart") else { return };
    let fleet = Fleet::start(pair.services.clone());
    let mut inbox = Inbox::log_in(&fleet.nodes[1], &fresh("b"));
    let mut local = Sender::log_in(&fleet.nodes[1], &fresh("a"));
    let mut remote = Sender::log_in(&fleet.nodes[0], &fresh("a"));
    // From here on the other node knows where the recipient is.
    for sender in [&mut local, &mut remote] {
        sender.send(&inbox.id);
        inbox.await_from(&sender.id, 1);
        sender.settle();
    }
    keeps_all_while(&fleet, || {
        pair.control(&["kill", "redis"]);
        for sender in [&mut local, &mut remote] {
            for _ in 0..MESSAGES {
                sender.send(&inbox.id);
            }
            inbox.await_from(&sender.id, MESSAGES + 1);
            sender.settle();
        }
        eventually("the nodes say what is missing", || get(fleet.nodes[1].admin, "/readyz").status == 503);
        pair.control(&["start", "redis"]);
    });
    eventually("all are ready again", || fleet.nodes.iter().all(|node| get(node.admin, "/readyz").status == 200));
}

#[test]
fn kafka_dies_and_comes_back_and_everything_arrives() {
    let Some(pair) = Pair::start("kafka restart") else { return };
    let fleet = Fleet::start(pair.services.clone());
    keeps_all_while(&fleet, || {
        pair.control(&["kill", "kafka"]);
        eventually("the nodes say what is missing", || get(fleet.nodes[1].admin, "/readyz").status == 503);
        // Those of one node need no kafka.
        let mut inbox = Inbox::log_in(&fleet.nodes[1], &fresh("b"));
        let mut local = Sender::log_in(&fleet.nodes[1], &fresh("a"));
        local.send(&inbox.id);
        inbox.await_from(&local.id, 1);
        pair.control(&["start", "kafka"]);
    });
    eventually("all are ready again", || fleet.nodes.iter().all(|node| get(node.admin, "/readyz").status == 200));
}

#[test]
fn a_node_is_killed_and_comes_back_and_what_was_accepted_arrives() {
    const MESSAGES: u64 = 200;
    let Some(pair) = Pair::start("node restart") else { return };
    let mut fleet = Fleet::start(pair.services.clone());
    let mut inboxes: Vec<Inbox> = (0..4).map(|_| Inbox::log_in(&fleet.nodes[2], &fresh("b"))).collect();
    let mut senders: Vec<Sender> = (0..4).map(|index| Sender::log_in(&fleet.nodes[index % 2], &fresh("a"))).collect();
    for (sender, inbox) in senders.iter_mut().zip(&inboxes) {
        for _ in 0..MESSAGES {
            sender.send(&inbox.id);
        }
    }
    // Some are had, some are in its memory, some wait in its topic.
    inboxes[0].await_from(&senders[0].id, 20);
    fleet.nodes[2].signal(Signal::KILL);
    fleet.nodes[2].wait();
    for (sender, inbox) in senders.iter_mut().zip(&inboxes) {
        for _ in 0..MESSAGES {
            sender.send(&inbox.id);
        }
    }
    let id = fleet.nodes[2].node_id.clone();
    fleet.nodes[2] = fleet.services.node(&id);
    for (index, (inbox, sender)) in inboxes.iter_mut().zip(&mut senders).enumerate() {
        drop(inbox.hop(&fleet.nodes[index % 3]));
        inbox.await_from(&sender.id, 2 * MESSAGES);
        sender.settle();
    }
}
