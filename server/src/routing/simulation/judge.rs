//! What must be true in the end.

use super::{CLIENTS, Kind, World};
use crate::routing::Dispatcher;

impl World {
    pub(super) fn is_quiet(&self) -> bool {
        let all_accepted = self.clients.iter().all(|client| {
            client.sent.values().all(|message| message.accepted.is_some() && message.delivered.is_some())
        });
        all_accepted
            && self.clients.iter().all(|client| self.store.kept(&client.id).next().is_none())
            && self.nodes.iter().all(|node| {
                node.requests.is_empty()
                    && node.producing.is_empty()
                    && node.topic.iter().all(|partition| partition.committed == partition.records.len())
                    && node.dispatcher.as_ref().is_some_and(|dispatcher| dispatcher.waiting_size() == (0, 0))
            })
    }

    pub(super) fn judge(&self) {
        let seed = self.seed;
        for (index, client) in self.clients.iter().enumerate() {
            for ((to, number), message) in &client.sent {
                assert!(
                    message.accepted.is_none() || message.delivered.is_some(),
                    "seed {seed}: c{index}-c{to}-{number} was accepted and never delivered"
                );
                assert!(message.accepted.is_some(), "seed {seed}: c{index}-c{to}-{number} was never accepted");
            }
        }
        for (at, node) in self.nodes.iter().enumerate() {
            for (lane, partition) in node.topic.iter().enumerate() {
                assert_eq!(
                    partition.committed,
                    partition.records.len(),
                    "seed {seed}: n{at} partition {lane} is not done"
                );
            }
            let waiting = node.dispatcher.as_ref().map(Dispatcher::waiting_size);
            assert_eq!(waiting, Some((0, 0)), "seed {seed}: messages wait on n{at} for ever");
        }
        for client in &self.clients {
            assert_eq!(self.store.kept(&client.id).count(), 0, "seed {seed}: {} has not got all", client.id.as_str());
        }
        self.judge_order();
    }

    /// Of what one sender gave one node: what was accepted before another was sent, or ahead of it over the same
    /// connection, arrives before it. Unless a node crashed meanwhile: with it goes what it remembered of the way that
    /// earlier messages took. Nor across the moment at which a topic passes to the forwarder or back. Where nodes only
    /// pause, also of what it gave to different nodes: a client sends what is not confirmed again, in order, wherever it
    /// comes to. Unless a wait was given up, or the earlier one refused.
    fn judge_order(&self) {
        let seed = self.seed;
        let has_given_up = |node: &super::Node| {
            node.dispatcher.as_ref().is_none_or(|dispatcher| {
                let counters = &dispatcher.counters;
                counters.fences_given_up.value() + counters.takeovers_given_up.value() > 0
            })
        };
        let is_strict = self.kind == Kind::Pauses && !self.nodes.iter().any(has_given_up);
        for (index, client) in self.clients.iter().enumerate() {
            for to in 0..CLIENTS {
                let messages: Vec<_> = client.sent.range((to, 0)..(to + 1, 0)).collect();
                for (at, ((_, first), earlier)) in messages.iter().enumerate() {
                    for ((_, second), later) in &messages[at + 1..] {
                        let last = earlier.delivered_at.max(later.delivered_at);
                        let mut breaks = self.crashes.iter().chain(&self.handovers);
                        let had_break = breaks.any(|at| (earlier.first_sent..=last).contains(at));
                        let must_precede = (is_strict && !earlier.was_refused)
                            || !had_break
                                && earlier.given_to.is_some()
                                && earlier.given_to == later.given_to
                                && (earlier.is_clean
                                    || earlier.accepted.is_some_and(|accepted| accepted < later.first_sent));
                        assert!(
                            !must_precede || earlier.delivered < later.delivered,
                            "seed {seed}: c{index}-c{to}-{second} overtook c{index}-c{to}-{first}"
                        );
                    }
                }
            }
        }
    }
}
