//! A Kafka and a Redis of a test's own, where the environment has servers at all: the ring, the heartbeats and the topics
//! of dead nodes are the whole cluster's, and other tests have theirs.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use super::RedisServer;
use super::process::Guard;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/services.sh");

/// Both, as `scripts/services.sh` starts them.
pub struct Services {
    pub kafka: String,
    pub redis: RedisServer,
    run: PathBuf,
    settings: &'static str,
    guard: Option<Guard>,
}

impl Services {
    /// Starts a pair where `RTC_KAFKA` and `RTC_REDIS` are set; else says so, and fails where tests must not be skipped.
    pub fn start(test: &str) -> Option<Self> {
        Self::start_with(test, "")
    }

    /// The same with settings for Kafka, `KEY=VALUE …`.
    pub fn start_with(test: &str, settings: &'static str) -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let is_set = |variable: &str| std::env::var(variable).is_ok_and(|value| !value.is_empty());
        if !(is_set("RTC_KAFKA") && is_set("RTC_REDIS")) {
            // Written past the test's capture: a test that did not run must be seen.
            let missing = "RTC_KAFKA or RTC_REDIS is not set (scripts/services.sh up)";
            let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {missing}");
            assert!(std::env::var("CI").as_deref() != Ok("true"), "{test} must not be skipped where CI=true");
            return None;
        }
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let run = std::env::temp_dir().join(format!("rtc-fleet-services-{}-{number}", std::process::id()));
        let words = "RTC_SERVICES_RUN=\"$1\" RTC_KAFKA= RTC_REDIS= \"$0\" down; rm -rf \"$1\"";
        let guard = Guard::new(words, &[SCRIPT, run.to_str().unwrap()]).unwrap();
        // From here on it is ended, whatever happens.
        let (kafka, redis) = (String::new(), RedisServer::at(String::new()));
        let mut services = Self { kafka, redis, run, settings, guard: Some(guard) };
        let output = services.control("up");
        let value = |name: &str| {
            let value = output.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
            value.unwrap_or_else(|| panic!("no {name} in {output:?}")).to_owned()
        };
        (services.kafka, services.redis) = (value("RTC_KAFKA"), RedisServer::at(value("RTC_REDIS")));
        Some(services)
    }

    fn control(&self, verb: &str) -> String {
        let mut command = Command::new(SCRIPT);
        command.arg(verb).env("RTC_SERVICES_RUN", &self.run).env("RTC_SERVICES_KAFKA", self.settings);
        command.env_remove("RTC_KAFKA").env_remove("RTC_REDIS");
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() || std::thread::panicking(), "{verb}: {said}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for Services {
    fn drop(&mut self) {
        self.control("down");
        self.guard = None;
        let _ = std::fs::remove_dir_all(&self.run);
    }
}
