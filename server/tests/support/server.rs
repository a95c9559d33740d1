//! The program under test, as a process of its own.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};

use super::PATIENCE;

const PROGRAM: &str = env!("CARGO_BIN_EXE_rtc-server");

/// Unless a test says something else: free ports, and patience with clients that wait for another part of their test.
const DEFAULTS: [[&str; 2]; 4] = [
    ["--listen", "127.0.0.1:0"],
    ["--admin-listen", "127.0.0.1:0"],
    ["--handshake-timeout", "10m"],
    ["--pong-timeout", "10m"],
];

/// A running server on free ports. It is killed when this goes.
pub struct Server {
    pub node_id: String,
    pub listen: SocketAddr,
    pub admin: SocketAddr,
    child: Child,
    log: Arc<Mutex<String>>,
    // Holds standard output open, and would tell what else was printed there.
    _output: Mutex<Receiver<String>>,
}

impl Server {
    /// Starts a server with these flags and waits until it is ready.
    #[track_caller]
    pub fn start(flags: &[&str]) -> Self {
        Self::start_with(flags, &[])
    }

    /// The same with environment variables.
    #[track_caller]
    pub fn start_with(flags: &[&str], variables: &[(&str, &str)]) -> Self {
        let mut command = command(PROGRAM, variables);
        for [flag, value] in DEFAULTS.iter().filter(|[flag, _]| !flags.contains(flag)) {
            command.args([flag, value]);
        }
        let mut child = command.args(flags).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let output = lines(child.stdout.take().unwrap());
        let log = gather(child.stderr.take().unwrap());
        let line = output.recv_timeout(PATIENCE).unwrap_or_else(|_| {
            let _ = child.kill();
            panic!("no ready line; the log says: {}", log.lock().unwrap());
        });
        let field = |name: &str| {
            let value = line.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
            value.unwrap_or_else(|| panic!("no {name} in {line:?}")).to_owned()
        };
        assert!(line.starts_with("ready "), "{line:?}");
        let (listen, admin) = (field("listen").parse().unwrap(), field("admin").parse().unwrap());
        Self { node_id: field("node"), listen, admin, child, log, _output: Mutex::new(output) }
    }

    /// Sends the process a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for the process to end.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        wait(&mut self.child)
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a process that ended by itself left behind.
#[derive(Debug)]
pub struct Run {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// Runs the program to its end.
#[track_caller]
pub fn run(flags: &[&str], variables: &[(&str, &str)]) -> Run {
    let mut command = command(PROGRAM, variables);
    command.args(flags);
    finish(command)
}

/// Runs the program to its end, in a process that may open so many files.
#[track_caller]
pub fn run_with_descriptors(descriptors: usize, flags: &[&str]) -> Run {
    let mut command = command("sh", &[]);
    command.args(["-c", &format!("ulimit -n {descriptors} && exec \"$0\" \"$@\""), PROGRAM]).args(flags);
    finish(command)
}

#[track_caller]
fn finish(mut command: Command) -> Run {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let stdout = gather(child.stdout.take().unwrap());
    let stderr = gather(child.stderr.take().unwrap());
    let status = wait(&mut child);
    // The readers end with the pipes: then each holds its text alone.
    super::eventually("the output is read", || Arc::strong_count(&stdout) == 1 && Arc::strong_count(&stderr) == 1);
    let text = |output: &Mutex<String>| output.lock().unwrap().clone();
    Run { code: status.code(), stdout: text(&stdout), stderr: text(&stderr) }
}

/// A program in an environment that says nothing to it but `variables`.
fn command(program: &str, variables: &[(&str, &str)]) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("RTC_SERVER_") {
            command.env_remove(name);
        }
    }
    command.envs(variables.iter().copied()).stdin(Stdio::null());
    command
}

#[track_caller]
fn wait(child: &mut Child) -> ExitStatus {
    let deadline = Instant::now() + PATIENCE;
    let mut status = None;
    super::eventually("the process has ended", || {
        status = child.try_wait().unwrap();
        if status.is_none() && Instant::now() >= deadline {
            let _ = child.kill();
        }
        status.is_some()
    });
    status.unwrap()
}

fn lines(output: ChildStdout) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

fn gather(mut source: impl Read + Send + 'static) -> Arc<Mutex<String>> {
    let text = Arc::new(Mutex::new(String::new()));
    let gathered = Arc::clone(&text);
    std::thread::spawn(move || {
        let mut buf = [0; 4096];
        while let Ok(count) = source.read(&mut buf)
            && count > 0
        {
            gathered.lock().unwrap().push_str(&String::from_utf8_lossy(&buf[..count]));
        }
    });
    text
}
