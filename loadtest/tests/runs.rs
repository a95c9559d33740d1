//! Whole runs of the program against a server that behaves, or misbehaves in one known way.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod toy;

use std::{
    io::Read as _,
    net::SocketAddr,
    process::{Command, Output, Stdio},
};

use sonic_rs::{JsonContainerTrait as _, JsonValueTrait as _, Value};
use toy::{
    Fault,
    runs::{flags, nobody, steady},
    serve,
};

fn run(line: &str, server: SocketAddr) -> Output {
    Command::new(env!("CARGO_BIN_EXE_rtc-loadtest"))
        .args(flags(line))
        .args(["--url", &format!("ws://{server}"), "--json", "-", "--seed", "7"])
        .output()
        .unwrap()
}

fn report(line: &str, fault: Fault) -> (i32, Value) {
    let output = run(line, serve(fault));
    let text = String::from_utf8(output.stdout).unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    let json = sonic_rs::from_str(&text).unwrap_or_else(|error| panic!("{line}: {error}: {text} {errors}"));
    (output.status.code().unwrap(), json)
}

fn count(report: &Value, field: &str) -> u64 {
    report[field].as_u64().unwrap_or_else(|| panic!("no count {field} in {report}"))
}

/// A machine that is busy with other tests makes the generator late: that voids an open loop, and is tried again.
fn steady_report(line: &str, fault: Fault) -> (i32, Value) {
    steady(|| report(line, fault), |_| true)
}

/// The same for a closed loop, which sends the less the busier the machine is: one with at least so many messages.
fn report_of(messages: u64, line: &str, fault: Fault) -> (i32, Value) {
    steady(|| report(line, fault), |report| count(report, "sent") >= messages)
}

/// Of these some meet the toy's fault.
const MESSAGES_WITH_FAULTS: u64 = 200;

/// For a server at which something never arrives: all of the drain is waited for.
fn in_vain(line: &str) -> String {
    format!("{line} --drain 1s")
}

const ECHO: &str = "echo --connections 8 --depth 4 --duration 300ms --warm-up 0s";
const P2P: &str = "p2p --connections 8 --rate 2000 --duration 400ms --warm-up 100ms";

#[test]
fn a_server_that_behaves_passes() {
    for line in [
        ECHO.to_owned(),
        "echo --connections 4 --rate 1000 --payload 300 --duration 300ms --warm-up 100ms".to_owned(),
        P2P.to_owned(),
        format!("{P2P} --sender-acks --receiver-acks --payload 1000"),
        "p2p --connections 6 --depth 3 --receiver-acks --duration 300ms --warm-up 0s".to_owned(),
        "echo --connections 4 --depth 4 --payload 100000 --duration 300ms --warm-up 0s".to_owned(),
        "echo --connections 4 --depth 4 --driver epoll --duration 300ms --warm-up 0s".to_owned(),
        format!("{P2P} --sender-acks --receiver-acks --driver epoll"),
        "p2p --connections 8 --rate 1000 --threads 2 --duration 300ms --warm-up 0s".to_owned(),
    ] {
        let (code, report) = report_of(50, &line, Fault::None);
        assert_eq!((code, report["verdict"].as_str()), (0, Some("pass")), "{line}: {report}");
        assert_eq!(count(&report, "sent"), count(&report, "received"), "{line}");
        assert!(report["latency_us"]["p50"].as_f64().unwrap() > 0.0, "{line}: {report}");
    }
}

#[test]
fn more_under_way_than_the_sockets_hold_does_not_stop_either_end() {
    let line = "echo --connections 1 --depth 32 --payload 1000000 --duration 300ms --warm-up 0s --target received>=32";
    assert_eq!(report(line, Fault::None).0, 0);
}

#[test]
fn an_open_loop_sends_exactly_its_schedule() {
    let (_, report) = steady_report(P2P, Fault::None);
    assert_eq!(count(&report, "sent"), 1000, "2000/s for half a second: {report}");
}

#[test]
fn sender_acks_are_accounted_for() {
    let (code, report) = steady_report(&format!("{P2P} --sender-acks"), Fault::None);
    assert_eq!(code, 0, "{report}");
    assert_eq!((count(&report, "accepted"), count(&report, "unconfirmed")), (count(&report, "sent"), 0));
    assert!(report["ack_latency_us"]["count"].as_u64().unwrap() > 0);
}

#[test]
fn each_fault_of_the_server_is_found_and_called_by_its_name() {
    for (fault, field, expected_code) in [
        (Fault::Lose, "lost", 1),
        (Fault::Duplicate, "duplicated", 0),
        (Fault::Reorder, "reordered", 1),
        (Fault::Corrupt, "corrupt", 1),
    ] {
        for line in [ECHO, P2P].map(in_vain) {
            let (code, report) = report_of(MESSAGES_WITH_FAULTS, &line, fault);
            assert_eq!(code, expected_code, "{fault:?} {line}: {report}");
            assert!(count(&report, field) > 0, "{fault:?} {line}: {report}");
        }
    }
    let (code, report) = steady_report(&in_vain(P2P), Fault::Misdeliver);
    assert_eq!(code, 1, "{report}");
    assert!(count(&report, "misdelivered") > 0, "{report}");
}

#[test]
fn a_refused_message_is_counted_by_its_code_and_not_lost() {
    let (code, report) = steady_report(P2P, Fault::Refuse);
    assert_eq!(code, 0, "{report}");
    assert!(count(&report, "refused") > 0);
    assert_eq!(count(&report, "lost"), 0);
    assert_eq!(report["errors"]["error message: overloaded"].as_u64(), Some(count(&report, "refused")), "{report}");
}

#[test]
fn connections_that_break_fail_the_run() {
    let (code, report) = report_of(MESSAGES_WITH_FAULTS, ECHO, Fault::HangUp);
    assert_eq!(code, 1, "{report}");
    assert!(count(&report, "failed") > 0, "{report}");
}

#[test]
fn a_server_that_refuses_or_keeps_silent_is_named() {
    let line = "idle --connections 4 --duration 100ms";
    // Only who never gets an answer waits for the end of its patience.
    let impatient = &*format!("{line} --connect-timeout 300ms");
    for (fault, line, cause) in [
        (Fault::RefuseUpgrade, line, "refused: 503"),
        (Fault::Silent, impatient, "connect: timed out"),
        (Fault::NoWelcome, impatient, "connect: timed out"),
    ] {
        let (code, report) = report(line, fault);
        assert_eq!(code, 1, "{fault:?}: {report}");
        assert!(report["errors"][cause].as_u64().unwrap_or(0) > 0, "{fault:?}: {report}");
    }
}

#[test]
fn targets_decide_between_pass_and_fail() {
    let line = format!("{ECHO} --target p99<10s --target lost=0 --target rate>1");
    assert_eq!(report(&line, Fault::None).0, 0);
    let (code, report) = report(&format!("{ECHO} --target max<1us"), Fault::None);
    assert_eq!(code, 1);
    assert!(report["failures"][0].as_str().unwrap().contains("max<1us"), "{report}");
}

#[test]
fn idle_sessions_are_opened_and_held() {
    for driver in ["auto", "epoll"] {
        let line = format!("idle --connections 50 --duration 200ms --target connects>1 --driver {driver}");
        let (code, report) = report(&line, Fault::None);
        assert_eq!(code, 0, "{report}");
        assert_eq!((count(&report, "opened"), count(&report, "failed")), (50, 0));
    }
}

#[test]
fn a_storm_counts_what_was_accepted() {
    for line in [
        "storm --duration 300ms --target connects>1",
        "storm --duration 300ms --rate 200",
        "storm --duration 300ms --driver epoll",
        "storm --duration 300ms --hold --connections 20",
    ] {
        // How many there are in so short a time is the machine's affair; a few must be for the figures to say anything.
        let (code, report) = steady(|| report(line, Fault::None), |report| count(report, "opened") >= 20);
        assert_eq!(code, 0, "{line}: {report}");
        assert!(report["handshake_us"]["p50"].as_f64().unwrap() > 0.0);
    }
    let (code, report) = report("storm --duration 200ms", Fault::RefuseUpgrade);
    assert_eq!(code, 1, "{report}");
    assert!(report["errors"]["refused: 503"].as_u64().unwrap() > 0, "{report}");
}

#[test]
fn several_processes_add_up_to_one_run() {
    let line = "p2p --connections 12 --rate 1500 --processes 3 --sender-acks --duration 400ms --warm-up 0s";
    let (code, report) = steady_report(line, Fault::None);
    assert_eq!(code, 0, "{report}");
    assert_eq!((count(&report, "opened"), count(&report, "sent")), (12, 600), "{report}");
    assert_eq!(count(&report, "accepted"), 600);
    assert!(report["latency_us"]["count"].as_u64().unwrap() > 500, "{report}");
}

#[test]
fn the_highest_rate_that_holds_is_found() {
    // A target that a rate of 900/s and more misses, whatever the server does.
    let line = "capacity --connections 4 --rate 200 --duration 300ms --warm-up 0s --target rate<900 --quiet";
    let (code, report) =
        steady(|| report(line, Fault::None), |report| report["capacity"]["limited_by"].as_str() == Some("server"));
    assert_eq!((code, report["scenario"].as_str()), (0, Some("capacity")), "{report}");
    let rate = report["capacity"]["rate"].as_f64().unwrap();
    assert!((800.0..=900.0).contains(&rate), "{report}");
    assert_eq!(report["rate"]["intended"].as_f64(), Some(rate), "the figures are of that run: {report}");
    let steps = report["capacity"]["steps"].as_array().unwrap();
    assert!(steps.len() >= 6 && steps.iter().any(|step| step["verdict"].as_str() == Some("fail")), "{report}");
}

#[test]
fn a_server_that_holds_no_rate_fails_the_search() {
    let line = "capacity --connections 4 --rate 4 --duration 100ms --warm-up 0s --drain 100ms --quiet --target rate<0";
    let (code, report) = report(line, Fault::None);
    assert!(code != 0 && report["capacity"]["rate"].is_null(), "{report}");
}

#[test]
fn an_interrupted_run_still_reports() {
    let server = serve(Fault::None);
    for processes in ["1", "2"] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_rtc-loadtest"))
            .args(["echo", "--connections", "4", "--duration", "1h", "--json", "-", "--processes", processes])
            .args(["--url", &format!("ws://{server}")])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Interrupted wherever it happens to be: connecting, warming up or measuring.
        while !catches_interrupts(child.id()) {
            std::thread::yield_now();
        }
        assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
        let mut text = String::new();
        child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        child.wait().unwrap();
        let report: Value = sonic_rs::from_str(&text).unwrap();
        assert_eq!(count(&report, "sent"), count(&report, "received"), "{report}");
    }
}

fn catches_interrupts(process: u32) -> bool {
    const SIGINT_BIT: u64 = 1 << 1;
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
    u64::from_str_radix(mask.trim(), 16).unwrap() & SIGINT_BIT != 0
}

#[test]
fn bad_usage_exits_2_and_names_the_value() {
    for (line, named) in [("echo --depth 0", "--depth 0"), ("echo --target p98<1ms", "p98"), ("run", "run")] {
        let output = run(line, nobody());
        assert_eq!(output.status.code(), Some(2), "{line}");
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(errors.contains(named), "{line}: {errors}");
    }
}

#[test]
fn the_page_is_whole_and_fetches_nothing() {
    let path = std::env::temp_dir().join(format!("rtc-loadtest-{}.html", std::process::id()));
    let (code, _) = steady_report(&format!("{P2P} --html {}", path.display()), Fault::None);
    let page = std::fs::read_to_string(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(code, 0);
    assert!(page.starts_with("<!doctype html>") && page.ends_with("</html>\n"));
    for part in ["Latency by percentile", "Messages per second", "Ledger", "Setting", "<polyline"] {
        assert!(page.contains(part), "{part}");
    }
    for fetched in ["<script", "src=", "href=", "url(", "@import"] {
        assert!(!page.contains(fetched), "{fetched}");
    }
}

#[test]
fn no_server_at_all_fails_with_the_cause() {
    let output = run("echo --connections 3 --duration 100ms", nobody());
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stdout).contains("connection refused"));
}
