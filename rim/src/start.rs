//! The frame of `main`: help is no failure, and what keeps a program from starting is told in one line, with its cure.

use std::io::{Write as _, stderr};
use std::process::ExitCode;

use crate::flags::explain;

/// Exit code of a program that did not start.
const NOT_STARTED: u8 = 2;

/// Runs the program called `name` with its arguments, or tells why not.
pub fn start<A>(
    name: &str,
    env_prefix: &str,
    args: Result<A, clap::Error>,
    run: impl FnOnce(A) -> anyhow::Result<ExitCode>,
) -> ExitCode {
    let reason = match args.map(run) {
        Ok(Ok(code)) => return code,
        Ok(Err(error)) => format!("{error:#}"),
        Err(error) if !error.use_stderr() => {
            // Help, or the version: a reader that has gone is no failure.
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        Err(error) => explain(&error, env_prefix),
    };
    let _ = writeln!(stderr(), "{name}: {reason}");
    ExitCode::from(NOT_STARTED)
}
