//! The program as its user starts it: what it refuses and how it says so, which setting wins, what it prints.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::io::Write as _;
use std::net::TcpListener;
use std::path::PathBuf;

use sonic_rs::JsonValueTrait as _;
use support::{Client, Server, get, run, run_with_descriptors};

const NO_VARIABLES: &[(&str, &str)] = &[];

/// A file that goes with its test.
struct TempFile(PathBuf);

impl TempFile {
    fn new(name: &str, text: &str) -> Self {
        let path = std::env::temp_dir().join(format!("rtc-server-{}-{name}", std::process::id()));
        std::fs::File::create(&path).unwrap().write_all(text.as_bytes()).unwrap();
        Self(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Exit code 2, nothing on standard output, one line that has all of `words`.
#[track_caller]
fn check_refused(flags: &[&str], variables: &[(&str, &str)], words: &[&str]) {
    let result = run(flags, variables);
    assert_eq!(result.code, Some(2), "{flags:?}: {result:?}");
    assert_eq!(result.stdout, "", "{flags:?}");
    assert_eq!(result.stderr.lines().count(), 1, "{flags:?}: {}", result.stderr);
    assert!(result.stderr.starts_with("rtc-server: "), "{}", result.stderr);
    for word in words {
        assert!(result.stderr.contains(word), "{flags:?}: no {word:?} in {}", result.stderr);
    }
}

#[test]
fn a_bad_command_line_is_refused_in_one_line_that_names_it() {
    let table: &[(&[&str], &[&str])] = &[
        (&["--shrads", "3"], &["--shrads", "--shards", "--help"]),
        (&["--shards", "0"], &["--shards", "whole number"]),
        (&["--shards", "many"], &["many", "--shards"]),
        (&["--listen", "8080"], &["--listen", "127.0.0.1:8080"]),
        (&["--node-id", "no spaces"], &["--node-id", "no spaces"]),
        (&["--ping-interval", "10"], &["--ping-interval", "10s"]),
        (&["--message-bytes-max", "1kb"], &["--message-bytes-max", "KiB"]),
        (&["--io", "windows"], &["--io", "ring, direct"]),
        (&["--log-format", "xml"], &["--log-format", "text, json"]),
        (&["--log", "rtc_server=loud"], &["log is", "debug"]),
        (&["--echo=2"], &["--echo"]),
        (&["extra"], &["extra"]),
        (&["--listen"], &["--listen"]),
        (&["--kafka", "127.0.0.1:9092"], &["kafka", "several nodes need both"]),
        (&["--redis", "redis://127.0.0.1"], &["redis", "several nodes need both"]),
        // It is looked at when the ports are taken: not the usual ones, which another program may have.
        (
            &[
                "--kafka",
                "127.0.0.1:9092",
                "--redis",
                "nowhere",
                "--listen",
                "127.0.0.1:0",
                "--admin-listen",
                "127.0.0.1:0",
            ],
            &["redis", "nowhere"],
        ),
        (&["--listen", "0.0.0.0:0"], &["listen is 0.0.0.0:0", "--insecure-allow-anonymous"]),
        (&["--admin-listen", "[::]:0"], &["admin_listen is [::]:0", "--insecure-allow-anonymous"]),
        (&["--listen", "127.0.0.1:9", "--admin-listen", "127.0.0.1:9"], &["different ports"]),
        (&["--outbox-bytes-max", "1KiB"], &["outbox_bytes_max is 1024"]),
        (&["--config", "/nonexistent/rtc.toml"], &["/nonexistent/rtc.toml", "--config"]),
    ];
    for (flags, words) in table {
        check_refused(flags, NO_VARIABLES, words);
    }
    check_refused(&[], &[("RTC_SERVER_SHARDS", "x")], &["--shards", "RTC_SERVER_SHARDS"]);
    check_refused(&[], &[("RTC_SERVER_CONFIG", "/nonexistent/rtc.toml")], &["/nonexistent/rtc.toml"]);
}

#[test]
fn a_bad_file_is_refused_with_its_line_and_key() {
    for (text, words) in [
        ("echo = true\nshrads = 3\n", [":2:", "shrads"]),
        ("shards = \"many\"\n", [":1:", "shards"]),
        ("ping_interval_ms = \"5s\"\n", [":1:", "ping_interval_ms"]),
        ("listen = [\n", [":1:", "listen"]),
        ("listen = \"0.0.0.0:8080\"\n", ["listen is 0.0.0.0:8080", "--insecure-allow-anonymous"]),
    ] {
        let file = TempFile::new("bad.toml", text);
        check_refused(&["--config", file.path()], NO_VARIABLES, &words);
    }
}

#[test]
fn a_port_in_use_is_refused_with_its_address_and_flag() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    for flag in ["--listen", "--admin-listen"] {
        let other = if flag == "--listen" { "--admin-listen" } else { "--listen" };
        check_refused(&[flag, &addr, other, "127.0.0.1:0", "--log", "error"], NO_VARIABLES, &[&addr, flag, "in use"]);
    }
    // Another node's port is no less taken because its shards share it.
    let server = Server::start(&[]);
    let addr = server.listen.to_string();
    check_refused(
        &["--listen", &addr, "--admin-listen", "127.0.0.1:0", "--log", "error"],
        NO_VARIABLES,
        &[&addr, "in use"],
    );
}

#[test]
fn flags_win_over_the_environment_that_over_the_file_that_over_defaults() {
    let file = TempFile::new(
        "order.toml",
        "node_id = \"of-file\"\nzone = \"of-file\"\nping_interval_ms = 1000\nadvertise_url = \"ws://of-file\"\necho = true\n",
    );
    let variables = [("RTC_SERVER_NODE_ID", "of-env"), ("RTC_SERVER_ZONE", "of-env"), ("RTC_SERVER_ECHO", "0")];
    let result = run(&["--config", file.path(), "--node-id", "of-flag", "--print-config"], &variables);
    assert_eq!(result.code, Some(0), "{result:?}");
    for line in [
        "node_id = \"of-flag\"",
        "zone = \"of-env\"",
        "echo = false",
        "advertise_url = \"ws://of-file\"",
        "ping_interval_ms = 1000",
        "pong_timeout_ms = 10000",
    ] {
        assert!(result.stdout.lines().any(|printed| printed == line), "no {line} in {}", result.stdout);
    }
    let printed = TempFile::new("printed.toml", &result.stdout);
    let again = run(&["--config", printed.path(), "--print-config"], NO_VARIABLES);
    assert_eq!(again.stdout, result.stdout);
}

#[test]
fn too_few_descriptors_lower_the_default_and_refuse_a_wish() {
    let flags = |wish: &'static [&str]| [&["--shards", "1", "--print-config"], wish].concat();
    let fitted = run_with_descriptors(1000, &flags(&[]));
    assert!(fitted.stdout.contains("connections_max = 728\n"), "{fitted:?}");
    let refused = run_with_descriptors(1000, &flags(&["--connections-max", "729"]));
    assert_eq!(refused.code, Some(2), "{refused:?}");
    for word in ["connections_max is 729", "1000 files", "LimitNOFILE"] {
        assert!(refused.stderr.contains(word), "{}", refused.stderr);
    }
}

#[test]
fn help_and_version_go_to_standard_output() {
    let version = run(&["--version"], NO_VARIABLES);
    assert_eq!((version.code, version.stdout.as_str()), (Some(0), "rtc-server 0.1.0\n"));
    let help = run(&["--help"], NO_VARIABLES);
    assert_eq!(help.code, Some(0));
    for word in
        ["--listen", "[default: 127.0.0.1:8080]", "--ping-interval <TIME>", "[default: 25s]", "[default: 256KiB]"]
    {
        assert!(help.stdout.contains(word), "no {word} in {}", help.stdout);
    }
}

#[test]
fn a_ready_server_has_said_where_it_listens_and_serves_with_either_driver() {
    for io in ["auto", "direct"] {
        let server = Server::start(&["--node-id", "n7", "--io", io, "--shards", "2", "--zone", "z1"]);
        assert_eq!(server.node_id, "n7");
        assert_eq!(get(server.listen, "/").status, 200);
        let health = get(server.admin, "/healthz").json();
        assert_eq!(health["nodeId"].as_str(), Some("n7"));
        assert_eq!(health["zone"].as_str(), Some("z1"));
        assert_eq!(health["shards"].as_u64(), Some(2));
        let (_client, welcome) = Client::log_in(server.listen, "clientId=a");
        assert_eq!(welcome["nodeId"].as_str(), Some("n7"));
    }
}

#[test]
fn logs_are_json_where_asked_and_tell_of_variables_nobody_reads() {
    let variables = [("RTC_SERVER_SHRADS", "3"), ("RTC_SERVER_LOG_FORMAT", "json"), ("RTC_SERVER_PORT", "tcp://x")];
    let server = Server::start_with(&["--node-id", "n1"], &variables);
    support::eventually("it has logged that it serves", || {
        let log = server.log();
        log.find("\"serving\"").is_some_and(|at| log[at..].contains('\n'))
    });
    let log = server.log();
    // Of the last line only a part may have come.
    let (log, _) = log.rsplit_once('\n').unwrap();
    for line in log.lines() {
        let value: sonic_rs::Value = sonic_rs::from_str(line).unwrap();
        assert!(value["message"].as_str().is_some() && value["level"].as_str().is_some(), "{line}");
    }
    assert!(log.contains("RTC_SERVER_SHRADS") && !log.contains("RTC_SERVER_PORT"), "{log}");
}
