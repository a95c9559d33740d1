//! Programs that a test starts: each ends with the test, also where the test itself is killed.

use std::io::{self, Read as _};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};

use rustix::process::{Pid, Signal, kill_process};

use super::eventually;

/// A shell that waits for its input to end, which it does with the process that started it however that ends, and then
/// runs a few words. Going in good order it runs nothing.
pub struct Guard(Child);

impl Guard {
    /// `words` is a shell's; `arguments` are `$0`, `$1`….
    pub fn new(words: &str, arguments: &[&str]) -> io::Result<Self> {
        let script = format!("read -r _; {words}");
        // Nothing of the test's own output: whoever reads that waits for the last holder to end.
        let (nowhere, errors) = (Stdio::null(), Stdio::null());
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(script).args(arguments).stdin(Stdio::piped()).stdout(nowhere).stderr(errors);
        // In a group of its own: a signal to the test's whole group must leave somebody to clean up.
        shell.process_group(0).spawn().map(Self)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A process that is killed when this goes.
pub struct Process {
    pub child: Child,
    // Ends first: the number of a process that is gone may be another's.
    guard: Option<Guard>,
}

impl Process {
    /// What it writes to standard error, from now on.
    pub fn gather_log(&mut self) -> Arc<Mutex<String>> {
        let log = Arc::new(Mutex::new(String::new()));
        let (gathered, mut stderr) = (Arc::clone(&log), self.child.stderr.take().unwrap());
        std::thread::spawn(move || {
            let mut buf = [0; 4096];
            while let Ok(count @ 1..) = stderr.read(&mut buf) {
                gathered.lock().unwrap().push_str(&String::from_utf8_lossy(&buf[..count]));
            }
        });
        log
    }

    pub fn spawn(command: &mut Command) -> io::Result<Self> {
        let child = command.spawn()?;
        let mut process = Self { child, guard: None };
        process.guard = Some(Guard::new("kill -KILL \"$0\"", &[&process.child.id().to_string()])?);
        Ok(process)
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for the process to end.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        eventually("the process has ended", || self.child.try_wait().unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.guard = None;
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A directory that goes with the test.
pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("rtc-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A program of the workspace beside ours: built with it by a test of the whole workspace, else built now.
pub fn program(name: &str) -> PathBuf {
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

/// An address where nobody listens at the moment; another process may take it before its user does.
pub fn free_addr() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}
