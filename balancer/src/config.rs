//! What the balancer is told at its start: flags over environment over file over defaults, checked as a whole, then cut
//! up into what each part needs. It binds and opens nothing.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::ensure;
use rim::listen::check_exposure;
use rim::logging::LogFormat;
use rim::{file, logging, millis, values};
use ring::NodeId;
use rtc_balancer::http::DRAIN_WINDOW_MS_MAX;
use rtc_balancer::kafka::Kafka;
use rtc_balancer::prometheus::Questions;
use rtc_balancer::rules::{PolicyKind, PolicyRules, Rules, ScalingRules, ScoreRules, TriggerRules};
use rtc_balancer::service::Settings;
use serde::{Deserialize, Serialize};

use crate::args::Args;

#[cfg(test)]
mod tests;

/// The file that lists the keys.
const EXAMPLE: &str = "config/balancer.example.toml";

/// The longest length of time that makes sense for any of these.
const TIME_MS_MAX: u64 = 24 * 60 * 60 * 1000;

/// The whole configuration; its fields are the keys of the file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Kafka brokers.
    pub kafka: Option<String>,
    /// Settings of the Kafka client library, each `key=value`.
    pub kafka_options: Vec<String>,
    /// Redis.
    pub redis: Option<String>,
    /// Where the page and the look-ups are served.
    pub listen: SocketAddr,
    /// It may be other than loopback although nobody authenticates.
    pub insecure_allow_anonymous: bool,
    /// Where Prometheus answers.
    pub prometheus: Option<String>,

    /// This balancer; none for a name made from the host's.
    pub node_id: Option<NodeId>,
    /// How scores become weights.
    pub policy: PolicyKind,
    /// Seed of a cluster's first ring.
    pub seed: u64,

    /// Between two looks at the nodes.
    #[serde(rename = "poll_ms", with = "millis")]
    pub poll: Duration,
    /// Silence after which a node is gone.
    #[serde(rename = "heartbeat_timeout_ms", with = "millis")]
    pub heartbeat_timeout: Duration,
    /// How long a silent leader stays the leader.
    #[serde(rename = "lease_ms", with = "millis")]
    pub lease: Duration,
    /// If more than this share of the nodes vanish at once, the ring is held for a second timeout.
    pub vanished_share_max: f64,
    /// The window of a drain that names none.
    #[serde(rename = "drain_window_ms", with = "millis")]
    pub drain_window: Duration,
    /// Disconnects per second of a drain that names no number.
    pub drain_disconnects_max: u64,

    /// What is logged.
    pub log: String,
    /// How.
    pub log_format: LogFormat,

    /// What is asked of Prometheus.
    pub queries: Queries,
    /// How a node's load becomes one number.
    pub score: ScoreRules,
    /// How scores become weights.
    pub weights: PolicyRules,
    /// When weights are computed anew.
    pub triggers: TriggerRules,
    /// When more nodes or fewer are recommended.
    pub scaling: ScalingRules,
}

/// Instant queries; each answers one value per `node_id`. An empty one is not asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Queries {
    /// Share of the processors in use, 0 to 1.
    pub cpu: String,
    /// Share of the memory in use, 0 to 1.
    pub mem: String,
    /// Messages per second.
    pub mps: String,
    /// 95th percentile of delivery latency, in ms.
    pub p95_latency_ms: String,
}

impl Default for Queries {
    fn default() -> Self {
        Self {
            cpu: "avg by (node_id) (rtc_socket_cpu_ratio)".to_owned(),
            mem: "avg by (node_id) (rtc_socket_memory_ratio)".to_owned(),
            mps: "sum by (node_id) (rate(rtc_socket_deliveries_total[1m]))".to_owned(),
            p95_latency_ms: "1000 * histogram_quantile(0.95, sum by (node_id, le) \
                             (rate(rtc_socket_delivery_latency_seconds_bucket[1m])))"
                .to_owned(),
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            kafka: None,
            kafka_options: Vec::new(),
            redis: None,
            listen: ([127, 0, 0, 1], 8090).into(),
            insecure_allow_anonymous: false,
            prometheus: None,
            node_id: None,
            policy: PolicyKind::Feedback,
            seed: 0,
            poll: Duration::from_millis(500),
            // Three missed beats.
            heartbeat_timeout: Duration::from_secs(6),
            lease: Duration::from_secs(5),
            vanished_share_max: 0.34,
            drain_window: Duration::from_secs(60),
            drain_disconnects_max: 200,
            log: "info".to_owned(),
            log_format: LogFormat::Text,
            queries: Queries::default(),
            score: ScoreRules::default(),
            weights: PolicyRules::default(),
            triggers: TriggerRules::default(),
            scaling: ScalingRules::default(),
        }
    }
}

impl Config {
    /// Reads the file that `args` names, if any, puts the flags over it, and checks the whole.
    ///
    /// # Errors
    /// Names the key, what is wrong with it and what would be right.
    pub fn load(args: Args) -> anyhow::Result<Self> {
        let mut config = match &args.config {
            Some(path) => file::read(path, EXAMPLE)?,
            None => Self::default(),
        };
        for setting in args.set.iter().flatten() {
            config = config.with(setting)?;
        }
        config.overlay(args);
        config.check()?;
        config.node_id.get_or_insert_with(default_node_id);
        Ok(config)
    }

    /// The same with one key changed, given as `table.key=value`.
    fn with(&self, setting: &str) -> anyhow::Result<Self> {
        let wrong =
            |reason: String| anyhow::anyhow!("--set {setting}: {reason}: give TABLE.KEY=VALUE with a key of {EXAMPLE}");
        let (key, value) = setting.split_once('=').ok_or_else(|| wrong("there is no =".to_owned()))?;
        // A word needs no quotes here, as nowhere on a command line.
        let value: toml::Value = format!("value = {value}")
            .parse::<toml::Table>()
            .ok()
            .and_then(|mut table| table.remove("value"))
            .unwrap_or_else(|| toml::Value::String(value.to_owned()));
        let mut whole = toml::Table::try_from(self)?;
        let (tables, name) =
            key.trim().rsplit_once('.').map_or((None, key.trim()), |(table, name)| (Some(table), name));
        let table = match tables {
            None => &mut whole,
            Some(table) => whole
                .get_mut(table)
                .and_then(toml::Value::as_table_mut)
                .ok_or_else(|| wrong(format!("there is no table {table}")))?,
        };
        table.insert(name.to_owned(), value);
        whole.try_into().map_err(|error: toml::de::Error| wrong(file::reason(&error).to_owned()))
    }

    /// Puts what was given on the command line, or in the environment, over what is here.
    fn overlay(&mut self, args: Args) {
        macro_rules! overlay {
            ($($field:ident)*) => { $(if let Some(value) = args.$field { self.$field = value; })* };
        }
        macro_rules! overlay_optional {
            ($($field:ident)*) => { $(if args.$field.is_some() { self.$field = args.$field; })* };
        }
        overlay!(kafka_options listen insecure_allow_anonymous policy seed poll heartbeat_timeout lease log log_format);
        overlay_optional!(kafka redis prometheus node_id);
    }

    fn check(&self) -> anyhow::Result<()> {
        check_exposure("listen", self.listen, self.insecure_allow_anonymous)?;
        if let Some(url) = &self.prometheus {
            ensure!(url.starts_with("http://"), "prometheus is {url}: give a URL that begins with http://");
        }
        if let Some(url) = &self.redis {
            let is_known = ["redis://", "redis+unix://", "unix://"].iter().any(|scheme| url.starts_with(scheme));
            ensure!(is_known, "redis is {url}: give a URL that begins with redis://");
        }
        self.kafka_options()?;
        ensure!(self.seed <= ring::control::WHOLE_MAX, "seed is {}: give 0 to {}", self.seed, ring::control::WHOLE_MAX);
        logging::check(&self.log)?;
        self.check_times()?;
        self.check_thresholds()
    }

    fn kafka_options(&self) -> anyhow::Result<Vec<(String, String)>> {
        values::pairs("kafka_options", &self.kafka_options)
    }

    fn check_times(&self) -> anyhow::Result<()> {
        let of = millis::of;
        let (weights, triggers, scaling) = (&self.weights, &self.triggers, &self.scaling);
        let times = [
            ("poll_ms", of(self.poll), 50, 60_000),
            ("heartbeat_timeout_ms", of(self.heartbeat_timeout), 1_000, TIME_MS_MAX),
            ("lease_ms", of(self.lease), 1_000, TIME_MS_MAX),
            ("drain_window_ms", of(self.drain_window), 0, DRAIN_WINDOW_MS_MAX),
            ("weights.smoothing_half_life_ms", weights.smoothing_half_life_ms, 0, TIME_MS_MAX),
            ("weights.confirm_half_life_ms", weights.confirm_half_life_ms, 0, TIME_MS_MAX),
            ("weights.slow_start_ms", weights.slow_start_ms, 0, TIME_MS_MAX),
            ("weights.slow_start_steps", u64::from(weights.slow_start_steps), 1, 100),
            ("triggers.cooldown_ms", triggers.cooldown_ms, 0, TIME_MS_MAX),
            ("triggers.broken_doublings_max", u64::from(triggers.broken_doublings_max), 0, 10),
            ("triggers.periodic_ms", triggers.periodic_ms, 0, TIME_MS_MAX),
            ("triggers.overload_interval_ms", triggers.overload_interval_ms, 0, TIME_MS_MAX),
            ("scaling.out_interval_ms", scaling.out_interval_ms, 0, TIME_MS_MAX),
            ("scaling.out_recent_ms", scaling.out_recent_ms, 0, TIME_MS_MAX),
            ("scaling.in_interval_ms", scaling.in_interval_ms, 0, TIME_MS_MAX),
            ("scaling.out_nodes_max", u64::from(scaling.out_nodes_max), 1, 1000),
            ("scaling.nodes_min", u64::from(scaling.nodes_min), 1, 4096),
            ("drain_disconnects_max", self.drain_disconnects_max, 1, 1_000_000),
        ];
        for (key, value, min, max) in times {
            ensure!((min..=max).contains(&value), "{key} is {value}: give {min} to {max}");
        }
        ensure!(
            self.poll < self.lease / 2,
            "poll_ms is {} and lease_ms {}: a lease must last longer than two polls",
            of(self.poll),
            of(self.lease)
        );
        Ok(())
    }

    fn check_thresholds(&self) -> anyhow::Result<()> {
        // Every other number is a share, a factor or a length in ms: none is negative or no number.
        let tables = [
            ("score", toml::Table::try_from(&self.score)?),
            ("weights", toml::Table::try_from(&self.weights)?),
            ("triggers", toml::Table::try_from(&self.triggers)?),
            ("scaling", toml::Table::try_from(&self.scaling)?),
        ];
        let floats = tables.iter().flat_map(|(table, keys)| keys.iter().map(move |(key, value)| (table, key, value)));
        for (table, key, value) in floats {
            if let Some(number) = value.as_float() {
                ensure!((0.0..=1e9).contains(&number), "{table}.{key} is {number}: give 0 to 1000000000");
            }
        }
        ensure!(self.score.epsilon >= 0.001, "score.epsilon is {}: give 0.001 or more", self.score.epsilon);
        ensure!(self.weights.kappa <= 2.0, "weights.kappa is {}: give 0 to 2", self.weights.kappa);
        let share = self.weights.moved_share_max;
        ensure!((0.001..=1.0).contains(&share), "weights.moved_share_max is {share}: give 0.001 to 1");
        let share = self.vanished_share_max;
        ensure!((0.0..=1.0).contains(&share), "vanished_share_max is {share}: give 0 to 1");
        Ok(())
    }

    /// The file that would lead to this configuration.
    pub fn to_toml(&self) -> anyhow::Result<String> {
        Ok(toml::to_string(self)?)
    }

    /// Flag and default of every flag, as `--help` shows it.
    pub fn shown_defaults(&self) -> Vec<(String, String)> {
        let mut shown: Vec<(String, String)> = [
            ("node_id", "the host's name and the process's number"),
            ("kafka", "none, must be given"),
            ("redis", "none, must be given"),
            ("prometheus", "none"),
        ]
        .map(|(flag, default)| (flag.to_owned(), default.to_owned()))
        .into();
        shown.extend(file::shown_defaults(self));
        shown
    }

    /// What the loop is told.
    pub fn settings(&self) -> Settings {
        Settings {
            name: self.name(),
            rules: self.rules(),
            seed: self.seed,
            poll: self.poll,
            lease: self.lease,
            heartbeat_timeout: self.heartbeat_timeout,
            vanished_share_max: self.vanished_share_max,
        }
    }

    /// Where Kafka is and how it is spoken to, if it is given.
    pub fn kafka(&self) -> Option<Kafka> {
        // Checked since the start.
        let options = self.kafka_options().unwrap_or_default();
        self.kafka.as_ref().map(|brokers| Kafka { brokers: brokers.clone(), options })
    }

    /// What Prometheus is asked.
    pub fn questions(&self) -> Questions {
        let Queries { cpu, mem, mps, p95_latency_ms } = self.queries.clone();
        Questions { cpu, mem, mps, p95_latency_ms }
    }

    /// This balancer's name.
    pub fn name(&self) -> NodeId {
        self.node_id.clone().unwrap_or_else(default_node_id)
    }

    /// What the pure core is told.
    pub fn rules(&self) -> Rules {
        Rules {
            score: self.score.clone(),
            policy: PolicyRules { kind: self.policy, ..self.weights.clone() },
            triggers: self.triggers.clone(),
            scaling: self.scaling.clone(),
        }
    }
}

/// The host's name, as far as a balancer's may be the same, and the process's number: two may run on one host.
fn default_node_id() -> NodeId {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name: String = name
        .trim()
        .chars()
        .map(|letter| if letter.is_ascii_alphanumeric() || matches!(letter, '.' | '_' | '-') { letter } else { '-' })
        .take(ring::NODE_ID_BYTES_MAX - 11)
        .collect();
    let name = if name.is_empty() { "balancer" } else { &name };
    NodeId::new(&format!("{name}-{}", std::process::id())).expect("letters, digits and a dash are allowed in a node id")
}
