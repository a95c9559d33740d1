//! The real server as a process of its own.
#![allow(clippy::unwrap_used, reason = "part of a test")]

use std::{
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::PathBuf,
    process::{Child, ChildStdout, Command, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

/// How long anything may take before a test gives up: generous, for busy machines.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running `rtc-server`, which is killed at the end of the test.
pub struct Server {
    child: Child,
    addr: SocketAddr,
    // Kept open: what the server says later must find a reader.
    _output: BufReader<ChildStdout>,
}

impl Server {
    /// Starts one on a free port and waits until it serves.
    pub fn start(flags: &[&str]) -> Self {
        Self::try_start("127.0.0.1:0", flags).expect("rtc-server ended before it was ready")
    }

    /// Starts one where another was: as soon as nobody's outgoing connection happens to have that port.
    pub fn start_at(addr: SocketAddr) -> Self {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(server) = Self::try_start(&addr.to_string(), &[]) {
                return server;
            }
            assert!(Instant::now() < deadline, "{addr} stays taken");
        }
    }

    /// None when it ended before it was ready.
    fn try_start(listen: &str, flags: &[&str]) -> Option<Self> {
        let mut child = Command::new(program())
            .args(["--admin-listen", "127.0.0.1:0", "--log", "error", "--listen", listen])
            .args(flags)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while !line.starts_with("ready ") {
            line.clear();
            if output.read_line(&mut line).unwrap() == 0 {
                child.wait().unwrap();
                return None;
            }
        }
        let addr = line.split_whitespace().find_map(|word| word.strip_prefix("listen=")).unwrap();
        Some(Self { addr: addr.parse().unwrap(), child, _output: output })
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub fn url(&self) -> String {
        format!("ws://{}", self.addr)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until the process has ended.
    pub fn wait(&mut self) {
        self.child.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Beside our own program: built with it by a test of the whole workspace, else built now.
fn program() -> &'static PathBuf {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let program = PathBuf::from(env!("CARGO_BIN_EXE_rtc-loadtest")).with_file_name("rtc-server");
        if !program.exists() {
            let mut build = Command::new(env!("CARGO"));
            build.args(["build", "--package", "rtc-server", "--bin", "rtc-server"]);
            if !cfg!(debug_assertions) {
                build.arg("--release");
            }
            assert!(build.status().unwrap().success(), "rtc-server cannot be built");
        }
        program
    })
}
