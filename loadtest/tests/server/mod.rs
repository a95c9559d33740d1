//! The real server as a process of its own.
#![allow(clippy::unwrap_used, reason = "part of a test")]

use std::{
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::PathBuf,
    process::{Child, ChildStdout, Command, Stdio},
    sync::OnceLock,
};

/// A running `rtc-server`, which is killed at the end of the test.
pub struct Server {
    child: Child,
    addr: SocketAddr,
    // Kept open: what the server says later must find a reader.
    _output: BufReader<ChildStdout>,
}

impl Server {
    /// Starts one on a free port, unless `flags` name another, and waits until it serves.
    pub fn start(flags: &[&str]) -> Self {
        let listen = if flags.contains(&"--listen") { &[][..] } else { &["--listen", "127.0.0.1:0"] };
        let mut child = Command::new(program())
            .args(["--admin-listen", "127.0.0.1:0", "--log", "error"])
            .args(listen)
            .args(flags)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while !line.starts_with("ready ") {
            line.clear();
            assert!(output.read_line(&mut line).unwrap() > 0, "rtc-server ended before it was ready");
        }
        let addr = line.split_whitespace().find_map(|word| word.strip_prefix("listen=")).unwrap();
        Self { addr: addr.parse().unwrap(), child, _output: output }
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
