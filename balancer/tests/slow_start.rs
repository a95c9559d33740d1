//! A node's slow start outlives the leader that began it: the next goes on where the last one was, whether it has
//! watched or was started afterwards.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use rustix::process::Signal;
use sonic_rs::{JsonContainerTrait as _, JsonValueTrait as _};
use support::{Balancer, Fleet, RedisServer, eventually};

/// Many steps, so that some are left however slow the machine is; loads believed at once, and nothing but a slow start that
/// could raise a weight.
const FLAGS: [&str; 2] = [
    "--set",
    "weights.slow_start_ms=120000,weights.slow_start_steps=20,\
     weights.smoothing_half_life_ms=0,weights.confirm_half_life_ms=0,\
     triggers.cooldown_ms=3600000,triggers.periodic_ms=3600000",
];

fn weight(balancer: &Balancer, node: &str) -> u64 {
    balancer.get("/api/v1/ring")["weights"][node].as_u64().unwrap()
}

/// Waits until `balancer` leads and has given `d` more by a slow start; returns its new weight.
#[track_caller]
fn await_step(balancer: &Balancer, before: u64) -> u64 {
    eventually("it leads", || balancer.is_leader().then_some(()));
    let version = balancer.ring().0;
    eventually("it goes on with the slow start", || {
        let ring = balancer.get("/api/v1/ring");
        let latest = ring["rebalances"].as_array()?.first()?.clone();
        let is_step = latest["reason"].as_str() == Some("slow-start: d") && latest["version"].as_u64()? > version;
        is_step.then_some(())
    });
    let now = weight(balancer, "d");
    assert!(now > before && now <= 100, "{now} after {before}");
    now
}

#[test]
fn a_slow_start_goes_on_under_the_next_leader() {
    let Some(redis) = RedisServer::start("a_slow_start_goes_on_under_the_next_leader") else { return };
    let fleet = Fleet::start(&redis, &["a", "b", "c"]);
    let first = Balancer::start("b1", &redis, None, &FLAGS);
    first.await_ring(&["a", "b", "c"]);
    let second = Balancer::start("b2", &redis, None, &FLAGS);
    fleet.add("d");
    fleet.set_cpu("d", 0.01);
    first.await_ring(&["a", "b", "c", "d"]);
    let begun = weight(&first, "d");
    assert!(begun < 25, "{begun}");
    second.await_ring(&["a", "b", "c", "d"]);
    first.signal(Signal::KILL);
    let risen = await_step(&second, begun);
    second.signal(Signal::KILL);
    // This one has never seen a ring without the node.
    let third = Balancer::start("b3", &redis, None, &FLAGS);
    await_step(&third, risen);
}
