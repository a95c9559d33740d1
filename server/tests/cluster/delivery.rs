//! Messages between nodes while all goes well.

use sonic_rs::JsonValueTrait;

use crate::fleet::{Fleet, fresh, metric};
use crate::people::{Inbox, Sender};

#[test]
fn a_message_crosses_nodes_and_its_sender_learns_that_it_is_stored() {
    const MESSAGES: u64 = 50;
    let Some(fleet) = Fleet::shared("cross-node delivery") else { return };
    for (from, at) in [(0, 1), (1, 2), (2, 0)] {
        let before = metric(&fleet.nodes[from], "rtc_socket_deliveries_total{path=\"bus\"}");
        let mut inbox = Inbox::log_in(&fleet.nodes[at], &fresh("b"));
        // The sender's node may own the recipient on the ring: then it finds the session through redis.
        let mut sender = Sender::log_in(&fleet.nodes[from], &fresh("a"));
        for _ in 0..MESSAGES {
            sender.send(&inbox.id);
        }
        inbox.await_from(&sender.id, MESSAGES);
        sender.settle();
        assert_eq!(sender.statuses.keys().collect::<Vec<_>>(), ["stored"], "{:?}", sender.statuses);
        assert!(metric(&fleet.nodes[from], "rtc_socket_deliveries_total{path=\"bus\"}") > before);
        assert_eq!(inbox.repeats, 0);
    }
}

#[test]
fn each_recipient_gets_each_senders_messages_in_their_order() {
    const MESSAGES: u64 = 600;
    const RECIPIENTS: usize = 4;
    let Some(fleet) = Fleet::shared("order with concurrent senders") else { return };
    let ids: Vec<String> = (0..RECIPIENTS).map(|_| fresh("b")).collect();
    let senders: Vec<String> = (0..2).map(|_| fresh("a")).collect();
    let mut inboxes: Vec<Inbox> = ids.iter().map(|id| Inbox::log_in(&fleet.nodes[2], id)).collect();
    std::thread::scope(|scope| {
        for (node, sender) in senders.iter().enumerate() {
            let (ids, fleet) = (&ids, &fleet);
            scope.spawn(move || {
                // One per recipient: numbers are per sender.
                let mut lines: Vec<Sender> = (0..RECIPIENTS)
                    .map(|line| Sender::log_in(&fleet.nodes[node], &format!("{sender}-{line}")))
                    .collect();
                for _ in 0..MESSAGES {
                    for (line, id) in lines.iter_mut().zip(ids) {
                        line.send(id);
                    }
                }
                lines.iter_mut().for_each(Sender::settle);
            });
        }
        for (line, inbox) in inboxes.iter_mut().enumerate() {
            let senders = &senders;
            scope.spawn(move || {
                for sender in senders {
                    inbox.await_from(&format!("{sender}-{line}"), MESSAGES);
                }
                assert_eq!((inbox.total(), inbox.repeats), (2 * MESSAGES, 0));
            });
        }
    });
}

#[test]
fn who_is_nowhere_gets_all_of_it_at_login_on_any_node() {
    const MESSAGES: u64 = 100;
    let Some(fleet) = Fleet::shared("absent recipient") else { return };
    for node in &fleet.nodes {
        let id = fresh("absent");
        let mut sender = Sender::log_in(&fleet.nodes[0], &fresh("a"));
        for _ in 0..MESSAGES {
            sender.send(&id);
        }
        sender.settle();
        assert_eq!(sender.statuses.keys().collect::<Vec<_>>(), ["stored"], "{:?}", sender.statuses);
        let mut inbox = Inbox::log_in(node, &id);
        inbox.await_from(&sender.id, MESSAGES);
        sender.send(&id);
        inbox.await_from(&sender.id, MESSAGES + 1);
        assert!(inbox.is_quiet());
        assert_eq!(inbox.repeats, 0);
    }
}

#[test]
fn resuming_on_another_node_gives_what_was_missed_then_what_is_new() {
    const MESSAGES: u64 = 60;
    let Some(fleet) = Fleet::shared("resume on another node") else { return };
    let mut sender = Sender::log_in(&fleet.nodes[0], &fresh("a"));
    let mut inbox = Inbox::log_in(&fleet.nodes[1], &fresh("b"));
    let mut expected = 0;
    for at in [2, 0, 1] {
        for _ in 0..MESSAGES {
            sender.send(&inbox.id);
        }
        // Some have been had, the others are on their way to a connection that is gone.
        inbox.await_from(&sender.id, expected + MESSAGES / 3);
        drop(inbox.hop(&fleet.nodes[at]));
        assert!(inbox.is_recovered(), "{:?}", inbox.welcome);
        assert_eq!(inbox.welcome["offset"].as_u64(), Some(inbox.position), "{:?}", inbox.welcome);
        expected += MESSAGES;
        sender.send(&inbox.id);
        expected += 1;
        inbox.await_from(&sender.id, expected);
    }
    sender.settle();
    assert!(inbox.is_quiet());
}

#[test]
fn the_newer_login_on_another_node_gets_everything_and_the_older_gets_4001() {
    const MESSAGES: u64 = 80;
    let Some(fleet) = Fleet::shared("duplicate login across nodes") else { return };
    let mut sender = Sender::log_in(&fleet.nodes[2], &fresh("a"));
    let mut old = Inbox::log_in(&fleet.nodes[0], &fresh("b"));
    // It reads and does not ack: all of it is still owed when the newer one comes.
    old.acks = false;
    for _ in 0..MESSAGES {
        sender.send(&old.id);
    }
    old.await_from(&sender.id, MESSAGES / 2);
    let mut new = Inbox::log_in(&fleet.nodes[1], &old.id);
    assert!(new.is_recovered(), "{:?}", new.welcome);
    assert_eq!(old.await_close(), Some((4001, "replaced".to_owned())));
    for _ in 0..MESSAGES {
        sender.send(&new.id);
    }
    new.await_from(&sender.id, 2 * MESSAGES);
    sender.settle();
    assert!(new.is_quiet());
    assert_eq!(new.repeats, 0);
}
