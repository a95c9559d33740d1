//! The connections that the store's thread shares its requests out to. A server reads some 32 KiB from each connection
//! before it writes what it has done to disk: many requests on one connection would wait for many writes, on several
//! they share them. Which connection a request takes is of no matter, as one client's are under way one group at a time.

use std::time::Duration;

use redis::{RedisError, Value};

use super::link::{Address, Link, Trouble};
use super::pack::Pack;

/// Connections to a server; a cluster opens its own.
const LINKS: usize = 8;
/// A connection gets so many bytes before it is the next one's turn: few requests all go by one, in one write.
const SHARE_BYTES: usize = 16 * 1024;

/// Several connections to the same server.
pub(super) struct Links {
    // Invariant: not empty, and a pack for each.
    all: Vec<Link>,
    packs: Vec<Pack>,
    turns: Turns,
}

/// Whose turn it is.
#[derive(Default)]
struct Turns {
    link: usize,
    bytes: usize,
}

impl Turns {
    /// Whose turn it is, of so many.
    fn next(&mut self, links: usize) -> usize {
        if self.bytes >= SHARE_BYTES {
            self.link = (self.link + 1) % links;
            self.bytes = 0;
        }
        self.link
    }
}

impl Links {
    /// Connects.
    ///
    /// # Errors
    /// When one of them cannot be opened: see [`Address::connect`].
    pub(super) fn open(address: &mut Address, reply_limit: Duration) -> Result<Self, RedisError> {
        let links = address.connect_several(LINKS, reply_limit)?;
        let packs = links.iter().map(|_| Pack::default()).collect();
        Ok(Self { all: links, packs, turns: Turns::default() })
    }

    /// True for a cluster.
    pub(super) fn is_cluster(&self) -> bool {
        self.all.iter().any(Link::is_cluster)
    }

    /// For what concerns the server, not a client.
    pub(super) fn first(&mut self) -> &mut Link {
        self.all.first_mut().expect("there is one at least")
    }

    /// The connection of this number.
    pub(super) fn link(&mut self, at: usize) -> &mut Link {
        &mut self.all[at]
    }

    /// Lets `write` add commands for the connection whose turn it is, and returns its number.
    pub(super) fn write<T>(&mut self, write: impl FnOnce(&mut Pack) -> T) -> (usize, T) {
        let turn = self.turns.next(self.all.len());
        let pack = &mut self.packs[turn];
        let before = pack.bytes().len();
        let written = write(pack);
        self.turns.bytes += pack.bytes().len() - before;
        (turn, written)
    }

    /// Sends what was written.
    ///
    /// # Errors
    /// When a connection is lost.
    pub(super) fn send(&mut self) -> Result<(), RedisError> {
        for (link, pack) in self.all.iter_mut().zip(&mut self.packs) {
            if !pack.is_empty() {
                link.send(pack)?;
                pack.clear();
            }
        }
        Ok(())
    }

    /// Ends those of `former`, the server's numbers for the connections before these, that bear `name` as well: they may
    /// have requests under way that the server has yet to read, and it must not do them after what is asked now. A
    /// server that was started anew numbers anew, hence the name. Afterwards `former` has the numbers of these.
    ///
    /// # Errors
    /// When a connection is lost.
    pub(super) fn succeed(&mut self, former: &mut Vec<i64>, name: &str) -> Result<(), RedisError> {
        if self.is_cluster() {
            return Ok(());
        }
        let first = self.first();
        let mark = format!(" name={name} ");
        for id in former.iter().map(i64::to_string) {
            let is_ours = match unless_lost(first.ask(&["CLIENT", "LIST", "ID", &id]))? {
                Some(Value::BulkString(text)) => String::from_utf8_lossy(&text).contains(&mark),
                Some(Value::VerbatimString { text, .. }) => text.contains(&mark),
                _ => false,
            };
            if is_ours {
                unless_lost(first.ask(&["CLIENT", "KILL", "ID", &id]))?;
            }
        }
        former.clear();
        for link in &mut self.all {
            unless_lost(link.ask(&["CLIENT", "SETNAME", name]))?;
            if let Some(Value::Int(id)) = unless_lost(link.ask(&["CLIENT", "ID"]))? {
                former.push(id);
            }
        }
        Ok(())
    }
}

/// The reply, or nothing where the server refuses: an operator may have forbidden the command.
fn unless_lost(reply: Result<Value, RedisError>) -> Result<Option<Value>, RedisError> {
    match reply {
        Err(err) if Trouble::of(&err) == Trouble::Lost => Err(err),
        reply => Ok(reply.ok()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_requests_go_by_one_connection_and_many_by_all() {
        let mut turns = Turns::default();
        let mut take = |bytes: usize| {
            let turn = turns.next(3);
            turns.bytes += bytes;
            turn
        };
        let few: Vec<usize> = (0..10).map(|_| take(100)).collect();
        assert_eq!(few, [0; 10]);
        let mut many = [0; 3];
        (0..1000).for_each(|_| many[take(200)] += 1);
        let (least, most) = (many.iter().min().unwrap(), many.iter().max().unwrap());
        assert!(*least > 0 && most - least <= SHARE_BYTES / 200 + 1, "{many:?}");
    }
}
