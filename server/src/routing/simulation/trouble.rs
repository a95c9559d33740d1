//! What goes wrong, how often, and how it heals.

use super::{CLIENTS, Kind, Message, NODES, World, ring, tell};

impl World {
    pub(super) fn trouble(&mut self) {
        let at = self.dice.below(self.kind.nodes());
        let now = self.now;
        if self.dice.one_in(400) {
            let what = match self.kind {
                Kind::Pauses => 1,
                Kind::Anything => self.dice.below(8),
                Kind::Silence => self.dice.below(11),
            };
            match what {
                0 => self.crash(at),
                1 => {
                    let until = now + 200 + self.dice.up_to(11_000);
                    self.nodes[at].paused_until = until;
                    tell!(self, "n{at} paused until {until}");
                }
                2 => {
                    let until = now + self.dice.up_to(8_000);
                    self.lose_store(at, until);
                }
                3 => {
                    let until = now + self.dice.up_to(8_000);
                    self.nodes[at].bus_away_until = until;
                    tell!(self, "n{at} without Kafka until {until}");
                }
                4 => {
                    let until = now + self.dice.up_to(6_000);
                    for node in 0..NODES {
                        self.lose_store(node, until);
                    }
                    self.lose_balancers_redis(until);
                }
                5 => {
                    let until = now + self.dice.up_to(6_000);
                    for node in &mut self.nodes {
                        node.bus_away_until = until;
                    }
                    tell!(self, "Kafka away until {until}");
                }
                6 => {
                    let skew = i64::try_from(self.dice.up_to(10_000)).unwrap() - 5_000;
                    self.nodes[at].skew_ms = skew;
                    tell!(self, "n{at} clock off by {skew}");
                }
                7 => {
                    self.newest_ring.0 += 1;
                    tell!(self, "ring {:?}", self.newest_ring);
                }
                // The others take it for dead, and it is not.
                8 => {
                    let until = now + 7_000 + self.dice.up_to(20_000);
                    self.nodes[at].paused_until = until;
                    tell!(self, "n{at} silent until {until}");
                }
                9 => {
                    let until = now + 7_000 + self.dice.up_to(20_000);
                    self.lose_store(at, until);
                }
                _ => self.crash_forwarder(),
            }
        }
        // Rings reach nodes at different times.
        if self.dice.one_in(40) {
            let _ = self.nodes[at].ring.publish(ring(self.newest_ring));
        }
        let client = self.dice.below(CLIENTS);
        if self.dice.one_in(150) {
            self.clients[client].silent_until = now + self.dice.up_to(4_000);
        }
        if self.dice.one_in(120) {
            self.cut(client);
        }
        if self.dice.one_in(4) {
            let to = self.dice.below(CLIENTS);
            let number = self.clients[client].sent.range((to, 0)..(to + 1, 0)).count() as u64;
            let message = Message {
                first_sent: 0,
                accepted: None,
                is_clean: false,
                is_under_way: false,
                was_refused: false,
                given_to: None,
                retry_at: now,
                delivered: None,
                delivered_at: 0,
            };
            self.clients[client].sent.insert((to, number), message);
        }
    }

    pub(super) fn heal(&mut self) {
        tell!(self, "all heals");
        for index in 0..NODES {
            let now = self.now;
            let node = &mut self.nodes[index];
            node.paused_until = 0;
            node.store_away_until = 0;
            node.bus_away_until = 0;
            node.skew_ms = 0;
            if node.dispatcher.is_none() {
                node.restart_at = Some(now);
            }
            let _ = node.ring.publish(ring(self.newest_ring));
        }
    }

    fn lose_store(&mut self, at: usize, until: u64) {
        tell!(self, "n{at} without Redis until {until}");
        let node = &mut self.nodes[at];
        node.store_away_until = until;
        // What was answered and not heard is asked again.
        while let Some((_, ticket, request, _)) = node.answered.pop_back() {
            node.requests.push_front((ticket, request));
        }
    }

    fn crash(&mut self, at: usize) {
        tell!(self, "n{at} crashes");
        self.crashes.push(self.now);
        let requests = self.dice.below(3);
        for _ in 0..requests {
            self.execute_one(at);
        }
        if self.dice.one_in(2) {
            self.produce_one(at);
        }
        let restart_at = self.now + 100 + self.dice.up_to(9_000);
        let node = &mut self.nodes[at];
        node.dispatcher = None;
        node.restart_at = Some(restart_at);
        node.requests.clear();
        node.answered.clear();
        node.producing.clear();
        node.produced.clear();
        node.hangups.clear();
        node.paused_until = 0;
        node.is_reading = false;
        for partition in &mut node.topic {
            partition.next = partition.committed;
            partition.unfinished.clear();
        }
        for client in 0..CLIENTS {
            if self.clients[client].connection.as_ref().is_some_and(|connection| connection.node == at) {
                self.drop_connection(client);
            }
        }
    }
}
