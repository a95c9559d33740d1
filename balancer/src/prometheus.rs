//! Prometheus: instant queries for what nodes do not know of themselves as well. A thread asks, the balancer reads the
//! last answers; an empty or absurd answer means unknown, and the node's own report stands.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ring::control::DEPTH_MAX;
use ring::{NodeId, nesting};
use serde::Deserialize;
use tracing::{info, warn};

use crate::heartbeats::Load;

/// How long an answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// Between two rounds of queries.
const ROUND_PAUSE: Duration = Duration::from_secs(2);
/// An older answer says nothing of now.
const FRESH_FOR: Duration = Duration::from_secs(15);
/// The longest answer: some hundred bytes for each of the largest ring's nodes.
const ANSWER_BYTES_MAX: u64 = 8 << 20;
/// The largest latency or rate that is believed.
const VALUE_MAX: f64 = 1e12;

/// The queries; an empty one is not asked.
#[derive(Debug, Clone, Default)]
pub struct Questions {
    /// Share of the processors in use.
    pub cpu: String,
    /// Share of the memory in use.
    pub mem: String,
    /// Messages per second.
    pub mps: String,
    /// Latency in ms.
    pub p95_latency_ms: String,
}

/// One value per node for each question, in the questions' order.
type Values = [BTreeMap<NodeId, f64>; 4];

/// The last answers.
#[derive(Debug, Default)]
pub struct Answers {
    known: Mutex<Option<(Instant, Values)>>,
    failures: AtomicU64,
}

impl Answers {
    /// Puts what is known of `node` over what it says itself.
    pub fn overlay(&self, node: &NodeId, load: &mut Load) {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((_, answers)) = known.as_ref().filter(|(at, _)| at.elapsed() < FRESH_FOR) else { return };
        let fields = [&mut load.cpu, &mut load.mem, &mut load.mps, &mut load.latency_ms];
        for (field, answer) in fields.into_iter().zip(answers) {
            if let Some(value) = answer.get(node) {
                *field = *value;
            }
        }
    }

    /// Returns how many queries have failed.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }
}

/// Starts the thread that asks.
///
/// # Errors
/// When the thread cannot be had.
pub fn start(url: &str, questions: Questions) -> std::io::Result<Arc<Answers>> {
    let answers = Arc::new(Answers::default());
    let target = format!("{}/api/v1/query", url.trim_end_matches('/'));
    let agent: ureq::Agent = ureq::Agent::config_builder().timeout_global(Some(ANSWER_TIMEOUT)).build().into();
    let shared = Arc::clone(&answers);
    std::thread::Builder::new().name("prometheus".to_owned()).spawn(move || {
        let mut is_failing = false;
        loop {
            round(&agent, &target, &questions, &shared, &mut is_failing);
            std::thread::sleep(ROUND_PAUSE);
        }
    })?;
    Ok(answers)
}

fn round(agent: &ureq::Agent, target: &str, questions: &Questions, answers: &Answers, is_failing: &mut bool) {
    let limits = [1.0, 1.0, VALUE_MAX, VALUE_MAX];
    let queries = [&questions.cpu, &questions.mem, &questions.mps, &questions.p95_latency_ms];
    let mut all: Values = Default::default();
    for ((query, limit), slot) in queries.into_iter().zip(limits).zip(&mut all) {
        if query.is_empty() {
            continue;
        }
        match ask(agent, target, query) {
            Ok(body) => *slot = values(&body, limit),
            Err(reason) => {
                answers.failures.fetch_add(1, Ordering::Relaxed);
                if !std::mem::replace(is_failing, true) {
                    warn!(query, reason, "prometheus does not answer: going by what the nodes say");
                }
                return;
            }
        }
    }
    if std::mem::take(is_failing) {
        info!("prometheus answers again");
    }
    *answers.known.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), all));
}

fn ask(agent: &ureq::Agent, target: &str, query: &str) -> Result<String, String> {
    let mut response = agent.get(target).query("query", query).call().map_err(|error| error.to_string())?;
    response.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_string().map_err(|error| error.to_string())
}

/// Reads an instant vector: one value for each `node_id`. Whatever is absurd is left out.
fn values(body: &str, max: f64) -> BTreeMap<NodeId, f64> {
    #[derive(Deserialize)]
    struct Body {
        data: Data,
    }
    #[derive(Deserialize)]
    struct Data {
        result: Vec<Sample>,
    }
    #[derive(Deserialize)]
    struct Sample {
        metric: Labels,
        value: (f64, String),
    }
    #[derive(Deserialize)]
    struct Labels {
        node_id: Option<String>,
    }
    if nesting::depth(body.as_bytes()) > DEPTH_MAX {
        return BTreeMap::new();
    }
    let Ok(body) = sonic_rs::from_str::<Body>(body) else { return BTreeMap::new() };
    let sound = body.data.result.into_iter().filter_map(|Sample { metric, value: (_, text) }| {
        let value: f64 = text.parse().ok()?;
        let node = NodeId::new(&metric.node_id?).ok()?;
        (0.0..=max).contains(&value).then_some((node, value))
    });
    sound.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_a_value_for_each_node_and_absurd_ones_are_unknown() {
        let body = r#"{"status":"success","data":{"resultType":"vector","result":[
            {"metric":{"node_id":"a"},"value":[1700000000.5,"0.25"]},
            {"metric":{"node_id":"b"},"value":[1700000000.5,"NaN"]},
            {"metric":{"node_id":"c"},"value":[1700000000.5,"-1"]},
            {"metric":{"node_id":"d"},"value":[1700000000.5,"1.5"]},
            {"metric":{"node_id":"no spaces"},"value":[1700000000.5,"0.5"]},
            {"metric":{"job":"x"},"value":[1700000000.5,"0.5"]}]}}"#;
        let values = values(body, 1.0);
        assert_eq!(
            values.into_iter().map(|(node, value)| (node.to_string(), value)).collect::<Vec<_>>(),
            [("a".to_owned(), 0.25)]
        );
    }

    #[test]
    fn what_is_no_answer_is_unknown() {
        for body in [
            "",
            "{}",
            r#"{"status":"success","data":{"resultType":"vector","result":[]}}"#,
            "<html>",
            &"[".repeat(100_000),
        ] {
            assert_eq!(values(body, 1.0).len(), 0);
        }
    }

    #[test]
    fn what_is_known_goes_over_what_the_node_says() {
        let answers = Answers::default();
        let node = NodeId::new("a").unwrap();
        let mut load = Load { cpu: 0.5, mem: 0.6, ..Load::default() };
        answers.overlay(&node, &mut load);
        assert_eq!(load.cpu, 0.5);
        let cpu = [(node.clone(), 0.9)].into_iter().collect();
        *answers.known.lock().unwrap() =
            Some((Instant::now(), [cpu, BTreeMap::new(), BTreeMap::new(), BTreeMap::new()]));
        answers.overlay(&node, &mut load);
        assert_eq!((load.cpu, load.mem), (0.9, 0.6));
        answers.overlay(&NodeId::new("b").unwrap(), &mut load);
        assert_eq!((load.cpu, load.mem), (0.9, 0.6));
    }
}
