//! A recipient that never stays.

use crate::fleet::{Fleet, fresh};
use crate::people::{Inbox, Sender};
use crate::support::PATIENCE;

#[test]
fn a_recipient_that_hops_between_nodes_misses_nothing_and_sees_no_disorder() {
    const MESSAGES: u64 = 1500;
    const HOPS: usize = 12;
    let Some(fleet) = Fleet::shared("hopping recipient") else { return };
    let mut inbox = Inbox::log_in(&fleet.nodes[0], &fresh("b"));
    let senders = [fresh("a"), fresh("a")];
    std::thread::scope(|scope| {
        for (node, sender) in senders.iter().enumerate() {
            let (id, fleet) = (inbox.id.clone(), &fleet);
            scope.spawn(move || {
                let mut sender = Sender::log_in(&fleet.nodes[node], sender);
                for _ in 0..MESSAGES {
                    sender.send(&id);
                }
                sender.settle();
            });
        }
        for hop in 1..=HOPS {
            let until = inbox.total() + 2 * MESSAGES / (HOPS as u64 + 2);
            while inbox.total() < until {
                assert!(inbox.read(PATIENCE), "{} messages after {hop} hops", inbox.total());
            }
            // Every other time the old connection is still open when the new one comes.
            let old = inbox.hop(&fleet.nodes[hop % 3]);
            assert!(inbox.is_recovered(), "hop {hop}: {:?}", inbox.welcome);
            if hop % 2 == 0 {
                drop(old);
            } else {
                let mut old = old;
                assert_eq!(old.await_close(), Some((4001, "replaced".to_owned())));
            }
        }
        for sender in &senders {
            inbox.await_from(sender, MESSAGES);
        }
    });
    assert!(inbox.is_quiet());
}
