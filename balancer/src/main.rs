//! `rtc-balancer`: reads its configuration and balances, or tries the same rules on recorded lines or on a model.
//! Whatever keeps it from starting is told in one line, with its cure, and exit code 2.

mod args;
mod config;

use std::fs::File;
use std::io::{self, BufReader, IsTerminal as _, Write as _, stderr, stdin, stdout};
use std::net::TcpListener;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::Context as _;
use rim::listen::cannot_listen;
use rtc_balancer::forwarder::{self, Forwarder};
use rtc_balancer::http::{self, Office};
use rtc_balancer::publisher::Publisher;
use rtc_balancer::replay::replay;
use rtc_balancer::rules::PolicyKind;
use rtc_balancer::service::Service;
use rtc_balancer::store::Store;
use rtc_balancer::view::View;
use rtc_balancer::{prometheus, simulate};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tracing::{info, warn};

use args::Command;
use config::Config;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    rim::start::start("rtc-balancer", args::ENV_PREFIX, args::flags().parse(), run)
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

fn balance(config: &Config) -> anyhow::Result<ExitCode> {
    let redis = config.redis.as_deref().context("redis is not given: add --redis redis://HOST:PORT")?;
    let kafka = config.kafka().context("kafka is not given: add --kafka HOST:PORT")?;
    let name = config.name();
    let _logging = rim::logging::start(&config.log, config.log_format)?;
    // Before anything serves: a signal from here on ends gently.
    let mut signals = Signals::new([SIGTERM, SIGINT]).context("signals cannot be caught")?;
    let listener =
        TcpListener::bind(config.listen).map_err(|error| cannot_listen(config.listen, "--listen", &error))?;
    let store = || Store::new(redis).with_context(|| format!("redis is {redis}: give a URL such as redis://HOST:PORT"));
    let publisher = Publisher::start(&kafka).with_context(|| {
        format!(
            "kafka is {}, kafka_options {:?}: give HOST:PORT,… and names of librdkafka",
            kafka.brokers, kafka.options
        )
    })?;
    let answers = match &config.prometheus {
        Some(url) => Some(prometheus::start(url, config.questions()).context("a thread cannot be started")?),
        None => None,
    };
    let view = Arc::new(View::default());
    let office = Office {
        name: name.clone(),
        view: Arc::clone(&view),
        publisher: publisher.clone(),
        answers: answers.clone(),
        store: Mutex::new(store()?),
        drain_window: config.drain_window,
        drain_disconnects_max: config.drain_disconnects_max,
    };
    let listen = http::start(listener, office).context("the port's threads cannot be started")?;
    for variable in args::flags().unknown_variables() {
        warn!(variable, "no flag has this environment variable: it is ignored");
    }
    let forwarder = Forwarder::start(
        forwarder::Settings {
            name: name.clone(),
            kafka,
            redis: redis.to_owned(),
            heartbeat_timeout: config.settings().heartbeat_timeout,
        },
        Arc::clone(&view.forwarded),
    )
    .context("dead nodes' topics cannot be forwarded")?;
    let service = Service::new(config.settings(), store()?, publisher, answers, view).with_forwarder(forwarder);
    let is_stopping = Arc::new(AtomicBool::new(false));
    let stopping = Arc::clone(&is_stopping);
    let looping = std::thread::Builder::new().name("balance".to_owned()).spawn(move || service.run(&stopping))?;
    info!(node = %name, %listen, policy = config.policy.as_str(), "serving");
    // A reader that has gone is no reason not to serve.
    let _ = writeln!(stdout(), "ready node={name} listen={listen}").and_then(|()| stdout().flush());
    if stderr().is_terminal() {
        let _ = writeln!(stderr(), "\n  Open http://{listen}/ in a browser to see the nodes.\n  Ctrl-C stops.\n");
    }
    if let Some(signal) = signals.forever().next() {
        info!(signal, "stopping");
    }
    is_stopping.store(true, Ordering::Relaxed);
    let is_sound = looping.join().is_ok();
    Ok(if is_sound { ExitCode::SUCCESS } else { ExitCode::FAILURE })
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
