//! The lease on a node's topic, as the node itself takes it.

use std::time::{Duration, Instant};

use redis::{Client, Connection, RedisResult, Script};
use rim::lease::{ASK_INTERVAL, GIVE_BACK, HELD_TIME, LEASE_TIME, RENEW_INTERVAL, TAKE, counter_key, topic_key};
use ring::NodeId;

/// How long Redis may take to answer, or to be reached.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy)]
struct Held {
    token: u64,
    until: Instant,
}

/// A lease that is wanted, whether held or not yet.
pub struct Lease {
    client: Client,
    connection: Option<Connection>,
    take: Script,
    give_back: Script,
    key: String,
    owner: String,
    held: Option<Held>,
    ask_at: Instant,
}

impl Lease {
    /// A lease on `node`'s topic for `owner`, which must name one reading by one life of one process.
    pub fn new(client: Client, node: &NodeId, owner: String) -> Self {
        Self {
            client,
            connection: None,
            take: Script::new(TAKE),
            give_back: Script::new(GIVE_BACK),
            key: topic_key(node.as_str()),
            owner,
            held: None,
            ask_at: Instant::now(),
        }
    }

    /// The fencing token; `None` while the lease is not held, or its time is up.
    pub fn token(&self) -> Option<u64> {
        self.held.filter(|held| Instant::now() < held.until).map(|held| held.token)
    }

    /// Asks for the lease, or renews it, when it is time.
    ///
    /// # Errors
    /// When Redis does not answer: a lease that is held stays held until its time is up.
    pub fn keep(&mut self) -> RedisResult<()> {
        // From before the question: the server's count begins later.
        let now = Instant::now();
        if now < self.ask_at {
            return Ok(());
        }
        self.ask_at = now + ASK_INTERVAL;
        let lease_ms = u64::try_from(LEASE_TIME.as_millis()).unwrap_or(u64::MAX);
        let counter = counter_key(&self.key);
        let (script, key, owner) = (self.take.clone(), self.key.clone(), self.owner.clone());
        let answer: Vec<u64> =
            self.ask(|connection| script.key(key).key(counter).arg(owner).arg(lease_ms).invoke(connection))?;
        self.held = match answer.as_slice() {
            [1, token] => {
                self.ask_at = now + RENEW_INTERVAL;
                Some(Held { token: *token, until: now + HELD_TIME })
            }
            _ => None,
        };
        Ok(())
    }

    /// Gives the lease back, so that the next reader need not wait for its end.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub fn end(mut self) -> RedisResult<()> {
        let (script, key, owner) = (self.give_back.clone(), self.key.clone(), self.owner.clone());
        self.ask(|connection| script.key(key).arg(owner).invoke(connection))
    }

    fn ask<T>(&mut self, question: impl FnOnce(&mut Connection) -> RedisResult<T>) -> RedisResult<T> {
        let mut connection = if let Some(connection) = self.connection.take() {
            connection
        } else {
            let connection = self.client.get_connection_with_timeout(ANSWER_TIMEOUT)?;
            connection.set_read_timeout(Some(ANSWER_TIMEOUT))?;
            connection.set_write_timeout(Some(ANSWER_TIMEOUT))?;
            connection
        };
        let answer = question(&mut connection)?;
        // After an error it is dropped: what is left on it might be taken for the next answer.
        self.connection = Some(connection);
        Ok(answer)
    }
}
