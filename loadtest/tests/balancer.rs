//! Runs whose clients ask a balancer where they belong: it is asked before each connection, and what it gets wrong is
//! counted by cause.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod toy;

use std::{
    collections::BTreeSet,
    process::{Command, Output},
};

use sonic_rs::{JsonContainerTrait as _, JsonValueTrait as _, Value};
use toy::{
    Fault,
    balancer::{Answer, Balancer},
    runs::{flags, nobody, steady},
    serve,
};

const CLIENTS: u64 = 8;

fn run(line: &str, more: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_rtc-loadtest"))
        .args(flags(line))
        .args(["--json", "-", "--seed", "7"])
        .args(more)
        .output()
        .unwrap()
}

fn report(line: &str, balancer: &str) -> (i32, Value) {
    let output = run(line, &["--balancer", balancer]);
    let text = String::from_utf8(output.stdout).unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    let json = sonic_rs::from_str(&text).unwrap_or_else(|error| panic!("{line}: {error}: {text} {errors}"));
    (output.status.code().unwrap(), json)
}

/// One run with a balancer and a server of its own; again where the machine was too busy to judge.
fn steady_run(line: &str, fault: Fault) -> (Value, Vec<String>) {
    let run = || {
        let balancer = Balancer::start(Answer::Node(serve(fault)));
        let (code, report) = report(line, &balancer.url());
        (code, (report, balancer))
    };
    let (code, (report, balancer)) = steady(run, |_| true);
    assert_eq!((code, report["verdict"].as_str()), (0, Some("pass")), "{line}: {report}");
    assert_eq!(report["urls"][0].as_str(), Some(balancer.url().as_str()), "{line}: {report}");
    (report, balancer.asked())
}

fn count(report: &Value, field: &str) -> u64 {
    report[field].as_u64().unwrap_or_else(|| panic!("no count {field} in {report}"))
}

/// Each client asked for itself and for nothing but its place.
fn assert_each_asked(asked: &[String], line: &str) {
    let ids: BTreeSet<_> =
        asked.iter().map(|target| target.strip_prefix("/api/v1/resolve?clientId=").unwrap()).collect();
    assert!(ids.iter().all(|id| !id.is_empty() && !id.contains('&')), "{line}: {ids:?}");
    assert_eq!(ids.len() as u64, CLIENTS, "{line}: {ids:?}");
}

#[test]
fn clients_connect_where_the_balancer_says() {
    for line in [
        "p2p --connections 8 --rate 1000 --duration 300ms --warm-up 0s",
        "p2p --connections 8 --rate 1000 --duration 300ms --warm-up 0s --driver epoll",
        "p2p --connections 8 --rate 1000 --duration 300ms --warm-up 0s --processes 2",
        "idle --connections 8 --duration 100ms",
        "storm --hold --connections 8 --duration 100ms",
    ] {
        let (report, asked) = steady_run(line, Fault::None);
        assert_eq!((count(&report, "opened"), count(&report, "failed")), (CLIENTS, 0), "{line}: {report}");
        assert_eq!(asked.len() as u64, CLIENTS, "{line}: once each");
        assert_each_asked(&asked, line);
    }
}

#[test]
fn who_returns_asks_again() {
    // The drain is not shortened: whom the toy sends away several times running stays away for seconds.
    let steady = "--connections 8 --rate 1000 --duration 1200ms --warm-up 0s";
    for (line, fault) in [
        (format!("resume {steady} --cut-interval 200ms"), Fault::None),
        (format!("churn {steady} --hop-interval 200ms"), Fault::None),
        (format!("churn {steady} --hop-interval 1h"), Fault::Close(1012)),
        (format!("churn {steady} --hop-interval 1h"), Fault::Advise),
    ] {
        let (report, asked) = steady_run(&line, fault);
        assert_eq!(count(&report, "accepted"), count(&report, "sent"), "{line}: {report}");
        // Moves are among the returns. One that was under way at the end has asked as well.
        let returns = count(&report["roaming"], "returns");
        assert!(returns > 2, "{line}: {report}");
        assert!(asked.len() as u64 >= CLIENTS + returns, "{line}: asked {} times: {report}", asked.len());
        assert_each_asked(&asked, &line);
    }
}

#[test]
fn a_balancer_that_does_not_tell_is_named_with_the_cause() {
    let ok = |body: &str| Answer::Bytes(format!("HTTP/1.1 200 OK\r\n\r\n{body}").into_bytes());
    for (answer, cause) in [
        (
            Answer::Bytes(b"HTTP/1.1 503 Service Unavailable\r\n\r\n{\"code\":\"no_ring\"}".to_vec()),
            "balancer: refused: 503",
        ),
        (Answer::Bytes(b"SSH-2.0-toy\r\n\r\n".to_vec()), "balancer: its answer holds no wsUrl"),
        (Answer::Bytes(Vec::new()), "balancer: connect: unexpected end of file"),
        (ok("{}"), "balancer: its answer holds no wsUrl"),
        (ok(r#"{"wsUrl":"wss://127.0.0.1:1"}"#), "balancer: its wsUrl is not ws://HOST:PORT"),
        (ok(&format!(r#"{{"wsUrl":"{}"}}"#, "x".repeat(100_000))), "balancer: its answer is too long"),
        (Answer::Silence, "balancer: timed out"),
        // The node that it names is not there: that is the node's failure.
        (Answer::Node(nobody()), "connect: connection refused"),
    ] {
        let balancer = Balancer::start(answer.clone());
        // Only who never gets an answer waits for the end of its patience.
        let patience = if answer == Answer::Silence { "300ms" } else { "60s" };
        let line = format!("idle --connections 4 --duration 100ms --connect-timeout {patience}");
        let (code, report) = report(&line, &balancer.url());
        assert_eq!((code, count(&report, "opened")), (1, 0), "{cause}: {report}");
        assert!(report["errors"][cause].as_u64().unwrap_or(0) > 0, "{cause}: {report}");
        assert_eq!(report["errors"].as_object().unwrap().len(), 1, "{cause}: {report}");
    }
    let (_, report) = report("idle --connections 4 --duration 100ms", &format!("http://{}", nobody()));
    assert_eq!(report["errors"]["balancer: connect: connection refused"].as_u64(), Some(4), "{report}");
}

#[test]
fn servers_and_a_balancer_exclude_each_other() {
    let (url, balancer) = ("ws://127.0.0.1:1", "http://127.0.0.1:2");
    let output = run("p2p", &["--url", url, "--balancer", balancer]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{errors}");
    assert!(errors.contains("--url") && errors.contains("--balancer"), "{errors}");

    let file = std::env::temp_dir().join(format!("rtc-loadtest-balancer-{}.toml", std::process::id()));
    std::fs::write(&file, format!("url = [\"{url}\"]\nbalancer = \"{balancer}\"\n")).unwrap();
    let output = run("p2p", &["--config", file.to_str().unwrap()]);
    std::fs::remove_file(&file).unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{errors}");
    assert!(errors.contains("--url") && errors.contains("--balancer"), "{errors}");
}
