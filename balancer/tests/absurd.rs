//! Heartbeats that cannot be, the same ones through `replay` and through a live balancer: refused by both in the same
//! words, counted under the same causes, and without a weight's moving for them.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::collections::{BTreeMap, BTreeSet};

use sonic_rs::JsonValueTrait as _;
use support::{Balancer, Fleet, RedisServer, eventually, run};

/// What replaces what in a sound heartbeat, and the cause it counts under.
const ABSURD: [(&str, &str, &str); 16] = [
    (r#""cpu":0.5"#, r#""cpu":NaN"#, "unreadable"),
    (r#""cpu":0.5"#, r#""cpu":-Infinity"#, "unreadable"),
    (r#""cpu":0.5"#, r#""cpu":-0.1"#, "unreadable"),
    (r#""cpu":0.5"#, r#""cpu":1.01"#, "unreadable"),
    (r#""cpu":0.5"#, r#""cpu":1e308"#, "unreadable"),
    (r#""cpu":0.5"#, r#""cpu":1e999"#, "unreadable"),
    (r#""cpu":0.5"#, r#""cpu":"0.5""#, "unreadable"),
    (r#""cpu":0.5"#, r#""cpu":null"#, "unreadable"),
    (r#""mem":0.5,"#, "", "unreadable"),
    (r#""mem":0.5"#, r#""mem":2"#, "unreadable"),
    (r#""activeConn":100"#, r#""activeConn":-1"#, "unreadable"),
    (r#""activeConn":100"#, r#""activeConn":0.5"#, "unreadable"),
    (r#""p95LatencyMs":20"#, r#""p95LatencyMs":1e308"#, "unreadable"),
    (r#""mps":10"#, r#""mps":[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]"#, "unreadable"),
    (r#""timestampMs":1"#, r#""timestampMs":1,"incarnation":-1"#, "unreadable"),
    (r#""timestampMs":1"#, r#""timestampMs":1,"ringVersion":9007199254740991"#, "version"),
];

fn sound(node: &str) -> String {
    format!(
        r#"{{"nodeId":"{node}","activeConn":100,"mps":10,"p95LatencyMs":20,"kafkaTopicLagLatencyMs":5,"cpu":0.5,"mem":0.5,"timestampMs":1}}"#
    )
}

fn names(prefix: &str) -> Vec<String> {
    (0..ABSURD.len()).map(|number| format!("{prefix}-{number:02}")).collect()
}

/// One absurd heartbeat of each of these nodes.
fn absurd(names: &[String]) -> Vec<String> {
    let heartbeat = |(name, (from, to, _)): (&String, &(&str, &str, &str))| {
        let (before, after) = (sound(name), sound(name).replace(from, to));
        assert_ne!(before, after);
        after
    };
    names.iter().zip(&ABSURD).map(heartbeat).collect()
}

fn line(ts: u64, heartbeats: &[String]) -> String {
    format!(r#"{{"ts":{ts},"heartbeats":[{}]}}"#, heartbeats.join(","))
}

/// Who was refused and in which words, from whole lines of `replay`.
fn replayed(complaints: &str) -> BTreeMap<String, String> {
    let told = complaints.lines().filter_map(|line| {
        let (name, refusal) = line.split_once(": heartbeat of \"")?.1.split_once("\" left out: ")?;
        Some((name.to_owned(), refusal.to_owned()))
    });
    told.collect()
}

/// The same from the log of a live balancer.
fn logged(log: &str) -> BTreeMap<String, String> {
    let told = log.lines().filter_map(|line| {
        let line: sonic_rs::Value = sonic_rs::from_str(line).ok()?;
        line["message"].as_str().filter(|message| message.starts_with("heartbeat refused"))?;
        Some((line["node"].as_str()?.to_owned(), line["refusal"].as_str()?.to_owned()))
    });
    told.collect()
}

#[test]
fn live_and_replayed_they_are_refused_alike_and_move_no_weight() {
    let Some(redis) = RedisServer::start("live_and_replayed_they_are_refused_alike_and_move_no_weight") else { return };
    let (old, new) = (names("old"), names("new"));
    let everyone: Vec<String> = ["a".to_owned(), "b".to_owned()].into_iter().chain(old.clone()).collect();
    let turned: Vec<String> = ["a", "b"].map(sound).into_iter().chain(absurd(&old)).chain(absurd(&new)).collect();

    let well: Vec<String> = everyone.iter().map(|name| sound(name)).collect();
    let lines = [line(1_000, &well), line(3_000, &turned), line(5_000, &well)].join("\n");
    let output = run(&["replay", "-"], &[], &(lines + "\n"));
    let complaints = String::from_utf8(output.stderr).unwrap();
    let answers = String::from_utf8(output.stdout).unwrap();
    let answers: Vec<sonic_rs::Value> = answers.lines().map(|line| sonic_rs::from_str(line).unwrap()).collect();
    assert_eq!(answers.len(), 3);
    assert_eq!(answers[0]["ringUpdate"]["nodeWeights"]["old-00"].as_u64(), Some(100));
    assert!(answers[1]["ringUpdate"].is_null() && answers[2]["ringUpdate"].is_null(), "{answers:?}");
    let refused = replayed(&complaints);
    assert_eq!(refused.len(), 2 * ABSURD.len(), "{complaints}");
    assert!(complaints.contains("heartbeats left out: unreadable 30, version 2"), "{complaints}");

    let people: Vec<&str> = everyone.iter().map(String::as_str).collect();
    let fleet = Fleet::start(&redis, &people);
    let balancer = Balancer::start("b1", &redis, None, &["--log-format", "json"]);
    let version = balancer.await_ring(&people);
    for (name, heartbeat) in old.iter().zip(absurd(&old)) {
        fleet.set_body(name, &heartbeat);
    }
    let mut connection = redis.connect();
    let told = eventually("everyone is refused", || {
        // Nodes that nobody has ever understood, beating.
        let (seconds, _): (u64, u64) = redis::cmd("TIME").query(&mut connection).unwrap();
        for (name, heartbeat) in new.iter().zip(absurd(&new)) {
            let key = format!("{{rtc}}:node:{name}");
            let _: () = redis::cmd("SET").arg(key).arg(heartbeat).query(&mut connection).unwrap();
            let beat = seconds * 1000;
            let _: () = redis::cmd("ZADD").arg("{rtc}:heartbeats").arg(beat).arg(name).query(&mut connection).unwrap();
        }
        let told = logged(&balancer.log());
        (told.len() == refused.len()).then_some(told)
    });
    for (name, refusal) in &told {
        // What is no JSON at all stands as null in a recorded line.
        let index: usize = name[4..].parse().unwrap();
        if !ABSURD[index].1.contains('N') && !ABSURD[index].1.contains("Inf") {
            assert_eq!(Some(refusal), refused.get(name), "{name}");
        }
    }
    // Three looks and the decisions between them later all is as it was.
    let count = |cause: &str| balancer.metric(&format!("rtc_lb_refused_heartbeats_total{{cause=\"{cause}\"}}"));
    for cause in ABSURD.iter().map(|(_, _, cause)| *cause).collect::<BTreeSet<_>>() {
        eventually("it is refused again and again", || (count(cause) >= 6.0).then_some(()));
    }
    assert_eq!(balancer.ring(), (version, everyone));
}
