//! How the process ends: gently at the first signal, at once at the second.

mod support;

use std::time::{Duration, Instant};

use rustix::process::Signal;
use sonic_rs::JsonValueTrait as _;
use support::{Client, Server, eventually, get, post};
use websocket::ResponseError;

/// The window of a drain that nobody is left to be spread over.
const WINDOW: Duration = Duration::from_secs(60);

#[test]
fn a_node_without_connections_ends_at_once() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut server = Server::start(&["--drain-window", "1m"]);
        let begun = Instant::now();
        server.signal(signal);
        assert_eq!(server.wait().code(), Some(0), "{}", server.log());
        assert!(begun.elapsed() < WINDOW, "it took {:?}", begun.elapsed());
    }
}

#[test]
fn a_term_signal_advises_then_closes_then_exits_with_0() {
    let mut server = Server::start(&["--drain-window", "100ms"]);
    let (mut client, _) = Client::log_in(server.listen, "clientId=a");
    server.signal(Signal::TERM);
    let advice = client.json();
    assert_eq!(advice["type"].as_str(), Some("reconnect"));
    assert_eq!(advice["reason"].as_str(), Some("drain"));
    assert_eq!(client.await_close().map(|(code, _)| code), Some(1012));
    client.close();
    drop(client);
    assert_eq!(server.wait().code(), Some(0), "{}", server.log());
}

#[test]
fn a_draining_node_says_so_and_takes_nobody_and_a_second_signal_stops_it_now() {
    let mut server = Server::start(&["--shards", "1", "--drain-window", "1h"]);
    // The second connection's turn to be closed is half an hour away.
    let (_first, _) = Client::log_in(server.listen, "clientId=a");
    let (mut client, _) = Client::log_in(server.listen, "clientId=b");
    server.signal(Signal::TERM);
    eventually("it drains", || get(server.admin, "/readyz").status == 503);
    let ready = get(server.admin, "/readyz");
    assert_eq!(ready.json()["reason"].as_str(), Some("draining"));
    assert_eq!(get(server.admin, "/livez").status, 200);
    let refused = Client::connect(server.listen, "/ws/connect?clientId=c").err();
    assert!(matches!(refused, Some(ResponseError::Refused { status: 503, retry_after: Some(_) })), "{refused:?}");
    server.signal(Signal::TERM);
    let close = client.await_close();
    assert!(matches!(close, Some((1001 | 1012, _))), "{close:?}");
    client.close();
    assert_eq!(server.wait().code(), Some(0), "{}", server.log());
    eventually("it has said why", || server.log().contains("second signal"));
}

#[test]
fn a_drain_by_request_keeps_the_process_until_a_signal() {
    let mut server = Server::start(&[]);
    let (mut client, _) = Client::log_in(server.listen, "clientId=a");
    let begun = post(server.admin, "/drain", "", "{\"windowMs\":0}");
    assert_eq!(begun.status, 202);
    assert_eq!(begun.json()["connectionsAtStart"].as_u64(), Some(1));
    assert_eq!(get(server.admin, "/readyz").status, 503);
    assert_eq!(client.await_close().map(|(code, _)| code), Some(1012));
    client.close();
    drop(client);
    eventually("all have gone", || get(server.admin, "/drain/status").json()["phase"].as_str() == Some("drained"));
    let again = post(server.admin, "/drain", "", "{\"windowMs\":60000}");
    assert_eq!(again.json()["windowMs"].as_u64(), Some(0), "the first drain goes on as it was");
    assert!(again.json().get("maxDisconnects").is_none(), "it has named no number");
    server.signal(Signal::TERM);
    assert_eq!(server.wait().code(), Some(0), "{}", server.log());
}
