//! A connection to whatever kind of Redis the URL names, and what its errors mean. Sends packed commands and reads
//! their replies in order; does not know what they are about.

use std::collections::VecDeque;
use std::time::Duration;

use redis::cluster::{ClusterClient, ClusterConnection, cluster_pipe};
use redis::cluster_routing::{MultipleNodeRoutingInfo, RoutingInfo};
use redis::io::tcp::TcpSettings;
use redis::{
    Client, Cmd, Connection, ConnectionInfo, ConnectionLike, ErrorKind, IntoConnectionInfo, RedisError, Value,
};
use thiserror::Error;

use super::pack::Pack;
use super::sentinel::Sentinels;

/// How long connecting may take.
pub(super) const CONNECT_LIMIT: Duration = Duration::from_secs(2);
/// How long a reply may take on a cluster, whose connections are opened when they are needed.
const CLUSTER_REPLY_LIMIT: Duration = Duration::from_secs(5);
/// The most servers that a URL may list.
const HOSTS_MAX: usize = 64;

/// A URL that names no Redis.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BadUrl {
    /// Neither scheme that is understood.
    #[error(
        "redis URL `{0}`: give redis://host:port[/db], redis+sentinel://host:port,…/master-name or redis-cluster://host:port,…"
    )]
    Scheme(String),
    /// TLS is not built in.
    #[error("redis URL `{0}`: this build has no TLS to Redis; give redis://")]
    Tls(String),
    /// What follows the scheme makes no sense.
    #[error("redis URL `{url}`: {reason}")]
    Invalid {
        /// The URL, without what may be secret.
        url: String,
        /// What is wrong.
        reason: String,
    },
}

/// Where a Redis is to be found.
pub struct Address {
    kind: AddressKind,
    shown: String,
}

enum AddressKind {
    One(Client),
    Sentinel(Box<Sentinels>),
    Cluster(Box<ClusterClient>),
}

impl Address {
    /// Reads a URL; connects to nothing.
    ///
    /// # Errors
    /// When it names no Redis.
    pub fn parse(url: &str) -> Result<Self, BadUrl> {
        let shown = without_secret(url);
        let invalid = |err: RedisError| BadUrl::Invalid { url: without_secret(url), reason: err.to_string() };
        let kind = if url.starts_with("redis://") {
            AddressKind::One(Client::open(with_nodelay(info(url)?)).map_err(invalid)?)
        } else if url.starts_with("rediss://") {
            return Err(BadUrl::Tls(shown));
        } else if let Some(rest) = url.strip_prefix("redis+sentinel://") {
            let (hosts, master) = rest.split_once('/').unwrap_or((rest, ""));
            if master.is_empty() {
                let reason = "the master's name is missing: redis+sentinel://host:port,…/master-name".to_owned();
                return Err(BadUrl::Invalid { url: shown, reason });
            }
            let (user, hosts) = split_user(hosts);
            let (master, db) = master.split_once('/').unwrap_or((master, "0"));
            // The sentinels are asked without a name; user, password and database are the server's own.
            let server = with_nodelay(info(&format!("redis://{user}localhost/{db}"))?);
            let sentinels = Sentinels::new(hosts_of(hosts, "", &shown)?, master.to_owned(), server);
            AddressKind::Sentinel(Box::new(sentinels.map_err(invalid)?))
        } else if let Some(rest) = url.strip_prefix("redis-cluster://") {
            let (user, hosts) = split_user(rest.trim_end_matches('/'));
            let client = ClusterClient::builder(hosts_of(hosts, user, &shown)?)
                .connection_timeout(CONNECT_LIMIT)
                .response_timeout(CLUSTER_REPLY_LIMIT)
                .retries(3)
                .tcp_settings(TcpSettings::default().set_nodelay(true))
                .build();
            AddressKind::Cluster(Box::new(client.map_err(invalid)?))
        } else {
            return Err(BadUrl::Scheme(shown));
        };
        Ok(Self { kind, shown })
    }

    /// The URL for people: without password.
    pub fn shown(&self) -> &str {
        &self.shown
    }

    /// Connects. `reply_limit`: how long a reply may take before the connection counts as lost.
    ///
    /// # Errors
    /// When nobody answers in time, or not as a Redis that may be written to would.
    pub fn connect(&mut self, reply_limit: Duration) -> Result<Link, RedisError> {
        let links = self.connect_several(1, reply_limit)?;
        links.into_iter().next().ok_or_else(|| RedisError::from((ErrorKind::Client, "no connection")))
    }

    /// Connects so many times to the same server, or once to a cluster, which opens its connections itself.
    ///
    /// # Errors
    /// As [`Address::connect`].
    pub fn connect_several(&mut self, count: usize, reply_limit: Duration) -> Result<Vec<Link>, RedisError> {
        let client = match &mut self.kind {
            AddressKind::One(client) => client.clone(),
            // Asked once: the next answer may name another server.
            AddressKind::Sentinel(sentinels) => sentinels.server()?,
            AddressKind::Cluster(client) => {
                let connection = Box::new(client.get_connection()?);
                return Ok(vec![Link(Kind::Cluster { connection, replies: VecDeque::new() })]);
            }
        };
        let open = |_| {
            let connection = client.get_connection_with_timeout(CONNECT_LIMIT)?;
            connection.set_read_timeout(Some(reply_limit))?;
            connection.set_write_timeout(Some(reply_limit))?;
            Ok(Link(Kind::One(Box::new(connection))))
        };
        (0..count.max(1)).map(open).collect()
    }
}

/// An open connection, or a cluster's several.
pub struct Link(Kind);

enum Kind {
    One(Box<Connection>),
    Cluster { connection: Box<ClusterConnection>, replies: VecDeque<Result<Value, RedisError>> },
}

impl Link {
    /// True for a cluster.
    pub fn is_cluster(&self) -> bool {
        matches!(self.0, Kind::Cluster { .. })
    }

    /// Sends the commands. On a cluster, waits for their replies as well: each server's commands stay in order.
    ///
    /// # Errors
    /// When the connection is lost; nobody knows then which commands were done.
    pub fn send(&mut self, pack: &Pack) -> Result<(), RedisError> {
        match &mut self.0 {
            Kind::One(connection) => connection.send_packed_command(pack.bytes()),
            Kind::Cluster { connection, replies } => {
                let commands: Vec<Cmd> = pack.commands().map(command).collect();
                let mut pipe = cluster_pipe();
                for command in &commands {
                    pipe.add_command(command.clone());
                }
                match pipe.query::<Vec<Value>>(connection) {
                    Ok(values) => replies.extend(values.into_iter().map(Value::extract_error)),
                    Err(err) if err.is_io_error() => return Err(err),
                    // One of them was refused, and nobody knows which: each by itself. All are safe to be sent twice.
                    Err(_) => replies.extend(commands.iter().map(|command| connection.req_command(command))),
                }
                Ok(())
            }
        }
    }

    /// Reads the next reply.
    ///
    /// # Errors
    /// What the server refused, or a lost connection: see [`Trouble`].
    pub fn receive(&mut self) -> Result<Value, RedisError> {
        match &mut self.0 {
            Kind::One(connection) => match connection.recv_response()? {
                Value::ServerError(err) => Err(err.into()),
                value => Ok(value),
            },
            Kind::Cluster { replies, .. } => replies
                .pop_front()
                .unwrap_or_else(|| Err(RedisError::from((ErrorKind::Client, "fewer replies than commands")))),
        }
    }

    /// One command, there and back.
    ///
    /// # Errors
    /// As [`Link::receive`].
    pub fn ask(&mut self, args: &[&str]) -> Result<Value, RedisError> {
        let args: Vec<&[u8]> = args.iter().map(|arg| arg.as_bytes()).collect();
        match &mut self.0 {
            Kind::One(connection) => connection.req_command(&command(args))?.extract_error(),
            Kind::Cluster { connection, .. } => connection.req_command(&command(args))?.extract_error(),
        }
    }
}

impl Link {
    /// One command, there and back, to the server or to each primary of a cluster.
    ///
    /// # Errors
    /// As [`Link::receive`].
    pub fn ask_all(&mut self, args: &[&str]) -> Result<Vec<Value>, RedisError> {
        let Kind::Cluster { connection, .. } = &mut self.0 else { return Ok(vec![self.ask(args)?]) };
        let args: Vec<&[u8]> = args.iter().map(|arg| arg.as_bytes()).collect();
        let primaries = RoutingInfo::MultiNode((MultipleNodeRoutingInfo::AllMasters, None));
        match connection.route_command(&command(args), primaries)? {
            Value::Map(replies) => replies.into_iter().map(|(_, reply)| reply.extract_error()).collect(),
            _ => Err(RedisError::from((ErrorKind::UnexpectedReturnType, "not a reply of each server"))),
        }
    }
}

/// What to do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// The connection is lost: connect again and ask again.
    Lost,
    /// The server cannot do it now: ask again later.
    Later,
    /// The server has forgotten the scripts: load them and ask again.
    NoScript,
    /// The server will not do this, ever.
    Refused,
}

impl Trouble {
    /// What `err` calls for.
    pub fn of(err: &RedisError) -> Self {
        let code = match err.kind() {
            ErrorKind::Server(_) | ErrorKind::Extension => err.code().unwrap_or_default(),
            _ => return Self::Lost,
        };
        if code == "NOSCRIPT" {
            return Self::NoScript;
        }
        // Another server is in charge now: connecting finds it.
        if ["READONLY", "MOVED", "ASK"].contains(&code) {
            return Self::Lost;
        }
        // Before 7.0 an error within a script came as `ERR Error running script … -OOM …`.
        let detail = err.detail().unwrap_or_default();
        let is_passing = PASSING.iter().any(|word| code == *word || detail.contains(&format!("-{word} ")));
        if is_passing { Self::Later } else { Self::Refused }
    }
}

/// Errors that are the server's state, not the command's fault.
const PASSING: [&str; 14] = [
    "LOADING",
    "MASTERDOWN",
    "BUSY",
    "OOM",
    "TRYAGAIN",
    "CLUSTERDOWN",
    "MISCONF",
    "NOREPLICAS",
    "NOAUTH",
    "NOPERM",
    "WRONGPASS",
    "UNKILLABLE",
    "NOGOODSLAVE",
    "INPROG",
];

fn command(args: Vec<&[u8]>) -> Cmd {
    let mut command = Cmd::new();
    for arg in args {
        command.arg(arg);
    }
    command
}

fn info(url: &str) -> Result<ConnectionInfo, BadUrl> {
    url.into_connection_info().map_err(|err| BadUrl::Invalid { url: without_secret(url), reason: err.to_string() })
}

/// Requests are small and many: none must wait for the acknowledgement of the one before.
fn with_nodelay(info: ConnectionInfo) -> ConnectionInfo {
    info.set_tcp_settings(TcpSettings::default().set_nodelay(true))
}

/// `user:password@` and the rest.
fn split_user(text: &str) -> (&str, &str) {
    text.rfind('@').map_or(("", text), |at| text.split_at(at + 1))
}

fn hosts_of(hosts: &str, user: &str, shown: &str) -> Result<Vec<ConnectionInfo>, BadUrl> {
    let hosts: Vec<&str> = hosts.split(',').filter(|host| !host.is_empty()).collect();
    if hosts.is_empty() || hosts.len() > HOSTS_MAX {
        let reason = format!("{} servers are listed, give 1 to {HOSTS_MAX}", hosts.len());
        return Err(BadUrl::Invalid { url: shown.to_owned(), reason });
    }
    hosts.iter().map(|host| info(&format!("redis://{user}{host}"))).collect()
}

fn without_secret(url: &str) -> String {
    match (url.find("://"), url.rfind('@')) {
        (Some(scheme), Some(at)) if scheme + 3 <= at => format!("{}…{}", &url[..scheme + 3], &url[at..]),
        _ => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_all_kinds_are_read_and_others_are_told_why_not() {
        for url in [
            "redis://127.0.0.1:6379",
            "redis://user:secret@host:1/3",
            "redis+sentinel://a:26379,b:26379/main",
            "redis+sentinel://user:secret@a:26379,b/main/2",
            "redis-cluster://a:7000,b:7001",
            "redis-cluster://user:secret@a:7000",
        ] {
            let address = Address::parse(url).map(|address| address.shown().to_owned());
            let shown = address.unwrap_or_else(|err| panic!("{err}"));
            assert!(!shown.contains("secret"), "{shown}");
        }
        for (url, reason) in [
            ("localhost:6379", "give redis://"),
            ("http://localhost", "give redis://"),
            ("rediss://user:secret@host", "no TLS"),
            ("redis+sentinel://a:1,b:2", "master's name"),
            ("redis+sentinel:///main", "0 servers"),
            ("redis-cluster://", "0 servers"),
            ("redis://host:99999", "redis URL"),
        ] {
            let err = Address::parse(url).err().unwrap_or_else(|| panic!("{url} was taken")).to_string();
            assert!(err.contains(reason) && !err.contains("secret"), "{url}: {err}");
        }
    }
}
