//! What a record costs on its way through the bus and Kafka: latency at a steady rate, then as many as will go, with the
//! processor time of each thread per record.
//!
//! `RTC_KAFKA=HOST:PORT cargo run --release --example bus-bench [RECORDS_PER_SECOND [SECONDS [PAYLOAD_BYTES]]]`
//!
//! Two buses in one process, one that sends and one that reads; broker and process share the machine. The numbers are the
//! client's alone: the broker's processor time is not in them. `KAFKA_OPTIONS="linger.ms=5 …"` tries other settings of the
//! client library, `PARTITIONS` another number of partitions.
#![allow(
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a tool for developers: it may end with a panic"
)]

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ring::{NodeId, SharedRing, hash_key};
use rtc_server::bus::kafka::{Config, Kafka, Lease, PARTITIONS, Setup};
use rtc_server::bus::{Address, Bus, Lane, Parcel, Record};
use rtc_server::protocol::PayloadField;
use rtc_server::routing::paths::Paths;
use rtc_server::shard::handover::{Mail, Posted};
use rtc_server::shard::mailbox::{Receiver, mailbox};
use rtc_server::shard::origin::Origin;
use rustix::event::{PollFd, PollFlags, poll};

const CLIENTS: u64 = 1000;
const MAILBOX: usize = 16_384;
const PATIENCE: Duration = Duration::from_secs(30);

struct Always;

impl Lease for Always {
    fn token(&self) -> Option<u64> {
        Some(1)
    }
}

/// Partitions of a node's topic, the control lane included.
fn partitions() -> Result<u16, Box<dyn Error>> {
    Ok(std::env::var("PARTITIONS").ok().map(|partitions| partitions.parse()).transpose()?.unwrap_or(PARTITIONS))
}

fn start(brokers: &str, node: &NodeId) -> Result<(Kafka, Receiver<Mail>), Box<dyn Error>> {
    let (sender, receiver) = mailbox(MAILBOX)?;
    let mut config = Config::new(brokers, 256 << 10);
    config.partitions = partitions()?;
    let options = std::env::var("KAFKA_OPTIONS").unwrap_or_default();
    let options = options.split_whitespace().filter_map(|option| option.split_once('='));
    config.options = options.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let setup = Setup {
        config,
        node: node.clone(),
        incarnation: 1,
        mailboxes: vec![sender],
        ring: SharedRing::new(),
        lease: Arc::new(Always),
    };
    let kafka = Kafka::start(setup)?;
    if !kafka.wait(PATIENCE)? {
        return Err("kafka does not answer".into());
    }
    Ok((kafka, receiver))
}

/// Waits for mail as a shard does, by the descriptor.
fn await_mail(mail: &Receiver<Mail>) {
    let event = mail.event();
    let mut fds = [PollFd::new(&event, PollFlags::IN)];
    let _ = poll(&mut fds, Some(&rustix::time::Timespec { tv_sec: 0, tv_nsec: 50_000_000 }));
    mail.begin();
}

fn main() -> Result<(), Box<dyn Error>> {
    let brokers = std::env::var("RTC_KAFKA").map_err(|_| "RTC_KAFKA=HOST:PORT is not set: scripts/services.sh up")?;
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse::<u64>());
    let rate = arguments.next().transpose()?.unwrap_or(2000);
    let seconds = arguments.next().transpose()?.unwrap_or(10);
    let payload_bytes = usize::try_from(arguments.next().transpose()?.unwrap_or(150))?;
    let id = |name: &str| NodeId::new(&format!("bench-{name}-{}", std::process::id()));
    let (a, b) = (id("a")?, id("b")?);
    let (sender, confirmations) = start(&brokers, &a)?;
    let (reader, arrivals) = start(&brokers, &b)?;
    let paths = Paths::new(partitions()?.saturating_sub(1));
    let bench = Bench { a, b, sender, reader, confirmations, arrivals, payload_bytes, paths, epoch: Instant::now() };
    bench.run("warm-up", 2000, Some(1000));
    bench.run(&format!("{rate} records/s"), rate * seconds, Some(rate));
    if std::env::var_os("ONLY").is_none() {
        bench.run("as many as will go", 200_000, None);
    }
    Ok(())
}

struct Bench {
    a: NodeId,
    b: NodeId,
    sender: Kafka,
    reader: Kafka,
    confirmations: Receiver<Mail>,
    arrivals: Receiver<Mail>,
    payload_bytes: usize,
    paths: Paths,
    epoch: Instant,
}

impl Bench {
    fn now_ns(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_nanos()).unwrap()
    }

    fn run(&self, name: &str, records: u64, rate: Option<u64>) {
        let before = thread_times();
        let started = Instant::now();
        let (arrived, confirmed) = std::thread::scope(|scope| {
            let reading = scope.spawn(|| self.read(records));
            let confirming = scope.spawn(|| self.confirm(records));
            self.send(records, rate, started);
            (reading.join().unwrap(), confirming.join().unwrap())
        });
        let elapsed = started.elapsed();
        println!(
            "{name}: {records} records in {:.2} s, {:.0}/s",
            elapsed.as_secs_f64(),
            records as f64 / elapsed.as_secs_f64()
        );
        println!("  sent → in the shard's hands: {}", percentiles(arrived));
        println!("  sent → confirmed:            {}", percentiles(confirmed));
        let mut total = 0.0;
        let mut line = String::new();
        for (thread, after) in thread_times() {
            let micros = (after - before.get(&thread).copied().unwrap_or(0.0)) * 1e6 / records as f64;
            if thread.starts_with("kafka-") || thread.starts_with("rdk:") {
                total += micros;
                let _ = write!(line, " {thread} {micros:.1}");
            }
        }
        println!("  µs of processor time per record: {total:.1} in all:{line}\n");
    }

    fn send(&self, records: u64, rate: Option<u64>, started: Instant) {
        let filler = "x".repeat(self.payload_bytes.saturating_sub(40));
        for number in 0..records {
            if let Some(rate) = rate {
                let intended = started + Duration::from_nanos(number * 1_000_000_000 / rate);
                std::thread::sleep(intended.saturating_duration_since(Instant::now()));
            }
            let to = format!("client-{}", number % CLIENTS);
            let hash = hash_key(to.as_bytes(), 0);
            let sent = self.now_ns();
            let posted = Posted {
                msg_id: number.to_string().into(),
                from: "bench".into(),
                sender: 0,
                to: to.into(),
                hash,
                field: PayloadField::Payload,
                payload: format!("{{\"sent\":\"{sent:020}\",\"x\":\"{filler}\"}}").into(),
                origin: Origin::NOBODY,
                wants_ack: true,
                ts_ms: sent,
                ttl_ms: None,
                hops: 0,
                trail: Vec::new(),
                login: 0,
            };
            let origin = Address { node: self.a.clone(), incarnation: 1, shard: 0 };
            let record = Record::Message(Box::new(posted));
            let lane = Lane::Partition(self.paths.lane_of(hash));
            let mut parcel = Box::new(Parcel { to: self.b.clone(), lane, origin, record, ticket: Some(sent) });
            while let Err(back) = self.sender.bus().publish(parcel) {
                parcel = back;
                std::thread::sleep(Duration::from_micros(200));
            }
        }
    }

    /// Latencies in microseconds.
    fn read(&self, records: u64) -> Vec<u64> {
        let mut latencies = Vec::new();
        while (latencies.len() as u64) < records {
            await_mail(&self.arrivals);
            let mut finished = Vec::new();
            while let Some(mail) = self.arrivals.next() {
                if let Mail::Record(arrived) = mail
                    && let Record::Message(posted) = &arrived.record
                {
                    latencies.push((self.now_ns() - posted.ts_ms) / 1000);
                    finished.push(arrived.at);
                }
            }
            self.reader.bus().finish(&finished);
        }
        latencies
    }

    fn confirm(&self, records: u64) -> Vec<u64> {
        let mut latencies = Vec::new();
        while (latencies.len() as u64) < records {
            await_mail(&self.confirmations);
            while let Some(mail) = self.confirmations.next() {
                if let Mail::Produced(sent) = mail {
                    latencies.push((self.now_ns() - sent) / 1000);
                }
            }
        }
        latencies
    }
}

fn percentiles(mut latencies: Vec<u64>) -> String {
    latencies.sort_unstable();
    let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize] as f64 / 1000.0;
    format!("p50 {:.2} ms, p99 {:.2} ms, p99.9 {:.2} ms, max {:.2} ms", at(0.5), at(0.99), at(0.999), at(1.0))
}

/// Seconds of processor time of this process's threads, those of one name together.
fn thread_times() -> BTreeMap<String, f64> {
    const TICKS_PER_SECOND: f64 = 100.0;
    let mut times = BTreeMap::new();
    for task in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
        let Ok(stat) = std::fs::read_to_string(task.path().join("stat")) else { continue };
        let (Some(open), Some(close)) = (stat.find('('), stat.rfind(')')) else { continue };
        let fields: Vec<&str> = stat[close + 2..].split(' ').collect();
        let ticks: f64 = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
        *times.entry(stat[open + 1..close].to_owned()).or_insert(0.0) += ticks / TICKS_PER_SECOND;
    }
    times
}
