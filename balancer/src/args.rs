//! The command line and its environment. Every value is optional, so that "not given" can be told from a default:
//! defaults live in [`Config`] alone and are shown here by [`command`].

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::BoolishValueParser;
use clap::error::{ContextKind, ContextValue};
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use ring::NodeId;
use rtc_balancer::rules::PolicyKind;

use crate::config::{Config, LogFormat};

/// What the environment variables' names begin with.
const ENV_PREFIX: &str = "RTC_BALANCER_";
/// Flags that ask for something to be shown.
const NOT_IN_ENVIRONMENT: [&str; 3] = ["print_config", "help", "version"];

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

/// Reads the command line and the environment.
///
/// # Errors
/// Also for `--help` and `--version`, which are not failures: ask [`clap::Error::exit_code`].
pub fn parse() -> Result<Args, clap::Error> {
    Args::from_arg_matches(&command().try_get_matches()?)
}

/// Explains in one line why a command line cannot be read.
pub fn explain(error: &clap::Error) -> String {
    let text = error.render().to_string();
    // The first line says it, a tip may follow; the usage is for `--help`.
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("Usage:"));
    let line = lines.collect::<Vec<_>>().join("; ").replace("For more information, try", "see");
    let line = line.strip_prefix("error: ").unwrap_or(&line).trim_end_matches('.');
    match variable_behind(error) {
        Some(variable) => format!("{line} (it came from {variable})"),
        None => line.to_owned(),
    }
}

/// The environment variable that a refused value came from, if it was not on the command line.
fn variable_behind(error: &clap::Error) -> Option<String> {
    let Some(ContextValue::String(shown)) = error.get(ContextKind::InvalidArg) else { return None };
    let flag = shown.split([' ', '[', '=']).next()?;
    let variable = format!("{ENV_PREFIX}{}", flag.strip_prefix("--")?.replace('-', "_").to_uppercase());
    let is_on_command_line = std::env::args().any(|arg| arg.split('=').next() == Some(flag));
    (!is_on_command_line && std::env::var_os(&variable).is_some()).then_some(variable)
}

/// Environment variables that look like flags and are none: misspelt, most likely.
pub fn unknown_variables() -> Vec<String> {
    let command = command();
    let known: Vec<_> = command.get_arguments().filter_map(clap::Arg::get_env).collect();
    std::env::vars_os()
        .filter(|(name, _)| !known.contains(&name.as_os_str()))
        .map(|(name, _)| name.to_string_lossy().into_owned())
        .filter(|name| name.starts_with(ENV_PREFIX))
        // Kubernetes sets these in every container beside a service called rtc-balancer.
        .filter(|name| !name.contains("_SERVICE_") && !name.starts_with("RTC_BALANCER_PORT"))
        .collect()
}

/// The command, each flag with its environment variable and, in its help, its default from [`Config::default`].
fn command() -> clap::Command {
    let defaults = Config::default().shown_defaults();
    Args::command().mut_args(|arg| {
        let name = arg.get_id().as_str().to_owned();
        if NOT_IN_ENVIRONMENT.contains(&name.as_str()) {
            return arg;
        }
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        let help = match defaults.iter().find(|(key, _)| *key == name) {
            Some((_, default)) => format!("{help} [default: {default}]"),
            None => help,
        };
        // The command is made once or twice in the life of a process, and clap wants names that outlive it.
        let variable: &'static str = format!("{ENV_PREFIX}{}", name.to_uppercase()).leak();
        arg.help(help).env(variable).hide_env(true)
    })
}

/// An IP address with a port; `localhost` means 127.0.0.1.
fn parse_addr(text: &str) -> Result<SocketAddr, String> {
    if let Some(port) = text.strip_prefix("localhost:").and_then(|port| port.parse().ok()) {
        return Ok((Ipv4Addr::LOCALHOST, port).into());
    }
    text.parse().map_err(|_| "give an IP address and a port, such as 127.0.0.1:8090 or [::1]:8090".to_owned())
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    let (digits, unit) = text.split_at(text.bytes().take_while(u8::is_ascii_digit).count());
    let factor: u64 = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err("give a length of time with its unit: 500ms, 10s, 15m or 1h".to_owned()),
    };
    let count: Option<u64> = digits.parse().ok();
    let millis = count.and_then(|count| count.checked_mul(factor));
    millis.map(Duration::from_millis).ok_or_else(|| "give a whole number with a unit: 500ms, 10s, 15m or 1h".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_is_consistent_and_shows_a_default_for_every_flag() {
        command().debug_assert();
        for arg in command().get_arguments() {
            let name = arg.get_id().as_str();
            if matches!(name, "help" | "version" | "config" | "print_config" | "set") {
                continue;
            }
            let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("[default: "), "{name}: {help}");
        }
    }

    #[test]
    fn times_and_addresses_are_read_with_their_units() {
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("15m"), Ok(Duration::from_secs(900)));
        assert_eq!(parse_addr("localhost:1"), Ok(([127, 0, 0, 1], 1).into()));
        for bad in ["", "10", "ms", "1.5s", "99999999999999999h"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }
}
