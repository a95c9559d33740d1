//! `rtc-server`: reads its configuration, starts the node and its admin port, waits for a signal, leaves gently.
//! Whatever keeps it from starting is told in one line, with its cure, and exit code 2.

mod args;
mod config;
mod descriptors;

use std::io::{IsTerminal as _, Write as _, stderr, stdout};
use std::net::TcpListener;
use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use rim::listen::cannot_listen;
use rtc_server::admin::Admin;
use rtc_server::drain::Pace;
use rtc_server::node::{Handle, Node, StartError};
use rtc_server::shard::{self, Driver};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tracing::{error, info, warn};

use config::{Config, IoChoice};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Beyond a drain's window: for the last clients to go, and for those that do not.
const DRAIN_GRACE: Duration = Duration::from_secs(5);
/// How long the shards may take to close everything.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// How long requests on the admin port may take to be answered at the end.
const ADMIN_TIMEOUT: Duration = Duration::from_secs(1);
/// How often it is looked whether the end has come.
const END_POLL: Duration = Duration::from_millis(10);

fn main() -> ExitCode {
    rim::start::start("rtc-server", args::ENV_PREFIX, args::flags().parse(), run)
}

fn run(args: args::Args) -> anyhow::Result<ExitCode> {
    let prints_config = args.print_config;
    let mut config = Config::load(args)?;
    let lowered = descriptors::fit(&mut config, descriptors::raise())?;
    if prints_config {
        let _ = stdout().write_all(config.to_toml()?.as_bytes());
        return Ok(ExitCode::SUCCESS);
    }
    let _logging = rim::logging::start(&config.log, config.log_format)?;
    // Before anything serves: a signal from here on drains. SIGPIPE is ignored since before `main`.
    let mut signals = Signals::new([SIGTERM, SIGINT]).context("signals cannot be caught")?;
    let driver = choose_driver(config.io, config.shards(), shard::try_rings)?;
    let admin_listener = TcpListener::bind(config.admin_listen)
        .map_err(|error| cannot_listen(config.admin_listen, "--admin-listen", &error))?;
    let node = start_node(&config, driver)?;
    let handle = node.handle().clone();
    let admin = Admin::start(admin_listener, handle.clone(), config.admin_settings())
        .context("the admin port's thread cannot be started")?;
    for variable in args::flags().unknown_variables() {
        warn!(variable, "no flag has this environment variable: it is ignored");
    }
    if let Some(connections) = lowered {
        info!(connections, "room for so many: for more raise the limit of open files (ulimit -Hn, LimitNOFILE=)");
    }
    announce(&handle, &admin);

    let closer = signals.handle();
    let shards = std::thread::Builder::new().name("shards".to_owned()).spawn(move || {
        let result = node.join();
        closer.close();
        result
    })?;
    if let Some(signal) = signals.forever().next() {
        info!(signal, window = ?config.drain_window, "draining: a second signal stops at once");
        leave(&handle, &mut signals, config.drain_window, || shards.is_finished());
    } else {
        error!("a shard has ended by itself: stopping");
    }
    handle.stop();
    let is_over = wait_until(Instant::now() + STOP_TIMEOUT, || shards.is_finished());
    wait_until(Instant::now() + ADMIN_TIMEOUT, || !admin.is_busy());
    if !is_over {
        error!("the shards do not end: leaving all the same");
        return Ok(ExitCode::FAILURE);
    }
    match shards.join() {
        Ok(Ok(())) => {
            info!("stopped");
            Ok(ExitCode::SUCCESS)
        }
        Ok(Err(error)) => {
            error!(%error, "a shard has failed");
            Ok(ExitCode::FAILURE)
        }
        Err(_) => Ok(ExitCode::FAILURE),
    }
}

/// Drains until every connection is gone, the time is over, or a second signal comes.
fn leave(handle: &Handle, signals: &mut Signals, window: Duration, has_ended: impl Fn() -> bool) {
    handle.drain(Pace::over(window));
    let begun = handle.drain_state().begun();
    // A drain that an operator began earlier goes on with its own window.
    let deadline = begun.map_or_else(Instant::now, |begun| begun.at + begun.window) + DRAIN_GRACE;
    let mut is_urgent = false;
    wait_until(deadline, || {
        is_urgent = signals.pending().next().is_some();
        is_urgent || has_ended() || handle.connections() == 0
    });
    if is_urgent {
        info!(connections = handle.connections(), "second signal: stopping now");
    } else {
        info!(connections = handle.connections(), "drained");
    }
}

/// True when `is_done` has come true before `deadline`.
fn wait_until(deadline: Instant, mut is_done: impl FnMut() -> bool) -> bool {
    loop {
        if is_done() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(END_POLL);
    }
}

fn choose_driver(
    choice: IoChoice,
    shards: NonZeroUsize,
    try_rings: impl FnOnce(NonZeroUsize) -> std::io::Result<()>,
) -> anyhow::Result<Driver> {
    const CURE: &str = "check sysctl kernel.io_uring_disabled (0 allows it), the container's seccomp profile, \
                        and ulimit -l on kernels before 5.12";
    match choice {
        IoChoice::Direct => Ok(Driver::Direct),
        IoChoice::Auto | IoChoice::Ring => match (try_rings(shards), choice) {
            (Ok(()), _) => Ok(Driver::Ring),
            (Err(error), IoChoice::Ring) => bail!("io_uring is refused ({error}): {CURE}, or give --io auto"),
            (Err(error), _) => {
                warn!(%error, "io_uring is refused, going on with epoll and a system call each: {CURE}");
                Ok(Driver::Direct)
            }
        },
    }
}

fn start_node(config: &Config, driver: Driver) -> anyhow::Result<Node> {
    Node::start(config.listen, config.shards(), config.settings(), driver, config.cluster()).map_err(|error| match error {
        StartError::Listen { addr, source } => cannot_listen(addr, "--listen", &source),
        StartError::Join(error) => anyhow!("{error}"),
        error @ StartError::Vitals(_) => anyhow!("{error}"),
        StartError::Shard(source) => anyhow!(
            "a shard cannot be started: {source}: check the limits of processes (ulimit -u), open files (ulimit -n) \
             and memory, or give fewer --shards"
        ),
    })
}

/// The ready line for programs, on standard output; what to do next for a person, on the terminal.
fn announce(handle: &Handle, admin: &Admin) {
    let (node, listen, admin) = (handle.node_id(), handle.listen(), admin.addr());
    info!(%node, %listen, %admin, shards = handle.shards(), io = handle.driver().as_str(), "serving");
    // A reader that has gone is no reason not to serve.
    let _ = writeln!(stdout(), "ready node={node} listen={listen} admin={admin}").and_then(|()| stdout().flush());
    if stderr().is_terminal() {
        let _ = writeln!(
            stderr(),
            "\n  Open http://{listen}/ in a browser to send messages between two clients,\n  \
             or: curl -s http://{admin}/healthz\n  Ctrl-C drains and stops; once more stops at once.\n"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_ring_is_replaced_unless_it_was_asked_for() {
        let refused = |_| Err(std::io::Error::from_raw_os_error(1));
        let one = NonZeroUsize::MIN;
        assert_eq!(choose_driver(IoChoice::Auto, one, |_| Ok(())).unwrap(), Driver::Ring);
        assert_eq!(choose_driver(IoChoice::Auto, one, refused).unwrap(), Driver::Direct);
        assert_eq!(choose_driver(IoChoice::Direct, one, |_| panic!("not asked for")).unwrap(), Driver::Direct);
        let reason = choose_driver(IoChoice::Ring, one, refused).unwrap_err().to_string();
        assert!(reason.contains("kernel.io_uring_disabled"), "{reason}");
    }
}
