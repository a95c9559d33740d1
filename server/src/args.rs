//! The command line and its environment. Every value is optional, so that "not given" can be told from a default:
//! defaults live in [`Config`] alone and are shown here by [`flags`].

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::BoolishValueParser;
use clap::{ArgAction, CommandFactory, Parser};
use rim::flags::Flags;
use rim::logging::LogFormat;
use rim::values::{parse_addr, parse_bytes, parse_count, parse_duration, parse_nonzero, parse_rate};
use ring::NodeId;

use crate::config::{Config, IoChoice};

/// What the environment variables' names begin with.
pub const ENV_PREFIX: &str = "RTC_SERVER_";

/// The flags, each also read from `RTC_SERVER_<NAME>`.
#[allow(clippy::doc_markdown, reason = "the comments are what --help shows")]
#[derive(Debug, Default, Parser)]
#[command(
    name = "rtc-server",
    version,
    about = "The socket node: keeps one WebSocket per client and passes messages between clients",
    after_help = "Each flag may also come from the environment: --listen as RTC_SERVER_LISTEN.\n\
                  Flags win over the environment, that over the file of --config, that over defaults.\n\
                  The file's keys are the flags' names with underscores; lengths of time end in _ms there.\n\
                  Bytes may be written as 4096, 256KiB, 1MiB, 2GiB; lengths of time as 500ms, 10s, 15m, 1h.",
    disable_help_flag = true
)]
pub struct Args {
    /// Where clients connect
    #[arg(long, value_name = "IP:PORT", value_parser = parse_addr, help_heading = "Addresses")]
    pub listen: Option<SocketAddr>,
    /// Where operators and publishers connect: health, metrics, publish, drain
    #[arg(long, value_name = "IP:PORT", value_parser = parse_addr, help_heading = "Addresses")]
    pub admin_listen: Option<SocketAddr>,
    /// Allow both addresses to be other than loopback although nobody has to prove who they are
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        value_parser = BoolishValueParser::new(),
        hide_possible_values = true,
        help_heading = "Addresses"
    )]
    pub insecure_allow_anonymous: Option<bool>,
    /// Origins whose pages may connect beside the node's own host; * for any
    #[arg(long, value_name = "ORIGIN,…", value_delimiter = ',', help_heading = "Addresses")]
    pub allowed_origins: Option<Vec<String>>,

    /// This node's name: 1 to 64 of A-Z a-z 0-9 . _ -
    #[arg(long, value_name = "ID", help_heading = "Node")]
    pub node_id: Option<NodeId>,
    /// The URL under which clients reach this node
    #[arg(long, value_name = "ws://…", help_heading = "Node")]
    pub advertise_url: Option<String>,
    /// The zone it stands in
    #[arg(long, value_name = "ZONE", help_heading = "Node")]
    pub zone: Option<String>,
    /// Threads that serve clients
    #[arg(long, value_name = "N", value_parser = parse_nonzero, help_heading = "Node")]
    pub shards: Option<NonZeroUsize>,
    /// How sockets are read and written: io_uring, a system call each, or what the kernel allows
    #[arg(long, value_name = "KIND", value_enum, help_heading = "Node")]
    pub io: Option<IoChoice>,
    /// Serve /ws/echo, for conformance suites and raw benchmarks
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        value_parser = BoolishValueParser::new(),
        hide_possible_values = true,
        help_heading = "Node"
    )]
    pub echo: Option<bool>,
    /// Kafka brokers: with them and --redis the node is one of several
    #[arg(long, value_name = "HOST:PORT,…", help_heading = "Cluster")]
    pub kafka: Option<String>,
    /// Redis, Sentinel or Cluster: with it and --kafka the node is one of several
    #[arg(long, value_name = "redis://…", help_heading = "Cluster")]
    pub redis: Option<String>,
    /// Partitions of the node's topic when it is created: one for notices, the others for clients; the same on all nodes
    #[arg(long, value_name = "N", value_parser = parse_count, help_heading = "Cluster")]
    pub kafka_partitions: Option<usize>,
    /// More settings of the Kafka client library, such as security.protocol=ssl
    #[arg(long, value_name = "KEY=VALUE,…", value_delimiter = ',', help_heading = "Cluster")]
    pub kafka_options: Option<Vec<String>>,
    /// How long a login waits for Redis before the client is welcomed without
    #[arg(long, value_name = "TIME", value_parser = parse_duration, help_heading = "Cluster")]
    pub claim_wait: Option<Duration>,
    /// Answer an upgrade for a client whose owner is another node with a 307 to it, for tools that follow one, instead of
    /// taking it and advising it to move
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        value_parser = BoolishValueParser::new(),
        hide_possible_values = true,
        help_heading = "Cluster"
    )]
    pub redirect: Option<bool>,
    /// Clients advised in a second to go to the node that owns them
    #[arg(long, value_name = "N", value_parser = parse_rate, help_heading = "Cluster")]
    pub moves_per_second_max: Option<u32>,
    /// How long a login waits for the node that had its client before
    #[arg(long, value_name = "TIME", value_parser = parse_duration, help_heading = "Cluster")]
    pub takeover_wait: Option<Duration>,

    /// Open connections
    #[arg(long, value_name = "N", value_parser = parse_count, help_heading = "Limits")]
    pub connections_max: Option<usize>,
    /// New connections in a second
    #[arg(long, value_name = "N", value_parser = parse_rate, help_heading = "Limits")]
    pub accepts_per_second_max: Option<u32>,
    /// A message's payload
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes, help_heading = "Limits")]
    pub message_bytes_max: Option<usize>,
    /// A message to /ws/echo
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes, help_heading = "Limits")]
    pub echo_bytes_max: Option<usize>,
    /// An upgrade request, headers and all
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes, help_heading = "Limits")]
    pub request_bytes_max: Option<usize>,
    /// What waits on the way to one client
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes, help_heading = "Limits")]
    pub outbox_bytes_max: Option<usize>,
    /// Messages that wait on the way to one client
    #[arg(long, value_name = "N", value_parser = parse_count, help_heading = "Limits")]
    pub outbox_messages_max: Option<usize>,

    /// From a connection's first byte to its upgrade
    #[arg(long, value_name = "TIME", value_parser = parse_duration, help_heading = "Times")]
    pub handshake_timeout: Option<Duration>,
    /// Silence after which a client is pinged
    #[arg(long, value_name = "TIME", value_parser = parse_duration, help_heading = "Times")]
    pub ping_interval: Option<Duration>,
    /// How long it may take to answer
    #[arg(long, value_name = "TIME", value_parser = parse_duration, help_heading = "Times")]
    pub pong_timeout: Option<Duration>,
    /// How long a message may take from its first byte to its last
    #[arg(long, value_name = "TIME", value_parser = parse_duration, help_heading = "Times")]
    pub message_timeout: Option<Duration>,
    /// How long a full outbox may stand still before its connection is closed
    #[arg(long, value_name = "TIME", value_parser = parse_duration, help_heading = "Times")]
    pub stall_timeout: Option<Duration>,
    /// How long a recipient may leave a message unacknowledged before the sender is told that it is held
    #[arg(long, value_name = "TIME", value_parser = parse_duration, help_heading = "Times")]
    pub ack_wait: Option<Duration>,
    /// How long a publisher waits to learn what became of a message
    #[arg(long, value_name = "TIME", value_parser = parse_duration, help_heading = "Times")]
    pub publish_wait: Option<Duration>,
    /// Time over which a drain spreads the closing of connections
    #[arg(long, value_name = "TIME", value_parser = parse_duration, help_heading = "Times")]
    pub drain_window: Option<Duration>,

    /// Age at which an undelivered message is dropped and counted as expired
    #[arg(long, value_name = "TIME", value_parser = parse_duration, help_heading = "Replay buffers")]
    pub message_ttl: Option<Duration>,
    /// How long it is remembered that a client has lost messages
    #[arg(long, value_name = "TIME", value_parser = parse_duration, help_heading = "Replay buffers")]
    pub buffer_memory: Option<Duration>,
    /// Kept for one recipient
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes, help_heading = "Replay buffers")]
    pub buffer_recipient_bytes_max: Option<usize>,
    /// Messages kept for one recipient
    #[arg(long, value_name = "N", value_parser = parse_count, help_heading = "Replay buffers")]
    pub buffer_recipient_messages_max: Option<usize>,
    /// Kept of one sender, by the whole node
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes, help_heading = "Replay buffers")]
    pub buffer_sender_bytes_max: Option<usize>,
    /// Kept by the whole node
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes, help_heading = "Replay buffers")]
    pub buffer_bytes_max: Option<usize>,

    /// What is logged: off, error, warn, info, debug, or a list such as warn,rtc_server=debug
    #[arg(long, value_name = "LEVEL", help_heading = "Logs")]
    pub log: Option<String>,
    /// How, on standard error
    #[arg(long, value_name = "FORMAT", value_enum, help_heading = "Logs")]
    pub log_format: Option<LogFormat>,

    /// A TOML file; config/server.example.toml lists its keys
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print the configuration that results, as such a file, and exit
    #[arg(long)]
    pub print_config: bool,
    /// Print help
    #[arg(short, long, action = ArgAction::HelpShort)]
    pub help: Option<bool>,
}

/// The flags, each with its environment variable and, in its help, its default from [`Config::default`].
pub fn flags() -> Flags {
    Flags::new(Args::command(), ENV_PREFIX, &Config::default().shown_defaults())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_is_consistent_and_shows_a_default_for_every_flag() {
        let flags = flags();
        flags.command().clone().debug_assert();
        for arg in flags.command().get_arguments() {
            let name = arg.get_id().as_str();
            if matches!(name, "help" | "version" | "config" | "print_config") {
                continue;
            }
            let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("[default: "), "{name}: {help}");
        }
    }
}
