//! The program as its user starts it: what it refuses and how it says so, which setting wins, what it prints.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use support::run;

/// Exit code 2, nothing on standard output, one line that has all of `words`.
#[track_caller]
fn check_refused(flags: &[&str], variables: &[(&str, &str)], words: &[&str]) {
    let output = run(flags, variables, "");
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{flags:?}: {stderr}");
    assert_eq!(output.stdout, b"", "{flags:?}");
    assert_eq!(stderr.lines().count(), 1, "{flags:?}: {stderr}");
    assert!(stderr.starts_with("rtc-balancer: "), "{stderr}");
    for word in words {
        assert!(stderr.contains(word), "{flags:?}: no {word:?} in {stderr}");
    }
}

#[test]
fn a_bad_command_line_is_refused_in_one_line_that_names_it() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    let table: &[(&[&str], &[&str])] = &[
        (&[], &["redis is not given", "--redis"]),
        (&["--redis", "redis://127.0.0.1:1"], &["kafka is not given", "--kafka"]),
        (&["--redis", "127.0.0.1:1"], &["redis is 127.0.0.1:1", "redis://"]),
        (&["--polcy", "feedback"], &["--polcy", "--policy"]),
        (&["--policy", "fair"], &["fair", "feedback, proportional"]),
        (&["--listen", "8090"], &["--listen", "127.0.0.1:8080"]),
        (&["--listen", "0.0.0.0:0"], &["listen is 0.0.0.0:0", "--insecure-allow-anonymous"]),
        (&["--lease", "5"], &["--lease", "10s"]),
        (&["--set", "weights.kapa=1"], &["--set weights.kapa=1", "kapa"]),
        (&["--set", "weights.kappa=-1.0"], &["weights.kappa is -1"]),
        (&["--config", "/nonexistent/rtc.toml"], &["/nonexistent/rtc.toml", "--config"]),
        (&["replay", "/nonexistent/day.jsonl"], &["/nonexistent/day.jsonl"]),
        (&["replay"], &["<FILE|->"]),
        (&["simulate", "--fleet", "/nonexistent/fleet.toml"], &["/nonexistent/fleet.toml", "--fleet"]),
        (&["--redis", "redis://127.0.0.1:1", "--kafka", "127.0.0.1:1", "--listen", &addr], &[&addr, "in use"]),
    ];
    for (flags, words) in table {
        check_refused(flags, &[], words);
    }
    check_refused(&[], &[("RTC_BALANCER_POLICY", "fair")], &["--policy", "RTC_BALANCER_POLICY"]);
}

#[test]
fn flags_win_over_the_environment_that_over_the_file_that_over_defaults() {
    let file = std::env::temp_dir().join(format!("rtc-balancer-{}-order.toml", std::process::id()));
    std::fs::write(&file, "policy = \"proportional\"\nseed = 1\nlog = \"warn\"\n[weights]\nkappa = 0.3\n").unwrap();
    let path = file.to_str().unwrap();
    let variables =
        [("RTC_BALANCER_SEED", "2"), ("RTC_BALANCER_LOG", "error"), ("RTC_BALANCER_SET", "weights.kappa=0.4")];
    let output = run(&["--config", path, "--seed", "3", "--print-config"], &variables, "");
    let printed = String::from_utf8(output.stdout).unwrap();
    for line in ["policy = \"proportional\"", "seed = 3", "log = \"error\"", "kappa = 0.4", "cooldown_ms = 120000"] {
        assert!(printed.lines().any(|printed| printed == line), "no {line} in {printed}");
    }
    std::fs::write(&file, &printed).unwrap();
    let again = run(&["--config", path, "--print-config"], &[], "");
    assert_eq!(String::from_utf8(again.stdout).unwrap(), printed);
    std::fs::remove_file(file).unwrap();
}

#[test]
fn help_and_version_go_to_standard_output() {
    let version = run(&["--version"], &[], "");
    assert_eq!((version.status.code(), &*version.stdout), (Some(0), &b"rtc-balancer 0.1.0\n"[..]));
    let help = String::from_utf8(run(&["--help"], &[], "").stdout).unwrap();
    for word in ["replay", "simulate", "--listen", "[default: 127.0.0.1:8090]", "[default: feedback]", "[default: 5s]"]
    {
        assert!(help.contains(word), "no {word} in {help}");
    }
}

#[test]
fn lines_are_replayed_with_the_policy_that_is_asked_for() {
    let heartbeat = |node: &str, cpu: f64| {
        format!(
            r#"{{"nodeId":"{node}","activeConn":1,"mps":1,"p95LatencyMs":1,"kafkaTopicLagLatencyMs":1,"cpu":{cpu},"mem":{cpu},"timestampMs":1}}"#
        )
    };
    let line = format!(r#"{{"ts":1000,"heartbeats":[{},{}]}}"#, heartbeat("a", 0.9), heartbeat("b", 0.1));
    let weight = |flags: &[&str]| {
        let output = run(&[flags, &["replay", "-"]].concat(), &[], &format!("{line}\nnonsense\n{line}\n"));
        assert!(output.status.success());
        let stdout = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<&str> = stdout.lines().collect();
        assert_eq!(lines.len(), 3, "{stdout}");
        assert!(lines[1].starts_with(r#"{"error":""#), "{stdout}");
        assert!(String::from_utf8(output.stderr).unwrap().contains("replayed 3 lines: 1 ring updates"));
        let (_, rest) = lines[0].split_once(r#""nodeWeights":{"a":"#).unwrap();
        rest.split(',').next().unwrap().parse::<u16>().unwrap()
    };
    let (feedback, proportional) = (weight(&[]), weight(&["--policy", "proportional"]));
    assert!(proportional < feedback && feedback < 100, "{feedback} {proportional}");
}
