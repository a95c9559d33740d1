//! Nodes as Redis knows them: a thread that beats for all of them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use redis::Connection;

use super::RedisServer;

/// Between two beats: quicker than real nodes, so that tests are.
const BEAT: Duration = Duration::from_millis(300);

/// What a node says.
#[derive(Debug, Clone)]
struct Node {
    cpu: f64,
    incarnation: u64,
    body: Option<String>,
}

pub struct Fleet {
    nodes: Arc<Mutex<BTreeMap<String, Node>>>,
    is_over: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Fleet {
    /// Lets these nodes beat at half load.
    pub fn start(redis: &RedisServer, names: &[&str]) -> Self {
        let node = Node { cpu: 0.5, incarnation: 1, body: None };
        let nodes: BTreeMap<_, _> = names.iter().map(|name| ((*name).to_owned(), node.clone())).collect();
        let nodes = Arc::new(Mutex::new(nodes));
        let is_over = Arc::new(AtomicBool::new(false));
        let (mut connection, shared, over) = (redis.connect(), Arc::clone(&nodes), Arc::clone(&is_over));
        let thread = std::thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                // Under the lock: who is taken out does not beat again behind the taker's back.
                let nodes = shared.lock().unwrap();
                for (name, node) in &*nodes {
                    // A server that a test has stopped is not asked again.
                    if beat(&mut connection, name, node).is_err() {
                        return;
                    }
                }
                drop(nodes);
                std::thread::sleep(BEAT);
            }
        });
        Self { nodes, is_over, thread: Some(thread) }
    }

    pub fn add(&self, name: &str) {
        self.nodes.lock().unwrap().insert(name.to_owned(), Node { cpu: 0.5, incarnation: 1, body: None });
    }

    /// The node is dead: it has beaten for the last time.
    pub fn kill(&self, name: &str) {
        assert!(self.nodes.lock().unwrap().remove(name).is_some());
    }

    pub fn set_cpu(&self, name: &str, cpu: f64) {
        self.nodes.lock().unwrap().get_mut(name).unwrap().cpu = cpu;
    }

    /// The node beats, and says this instead of a heartbeat.
    pub fn set_body(&self, name: &str, body: &str) {
        self.nodes.lock().unwrap().get_mut(name).unwrap().body = Some(body.to_owned());
    }

    /// The node was started anew.
    pub fn restart(&self, name: &str) {
        self.nodes.lock().unwrap().get_mut(name).unwrap().incarnation += 1;
    }
}

fn beat(connection: &mut Connection, name: &str, node: &Node) -> redis::RedisResult<()> {
    let (seconds, micros): (u64, u64) = redis::cmd("TIME").query(connection)?;
    let now_ms = seconds * 1000 + micros / 1000;
    let Node { cpu, incarnation, body } = node;
    let heartbeat = format!(
        r#"{{"nodeId":"{name}","activeConn":1000,"mps":500,"p95LatencyMs":20,"kafkaTopicLagLatencyMs":5,"cpu":{cpu},"mem":{cpu},"timestampMs":{now_ms},"incarnation":{incarnation},"url":"ws://{name}.example:8080"}}"#
    );
    redis::pipe()
        .cmd("ZADD")
        .arg("{rtc}:heartbeats")
        .arg(now_ms)
        .arg(name)
        .ignore()
        .cmd("SET")
        .arg(format!("{{rtc}}:node:{name}"))
        .arg(body.as_ref().unwrap_or(&heartbeat))
        .arg("EX")
        .arg(10)
        .ignore()
        .query(connection)
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
