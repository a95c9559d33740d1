//! Redis: the nodes' heartbeats, the leader's lease, the published ring. What must not be torn apart is one script.
//!
//! Every key lies in the slot of `{rtc}`. The token beside the lease only ever rises; whoever holds an older one cannot
//! write the ring, however late it wakes.

use std::collections::BTreeMap;
use std::time::Duration;

use redis::{Client, Connection, RedisResult, Script};
use ring::control::{MESSAGE_BYTES_MAX, RING_UPDATE_BYTES_MAX, RingUpdate};
use ring::{NODES_MAX, NodeId};

const HEARTBEATS: &str = "{rtc}:heartbeats";
const LEADER: &str = "{rtc}:leader";
const LEADER_TOKEN: &str = "{rtc}:leader-token";
const RING_VERSION: &str = "{rtc}:ring-version";
const STARTING: &str = "{rtc}:starting";
const DRAINING: &str = "{rtc}:draining";

/// How long Redis may take to answer, or to be reached.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Names read from the heartbeats: those of a whole ring, and as many that are long gone.
const NAMES_MAX: usize = 2 * NODES_MAX;
/// A name that has not beaten for so long is forgotten, in ms.
const FORGET_MS: u64 = 60 * 60 * 1000;

/// Everything but what the nodes say. One answer and not five: each would be waited for by itself.
const LOOK: &str = r"
local time = redis.call('TIME')
return {
    time[1], time[2],
    redis.call('ZREVRANGE', KEYS[1], 0, ARGV[1], 'WITHSCORES'),
    redis.call('GET', KEYS[2]),
    redis.call('HGETALL', KEYS[3]),
    redis.call('GET', KEYS[4]),
}
";

/// Takes the lease if it is free, or renews it. Returns the token, or 0 and who has it.
const LEAD: &str = r"
local held = redis.call('GET', KEYS[1])
if held then
    if ARGV[2] ~= '0' and held == ARGV[2] .. ':' .. ARGV[1] then
        redis.call('PEXPIRE', KEYS[1], ARGV[3])
        return {ARGV[2], held}
    end
    return {'0', held}
end
local token = redis.call('INCR', KEYS[2])
held = token .. ':' .. ARGV[1]
redis.call('SET', KEYS[1], held, 'PX', ARGV[3])
return {tostring(token), held}
";

/// Gives the lease back, if it is still ours.
const RESIGN: &str = r"
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
return 0
";

/// Writes the ring and which nodes are starting in it, if nobody has led since and it is newer than what is there.
const PUBLISH: &str = r"
local newest = redis.call('GET', KEYS[2])
if newest ~= ARGV[1] then return {'fenced', tostring(newest)} end
local current = redis.call('GET', KEYS[1])
if current then
    local ok, update = pcall(cjson.decode, current)
    local known = ok and type(update) == 'table' and type(update.version) == 'table' and tonumber(update.version.version)
    if known and known >= tonumber(ARGV[2]) then return {'stale', string.format('%.0f', known)} end
end
redis.call('SET', KEYS[1], ARGV[3])
redis.call('SET', KEYS[3], ARGV[4])
return {'ok', ARGV[2]}
";

/// A connection that comes back by itself.
pub struct Store {
    client: Client,
    connection: Option<Connection>,
    look: Script,
    lead: Script,
    resign: Script,
    publish: Script,
}

/// The answer to a look: seconds, microseconds, beats, ring, drains, slow starts.
type Looked = (u64, u64, Pairs<f64>, Option<Vec<u8>>, Pairs<Vec<u8>>, Option<Vec<u8>>);
/// Names, each with what belongs to it.
type Pairs<T> = Vec<(Vec<u8>, T)>;

/// One look at the nodes.
#[derive(Debug, Clone, Default)]
pub struct Look {
    /// Redis' clock.
    pub redis_ms: u64,
    /// When each node has last beaten, by that clock.
    pub beats: BTreeMap<NodeId, u64>,
    /// What each of them has said, of what is too long the beginning; nothing where it said nothing.
    pub bodies: BTreeMap<NodeId, Vec<u8>>,
    /// Nodes that are to leave the ring, and which life of theirs was meant.
    pub draining: BTreeMap<NodeId, Option<u64>>,
    /// The published ring, as it stands there.
    pub ring: Option<Vec<u8>>,
    /// Which of its nodes are in their slow start, as whoever published it has left it.
    pub starting: Option<Vec<u8>>,
}

/// Who leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lease {
    /// We do, under this token.
    Ours(u64),
    /// Somebody else, by name.
    Theirs(String),
}

/// What became of a ring.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Published {
    /// It is written.
    Ours,
    /// Somebody has led since: we do not.
    Fenced,
    /// There is one of this version or a newer.
    Stale(String),
}

impl Store {
    /// Prepares a connection; it is opened when it is first needed.
    ///
    /// # Errors
    /// When the URL cannot be read.
    pub fn new(url: &str) -> RedisResult<Self> {
        Ok(Self {
            client: Client::open(url)?,
            connection: None,
            look: Script::new(LOOK),
            lead: Script::new(LEAD),
            resign: Script::new(RESIGN),
            publish: Script::new(PUBLISH),
        })
    }

    fn ask<T>(&mut self, question: impl FnOnce(&Self, &mut Connection) -> RedisResult<T>) -> RedisResult<T> {
        let mut connection = if let Some(connection) = self.connection.take() {
            connection
        } else {
            let connection = self.client.get_connection_with_timeout(ANSWER_TIMEOUT)?;
            connection.set_read_timeout(Some(ANSWER_TIMEOUT))?;
            connection.set_write_timeout(Some(ANSWER_TIMEOUT))?;
            connection
        };
        let answer = question(self, &mut connection)?;
        // After an error it is dropped: what is left on it might be taken for the next answer.
        self.connection = Some(connection);
        Ok(answer)
    }

    /// Looks at the nodes and the ring.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub fn look(&mut self) -> RedisResult<Look> {
        self.ask(|store, connection| {
            // The youngest beats first, so that what is beyond the limit is what is long gone.
            let mut call = store.look.key(HEARTBEATS);
            call.key(RING_VERSION).key(DRAINING).key(STARTING).arg(NAMES_MAX - 1);
            let (seconds, micros, beats, ring, draining, starting): Looked = call.invoke(connection)?;
            let mut look = Look {
                redis_ms: seconds.saturating_mul(1000).saturating_add(micros / 1000),
                ring: ring.filter(|ring| ring.len() <= RING_UPDATE_BYTES_MAX),
                starting,
                ..Look::default()
            };
            for (name, beat) in beats {
                #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "`as` saturates")]
                look.beats.extend(node_id(&name).map(|node| (node, beat as u64)));
            }
            for (name, incarnation) in draining {
                let incarnation = std::str::from_utf8(&incarnation).ok().and_then(|text| text.parse().ok());
                look.draining.extend(node_id(&name).map(|node| (node, incarnation)));
            }
            look.read_bodies(connection)?;
            Ok(look)
        })
    }

    /// Takes the lease or renews it; `token` is that of a lease that is held already, 0 for none.
    ///
    /// # Errors
    /// When Redis does not answer; whether the lease was taken is then unknown.
    pub fn lead(&mut self, name: &NodeId, token: u64, lease: Duration) -> RedisResult<Lease> {
        self.ask(|store, connection| {
            let lease_ms = u64::try_from(lease.as_millis()).unwrap_or(u64::MAX);
            let mut call = store.lead.key(LEADER);
            call.key(LEADER_TOKEN).arg(name.as_str()).arg(token.to_string()).arg(lease_ms);
            let (token, held): (String, String) = call.invoke(connection)?;
            match token.parse() {
                Ok(0) | Err(_) => {
                    Ok(Lease::Theirs(held.split_once(':').map_or(held.as_str(), |(_, name)| name).to_owned()))
                }
                Ok(token) => Ok(Lease::Ours(token)),
            }
        })
    }

    /// Gives the lease back, so that nobody has to wait for its end.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub fn resign(&mut self, name: &NodeId, token: u64) -> RedisResult<()> {
        self.ask(|store, connection| store.resign.key(LEADER).arg(format!("{token}:{name}")).invoke(connection))
    }

    /// Writes a ring under the leader's token, and with it what the next leader has to know of slow starts.
    ///
    /// # Errors
    /// When Redis does not answer; whether it was written is then unknown, and the next look tells.
    pub fn publish(&mut self, token: u64, update: &RingUpdate, json: &[u8], starting: &[u8]) -> RedisResult<Published> {
        self.ask(|store, connection| {
            let mut call = store.publish.key(RING_VERSION);
            call.key(LEADER_TOKEN).key(STARTING).arg(token.to_string()).arg(update.version.version.get());
            call.arg(json).arg(starting);
            let (word, detail): (String, String) = call.invoke(connection)?;
            Ok(match word.as_str() {
                "ok" => Published::Ours,
                "stale" => Published::Stale(detail),
                _ => Published::Fenced,
            })
        })
    }

    /// Remembers that a node is to leave the ring.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub fn drain(&mut self, node: &NodeId, incarnation: Option<u64>) -> RedisResult<()> {
        let incarnation = incarnation.map(|number| number.to_string()).unwrap_or_default();
        self.ask(|_, connection| redis::cmd("HSET").arg(DRAINING).arg(node.as_str()).arg(incarnation).query(connection))
    }

    /// Forgets it: the node has come back as another.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub fn undrain(&mut self, node: &NodeId) -> RedisResult<()> {
        self.ask(|_, connection| redis::cmd("HDEL").arg(DRAINING).arg(node.as_str()).query(connection))
    }

    /// Forgets nodes that have been gone for an hour.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub fn tidy(&mut self, redis_ms: u64) -> RedisResult<()> {
        let before = redis_ms.saturating_sub(FORGET_MS);
        self.ask(|_, connection| {
            redis::cmd("ZREMRANGEBYSCORE").arg(HEARTBEATS).arg("-inf").arg(before).query(connection)
        })
    }
}

impl Look {
    fn read_bodies(&mut self, connection: &mut Connection) -> RedisResult<()> {
        if self.beats.is_empty() {
            return Ok(());
        }
        let nodes: Vec<NodeId> = self.beats.keys().cloned().collect();
        let keys: Vec<String> = nodes.iter().map(|node| format!("{{rtc}}:node:{node}")).collect();
        let bodies: Vec<Option<Vec<u8>>> = redis::cmd("MGET").arg(keys).query(connection)?;
        for (node, body) in nodes.into_iter().zip(bodies) {
            let Some(mut body) = body else { continue };
            // One byte too long stays too long: whoever reads it refuses it.
            body.truncate(MESSAGE_BYTES_MAX + 1);
            body.shrink_to_fit();
            self.bodies.insert(node, body);
        }
        Ok(())
    }
}

fn node_id(name: &[u8]) -> Option<NodeId> {
    NodeId::new(std::str::from_utf8(name).ok()?).ok()
}
