//! A broker of a test's own, and one that dies in the middle.

use std::path::PathBuf;
use std::process::Command;

use crate::rig::{Node, PATIENCE, brokers, eventually, finish, fresh_id, read};

/// A broker that may be killed, by the script that starts the others.
pub struct Broker {
    run: PathBuf,
    settings: &'static str,
    pub address: String,
}

impl Broker {
    /// One with settings of its own, `KEY=VALUE …`.
    pub fn start(name: &str, settings: &'static str) -> Self {
        let run = std::env::temp_dir().join(format!("rtc-broker-{name}-{}", std::process::id()));
        // From here on it is ended, whatever happens.
        let mut broker = Self { run, settings, address: String::new() };
        let output = broker.services(&["up"]);
        let address = output.split_whitespace().find_map(|word| word.strip_prefix("RTC_KAFKA=")).expect(&output);
        broker.address.push_str(address);
        broker
    }

    fn services(&self, arguments: &[&str]) -> String {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/services.sh");
        let mut command = Command::new(script);
        command.args(arguments).env("RTC_SERVICES_RUN", &self.run).env("RTC_SERVICES_KAFKA", self.settings);
        command.env_remove("RTC_KAFKA").env_remove("RTC_REDIS");
        let output = command.output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.services(&["down"]);
        let _ = std::fs::remove_dir_all(&self.run);
    }
}

#[test]
fn a_broker_that_is_killed_and_started_again_loses_nothing_and_reorders_nothing() {
    const MESSAGES: u64 = 12_000;
    if brokers("broker restart").is_none() {
        return;
    }
    let broker = Broker::start("restart", "");
    let (a, b) = (fresh_id("ra"), fresh_id("rb"));
    let mut sender = Node::start(&broker.address, &a, 1, |_| {});
    let mut reader = Node::start(&broker.address, &b, 2, |_| {});
    let mut tickets = Vec::new();
    for number in 0..MESSAGES {
        if number == MESSAGES / 3 {
            // Some are confirmed, some are under way, some are still to come.
            tickets.extend(sender.produced(1));
            broker.services(&["kill", "kafka"]);
        }
        if number == 2 * MESSAGES / 3 {
            eventually("the node knows that kafka is away", || !sender.bus().is_up());
            broker.services(&["start", "kafka"]);
        }
        sender.send(&b, &format!("client-{}", number % 3), number);
    }
    let mut next = [0, 1, 2];
    while next.iter().any(|next| *next < MESSAGES) {
        let (_, arrived) = reader.next();
        let number = read(&arrived).1;
        let expected = &mut next[usize::try_from(number % 3).unwrap()];
        // What comes again after a restart is known by its name; nothing may be missing before it.
        assert!(number <= *expected, "{number} came before {expected}");
        *expected = (*expected).max(number + 3);
        finish(&reader, arrived.at);
    }
    tickets.extend(sender.produced(usize::try_from(MESSAGES).unwrap() - tickets.len()));
    tickets.sort_unstable();
    assert!(tickets.into_iter().eq(0..MESSAGES));
    assert_eq!(sender.kafka.stop(PATIENCE), 0);
}
