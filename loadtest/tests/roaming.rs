//! Runs in which clients outlive their connections: against a server that behaves, one that misbehaves in a known way,
//! and the real one.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod server;
mod toy;

use std::{
    io::Read as _,
    net::SocketAddr,
    os::unix::process::ExitStatusExt as _,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use server::Server;
use sonic_rs::{JsonContainerTrait as _, JsonValueTrait as _, Value};
use toy::{
    Fault,
    runs::{ATTEMPTS, VOID, flags, nobody, steady},
    serve,
};

fn report(line: &str, urls: &str, faults: &[String]) -> (i32, Value) {
    let faults = faults.iter().flat_map(|fault| ["--fault", fault]);
    let output = Command::new(env!("CARGO_BIN_EXE_rtc-loadtest"))
        .args(flags(line))
        .args(["--url", urls, "--json", "-", "--seed", "7"])
        .args(faults)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    let json = sonic_rs::from_str(&text).unwrap_or_else(|error| panic!("{line}: {error}: {text} {errors}"));
    (output.status.code().unwrap(), json)
}

/// A machine that is busy with other tests makes the generator late: that voids the run, and it is tried again.
fn steady_report(line: &str, urls: impl Fn() -> String) -> (i32, Value) {
    steady(|| report(line, &urls(), &[]), |_| true)
}

fn toy_url(fault: Fault) -> String {
    url(serve(fault))
}

fn url(addr: SocketAddr) -> String {
    format!("ws://{addr}")
}

fn count(report: &Value, field: &str) -> u64 {
    report[field].as_u64().unwrap_or_else(|| panic!("no count {field} in {report}"))
}

fn sum(causes: &Value) -> u64 {
    causes.as_object().unwrap().iter().map(|(_, count)| count.as_u64().unwrap()).sum()
}

// Neither shortens the drain, which ends when everything has arrived and everyone is back: who was sent away several
// times running stays away for seconds, and a busy machine takes its own time.
const RESUME: &str = "resume --connections 8 --rate 1000 --duration 1200ms --warm-up 0s --cut-interval 200ms";
const CHURN: &str =
    "churn --connections 8 --rate 1000 --duration 1200ms --warm-up 0s --hop-interval 200ms --silent-share 25%";

/// The same for a server at which something never arrives: all of the drain is waited for.
fn in_vain(line: &str) -> String {
    format!("{line} --drain 2s")
}

/// The same until clients have left and returned as often as the run is about: how often depends on the machine's pace.
fn restless_report(line: &str, urls: impl Fn() -> String) -> (i32, Value) {
    let is_restless = |report: &Value| {
        let roaming = &report["roaming"];
        let left = count(roaming, "goodbyes");
        let otherwise = count(roaming, if line.starts_with("resume") { "cuts" } else { "moves" });
        count(report, "sent") > 1000 && count(roaming, "returns") > 15 && left > 0 && otherwise > 0
    };
    steady(|| report(line, &urls(), &[]), is_restless)
}

/// Everything was sent, accepted and received once, and who left has returned.
fn assert_flawless(line: &str, code: i32, report: &Value) {
    assert_eq!((code, report["verdict"].as_str()), (0, Some("pass")), "{line}: {report}");
    let sent = count(report, "sent");
    assert_eq!((count(report, "accepted"), count(report, "received")), (sent, sent), "{line}: {report}");
    assert_eq!(count(report, "unconfirmed"), 0, "{line}: {report}");
    let roaming = &report["roaming"];
    assert!(roaming["return_us"]["p50"].as_f64().unwrap() > 0.0, "{line}: {report}");
    assert!(roaming["catch_up_us"]["p50"].as_f64().unwrap() > 0.0, "{line}: {report}");
    if line.starts_with("churn") {
        assert_eq!(count(roaming, "silent_clients"), 2, "{line}: {report}");
    }
    assert_eq!(count(roaming, "unrecovered"), 0, "{line}: {report}");
}

#[test]
fn clients_that_leave_and_return_lose_nothing_at_a_server_that_behaves() {
    for line in [RESUME.to_owned(), CHURN.to_owned(), format!("{RESUME} --driver epoll")] {
        let (code, report) = restless_report(&line, || toy_url(Fault::None));
        assert_flawless(&line, code, &report);
    }
}

#[test]
fn clients_that_leave_and_return_lose_nothing_at_the_real_server() {
    let server = Server::start(&[]);
    for line in [
        RESUME.to_owned(),
        CHURN.to_owned(),
        format!("{CHURN} --threads 2"),
        format!("{RESUME} --processes 2 --target unrecovered=0 --target catch-up-p99<10s --target breaks=0"),
    ] {
        let (code, report) = restless_report(&line, || server.url());
        assert_flawless(&line, code, &report);
    }
}

#[test]
fn who_is_away_when_the_run_ends_is_waited_for() {
    // Hardly anything is sent, so that nothing but the clients is outstanding; and mostly some of them are away.
    let line = "resume --connections 16 --rate 20 --duration 200ms --warm-up 0s --cut-interval 60ms";
    for _ in 0..5 {
        let (code, report) = steady_report(line, || toy_url(Fault::None));
        assert_eq!((code, count(&report, "failed")), (0, 0), "{report}");
    }
}

#[test]
fn each_fault_of_the_server_is_found_behind_what_clients_forgive() {
    for (fault, field) in [
        (Fault::Lose, "lost"),
        (Fault::Rename, "duplicated"),
        (Fault::Reorder, "reordered"),
        (Fault::Corrupt, "corrupt"),
        (Fault::Misdeliver, "misdelivered"),
        (Fault::Forget, "lost"),
    ] {
        for line in [RESUME, CHURN].map(in_vain) {
            let (code, report) = steady_report(&line, || toy_url(fault));
            assert_eq!(code, 1, "{fault:?} {line}: {report}");
            assert!(count(&report, field) > 0, "{fault:?} {line}: {report}");
            let verdict = format!("ledger: {} {field}", count(&report, field));
            let failures = report["failures"].as_array().unwrap();
            assert!(failures.iter().any(|failure| failure.as_str() == Some(&verdict)), "{fault:?} {line}: {report}");
        }
    }
}

#[test]
fn a_server_that_confirms_nothing_has_not_passed() {
    let (code, report) = steady_report(&in_vain(RESUME), || toy_url(Fault::Unconfirmed));
    assert_eq!(code, 1, "{report}");
    assert_eq!((count(&report, "lost"), count(&report, "accepted")), (0, 0), "{report}");
    assert_eq!(count(&report, "unconfirmed"), count(&report, "sent"), "{report}");
}

#[test]
fn a_server_that_forgets_says_so_and_is_heard() {
    let (_, report) = steady_report(&in_vain(RESUME), || toy_url(Fault::Forget));
    assert_eq!(count(&report["roaming"], "unrecovered"), count(&report["roaming"], "returns"), "{report}");
}

#[test]
fn repeats_under_their_own_name_are_dropped_and_counted() {
    let (code, report) = steady_report(RESUME, || toy_url(Fault::Duplicate));
    assert_eq!((code, count(&report, "duplicated")), (0, 0), "{report}");
    assert!(count(&report["roaming"], "repeats_dropped") > 5, "{report}");
}

#[test]
fn what_is_refused_for_now_is_sent_again_until_it_is_accepted() {
    let (code, report) = steady_report(RESUME, || toy_url(Fault::Refuse));
    assert_eq!(code, 0, "{report}");
    assert!(report["errors"]["error message: overloaded"].as_u64().unwrap() > 5, "{report}");
    assert!(count(&report["roaming"], "resent") > 5, "{report}");
    assert_eq!((count(&report, "refused"), count(&report, "accepted")), (0, count(&report, "sent")), "{report}");
}

#[test]
fn advice_to_move_is_followed_without_a_break() {
    let line = "churn --connections 8 --rate 1000 --duration 1s --warm-up 0s --hop-interval 1h";
    // How many of the advised have moved by the end depends on the machine's pace.
    let has_moved = |report: &Value| count(&report["roaming"], "moves") > 0;
    let (code, report) = steady(|| report(line, &toy_url(Fault::Advise), &[]), has_moved);
    assert_eq!(code, 0, "{report}");
    let roaming = &report["roaming"];
    assert!(count(roaming, "advised") > 3, "{report}");
    assert_eq!((count(roaming, "goodbyes"), sum(&roaming["breaks"])), (0, 0), "{report}");
}

#[test]
fn close_codes_say_whether_to_return() {
    let line = "churn --connections 8 --rate 1000 --duration 1s --warm-up 0s --hop-interval 1h";
    for code in [1012, 1001, 4202] {
        let (exit, report) = steady_report(line, || toy_url(Fault::Close(code)));
        assert_eq!(exit, 0, "{code}: {report}");
        let cause = format!("closed by the server with {code}");
        let breaks = report["roaming"]["breaks"][cause.as_str()].as_u64().unwrap();
        assert!(breaks > 2 && count(&report["roaming"], "returns") >= breaks, "{code}: {report}");
    }
    let (exit, report) = steady_report(&in_vain(line), || toy_url(Fault::Close(4001)));
    assert_eq!(exit, 1, "{report}");
    assert!(report["errors"]["closed by the server with 4001"].as_u64().unwrap() > 0, "{report}");
    assert_eq!(count(&report["roaming"], "returns"), 0, "{report}");
}

#[test]
fn a_server_that_is_away_is_skipped_until_it_answers() {
    let (code, report) = steady_report(RESUME, || format!("{},{}", toy_url(Fault::None), url(nobody())));
    assert_eq!((code, count(&report, "opened"), count(&report, "failed")), (0, 8, 0), "{report}");
    assert!(report["roaming"]["retries"]["connect: connection refused"].as_u64().unwrap() >= 4, "{report}");
    assert_eq!(count(&report, "accepted"), count(&report, "sent"), "{report}");
}

#[test]
fn pairs_are_spread_over_servers_as_asked() {
    let servers = [Server::start(&["--node-id", "one"]), Server::start(&["--node-id", "two"])];
    let urls = format!("{},{}", servers[0].url(), servers[1].url());
    for (line, crossing) in [
        ("p2p --connections 16 --pairs local", 0),
        ("p2p --connections 16 --pairs cross", 8),
        ("p2p --connections 16 --pairs mixed", 4),
        ("churn --connections 16 --hop-interval 1h --pairs cross", 8),
    ] {
        // The two know nothing of each other, so that what crosses is lost here, and waited for in vain: this is about
        // who is where.
        let drain = if crossing > 0 { "--drain 200ms" } else { "" };
        let line = format!("{line} --rate 400 --duration 300ms --warm-up 0s {drain}");
        let (code, report) = steady_report(&line, || urls.clone());
        assert_eq!(code, i32::from(crossing > 0), "{line}: {report}");
        let pairs = &report["pairs"];
        assert_eq!((count(pairs, "total"), count(pairs, "crossing")), (8, crossing), "{line}: {report}");
        assert_eq!((count(&report["nodes"], "one"), count(&report["nodes"], "two")), (8, 8), "{line}: {report}");
        assert_eq!(count(&report, "lost") > 0, crossing > 0, "{line}: {report}");
    }
    let (_, same) = steady_report("p2p --connections 8 --duration 300ms --warm-up 0s", || servers[0].url());
    assert_eq!(count(&same["pairs"], "crossing"), 0, "one server is one node: {same}");
}

#[test]
fn a_server_that_is_stopped_for_a_while_delays_and_loses_nothing() {
    let line = "p2p --connections 8 --rate 400 --duration 4s --warm-up 200ms --sender-acks --receiver-acks";
    let server = Server::start(&[]);
    let faults = [format!("at=500ms stop={}", server.pid()), format!("at=2500ms cont={}", server.pid())];
    let line = format!("{line} --target recovery<60s --target recovery>1s");
    let (code, report) = steady(|| report(&line, &server.url(), &faults), |_| true);
    assert_eq!(code, 0, "{report}");
    assert_eq!(count(&report, "accepted"), count(&report, "sent"), "{report}");
    let recovery = |index: usize| report["faults"][index]["recovery_s"].as_f64().unwrap();
    assert_eq!(report["faults"][0]["action"].as_str(), Some("stop"));
    assert_eq!(report["faults"][1]["action"].as_str(), Some("cont"));
    // The same moment, counted from two seconds earlier and from here.
    assert!(recovery(1) > 0.0 && (recovery(0) - recovery(1) - 2.0).abs() < 0.01, "{report}");
}

#[test]
fn a_server_that_is_killed_and_comes_back_is_found_again() {
    let mut server = Server::start(&[]);
    let (addr, pid) = (server.addr(), server.pid());
    let line = "p2p --connections 8 --rate 400 --duration 4s --warm-up 0s --sender-acks --receiver-acks";
    let mut run = Command::new(env!("CARGO_BIN_EXE_rtc-loadtest"))
        .args(line.split_whitespace())
        .args(["--url", &server.url(), "--json", "-", "--fault", &format!("at=500ms kill={pid}")])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    server.wait();
    let _again = Server::start_at(addr);
    let mut text = String::new();
    run.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    let code = run.wait().unwrap().code().unwrap();
    let report: Value = sonic_rs::from_str(&text).unwrap();
    // A node that runs alone forgets what it held: what it had accepted and not delivered may be lost, and is counted.
    let is_lossless = count(&report, "lost") == 0;
    assert!(code == VOID || code == i32::from(!is_lossless), "{report}");
    let fault = &report["faults"][0];
    assert_eq!(fault["recovery_s"].is_number(), is_lossless, "{report}");
    assert_eq!(count(fault, "lost"), count(&report, "lost"), "{report}");
    assert!(sum(&report["roaming"]["breaks"]) >= 8 && count(&report["roaming"], "returns") >= 8, "{report}");
    assert_eq!(count(&report["roaming"], "unrecovered"), count(&report["roaming"], "returns"), "{report}");
    assert_eq!(count(&report, "accepted"), count(&report, "sent"), "{report}");
}

#[test]
fn a_fault_that_cannot_be_made_is_refused_or_voids_the_run() {
    let line = "p2p --connections 2 --rate 50 --duration 1s --warm-up 0s --sender-acks --receiver-acks";
    // One that has ended and was waited for.
    let mut ended = Command::new("true").spawn().unwrap();
    ended.wait().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_rtc-loadtest"))
        .args(line.split_whitespace())
        .args(["--url", &toy_url(Fault::None), "--fault", &format!("at=0s kill={}", ended.id())])
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{errors}");
    assert!(errors.contains("--fault") && errors.contains("cannot signal"), "{errors}");

    // A process can be signalled until it has been waited for: a run in which that came too late shows nothing. Nor does one
    // that is void because it was late itself.
    let (code, report, killed) = (0..ATTEMPTS)
        .find_map(|_| {
            let mut victim = Command::new("sleep").arg("1h").spawn().unwrap();
            let faults = [format!("at=100ms kill={}", victim.id()), format!("at=900ms stop={}", victim.id())];
            let reaper = thread::spawn(move || (victim.wait().unwrap(), Instant::now()));
            let started = Instant::now();
            let (code, report) = report(line, &toy_url(Fault::None), &faults);
            let (status, gone) = reaper.join().unwrap();
            let was_late = report["void_reasons"].as_array().unwrap().iter().any(|reason| {
                let reason = reason.as_str().unwrap();
                reason.contains("left more than 10 ms late")
            });
            (gone < started + Duration::from_millis(900) && !was_late).then_some((code, report, status))
        })
        .expect("a victim that is waited for in time");
    assert_eq!(killed.signal(), Some(9), "{report}");
    assert_eq!(code, VOID, "{report}");
    let reasons = report["void_reasons"].as_array().unwrap();
    assert!(reasons.iter().any(|reason| reason.as_str().unwrap().contains("could not be made")), "{report}");
}

#[test]
fn the_page_shows_faults_and_returns() {
    let path = std::env::temp_dir().join(format!("rtc-loadtest-roaming-{}.html", std::process::id()));
    let server = Server::start(&[]);
    let line = format!(
        "churn --connections 8 --rate 400 --duration 3s --warm-up 0s --hop-interval 1s --html {}",
        path.display()
    );
    let faults = [format!("at=300ms stop={}", server.pid()), format!("at=1800ms cont={}", server.pid())];
    report(&line, &server.url(), &faults);
    let page = std::fs::read_to_string(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    for part in ["Messages overdue", "<h2>Faults</h2>", "<h2>Returns</h2>", ">stop<", "confirmed, never arrived"] {
        assert!(page.contains(part), "{part}");
    }
}
