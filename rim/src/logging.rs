//! Log lines on standard error, written by a thread of their own so that a slow terminal stalls nobody.

use std::io::{IsTerminal as _, stderr};

use anyhow::Context as _;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use tracing_appender::non_blocking::WorkerGuard;
use tracing_subscriber::EnvFilter;

/// The shape of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Checks what `--log` was given.
///
/// # Errors
/// When it is neither a level nor a list of targets and levels.
pub fn check(directives: &str) -> anyhow::Result<()> {
    parse(directives).map(drop)
}

fn parse(directives: &str) -> anyhow::Result<EnvFilter> {
    EnvFilter::builder().parse(directives).with_context(|| {
        format!("log is {directives:?}: give off, error, warn, info, debug or a list such as warn,rdkafka=debug")
    })
}

/// Sets the process's logging up. What is still to be written is written when the guard goes.
///
/// # Errors
/// As [`check`].
pub fn start(directives: &str, format: LogFormat) -> anyhow::Result<WorkerGuard> {
    let filter = parse(directives)?;
    let (writer, guard) = tracing_appender::non_blocking(stderr());
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    match format {
        LogFormat::Text => subscriber.with_ansi(stderr().is_terminal()).with_target(false).init(),
        LogFormat::Json => subscriber.json().flatten_event(true).with_target(false).init(),
    }
    Ok(guard)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_lists_are_read_and_the_rest_is_refused() {
        for good in ["off", "info", "warn,rtc_server=debug"] {
            assert!(check(good).is_ok(), "{good}");
        }
        let reason = check("rtc_server=loud").unwrap_err().to_string();
        assert!(reason.contains("rtc_server=loud") && reason.contains("give off"), "{reason}");
    }
}
