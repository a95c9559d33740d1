//! Log lines on standard error, written by a thread of their own so that a slow terminal cannot stall a decision.
//! A few lines an hour while the fleet is even.

use std::io::{IsTerminal as _, stderr};

use anyhow::Context as _;
use tracing_appender::non_blocking::WorkerGuard;
use tracing_subscriber::EnvFilter;

use crate::config::LogFormat;

/// Checks what `--log` was given.
///
/// # Errors
/// When it is neither a level nor a list of targets and levels.
pub fn check(directives: &str) -> anyhow::Result<()> {
    EnvFilter::builder().parse(directives).map(drop).with_context(|| {
        format!("log is {directives:?}: give off, error, warn, info, debug or a list such as warn,rtc_balancer=debug")
    })
}

/// Sets the process's logging up. What is still to be written is written when the guard goes.
///
/// # Errors
/// As [`check`].
pub fn start(directives: &str, format: LogFormat) -> anyhow::Result<WorkerGuard> {
    check(directives)?;
    let filter = EnvFilter::builder().parse(directives)?;
    let (writer, guard) = tracing_appender::non_blocking(stderr());
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    match format {
        LogFormat::Text => subscriber.with_ansi(stderr().is_terminal()).with_target(false).init(),
        LogFormat::Json => subscriber.json().flatten_event(true).with_target(false).init(),
    }
    Ok(guard)
}
