//! A Redis server of a test's own: started on a free port in a directory that goes with it, or a database of the one
//! that `RTC_REDIS` names.

use std::io::Write as _;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use redis::Connection;

use super::process::Process;

/// Databases of a shared server that are ours: the first eight are left to others.
const DATABASES: std::ops::Range<u32> = 8..16;

static STARTED: AtomicU32 = AtomicU32::new(0);

pub struct RedisServer {
    pub url: String,
    own: Option<(Process, PathBuf)>,
}

impl RedisServer {
    /// Starts a server; none where there is none to be had, which is said, and fails where tests must not be skipped.
    pub fn start(test: &str) -> Option<Self> {
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("rtc-balancer-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        // Another process may take the port between the look and the start.
        for _ in 0..5 {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let mut command = Command::new("redis-server");
            command
                .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
                .arg("--dir")
                .arg(&dir)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            let Ok(process) = Process::spawn(&mut command) else {
                // A given one is shared with other tests, so that it comes second.
                if let Ok(addr) = std::env::var("RTC_REDIS") {
                    let database = DATABASES.start + number % (DATABASES.end - DATABASES.start);
                    let addr = addr.trim_start_matches("redis://").trim_end_matches('/');
                    let server = Self { url: format!("redis://{addr}/{database}"), own: None };
                    let _: () = redis::cmd("FLUSHDB").query(&mut server.connect()).unwrap();
                    return Some(server);
                }
                // Written past the test's capture: a test that did not run must be seen.
                let _ = writeln!(std::io::stderr(), "SKIPPED {test}: no redis-server here, and RTC_REDIS is not set");
                assert!(std::env::var("CI").as_deref() != Ok("true"), "{test} must not be skipped where CI=true");
                return None;
            };
            let mut server = Self { url: format!("redis://127.0.0.1:{port}"), own: Some((process, dir.clone())) };
            let is_up = super::eventually("redis answers or ends", || {
                let found = process_at(&server.url);
                let (process, _) = server.own.as_mut().unwrap();
                // Somebody else's answers at this port as well, until ours has found that out and ended.
                if found == Some(process.child.id()) {
                    Some(true)
                } else {
                    process.child.try_wait().unwrap().map(|_| false)
                }
            });
            if is_up {
                return Some(server);
            }
        }
        panic!("redis-server does not start");
    }

    /// One that others have started and will end.
    pub fn at(url: String) -> Self {
        Self { url, own: None }
    }

    pub fn connect(&self) -> Connection {
        redis::Client::open(&*self.url).unwrap().get_connection().unwrap()
    }

    /// The process, where it is ours.
    pub fn child(&self) -> Option<&Child> {
        self.own.as_ref().map(|(process, _)| &process.child)
    }
}

/// The id of the server's process that answers there.
fn process_at(url: &str) -> Option<u32> {
    let mut connection = redis::Client::open(url).ok()?.get_connection().ok()?;
    let info: String = redis::cmd("INFO").arg("server").query(&mut connection).ok()?;
    info.lines().find_map(|line| line.strip_prefix("process_id:"))?.trim().parse().ok()
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        if let Some((process, dir)) = self.own.take() {
            drop(process);
            let _ = std::fs::remove_dir_all(dir);
        }
    }
}
