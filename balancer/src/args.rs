//! The command line and its environment. Every value is optional, so that "not given" can be told from a default:
//! defaults live in [`Config`] alone and are shown here by [`flags`].

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::BoolishValueParser;
use clap::{CommandFactory, Parser, Subcommand};
use rim::flags::Flags;
use rim::logging::LogFormat;
use rim::values::{parse_addr, parse_duration};
use ring::NodeId;
use rtc_balancer::rules::PolicyKind;

use crate::config::Config;

/// What the environment variables' names begin with.
pub const ENV_PREFIX: &str = "RTC_BALANCER_";

/// The flags, each also read from `RTC_BALANCER_<NAME>`.
#[allow(clippy::doc_markdown, reason = "the comments are what --help shows")]
#[derive(Debug, Default, Parser)]
#[command(
    name = "rtc-balancer",
    version,
    about = "The weights publisher: reads how loaded the nodes are and decides how much of the keys each owns",
    after_help = "Each flag may also come from the environment: --listen as RTC_BALANCER_LISTEN.\n\
                  Flags win over the environment, that over the file of --config, that over defaults.\n\
                  Every threshold is a key of the file (config/balancer.example.toml); --set gives one without a file:\n\
                  --set weights.kappa=0.4 --set triggers.cooldown_ms=60000.\n\
                  Lengths of time are written as 500ms, 10s, 15m, 1h here, and end in _ms in the file.",
    subcommand_precedence_over_arg = true,
    disable_help_subcommand = true
)]
pub struct Args {
    /// Kafka brokers
    #[arg(long, value_name = "HOST:PORT,…", help_heading = "Addresses")]
    pub kafka: Option<String>,
    /// More settings of the Kafka client library, such as security.protocol=ssl
    #[arg(long, value_name = "KEY=VALUE,…", value_delimiter = ',', help_heading = "Addresses")]
    pub kafka_options: Option<Vec<String>>,
    /// Redis
    #[arg(long, value_name = "redis://…", help_heading = "Addresses")]
    pub redis: Option<String>,
    /// Where the page, look-ups, health and metrics are served
    #[arg(long, value_name = "IP:PORT", value_parser = parse_addr, help_heading = "Addresses")]
    pub listen: Option<SocketAddr>,
    /// Prometheus, for metrics beside what the nodes report themselves
    #[arg(long, value_name = "http://…", help_heading = "Addresses")]
    pub prometheus: Option<String>,
    /// Allow --listen to be other than loopback although nobody has to prove who they are
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

    /// This balancer's name: 1 to 64 of A-Z a-z 0-9 . _ -
    #[arg(long, value_name = "ID", help_heading = "Balancer")]
    pub node_id: Option<NodeId>,
    /// How scores become weights
    #[arg(long, value_name = "POLICY", value_enum, global = true, help_heading = "Balancer")]
    pub policy: Option<PolicyKind>,
    /// Seed of a cluster's first ring
    #[arg(long, value_name = "N", help_heading = "Balancer")]
    pub seed: Option<u64>,
    /// A threshold, as in the file: TABLE.KEY=VALUE
    #[arg(long, value_name = "KEY=VALUE", value_delimiter = ',', global = true, help_heading = "Balancer")]
    pub set: Option<Vec<String>>,

    /// Between two looks at the nodes
    #[arg(long, value_name = "TIME", value_parser = parse_duration, help_heading = "Times")]
    pub poll: Option<Duration>,
    /// Silence after which a node is gone
    #[arg(long, value_name = "TIME", value_parser = parse_duration, help_heading = "Times")]
    pub heartbeat_timeout: Option<Duration>,
    /// How long a leader that says nothing stays the leader
    #[arg(long, value_name = "TIME", value_parser = parse_duration, help_heading = "Times")]
    pub lease: Option<Duration>,

    /// What is logged: off, error, warn, info, debug, or a list such as warn,rtc_balancer=debug
    #[arg(long, value_name = "LEVEL", help_heading = "Logs")]
    pub log: Option<String>,
    /// How, on standard error
    #[arg(long, value_name = "FORMAT", value_enum, help_heading = "Logs")]
    pub log_format: Option<LogFormat>,

    /// A TOML file; config/balancer.example.toml lists its keys
    #[arg(long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
    /// Print the configuration that results, as such a file, and exit
    #[arg(long, global = true)]
    pub print_config: bool,

    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What the program does instead of balancing.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Decide over recorded lines {"ts":ms,"heartbeats":[…]}, one answer per line
    Replay {
        /// The lines, - for standard input
        #[arg(value_name = "FILE|-")]
        file: PathBuf,
    },
    /// Try the rules on a model of a fleet, both policies side by side, seeds 1 to 20
    Simulate {
        /// A fleet in TOML: name, capacities, and what differs from the defaults [default: the built-in fleets]
        #[arg(long, value_name = "FILE")]
        fleet: Option<PathBuf>,
        /// Also write a page with the curves
        #[arg(long, value_name = "FILE")]
        html: Option<PathBuf>,
    },
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
            if matches!(name, "help" | "version" | "config" | "print_config" | "set") {
                continue;
            }
            let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("[default: "), "{name}: {help}");
        }
    }
}
