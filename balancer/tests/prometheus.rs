//! The default queries with a real Prometheus that scrapes real nodes, as deploy/prometheus would have it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::process::Stdio;

use sonic_rs::{JsonContainerTrait as _, JsonValueTrait as _, Value};
use support::{Balancer, Fleet, Node, Process, Prometheus, RedisServer, Scratch, eventually, load};

const TEST: &str = "the_default_queries_find_every_node";
const NODES: [&str; 2] = ["a", "b"];
/// What [`Fleet`] says of each field: whoever believes Prometheus shows something else.
const SAID: [(&str, f64); 4] = [("cpu", 0.5), ("mem", 0.5), ("mps", 500.0), ("p95LatencyMs", 20.0)];

#[test]
fn the_default_queries_find_every_node() {
    if !Prometheus::is_there(TEST) {
        return;
    }
    let Some(redis) = RedisServer::start(TEST) else { return };
    // The nodes stand alone; others tell Redis of them, and tell something else than what Prometheus will find.
    let _fleet = Fleet::start(&redis, &NODES);
    let nodes = NODES.map(|name| Node::start(name, &["--log", "error"]));
    let _load = nodes.each_ref().map(|node| {
        let url = node.url();
        let flags = ["p2p", "--url", &url, "--connections", "10", "--rate", "50", "--duration", "10m"];
        Process::spawn(load(&flags).stdout(Stdio::null()).stderr(Stdio::null())).unwrap()
    });
    let scratch = Scratch::new("prometheus");
    let targets = nodes.each_ref().map(|node| (&*node.id, node.admin));
    let prometheus = Prometheus::start(&scratch.0, &targets);
    let balancer = Balancer::start("b1", &redis, None, &["--prometheus", &prometheus.url]);
    balancer.await_ring(&NODES);

    for (field, said) in SAID {
        for name in NODES {
            let value = eventually(&format!("{name}'s {field} is Prometheus'; log: {}", balancer.log()), || {
                let all: Value = balancer.get("/api/v1/nodes");
                let node = all["nodes"].as_array()?.iter().find(|node| node["nodeId"].as_str() == Some(name))?;
                // Rates are zero until the second scrape after the first delivery.
                node[field].as_f64().filter(|value| (value - said).abs() > 1e-9 && *value > 0.0)
            });
            println!("{name}: {field} is {value}");
        }
    }
    balancer.check_prometheus();
}
