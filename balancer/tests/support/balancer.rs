//! The program under test, as a process of its own.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::process::{Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};

use rustix::process::Signal;
use sonic_rs::{JsonValueTrait as _, Value};

use super::process::Process;
use super::{PATIENCE, RedisServer, eventually, get, sum_of};

const PROGRAM: &str = env!("CARGO_BIN_EXE_rtc-balancer");
/// Nobody listens there: Kafka is away.
pub const NO_KAFKA: &str = "127.0.0.1:1";

/// A running balancer on a free port. It is killed when this goes.
pub struct Balancer {
    pub listen: SocketAddr,
    process: Process,
    log: Arc<Mutex<String>>,
}

impl Balancer {
    /// Starts a balancer by this name and waits until it is ready.
    #[track_caller]
    pub fn start(name: &str, redis: &RedisServer, kafka: Option<&str>, flags: &[&str]) -> Self {
        let mut command = command();
        command
            .args(["--node-id", name, "--redis", &redis.url, "--kafka", kafka.unwrap_or(NO_KAFKA)])
            .args(["--listen", "127.0.0.1:0"])
            .args(flags)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut process = Process::spawn(&mut command).unwrap();
        let log = process.gather_log();
        let (sender, lines) = channel();
        let stdout = BufReader::new(process.child.stdout.take().unwrap());
        std::thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        let Ok(line) = lines.recv_timeout(PATIENCE) else {
            panic!("no ready line; the log says: {}", log.lock().unwrap());
        };
        let listen = line.strip_prefix(&format!("ready node={name} listen=")).unwrap_or_else(|| panic!("{line:?}"));
        Self { listen: listen.parse().unwrap(), process, log }
    }

    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Waits for the process to end.
    pub fn wait(&mut self) -> ExitStatus {
        self.process.wait()
    }

    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    pub fn get(&self, path: &str) -> Value {
        get(self.listen, path).json()
    }

    pub fn is_leader(&self) -> bool {
        self.get("/healthz")["isLeader"].as_bool() == Some(true)
    }

    /// The version and the nodes of the ring it serves; version 0 before there is one.
    pub fn ring(&self) -> (u64, Vec<String>) {
        let ring = self.get("/api/v1/ring");
        let weights = ring["weights"].clone();
        let nodes = sonic_rs::to_string(&weights).unwrap();
        let nodes: std::collections::BTreeMap<String, u16> = sonic_rs::from_str(&nodes).unwrap_or_default();
        (ring["version"].as_u64().unwrap_or(0), nodes.into_keys().collect())
    }

    /// Waits until it serves a ring of these nodes and returns its version.
    #[track_caller]
    pub fn await_ring(&self, nodes: &[&str]) -> u64 {
        eventually(&format!("the ring is of {nodes:?}; log: {}", self.log()), || {
            let (version, found) = self.ring();
            (found == nodes).then_some(version)
        })
    }

    /// Says how many queries Prometheus has not answered; none of them may have failed for another reason than time,
    /// which is the machine's.
    #[track_caller]
    pub fn check_prometheus(&self) {
        let (log, failures) = (self.log(), self.metric("rtc_lb_prometheus_failures_total"));
        println!("queries that prometheus did not answer: {failures}");
        let mut told = log.lines().filter(|line| line.contains("prometheus does not answer"));
        assert!(told.all(|line| line.contains("timeout")), "{log}");
    }

    /// Waits until it has logged this.
    #[track_caller]
    pub fn await_log(&self, words: &str) {
        eventually(&format!("its log says {words:?}"), || self.log().contains(words).then_some(()));
    }

    /// The sum of a number over its labels; 0 where it is not there yet.
    pub fn metric(&self, name: &str) -> f64 {
        sum_of(&get(self.listen, "/metrics").body, name)
    }
}

fn command() -> Command {
    let mut command = Command::new(PROGRAM);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("RTC_BALANCER_")) {
        command.env_remove(name);
    }
    command
}

/// Runs the program to its end with this on its standard input.
#[track_caller]
pub fn run(flags: &[&str], variables: &[(&str, &str)], input: &str) -> Output {
    let mut child = command()
        .args(flags)
        .envs(variables.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Who refuses its flags reads nothing.
    let _ = std::io::Write::write_all(&mut child.stdin.take().unwrap(), input.as_bytes());
    child.wait_with_output().unwrap()
}
