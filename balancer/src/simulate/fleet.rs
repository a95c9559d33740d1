//! What is simulated: capacities, offered load, how long things take. The built-in fleets, and those from TOML.

use serde::{Deserialize, Serialize};

/// Nodes of a simulated fleet: a ring of each step has to be built.
const NODES_MAX: usize = 1000;
/// The longest simulated time, in ms: a week.
const DURATION_MS_MAX: u64 = 7 * 24 * 60 * 60 * 1000;
/// The shortest time between two heartbeats, in ms.
const HEARTBEAT_MS_MIN: u64 = 100;
/// The most heartbeats of one run, nodes times steps: what is kept of it must fit in memory.
const HEARTBEATS_MAX: u64 = 20_000_000;

/// A fleet and what happens to it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fleet {
    /// What it is called.
    pub name: String,
    /// What each node can do, in any unit.
    pub capacities: Vec<f64>,
    /// Offered load as a share of all capacity.
    #[serde(default = "default_offered")]
    pub offered: f64,
    /// Standard deviation of what nodes measure, as a share of the true value.
    #[serde(default = "default_noise")]
    pub noise: f64,
    /// How long a node's error lasts, in ms: each measurement resembles those of so long before. 0: each errs by itself.
    #[serde(default)]
    pub noise_memory_ms: u64,
    /// Index of the Pareto distribution of what a client brings; the lower, the more a few bring most. None: all the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tail: Option<f64>,
    /// How far memory and latency are the same on every node whatever it does, 0 to 1.
    #[serde(default)]
    pub flat: f64,
    /// Between two heartbeats, in ms.
    #[serde(default = "default_heartbeat_ms")]
    pub heartbeat_ms: u64,
    /// Between two decisions, in ms; a multiple of `heartbeat_ms`.
    #[serde(default = "default_decision_ms")]
    pub decision_ms: u64,
    /// How long clients take to follow a new ring, in ms.
    #[serde(default = "default_drain_ms")]
    pub drain_ms: u64,
    /// Simulated time, in ms.
    #[serde(default = "default_duration_ms")]
    pub duration_ms: u64,
}

fn default_offered() -> f64 {
    0.6
}

fn default_noise() -> f64 {
    0.03
}

fn default_heartbeat_ms() -> u64 {
    2_000
}

fn default_decision_ms() -> u64 {
    20_000
}

fn default_drain_ms() -> u64 {
    210_000
}

fn default_duration_ms() -> u64 {
    3_600_000
}

/// What is wrong with a fleet.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    /// It is no TOML, lacks a key or has an unknown one.
    #[error("{0}")]
    Toml(String),
    /// A number is out of its range.
    #[error("{key} is {value}: give {wanted}")]
    Range {
        /// Which.
        key: &'static str,
        /// What it is.
        value: String,
        /// What it may be.
        wanted: &'static str,
    },
}

impl Fleet {
    /// Reads a fleet from TOML and checks it.
    ///
    /// # Errors
    /// Names the key or the line.
    pub fn parse(text: &str) -> Result<Self, FleetError> {
        let fleet: Self = toml::from_str(text).map_err(|error| {
            let start = error.span().map_or(0, |span| span.start);
            let line = text.get(..start).unwrap_or_default().matches('\n').count() + 1;
            FleetError::Toml(format!("line {line}: {}", error.message()))
        })?;
        fleet.check()?;
        Ok(fleet)
    }

    fn check(&self) -> Result<(), FleetError> {
        let range = |key, is_right: bool, value: String, wanted| {
            if is_right { Ok(()) } else { Err(FleetError::Range { key, value, wanted }) }
        };
        let nodes = self.capacities.len();
        range("capacities", (1..=NODES_MAX).contains(&nodes), format!("a list of {nodes}"), "1 to 1000 nodes")?;
        for capacity in &self.capacities {
            let is_right = (0.001..=1e6).contains(capacity);
            range("capacities", is_right, capacity.to_string(), "0.001 to 1000000 for each")?;
        }
        range("offered", (0.0..=10.0).contains(&self.offered), self.offered.to_string(), "0 to 10")?;
        range("noise", (0.0..=1.0).contains(&self.noise), self.noise.to_string(), "0 to 1")?;
        range(
            "noise_memory_ms",
            self.noise_memory_ms <= DURATION_MS_MAX,
            self.noise_memory_ms.to_string(),
            "at most a week",
        )?;
        if let Some(tail) = self.tail {
            range("tail", (1.01..=100.0).contains(&tail), tail.to_string(), "1.01 to 100")?;
        }
        range("flat", (0.0..=1.0).contains(&self.flat), self.flat.to_string(), "0 to 1")?;
        let (beat, decision, drain) = (self.heartbeat_ms, self.decision_ms, self.drain_ms);
        let is_right = (HEARTBEAT_MS_MIN..=DURATION_MS_MAX).contains(&beat);
        range("heartbeat_ms", is_right, beat.to_string(), "from 100 up")?;
        let is_right = decision > 0 && decision.is_multiple_of(beat);
        range("decision_ms", is_right, decision.to_string(), "a multiple of heartbeat_ms")?;
        range("drain_ms", (1..=DURATION_MS_MAX).contains(&drain), drain.to_string(), "from 1 up to a week")?;
        let is_right = (beat..=DURATION_MS_MAX).contains(&self.duration_ms)
            && self.duration_ms / beat * nodes as u64 <= HEARTBEATS_MAX;
        range("duration_ms", is_right, self.duration_ms.to_string(), "at most a week and 20 million heartbeats")
    }
}

/// The fleets that need no file.
pub fn built_in() -> Vec<Fleet> {
    let fleet = |name: &str, capacities: &[f64], noise: f64| Fleet {
        name: name.to_owned(),
        capacities: capacities.to_vec(),
        offered: default_offered(),
        noise,
        noise_memory_ms: 0,
        tail: None,
        flat: 0.0,
        heartbeat_ms: default_heartbeat_ms(),
        decision_ms: default_decision_ms(),
        drain_ms: default_drain_ms(),
        duration_ms: default_duration_ms(),
    };
    vec![
        fleet("steady", &[1.0; 10], 0.05),
        fleet("mixed", &[0.5, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.5, 1.5, 2.0], 0.03),
        fleet("trio", &[1.0, 1.0, 2.0], 0.03),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_fleets_are_sound_and_can_be_written_and_read() {
        for fleet in built_in() {
            fleet.check().unwrap();
            assert_eq!(Fleet::parse(&toml::to_string(&fleet).unwrap()).unwrap(), fleet);
        }
    }

    #[test]
    fn a_file_needs_only_a_name_and_capacities() {
        let fleet = Fleet::parse("name = \"two\"\ncapacities = [1, 2.5]").unwrap();
        assert_eq!((fleet.offered, fleet.decision_ms, fleet.drain_ms), (0.6, 20_000, 210_000));
    }

    #[test]
    fn what_cannot_be_simulated_is_refused_by_name() {
        for (text, word) in [
            ("name = \"x\"", "capacities"),
            ("name = \"x\"\ncapacities = []", "capacities is a list of 0"),
            ("name = \"x\"\ncapacities = [0]", "capacities is 0"),
            ("name = \"x\"\ncapacities = [nan]", "capacities is NaN"),
            ("name = \"x\"\ncapacities = [1]\nnoise = 2", "noise is 2"),
            ("name = \"x\"\ncapacities = [1]\noffered = -1", "offered is -1"),
            ("name = \"x\"\ncapacities = [1]\ntail = 1.0", "tail is 1"),
            ("name = \"x\"\ncapacities = [1]\nflat = 1.5", "flat is 1.5"),
            ("name = \"x\"\ncapacities = [1]\nnoise_memory_ms = 604800001", "noise_memory_ms is 604800001"),
            ("name = \"x\"\ncapacities = [1]\nheartbeat_ms = 1", "heartbeat_ms is 1"),
            ("name = \"x\"\ncapacities = [1]\ndecision_ms = 3000", "decision_ms is 3000"),
            ("name = \"x\"\ncapacities = [1]\ndrain_ms = 0", "drain_ms is 0"),
            ("name = \"x\"\ncapacities = [1]\nduration_ms = 0", "duration_ms is 0"),
            ("name = \"x\"\ncapacities = [1]\nspeed = 1", "line 3: unknown field `speed`"),
        ] {
            let reason = Fleet::parse(text).unwrap_err().to_string();
            assert!(reason.contains(word), "{reason}");
        }
    }
}
