//! What other nodes tell this one, record by record, in the order of its topic's partitions.

use crate::bus::{Arrived, Record};
use crate::shard::origin::Origin;
use crate::shard::recent::identity;

use super::arrival::with_arrival;
use super::claim::Claim;
use super::dispatcher::Dispatcher;

impl Dispatcher {
    /// A record for a client whose home is here, or for every shard.
    pub fn on_record(&mut self, arrived: Arrived) {
        let Arrived { at, origin, record } = arrived;
        match record {
            Record::Message(mut posted) => {
                posted.origin = Origin::record(at);
                posted.wants_ack = true;
                let expires_ms = self.expiry(posted.ts_ms, posted.ttl_ms);
                if expires_ms <= self.now.wall_ms {
                    self.counters.expired.add(1);
                    self.out.finished.push(at);
                    return;
                }
                debug_assert!(identity(posted.sender, &posted.msg_id) != 0, "identities are hashes");
                let outcome = with_arrival(&posted, expires_ms, |arrival| self.deliver_from(arrival, Some(&origin)));
                self.tell(posted.origin, "", outcome);
            }
            Record::Fence { id, .. } if origin.node == self.me.node => {
                self.on_mark(&origin, id);
                self.out.finished.push(at);
            }
            Record::Fence { hash, pair, trail, .. } => {
                self.on_fence(at, &origin, hash, pair, trail);
            }
            Record::Fenced { id, incarnation, .. } => {
                // The forwarder that reads this node's topic in its place answers marks, too.
                let is_mine = incarnation == self.me.incarnation;
                if is_mine && (self.paths.on_fenced(id) || self.crossings.on_read(id, self.now.steady_ms)) {
                    self.on_echo(id);
                }
                self.out.finished.push(at);
            }
            Record::Claimed { client, generation } => {
                let hash = self.hash_of(&client);
                self.on_claimed(&client, hash, &origin, generation, at);
            }
            Record::Released { client, generation } => {
                let hash = self.hash_of(&client);
                self.on_released(&client, hash, generation, &origin);
                self.out.finished.push(at);
            }
            Record::Moved { client, holder } => {
                self.learn(&client, &holder);
                self.out.finished.push(at);
            }
            Record::Nudge { client } => {
                let hash = self.hash_of(&client);
                if let Some(key) = self.find_session(hash, &client)
                    && self.claim(key).is_some_and(Claim::takes_messages)
                {
                    self.look_again(key);
                }
                self.out.finished.push(at);
            }
        }
    }
}
