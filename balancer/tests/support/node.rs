//! Real nodes, and clients that load them.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};

use sonic_rs::Value;

use super::process::{Process, free_addr, program};
use super::{PATIENCE, get};

/// Another process may take the port between the look and the start.
const ATTEMPTS: usize = 5;

/// A node as a process of its own, with a ready line behind it.
pub struct Node {
    pub id: String,
    /// Where clients come.
    pub listen: SocketAddr,
    /// The operator's port.
    pub admin: SocketAddr,
    pub process: Process,
    log: Arc<Mutex<String>>,
}

impl Node {
    /// Starts a node with these flags and waits for its first line.
    #[track_caller]
    pub fn start(id: &str, flags: &[&str]) -> Self {
        for _ in 0..ATTEMPTS {
            if let Some(node) = Self::try_start(id, flags) {
                return node;
            }
        }
        panic!("node {id} does not start");
    }

    /// The same with the address that it tells others, so that clients can be sent here.
    fn try_start(id: &str, flags: &[&str]) -> Option<Self> {
        let listen = free_addr();
        let mut command = Command::new(program("rtc-server"));
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("RTC_SERVER_")) {
            command.env_remove(name);
        }
        command.args(["--node-id", id, "--listen", &listen.to_string(), "--admin-listen", "127.0.0.1:0"]);
        // Patience with clients that wait for another part of their test.
        command.args(["--handshake-timeout", "10m", "--pong-timeout", "10m"]);
        command.args(["--advertise-url", &format!("ws://{listen}")]).args(flags);
        let mut process =
            Process::spawn(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped())).unwrap();
        let log = process.gather_log();
        let (sender, lines) = channel();
        let stdout = BufReader::new(process.child.stdout.take().unwrap());
        // What it says later must find a reader.
        std::thread::spawn(move || stdout.lines().map_while(Result::ok).for_each(|line| drop(sender.send(line))));
        let ready = match lines.recv_timeout(PATIENCE) {
            Ok(line) => line,
            Err(RecvTimeoutError::Disconnected) if log.lock().unwrap().contains("is in use (ss") => return None,
            Err(RecvTimeoutError::Disconnected | RecvTimeoutError::Timeout) => {
                panic!("no ready line of node {id}; the log says: {}", log.lock().unwrap())
            }
        };
        let admin = ready.split_whitespace().find_map(|word| word.strip_prefix("admin="));
        let admin = admin.unwrap_or_else(|| panic!("{ready:?}")).parse().unwrap();
        Some(Self { id: id.to_owned(), listen, admin, process, log })
    }

    pub fn url(&self) -> String {
        format!("ws://{}", self.listen)
    }

    pub fn is_ready(&self) -> bool {
        get(self.admin, "/readyz").status == 200
    }

    /// The ring that it goes by, as it says.
    pub fn ring(&self) -> Value {
        get(self.admin, "/api/v1/ring").json()
    }

    /// The sum of a number over its labels; 0 where it is not there.
    pub fn metric(&self, name: &str) -> f64 {
        sum_of(&get(self.admin, "/metrics").body, name)
    }

    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }
}

/// The sum of a number on a page of metrics, over its labels.
pub fn sum_of(page: &str, name: &str) -> f64 {
    let values = page.lines().filter_map(|line| line.strip_prefix(name)).filter(|rest| rest.starts_with([' ', '{']));
    values.map(|rest| rest.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}

/// `rtc-loadtest` with these flags.
pub fn load(flags: &[&str]) -> Command {
    let mut command = Command::new(program("rtc-loadtest"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("RTC_LOADTEST_")) {
        command.env_remove(name);
    }
    command.args(flags).stdin(Stdio::null());
    command
}
