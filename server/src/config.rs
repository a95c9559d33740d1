//! What the node is told at its start: flags over environment over file over defaults, checked as a whole, then cut up
//! into what each part needs. It binds and opens nothing.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::time::Duration;

use anyhow::{bail, ensure};
use clap::ValueEnum;
use rim::listen::check_exposure;
use rim::logging::LogFormat;
use rim::{file, logging, millis, values};
use ring::NodeId;
use rtc_server::admin::AdminSettings;
use rtc_server::cluster::ClusterSettings;
use rtc_server::protocol::AckStatus;
use rtc_server::shard::{OpeningRules, OutboxLimits, SessionLimits, Settings};
use rtc_server::store::StoreLimits;
use rtc_server::store::bounds::BufferLimits;
use serde::{Deserialize, Serialize};

use crate::args::Args;

#[cfg(test)]
mod tests;

/// The file that lists the keys.
const EXAMPLE: &str = "config/server.example.toml";

/// Open connections of a node that is told no number, where there are descriptors enough.
pub const CONNECTIONS_DEFAULT: usize = 100_000;
/// The most shards: far above any machine's cores.
const SHARDS_MAX: usize = 1024;
/// What a message costs in a buffer beside its payload, generously.
const ENVELOPE_BYTES: usize = 4096;
/// Partitions of one node's topic.
const KAFKA_PARTITIONS_MAX: usize = 1024;
/// The longest length of time that makes sense for any of these.
const TIME_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// Publishers that wait longer would be forgotten.
const PUBLISH_WAIT_MAX: Duration = rtc_server::publish::FORGET_AFTER;

/// The whole configuration; its fields are the keys of the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where clients connect.
    pub listen: SocketAddr,
    /// Where operators connect.
    pub admin_listen: SocketAddr,
    /// Both addresses may be other than loopback although nobody authenticates.
    pub insecure_allow_anonymous: bool,
    /// Origins that may connect beside the node's own host.
    pub allowed_origins: Vec<String>,

    /// This node; none for a name made from the host's.
    pub node_id: Option<NodeId>,
    /// The URL under which clients reach this node.
    pub advertise_url: Option<String>,
    /// The zone it stands in.
    pub zone: Option<String>,
    /// Threads that serve clients; none for one per core.
    pub shards: Option<NonZeroUsize>,
    /// How sockets are read and written.
    pub io: IoChoice,
    /// `/ws/echo` is served.
    pub echo: bool,
    /// Kafka brokers.
    pub kafka: Option<String>,
    /// Redis.
    pub redis: Option<String>,
    /// Partitions of the node's topic.
    pub kafka_partitions: usize,
    /// More settings of the Kafka client library.
    pub kafka_options: Vec<String>,
    /// Clients whose owner is elsewhere are redirected.
    pub redirect: bool,
    /// Clients advised in a second to move.
    pub moves_per_second_max: u32,
    /// How long a login waits for Redis.
    #[serde(rename = "claim_wait_ms", with = "millis")]
    pub claim_wait: Duration,
    /// How long a login waits for the node that had its client before.
    #[serde(rename = "takeover_wait_ms", with = "millis")]
    pub takeover_wait: Duration,

    /// Open connections; none for [`CONNECTIONS_DEFAULT`], or as many as there are descriptors for.
    pub connections_max: Option<usize>,
    /// New connections in a second.
    pub accepts_per_second_max: u32,
    /// The longest payload.
    pub message_bytes_max: usize,
    /// The longest message to the echo.
    pub echo_bytes_max: usize,
    /// The longest upgrade request.
    pub request_bytes_max: usize,
    /// Bytes in one client's outbox.
    pub outbox_bytes_max: usize,
    /// Messages in one client's outbox.
    pub outbox_messages_max: usize,

    /// How long an upgrade request may take.
    #[serde(rename = "handshake_timeout_ms", with = "millis")]
    pub handshake_timeout: Duration,
    /// Silence after which a client is pinged.
    #[serde(rename = "ping_interval_ms", with = "millis")]
    pub ping_interval: Duration,
    /// How long it may take to answer.
    #[serde(rename = "pong_timeout_ms", with = "millis")]
    pub pong_timeout: Duration,
    /// How long a message may take from its first byte to its last.
    #[serde(rename = "message_timeout_ms", with = "millis")]
    pub message_timeout: Duration,
    /// How long a full outbox may stand still.
    #[serde(rename = "stall_timeout_ms", with = "millis")]
    pub stall_timeout: Duration,
    /// How long a recipient may leave a message unacknowledged before it is spilled.
    #[serde(rename = "ack_wait_ms", with = "millis")]
    pub ack_wait: Duration,
    /// How long a publisher waits.
    #[serde(rename = "publish_wait_ms", with = "millis")]
    pub publish_wait: Duration,
    /// Over which a drain spreads the closing of connections.
    #[serde(rename = "drain_window_ms", with = "millis")]
    pub drain_window: Duration,

    /// Age limit of messages.
    #[serde(rename = "message_ttl_ms", with = "millis")]
    pub message_ttl: Duration,
    /// How long a loss is remembered.
    #[serde(rename = "buffer_memory_ms", with = "millis")]
    pub buffer_memory: Duration,
    /// Bytes kept for one recipient.
    pub buffer_recipient_bytes_max: usize,
    /// Messages kept for one recipient.
    pub buffer_recipient_messages_max: usize,
    /// Bytes kept of one sender, by the whole node.
    pub buffer_sender_bytes_max: usize,
    /// Bytes kept by the whole node.
    pub buffer_bytes_max: usize,

    /// What is logged.
    pub log: String,
    /// How.
    pub log_format: LogFormat,
}

/// How sockets are read and written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum IoChoice {
    /// The ring where the kernel allows it, else direct.
    Auto,
    /// Through `io_uring`, or not at all.
    Ring,
    /// By a system call each.
    Direct,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: ([127, 0, 0, 1], 8080).into(),
            admin_listen: ([127, 0, 0, 1], 8081).into(),
            insecure_allow_anonymous: false,
            allowed_origins: Vec::new(),
            node_id: None,
            advertise_url: None,
            zone: None,
            shards: None,
            io: IoChoice::Auto,
            echo: false,
            kafka: None,
            redis: None,
            kafka_partitions: usize::from(rtc_server::bus::kafka::PARTITIONS),
            kafka_options: Vec::new(),
            redirect: false,
            moves_per_second_max: 200,
            claim_wait: Duration::from_secs(2),
            takeover_wait: Duration::from_secs(15),
            connections_max: None,
            accepts_per_second_max: 50_000,
            message_bytes_max: 256 << 10,
            echo_bytes_max: 16 << 20,
            request_bytes_max: 16 << 10,
            outbox_bytes_max: 1 << 20,
            outbox_messages_max: 4096,
            handshake_timeout: Duration::from_secs(5),
            ping_interval: Duration::from_secs(25),
            pong_timeout: Duration::from_secs(10),
            message_timeout: Duration::from_secs(60),
            stall_timeout: Duration::from_secs(10),
            ack_wait: Duration::from_secs(1),
            publish_wait: Duration::from_secs(30),
            // With its grace inside the 30 s that orchestrators give by default.
            drain_window: Duration::from_secs(20),
            message_ttl: Duration::from_secs(15 * 60),
            buffer_memory: Duration::from_secs(15 * 60),
            buffer_recipient_bytes_max: 4 << 20,
            buffer_recipient_messages_max: 10_000,
            buffer_sender_bytes_max: 64 << 20,
            buffer_bytes_max: 256 << 20,
            log: "info".to_owned(),
            log_format: LogFormat::Text,
        }
    }
}

impl Config {
    /// Reads the file that `args` names, if any, puts the flags over it, and checks the whole.
    ///
    /// # Errors
    /// Names the key, what is wrong with it and what would be right.
    pub fn load(args: Args) -> anyhow::Result<Self> {
        let mut config = match &args.config {
            Some(path) => file::read(path, EXAMPLE)?,
            None => Self::default(),
        };
        config.overlay(args);
        config.check()?;
        config.node_id.get_or_insert_with(default_node_id);
        config.shards.get_or_insert_with(|| std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN));
        Ok(config)
    }

    /// Puts what was given on the command line, or in the environment, over what is here.
    fn overlay(&mut self, args: Args) {
        macro_rules! overlay {
            ($($field:ident)*) => { $(if let Some(value) = args.$field { self.$field = value; })* };
        }
        macro_rules! overlay_optional {
            ($($field:ident)*) => { $(if args.$field.is_some() { self.$field = args.$field; })* };
        }
        overlay!(listen admin_listen insecure_allow_anonymous allowed_origins io echo);
        overlay_optional!(node_id advertise_url zone shards kafka redis connections_max);
        overlay!(accepts_per_second_max message_bytes_max echo_bytes_max request_bytes_max);
        overlay!(outbox_bytes_max outbox_messages_max kafka_partitions kafka_options moves_per_second_max);
        overlay!(claim_wait takeover_wait redirect);
        overlay!(handshake_timeout ping_interval pong_timeout message_timeout stall_timeout ack_wait publish_wait drain_window);
        overlay!(message_ttl buffer_memory buffer_recipient_bytes_max buffer_recipient_messages_max);
        overlay!(buffer_sender_bytes_max buffer_bytes_max log log_format);
    }

    fn check(&self) -> anyhow::Result<()> {
        self.check_bus()?;
        check_exposure("listen", self.listen, self.insecure_allow_anonymous)?;
        check_exposure("admin_listen", self.admin_listen, self.insecure_allow_anonymous)?;
        ensure!(
            self.listen != self.admin_listen || self.listen.port() == 0,
            "listen and admin_listen are both {}: give them different ports",
            self.listen
        );
        if let Some(url) = &self.advertise_url {
            let is_websocket = url.starts_with("ws://") || url.starts_with("wss://");
            ensure!(is_websocket, "advertise_url is {url}: give one that begins with ws:// or wss://");
        }
        for origin in &self.allowed_origins {
            let is_origin = origin == "*"
                || origin.split_once("://").is_some_and(|(_, host)| !host.is_empty() && !host.contains('/'));
            ensure!(is_origin, "allowed_origins has {origin:?}: give origins such as https://app.example.com, or *");
        }
        logging::check(&self.log)?;
        self.check_ranges()
    }

    fn check_bus(&self) -> anyhow::Result<()> {
        match (&self.kafka, &self.redis) {
            (None, None) => Ok(()),
            (Some(_), None) => bail!("kafka is given without redis: several nodes need both, one alone needs neither"),
            (None, Some(_)) => bail!("redis is given without kafka: several nodes need both, one alone needs neither"),
            (Some(_), Some(_)) => {
                self.kafka_options()?;
                Ok(())
            }
        }
    }

    fn kafka_options(&self) -> anyhow::Result<Vec<(String, String)>> {
        values::pairs("kafka_options", &self.kafka_options)
    }

    fn check_ranges(&self) -> anyhow::Result<()> {
        let outbox_bytes_min = self.message_bytes_max.saturating_add(ENVELOPE_BYTES);
        let counts = [
            ("shards", self.shards.map_or(1, NonZeroUsize::get), 1, SHARDS_MAX),
            ("connections_max", self.connections_max.unwrap_or(1), 1, 100_000_000),
            ("accepts_per_second_max", self.accepts_per_second_max as usize, 1, 100_000_000),
            ("message_bytes_max", self.message_bytes_max, 1, 64 << 20),
            ("echo_bytes_max", self.echo_bytes_max, 1, 1 << 30),
            ("request_bytes_max", self.request_bytes_max, 512, 1 << 20),
            ("outbox_bytes_max", self.outbox_bytes_max, outbox_bytes_min, 1 << 30),
            ("outbox_messages_max", self.outbox_messages_max, 1, 10_000_000),
            ("buffer_recipient_bytes_max", self.buffer_recipient_bytes_max, outbox_bytes_min, 1 << 40),
            ("buffer_recipient_messages_max", self.buffer_recipient_messages_max, 1, 1 << 30),
            ("buffer_sender_bytes_max", self.buffer_sender_bytes_max, outbox_bytes_min, 1 << 40),
            ("buffer_bytes_max", self.buffer_bytes_max, outbox_bytes_min, 1 << 40),
            ("moves_per_second_max", self.moves_per_second_max as usize, 1, 1_000_000),
            ("kafka_partitions", self.kafka_partitions, 2, KAFKA_PARTITIONS_MAX),
        ];
        for (key, value, min, max) in counts {
            ensure!((min..=max).contains(&value), "{key} is {value}: give {min} to {max}");
        }
        let (tick, none) = (Duration::from_millis(1), Duration::ZERO);
        let times = [
            ("handshake_timeout_ms", self.handshake_timeout, tick, TIME_MAX),
            ("ping_interval_ms", self.ping_interval, tick, TIME_MAX),
            ("pong_timeout_ms", self.pong_timeout, tick, TIME_MAX),
            ("message_timeout_ms", self.message_timeout, tick, TIME_MAX),
            ("stall_timeout_ms", self.stall_timeout, tick, TIME_MAX),
            ("ack_wait_ms", self.ack_wait, none, TIME_MAX),
            ("claim_wait_ms", self.claim_wait, tick, TIME_MAX),
            ("takeover_wait_ms", self.takeover_wait, tick, TIME_MAX),
            ("publish_wait_ms", self.publish_wait, tick, PUBLISH_WAIT_MAX),
            ("drain_window_ms", self.drain_window, none, rtc_server::drain::WINDOW_MAX),
            ("message_ttl_ms", self.message_ttl, tick, 365 * TIME_MAX),
            ("buffer_memory_ms", self.buffer_memory, none, 365 * TIME_MAX),
        ];
        for (key, value, min, max) in times {
            let (value, min, max) = (value.as_millis(), min.as_millis(), max.as_millis());
            ensure!((min..=max).contains(&value), "{key} is {value}: give {min} to {max}");
        }
        Ok(())
    }

    /// The file that would lead to this configuration.
    pub fn to_toml(&self) -> anyhow::Result<String> {
        Ok(toml::to_string(self)?)
    }

    /// Flag and default of every flag, as `--help` shows it.
    pub fn shown_defaults(&self) -> Vec<(String, String)> {
        let mut shown: Vec<(String, String)> = [
            ("node_id", "the host's name"),
            ("advertise_url", "none"),
            ("zone", "none"),
            ("shards", "one per core"),
            ("kafka", "none"),
            ("redis", "none"),
            ("connections_max", "100000, or what the descriptors allow"),
        ]
        .map(|(flag, default)| (flag.to_owned(), default.to_owned()))
        .into();
        shown.extend(file::shown_defaults(self));
        shown
    }

    /// How many shards there are.
    pub fn shards(&self) -> NonZeroUsize {
        self.shards.unwrap_or(NonZeroUsize::MIN)
    }

    /// What the shards are told. A limit of the whole node is shared out among them.
    pub fn settings(&self) -> Settings {
        let shards = self.shards();
        // However many shards: a share holds at least one message.
        let share = |bytes: usize| (bytes / shards).max(self.message_bytes_max.saturating_add(ENVELOPE_BYTES));
        Settings {
            node_id: self.node_id.clone().unwrap_or_else(default_node_id),
            opening: OpeningRules { has_echo: self.echo, allowed_origins: self.allowed_origins.clone() },
            message_bytes_max: self.message_bytes_max,
            echo_bytes_max: self.echo_bytes_max,
            request_bytes_max: self.request_bytes_max,
            handshake_timeout: self.handshake_timeout,
            ping_interval: self.ping_interval,
            pong_timeout: self.pong_timeout,
            message_timeout: self.message_timeout,
            stall_timeout: self.stall_timeout,
            session: SessionLimits {
                outbox: OutboxLimits { bytes: self.outbox_bytes_max, messages: self.outbox_messages_max },
                ack_wait_ms: millis::of(self.ack_wait),
                kept_status: if self.kafka.is_some() { AckStatus::Stored } else { AckStatus::Held },
            },
            message_ttl_ms: millis::of(self.message_ttl),
            store: StoreLimits {
                recipient_bytes: self.buffer_recipient_bytes_max,
                recipient_messages: self.buffer_recipient_messages_max,
                sender_bytes: share(self.buffer_sender_bytes_max),
                total_bytes: share(self.buffer_bytes_max),
                memory_ms: millis::of(self.buffer_memory),
            },
            connections_max: self.connections_max.unwrap_or(CONNECTIONS_DEFAULT),
            moves_per_second: u32::try_from(self.moves_per_second_max as usize / shards).unwrap_or(u32::MAX).max(1),
            redirects: self.redirect,
            claim_wait: self.claim_wait,
            takeover_wait: self.takeover_wait,
            lanes: u16::try_from(self.kafka_partitions - 1).unwrap_or(u16::MAX),
            accepts_per_second: u32::try_from(self.accepts_per_second_max as usize / shards).unwrap_or(u32::MAX).max(1),
        }
    }

    /// How the node joins others; none if it runs alone.
    pub fn cluster(&self) -> Option<ClusterSettings> {
        let (brokers, redis) = (self.kafka.as_ref()?, self.redis.as_ref()?);
        let mut kafka = rtc_server::bus::kafka::Config::new(brokers, self.message_bytes_max);
        kafka.partitions = u16::try_from(self.kafka_partitions).unwrap_or(u16::MAX);
        // Checked since the start.
        kafka.options = self.kafka_options().unwrap_or_default();
        Some(ClusterSettings {
            kafka,
            redis: redis.clone(),
            url: self.advertise_url.clone(),
            zone: self.zone.clone(),
            buffer: BufferLimits {
                recipient_bytes: self.buffer_recipient_bytes_max,
                recipient_messages: self.buffer_recipient_messages_max,
            },
            memory: self.message_ttl.max(self.buffer_memory),
        })
    }

    /// What the admin port is told.
    pub fn admin_settings(&self) -> AdminSettings {
        AdminSettings {
            message_bytes_max: self.message_bytes_max,
            publish_wait: self.publish_wait,
            drain_window: self.drain_window,
            advertise_url: self.advertise_url.clone(),
            zone: self.zone.clone(),
        }
    }
}

/// The host's name, as far as a node's may be the same; a random one where the host has none to tell it by.
fn default_node_id() -> NodeId {
    let uname = rustix::system::uname();
    let name: String = uname
        .nodename()
        .to_string_lossy()
        .chars()
        .map(|letter| if letter.is_ascii_alphanumeric() || matches!(letter, '.' | '_' | '-') { letter } else { '-' })
        .take(ring::NODE_ID_BYTES_MAX)
        .collect();
    let is_telling = !matches!(&*name, "" | "localhost" | "(none)" | "-none-") && !name.starts_with("localhost.");
    if is_telling && let Ok(id) = NodeId::new(&name) {
        return id;
    }
    let mut random = [0; 4];
    // Without randomness the process's number still tells nodes of one host apart.
    if getrandom::fill(&mut random).is_err() {
        random = std::process::id().to_be_bytes();
    }
    NodeId::new(&format!("node-{:08x}", u32::from_be_bytes(random)))
        .expect("hexadecimal digits are allowed in a node id")
}
