//! The settings of a run, complete and checked: from here on nothing is optional by accident.
//!
//! In `defaults` what is not said is filled in, in `check` a [`Config`] is made of it or refused, in `servers` it is
//! resolved whom clients connect to. Opens nothing.

mod check;
mod defaults;
mod servers;

use std::{net::IpAddr, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    args::{DriverChoice, Scenario},
    fault::Fault,
    schedule::Rate,
    targets::{Pacing, Target},
};

pub(crate) use defaults::{with_defaults, with_file};
pub(crate) use servers::{Placement, Server, ServerKind, parse_url};

/// How messages, or in a storm connections, are paced.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Load {
    /// So many per second in total, by the clock.
    Open { per_second: f64 },
    /// So many in flight per connection, each answered by the next.
    Closed { depth: u32 },
    /// Nothing is sent.
    Silent,
}

impl Load {
    pub(crate) fn pacing(self) -> Pacing {
        match self {
            Self::Open { .. } => Pacing::OpenLoop,
            Self::Closed { .. } | Self::Silent => Pacing::ClosedLoop,
        }
    }

    /// The schedule's rate, if there is a schedule.
    pub(crate) fn rate(self) -> Option<Rate> {
        self.rate_per_second().and_then(Rate::new)
    }

    pub(crate) fn rate_per_second(self) -> Option<f64> {
        match self {
            Self::Open { per_second } => Some(per_second),
            Self::Closed { .. } | Self::Silent => None,
        }
    }
}

/// How clients leave their connections during a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Unrest {
    /// They do not.
    None,
    /// They are cut off.
    Cuts { interval: Duration },
    /// They move to the next server.
    Hops { interval: Duration },
}

impl Unrest {
    /// How long a connection lives, on average.
    pub(crate) fn interval(self) -> Option<Duration> {
        match self {
            Self::None => None,
            Self::Cuts { interval } | Self::Hops { interval } => Some(interval),
        }
    }
}

/// What a storm does with a connection once it is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum AfterHandshake {
    Close,
    Hold,
}

/// A complete, checked run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Config {
    pub(crate) scenario: Scenario,
    /// Nodes, or one balancer.
    pub(crate) servers: Vec<Server>,
    pub(crate) placement: Placement,
    pub(crate) unrest: Unrest,
    /// From 0 to 1: clients that acknowledge nothing for a while.
    pub(crate) silent_share: f64,
    pub(crate) faults: Vec<Fault>,
    /// Virtual clients; in a storm the connections to make before it ends early.
    pub(crate) connections: u32,
    pub(crate) load: Load,
    pub(crate) payload_bytes: u32,
    pub(crate) duration: Duration,
    pub(crate) warm_up: Duration,
    pub(crate) drain: Duration,
    pub(crate) connect_timeout: Duration,
    pub(crate) in_flight: u32,
    pub(crate) after_handshake: AfterHandshake,
    pub(crate) sender_acks: bool,
    pub(crate) receiver_acks: bool,
    pub(crate) processes: u32,
    pub(crate) threads: u32,
    pub(crate) cpus: Vec<u32>,
    pub(crate) driver: DriverChoice,
    /// Empty: the system chooses.
    pub(crate) sources: Vec<IpAddr>,
    pub(crate) seed: u64,
    pub(crate) targets: Vec<Target>,
    pub(crate) server_pid: Option<u32>,
    pub(crate) json: Option<PathBuf>,
    pub(crate) html: Option<PathBuf>,
    pub(crate) quiet: bool,
}

impl Config {
    /// Workers over all processes.
    pub(crate) fn workers(&self) -> u32 {
        self.processes * self.threads
    }

    /// True if clients outlive their connections: they come back, resume, and send again what was not confirmed.
    pub(crate) fn is_roaming(&self) -> bool {
        self.scenario.is_restless() || !self.faults.is_empty()
    }

    /// True if a balancer says where clients belong, so that the nodes are not known beforehand.
    pub(crate) fn is_balanced(&self) -> bool {
        self.servers.iter().any(|server| server.kind == ServerKind::Balancer)
    }
}

#[cfg(test)]
mod tests;
