//! A real Prometheus that scrapes every second what a file tells it to.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::process::{Process, free_addr};
use super::{eventually, try_get};

pub struct Prometheus {
    pub url: String,
    targets: PathBuf,
    _process: Process,
}

impl Prometheus {
    /// Whether there is one; where there is none this is said, and fails where tests must not be skipped.
    pub fn is_there(test: &str) -> bool {
        let version = Command::new(program()).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        if version.is_ok_and(|status| status.success()) {
            return true;
        }
        // Written past the test's capture: a test that did not run must be seen.
        let _ =
            writeln!(std::io::stderr(), "SKIPPED {test}: no prometheus here, and RTC_PROMETHEUS names none that runs");
        assert!(std::env::var("CI").as_deref() != Ok("true"), "{test} must not be skipped where CI=true");
        false
    }

    /// Starts it with its files in `dir`.
    pub fn start(dir: &Path, nodes: &[(&str, SocketAddr)]) -> Self {
        let (config, targets) = (dir.join("prometheus.yaml"), dir.join("targets.json"));
        let text = format!(
            "global:\n  scrape_interval: 1s\n  scrape_timeout: 1s\nscrape_configs:\n  - job_name: rtc-node\n    \
             honor_labels: true\n    file_sd_configs:\n      - files: [\"{}\"]\n",
            targets.display()
        );
        std::fs::write(&config, text).unwrap();
        write_targets(&targets, nodes);
        // Another process may take the port between the look and the start.
        for _ in 0..5 {
            let addr = free_addr();
            let mut command = Command::new(program());
            command
                .arg(format!("--config.file={}", config.display()))
                .arg(format!("--storage.tsdb.path={}", dir.join("data").display()))
                .arg(format!("--web.listen-address={addr}"))
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            let mut process = Process::spawn(&mut command).unwrap();
            let is_up = eventually("prometheus answers or ends", || {
                if process.child.try_wait().unwrap().is_some() {
                    return Some(false);
                }
                (try_get(addr, "/-/ready")?.status == 200).then_some(true)
            });
            if is_up {
                return Self { url: format!("http://{addr}"), targets, _process: process };
            }
        }
        panic!("prometheus does not start");
    }

    /// From now on it scrapes these. It notices by itself that its file has changed.
    pub fn watch(&self, nodes: &[(&str, SocketAddr)]) {
        write_targets(&self.targets, nodes);
    }
}

fn write_targets(path: &Path, nodes: &[(&str, SocketAddr)]) {
    let mut text = String::new();
    for (name, admin) in nodes {
        let comma = if text.is_empty() { "" } else { "," };
        write!(text, r#"{comma}{{"targets":["{admin}"],"labels":{{"node_id":"{name}","zone":"z1"}}}}"#).unwrap();
    }
    // In one step: half a file would be an error to its reader.
    let whole = path.with_extension("new");
    std::fs::write(&whole, format!("[{text}]")).unwrap();
    std::fs::rename(whole, path).unwrap();
}

/// The one that services.sh has found, else the system's.
fn program() -> String {
    std::env::var("RTC_PROMETHEUS").unwrap_or_else(|_| "prometheus".to_owned())
}
