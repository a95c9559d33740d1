//! `rtc-balancer`: reads its configuration and balances, or tries the same rules on recorded lines or on a model.
//! Whatever keeps it from starting is told in one line, with its cure, and exit code 2.

mod args;
mod config;
mod logging;

use std::fs::File;
use std::io::{self, BufReader, Write as _, stderr, stdin, stdout};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use rtc_balancer::replay::replay;
use rtc_balancer::rules::PolicyKind;
use rtc_balancer::simulate;

use args::Command;
use config::Config;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Exit code of a balancer that did not start.
const NOT_STARTED: u8 = 2;

fn main() -> ExitCode {
    match args::parse() {
        Ok(args) => run(args).unwrap_or_else(|error| {
            let _ = writeln!(stderr(), "rtc-balancer: {error:#}");
            ExitCode::from(NOT_STARTED)
        }),
        Err(error) if !error.use_stderr() => {
            // Help, or the version: a reader that has gone is no failure.
            let _ = error.print();
            ExitCode::SUCCESS
        }
        Err(error) => {
            let _ = writeln!(stderr(), "rtc-balancer: {}", args::explain(&error));
            ExitCode::from(NOT_STARTED)
        }
    }
}

fn run(args: args::Args) -> anyhow::Result<ExitCode> {
    let (prints_config, command, policy) = (args.print_config, args.command.clone(), args.policy);
    let config = Config::load(args)?;
    if prints_config {
        let _ = stdout().write_all(config.to_toml()?.as_bytes());
        return Ok(ExitCode::SUCCESS);
    }
    match command {
        Some(Command::Replay { file }) => replay_file(&config, &file),
        Some(Command::Simulate { fleet, html }) => {
            let policies = policy.map_or(vec![PolicyKind::Feedback, PolicyKind::Proportional], |policy| vec![policy]);
            simulate_fleets(&config, &policies, fleet.as_deref(), html.as_deref())
        }
        None => balance(&config),
    }
}

fn balance(_config: &Config) -> anyhow::Result<ExitCode> {
    anyhow::bail!("this build only replays and simulates")
}

fn replay_file(config: &Config, file: &Path) -> anyhow::Result<ExitCode> {
    let (rules, output) = (config.rules(), io::BufWriter::new(stdout().lock()));
    let tally = if file == Path::new("-") {
        replay(stdin().lock(), output, stderr(), &rules, config.seed)
    } else {
        let input = File::open(file).with_context(|| format!("{} cannot be read: check FILE", file.display()))?;
        replay(BufReader::new(input), output, stderr(), &rules, config.seed)
    }
    .with_context(|| format!("{} cannot be replayed to its end", file.display()))?;
    let refused: Vec<String> = tally.refused.iter().map(|(cause, count)| format!("{cause} {count}")).collect();
    let refused = if refused.is_empty() { "none".to_owned() } else { refused.join(", ") };
    let _ = writeln!(
        stderr(),
        "replayed {} lines: {} ring updates, {} scale signals, {} lines with errors; heartbeats left out: {refused}",
        tally.lines,
        tally.updates,
        tally.signals,
        tally.errors
    );
    Ok(ExitCode::SUCCESS)
}

fn simulate_fleets(
    config: &Config,
    policies: &[PolicyKind],
    fleet: Option<&Path>,
    html: Option<&Path>,
) -> anyhow::Result<ExitCode> {
    let fleets = match fleet {
        None => simulate::built_in(),
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("fleet {} cannot be read: check --fleet", path.display()))?;
            vec![simulate::Fleet::parse(&text).with_context(|| format!("fleet {}", path.display()))?]
        }
    };
    let mut trials = Vec::new();
    for fleet in fleets {
        let trial = simulate::Trial::run(fleet, &config.rules(), policies);
        // A reader that has gone wants no more.
        if stdout().write_all(simulate::text::table(&trial).as_bytes()).and_then(|()| stdout().flush()).is_err() {
            break;
        }
        trials.push(trial);
    }
    if let Some(path) = html {
        std::fs::write(path, simulate::html::page(&trials))
            .with_context(|| format!("{} cannot be written: check --html", path.display()))?;
        let _ = writeln!(stderr(), "wrote {}", path.display());
    }
    Ok(ExitCode::SUCCESS)
}
