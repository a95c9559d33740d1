//! Asks sentinels which server is in charge, each with a limit to its patience: the library's own client waits for ever
//! for one that takes the connection and says nothing. Does not hear of changes: who loses its connection asks again.

use std::time::Duration;

use redis::{Client, Connection, ConnectionAddr, ConnectionInfo, ConnectionLike, ErrorKind, RedisError, Value};

use super::link::{CONNECT_LIMIT, Trouble};

/// How long a sentinel may take to answer, and then the server to say that it is in charge.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// Those that watch one server.
pub(super) struct Sentinels {
    // The one that knew last is asked first.
    all: Vec<Client>,
    master: String,
    // How the server is connected to; its address is what the sentinels are asked for.
    server: ConnectionInfo,
}

impl Sentinels {
    /// Those at `hosts`, of which each may know `master`; connects to none.
    ///
    /// # Errors
    /// When an address cannot be one.
    pub(super) fn new(hosts: Vec<ConnectionInfo>, master: String, server: ConnectionInfo) -> Result<Self, RedisError> {
        let all: Result<_, _> = hosts.into_iter().map(Client::open).collect();
        Ok(Self { all: all?, master, server })
    }

    /// The server that is in charge, by a sentinel's word and its own.
    ///
    /// # Errors
    /// The last sentinel's, when none knows one that is in charge.
    pub(super) fn server(&mut self) -> Result<Client, RedisError> {
        let mut last = RedisError::from((ErrorKind::Client, "no sentinel"));
        for at in 0..self.all.len() {
            match self.ask(&self.all[at]) {
                Ok(server) => {
                    self.all[..=at].rotate_right(1);
                    return Ok(server);
                }
                Err(err) => last = err,
            }
        }
        Err(last)
    }

    fn ask(&self, sentinel: &Client) -> Result<Client, RedisError> {
        let command = redis::cmd("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME").arg(&self.master).take();
        let reply = open(sentinel)?.req_command(&command)?.extract_error()?;
        let Some((host, port)) = redis::from_redis_value::<Option<(String, u16)>>(reply)? else {
            return Err(RedisError::from((ErrorKind::Client, "the sentinel does not know the master's name")));
        };
        let server = Client::open(self.server.clone().set_addr(ConnectionAddr::Tcp(host, port)))?;
        let is_in_charge = match open(&server)?.req_command(&redis::cmd("ROLE")).and_then(Value::extract_error) {
            Ok(Value::Array(role)) => role.first() == Some(&Value::BulkString(b"master".to_vec())),
            // An operator may have forbidden the question. Another than the one in charge takes no writes, and says so.
            Err(err) if Trouble::of(&err) == Trouble::Lost => return Err(err),
            _ => true,
        };
        if is_in_charge {
            Ok(server)
        } else {
            Err(RedisError::from((ErrorKind::Client, "the server that the sentinel names is not in charge")))
        }
    }
}

/// A connection of which nothing takes longer than it may.
fn open(client: &Client) -> Result<Connection, RedisError> {
    let connection = client.get_connection_with_timeout(CONNECT_LIMIT)?;
    connection.set_read_timeout(Some(ANSWER_LIMIT))?;
    connection.set_write_timeout(Some(ANSWER_LIMIT))?;
    Ok(connection)
}
