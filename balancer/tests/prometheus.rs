//! The default queries with a real Prometheus that scrapes real nodes, as deploy/prometheus would have it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use sonic_rs::{JsonContainerTrait as _, JsonValueTrait as _, Value};
use support::{Balancer, Fleet, RedisServer, eventually, get};

const TEST: &str = "the_default_queries_find_every_node";
const NODES: [&str; 2] = ["a", "b"];
/// What [`Fleet`] says of each field: whoever believes Prometheus shows something else.
const SAID: [(&str, f64); 4] = [("cpu", 0.5), ("mem", 0.5), ("mps", 500.0), ("p95LatencyMs", 20.0)];

/// A process that is killed when this goes.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A directory that goes with the test.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn the_default_queries_find_every_node() {
    let is_there =
        Command::new(prometheus_program()).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !is_there.is_ok_and(|status| status.success()) {
        // Written past the test's capture: a test that did not run must be seen.
        let _ =
            writeln!(std::io::stderr(), "SKIPPED {TEST}: no prometheus here, and RTC_PROMETHEUS names none that runs");
        assert!(std::env::var("CI").as_deref() != Ok("true"), "{TEST} must not be skipped where CI=true");
        return;
    }
    let Some(redis) = RedisServer::start(TEST) else { return };
    // The nodes stand alone; others tell Redis of them, and tell something else than what Prometheus will find.
    let _fleet = Fleet::start(&redis, &NODES);
    let nodes = NODES.map(node);
    let _load = nodes.each_ref().map(|(_, listen, _)| load(*listen));
    let scratch = Scratch(std::env::temp_dir().join(format!("rtc-prometheus-{}", std::process::id())));
    std::fs::create_dir_all(&scratch.0).unwrap();
    let (_prometheus, url) = prometheus(&scratch.0, &nodes.each_ref().map(|(_, _, admin)| *admin));
    let balancer = Balancer::start("b1", &redis, None, &["--prometheus", &url]);
    balancer.await_ring(&NODES);

    for (field, said) in SAID {
        for name in NODES {
            let value = eventually(&format!("{name}'s {field} is Prometheus'; log: {}", balancer.log()), || {
                let all: Value = balancer.get("/api/v1/nodes");
                let node = all["nodes"].as_array()?.iter().find(|node| node["nodeId"].as_str() == Some(name))?;
                // Rates are zero until the second scrape after the first delivery.
                node[field].as_f64().filter(|value| (value - said).abs() > 1e-9 && *value > 0.0)
            });
            println!("{name}: {field} is {value}");
        }
    }
    assert!(balancer.metric("rtc_lb_prometheus_failures_total").abs() < f64::EPSILON, "{}", balancer.log());
}

/// The one that services.sh has found, else the system's.
fn prometheus_program() -> String {
    std::env::var("RTC_PROMETHEUS").unwrap_or_else(|_| "prometheus".to_owned())
}

/// A program of the workspace beside ours: built with it by a test of the whole workspace, else built now.
fn program(name: &str) -> PathBuf {
    let program = PathBuf::from(env!("CARGO_BIN_EXE_rtc-balancer")).with_file_name(name);
    if !program.exists() {
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--package", name, "--bin", name]);
        if !cfg!(debug_assertions) {
            build.arg("--release");
        }
        assert!(build.status().unwrap().success(), "{name} cannot be built");
    }
    program
}

/// A node of its own: the process, where clients come, and the operator's port.
fn node(name: &str) -> (Process, SocketAddr, SocketAddr) {
    let flags = ["--node-id", name, "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--log", "error"];
    let mut child = Process(Command::new(program("rtc-server")).args(flags).stdout(Stdio::piped()).spawn().unwrap());
    let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
    let ready = lines.find_map(|line| line.ok().filter(|line| line.starts_with("ready "))).unwrap();
    // What it says later must find a reader.
    std::thread::spawn(move || lines.for_each(drop));
    let addr = |key| ready.split_whitespace().find_map(|word| word.strip_prefix(key)).unwrap().parse().unwrap();
    (child, addr("listen="), addr("admin="))
}

/// Clients that send to each other until this goes.
fn load(listen: SocketAddr) -> Process {
    let url = format!("ws://{listen}");
    let flags = ["p2p", "--url", &url, "--connections", "10", "--rate", "50", "--duration", "10m"];
    let mut command = Command::new(program("rtc-loadtest"));
    Process(command.args(flags).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
}

/// Prometheus with these operator's ports, in the order of [`NODES`]: the process and its address.
fn prometheus(dir: &Path, admins: &[SocketAddr]) -> (Process, String) {
    let targets = NODES.iter().zip(admins).map(|(name, admin)| {
        format!("      - targets: [\"{admin}\"]\n        labels: {{node_id: {name}, zone: z1}}\n")
    });
    let config = dir.join("prometheus.yaml");
    let head = "global:\n  scrape_interval: 1s\n  scrape_timeout: 1s\nscrape_configs:\n  - job_name: rtc-node\n    \
                honor_labels: true\n    static_configs:\n";
    std::fs::write(&config, targets.fold(head.to_owned(), |text, target| text + &target)).unwrap();
    // Another process may take the port between the look and the start.
    for _ in 0..5 {
        let addr = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut child = Process(
            Command::new(prometheus_program())
                .arg(format!("--config.file={}", config.display()))
                .arg(format!("--storage.tsdb.path={}", dir.join("data").display()))
                .arg(format!("--web.listen-address={addr}"))
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap(),
        );
        let is_up = eventually("prometheus answers or ends", || {
            if child.0.try_wait().unwrap().is_some() {
                return Some(false);
            }
            std::net::TcpStream::connect(addr).ok()?;
            (get(addr, "/-/ready").status == 200).then_some(true)
        });
        if is_up {
            return (child, format!("http://{addr}"));
        }
    }
    panic!("prometheus does not start");
}
