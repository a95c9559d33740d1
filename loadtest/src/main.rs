//! `rtc-loadtest`: drives WebSocket servers and accounts for every message.
//!
//! A coordinator (`run.rs`) steers one worker per thread (`worker.rs`); each plays its scenario (`scenario/`) with its
//! share of the virtual clients, and what they count is added up (`tally.rs`), judged (`targets.rs`) and reported.

mod args;
mod capacity;
mod client;
mod clock;
mod config;
mod envelope;
mod fault;
mod journeys;
mod ledger;
mod payload;
mod preflight;
mod processes;
mod procfs;
mod progress;
mod recorder;
mod report;
mod run;
mod scenario;
mod schedule;
mod tally;
mod targets;
mod ticker;
mod timeline;
mod worker;

use std::{process::ExitCode, sync::Arc};

use anyhow::{Context as _, Result};
use clap::Parser as _;
use mimalloc::MiMalloc;

use crate::{
    args::{Args, Scenario},
    config::Config,
    progress::Onlooker,
    report::{Report, html, json, text},
};

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Bad usage, or a limit of this machine that makes the run impossible.
const EXIT_USAGE: u8 = 2;

fn main() -> ExitCode {
    let args = Args::parse();
    if args.child {
        return match processes::run_child() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&error),
        };
    }
    let outcome = load(args).and_then(|config| config.map_or(Ok(0), |config| run(&Arc::new(config))));
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(error) => fail(&error),
    }
}

fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("rtc-loadtest: {error:#}");
    ExitCode::from(EXIT_USAGE)
}

/// The settings of the run, or `None` if they were only to be shown.
fn load(args: Args) -> Result<Option<Config>> {
    let is_shown_only = args.print_config;
    let args = config::with_defaults(config::with_file(args)?)?;
    if is_shown_only {
        let text = toml::to_string(&args).context("the settings cannot be shown")?;
        Config::try_from(args)?;
        print!("{text}");
        return Ok(None);
    }
    Config::try_from(args).map(Some)
}

/// Runs, reports, and returns the exit code.
fn run(config: &Arc<Config>) -> Result<u8> {
    preflight::prepare(config)?;
    let report = if config.scenario == Scenario::Capacity {
        capacity::search(config, |at| run_once(at, Place::Apart))?
    } else {
        run_once(config, if config.processes == 1 { Place::Here } else { Place::Apart })?.0
    };
    if let Some(path) = &config.json {
        json::write(&report, path)?;
    }
    if let Some(path) = &config.html {
        html::write(&report, path)?;
    }
    let is_stdout_taken = config.json.as_deref() == Some(std::path::Path::new("-"));
    match (config.quiet, is_stdout_taken) {
        (true, _) => {}
        (false, true) => eprint!("{}", text::text(&report)),
        (false, false) => print!("{}", text::text(&report)),
    }
    Ok(report.exit_code())
}

/// Where the workers of a run live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// In this process. Only once: their runtimes are never dropped.
    Here,
    /// In processes of their own.
    Apart,
}

/// One whole run: its report, and whether it was interrupted.
fn run_once(config: &Arc<Config>, place: Place) -> Result<(Report, bool)> {
    let mut onlooker = Onlooker::new(config)?;
    let mut tally = match place {
        Place::Here => run::run_process(config, 0, &mut onlooker)?,
        Place::Apart => processes::run_processes(config, &mut onlooker)?,
    };
    let is_interrupted = run::Observer::is_interrupted(&onlooker);
    let (usage, faults) = onlooker.finish();
    tally.faults.extend(faults.failures);
    Ok((Report::new(config, tally, usage, &faults.made), is_interrupted))
}
