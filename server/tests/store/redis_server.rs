//! A real Redis for a test: the one that `RTC_REDIS` names, or one started here and ended with the test.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long a server may take to come up.
const START_LIMIT: Duration = Duration::from_secs(60);

/// Whether a written command is on disk when it is answered.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Disk {
    Synced,
    Lazy,
}

/// What a server is to others.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Alone,
    /// One of a cluster, which the test has yet to form.
    OfCluster,
    /// Follows the server at this port.
    Replica(u16),
    /// Watches the server at this port under the name `main`, and decides alone.
    Sentinel(u16),
}

/// A server of the test's own.
pub struct RedisServer {
    child: Option<Child>,
    dir: PathBuf,
    port: u16,
    disk: Disk,
    role: Role,
}

/// Where a Redis can be reached, and the server behind it if the test started one.
pub struct Redis {
    pub url: String,
    _server: Option<RedisServer>,
}

impl Redis {
    /// The server that `RTC_REDIS` names, else one of the test's own; `None` when there is none to be had.
    pub fn any() -> Option<Self> {
        if let Ok(url) = std::env::var("RTC_REDIS") {
            return Some(Self { url, _server: None });
        }
        let server = RedisServer::start(Disk::Lazy)?;
        Some(Self { url: server.url(), _server: Some(server) })
    }
}

impl RedisServer {
    /// Starts one on a free port; `None`, loudly, where the program is missing. In CI that fails the test.
    pub fn start(disk: Disk) -> Option<Self> {
        Self::start_as(Role::Alone, disk)
    }

    /// The same, of several that belong together.
    pub fn start_as(role: Role, disk: Disk) -> Option<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let dir = std::env::temp_dir().join(format!(
            "rtc-redis-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        ));
        std::fs::create_dir_all(&dir).unwrap();
        for _ in 0..5 {
            let port = free_port(role);
            let mut server = Self { child: None, dir: dir.clone(), port, disk, role };
            match server.run() {
                Ok(true) => return Some(server),
                // Somebody else took the port meanwhile.
                Ok(false) => {}
                Err(err) => {
                    let message = format!("SKIPPED: no redis-server to test with ({err}); set RTC_REDIS or install it");
                    assert!(std::env::var("CI").as_deref() != Ok("true"), "{message}");
                    println!("{message}");
                    eprintln!("{message}");
                    return None;
                }
            }
        }
        panic!("redis-server does not come up")
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Sends it a signal: `STOP` freezes it, `CONT` lets it go on.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").arg(format!("-{name}")).arg(self.pid().to_string()).status();
        assert!(status.unwrap().success(), "no signal {name}");
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// Ends it as a power cut would.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts it again on what it had written.
    pub fn restart(&mut self) {
        assert!(self.child.is_none(), "it runs already");
        assert!(self.run().unwrap(), "redis-server does not come up again");
    }

    fn run(&mut self) -> std::io::Result<bool> {
        let sync = if self.disk == Disk::Synced { "always" } else { "no" };
        let program = std::env::var("REDIS_SERVER").unwrap_or_else(|_| "redis-server".into());
        let mut command = Command::new(program);
        if let Role::Sentinel(primary) = self.role {
            // It writes what it learns into its configuration. It gives a server so long that a machine that stands still
            // for less brings no fail-over: what is confirmed in the moment before one may be lost.
            let path = self.dir.join("sentinel.conf");
            let settings = format!(
                "sentinel monitor main 127.0.0.1 {primary} 1\nsentinel down-after-milliseconds main 3000\n\
                 sentinel failover-timeout main 3000\n"
            );
            std::fs::write(&path, settings)?;
            command.arg(path).arg("--sentinel");
        }
        command.args(["--bind", "127.0.0.1", "--port", &self.port.to_string(), "--daemonize", "no"]);
        if !matches!(self.role, Role::Sentinel(_)) {
            command.args([
                "--save",
                "",
                "--maxmemory-policy",
                "noeviction",
                "--appendonly",
                "yes",
                "--appendfsync",
                sync,
            ]);
        }
        match self.role {
            Role::OfCluster => {
                command.args(["--cluster-enabled", "yes", "--cluster-node-timeout", "1000"]);
                command.args(["--cluster-replica-validity-factor", "0"]);
            }
            Role::Replica(primary) => {
                command.args(["--replicaof", "127.0.0.1", &primary.to_string(), "--repl-diskless-sync-delay", "0"]);
            }
            Role::Alone | Role::Sentinel(_) => {}
        }
        let child = command.arg("--dir").arg(&self.dir).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let child = self.child.insert(child);
        let deadline = Instant::now() + START_LIMIT;
        while Instant::now() < deadline {
            if child.try_wait()?.is_some() {
                self.child = None;
                return Ok(false);
            }
            // Somebody else's answers at this port as well, until ours has found that out and ended.
            if process_at(self.port) == Some(child.id()) {
                return Ok(true);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.kill();
        Ok(false)
    }
}

/// The id of the server's process that answers at this port; it may be loading what it had written.
fn process_at(port: u16) -> Option<u32> {
    let client = redis::Client::open(format!("redis://127.0.0.1:{port}")).ok()?;
    let mut connection = client.get_connection_with_timeout(START_LIMIT).ok()?;
    connection.set_read_timeout(Some(START_LIMIT)).ok()?;
    let info: String = redis::cmd("INFO").arg("server").query(&mut connection).ok()?;
    info.lines().find_map(|line| line.strip_prefix("process_id:"))?.trim().parse().ok()
}

/// A port where nobody listens, below those that the kernel gives to outgoing connections: none of these may sit on the
/// port of a server that is to come back. One of a cluster takes the port 10,000 above as well.
fn free_port(role: Role) -> u16 {
    const FIRST: u32 = 10_000;
    const COUNT: u32 = 10_000;
    const BUS_DISTANCE: u16 = 10_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let is_free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    loop {
        // Where the process's id falls, so that tests that run at the same time start apart.
        let at = (std::process::id().wrapping_mul(97)).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = u16::try_from(FIRST + at % COUNT).unwrap();
        if is_free(port) && (role != Role::OfCluster || is_free(port + BUS_DISTANCE)) {
            return port;
        }
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}
