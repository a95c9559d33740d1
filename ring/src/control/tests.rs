//! Tables of messages that must be read and messages that must be refused.

use super::*;
use crate::Weight;

const UPDATE: &str = r#"{"version":{"version":7,"issuedAt":1700000000000,"versionHash":"00"},"nodeWeights":{"a":100,"b":50},"seed":3,"reason":"nodes-joined: b","ts":1700000000001}"#;
const HEARTBEAT: &str = r#"{"nodeId":"a","activeConn":10,"mps":2.5,"p95LatencyMs":3,"kafkaTopicLagLatencyMs":0,"cpu":0.5,"mem":1,"timestampMs":1700000000000}"#;
const DRAIN: &str =
    r#"{"nodeId":"a","deadline":1700000060000,"maxDisconnects":500,"reason":"upgrade","ts":1700000000000}"#;
const SCALE: &str = r#"{"reason":"SCALE_OUT recommended: nodes=3->6 (+3), cpu=0.91","ts":1700000000000}"#;

/// What an edit of a valid message must lead to: `None` it is read, else the stable word of the refusal.
fn check<M: Message + fmt::Debug>(valid: &str, edits: &[(&str, &str, Option<&str>)]) {
    decode::<M>(valid.as_bytes()).unwrap();
    for &(from, to, expected) in edits {
        assert!(valid.contains(from), "{from:?} is not in the message");
        let edited = valid.replacen(from, to, 1);
        let result = decode::<M>(edited.as_bytes());
        assert_eq!(result.as_ref().err().map(ControlError::cause), expected, "{edited}: {result:?}");
    }
}

#[test]
fn ring_updates_are_read_or_refused() {
    check::<RingUpdate>(
        UPDATE,
        &[
            (r#""seed":3,"#, "", None),
            (r#""seed":3"#, r#""seed":18446744073709551615"#, None),
            (r#""seed":3"#, r#""seed":-1"#, Some("malformed")),
            (r#""seed":3"#, r#""seed":"3""#, Some("malformed")),
            (r#""a":100"#, r#""a":100.0"#, None),
            (r#""a":100"#, r#""a":1e2"#, None),
            (r#""a":100"#, r#""a":65535"#, None),
            (r#""a":100"#, r#""a":65536"#, Some("malformed")),
            (r#""a":100"#, r#""a":0"#, Some("malformed")),
            (r#""a":100"#, r#""a":-1"#, Some("malformed")),
            (r#""a":100"#, r#""a":1.5"#, Some("malformed")),
            (r#""a":100"#, r#""a":1e400"#, Some("malformed")),
            (r#""a":100"#, r#""a":"100""#, Some("malformed")),
            (r#""a":100"#, r#""a":null"#, Some("malformed")),
            (r#""b":50"#, r#""a":50"#, Some("malformed")),
            (r#""b":50"#, r#""\u0061":50"#, Some("malformed")),
            (r#""b":50"#, r#""":50"#, Some("malformed")),
            (r#""b":50"#, r#""b c":50"#, Some("malformed")),
            (r#"{"a":100,"b":50}"#, "{}", Some("malformed")),
            (r#"{"a":100,"b":50}"#, "[]", Some("malformed")),
            (r#"{"a":100,"b":50}"#, "null", Some("malformed")),
            (r#""nodeWeights":{"a":100,"b":50},"#, "", Some("malformed")),
            (r#""seed":3"#, r#""seed":3,"nodeWeights":{"c":1}"#, Some("malformed")),
            (r#""version":7"#, r#""version":9007199254740991"#, None),
            (r#""version":7"#, r#""version":9007199254740992"#, Some("malformed")),
            (r#""version":7"#, r#""version":-7"#, Some("malformed")),
            (r#""version":7,"#, "", Some("malformed")),
            (r#""versionHash":"00""#, r#""versionHash":-5"#, None),
            (r#""versionHash":"00""#, r#""versionHash":{}"#, Some("malformed")),
            (r#""ts":1700000000001"#, r#""ts":1e300"#, Some("malformed")),
            (r#""ts":1700000000001"#, r#""ts":18446744073709551615"#, Some("out_of_range")),
            (r#""ts":1700000000001"#, r#""ts":true"#, Some("malformed")),
            (r#""reason":"nodes-joined: b""#, r#""reason":null"#, Some("malformed")),
            (r#""reason":"nodes-joined: b""#, r#""reason":"\ud800""#, Some("malformed")),
            (r#""reason""#, r#""other":{"x":[[1],{"y":null}]},"reason""#, None),
            ("}", "", Some("malformed")),
        ],
    );
}

#[test]
fn heartbeats_are_read_or_refused() {
    check::<Heartbeat>(
        HEARTBEAT,
        &[
            (r#""cpu":0.5"#, r#""cpu":0"#, None),
            (r#""cpu":0.5"#, r#""cpu":1.0"#, None),
            (r#""cpu":0.5"#, r#""cpu":1.01"#, Some("out_of_range")),
            (r#""cpu":0.5"#, r#""cpu":50"#, Some("out_of_range")),
            (r#""cpu":0.5"#, r#""cpu":-0.1"#, Some("out_of_range")),
            (r#""cpu":0.5"#, r#""cpu":NaN"#, Some("malformed")),
            (r#""cpu":0.5"#, r#""cpu":"NaN""#, Some("malformed")),
            (r#""cpu":0.5"#, r#""cpu":null"#, Some("malformed")),
            (r#""cpu":0.5,"#, "", Some("malformed")),
            (r#""mem":1"#, r#""mem":1e400"#, Some("malformed")),
            (r#""mem":1"#, r#""mem":2"#, Some("out_of_range")),
            (r#""mps":2.5"#, r#""mps":-1"#, Some("out_of_range")),
            (r#""mps":2.5"#, r#""mps":1e13"#, Some("out_of_range")),
            (r#""p95LatencyMs":3"#, r#""p95LatencyMs":-3"#, Some("out_of_range")),
            (r#""kafkaTopicLagLatencyMs":0"#, r#""kafkaTopicLagLatencyMs":-1.5"#, Some("out_of_range")),
            (r#""activeConn":10"#, r#""activeConn":10.0"#, None),
            (r#""activeConn":10"#, r#""activeConn":-10"#, Some("malformed")),
            (r#""activeConn":10"#, r#""activeConn":0.5"#, Some("malformed")),
            (r#""nodeId":"a""#, r#""nodeId":"""#, Some("malformed")),
            (r#""nodeId":"a""#, r#""nodeId":7"#, Some("malformed")),
            (r#""mem":1"#, r#""mem":1,"incarnation":5,"url":"ws://a","zone":"z","ringVersion":9"#, None),
            (r#""mem":1"#, r#""mem":1,"incarnation":null,"url":null,"ringVersion":null"#, None),
            (r#""mem":1"#, r#""mem":1,"ringVersion":-1"#, Some("malformed")),
            (r#""mem":1"#, r#""mem":1,"url":5"#, Some("malformed")),
        ],
    );
}

#[test]
fn drain_requests_and_scale_signals_are_read_or_refused() {
    check::<DrainRequest>(
        DRAIN,
        &[
            (r#""maxDisconnects":500"#, r#""maxDisconnects":-1"#, Some("malformed")),
            (r#""deadline":1700000060000"#, r#""deadline":1e16"#, Some("malformed")),
            (r#""reason":"upgrade""#, r#""reason":"upgrade","incarnation":5"#, None),
            (r#""reason":"upgrade""#, r#""reason":"upgrade","incarnation":null"#, None),
            (r#""reason":"upgrade""#, r#""reason":"upgrade","incarnation":"5""#, Some("malformed")),
            (r#""reason":"upgrade""#, r#""reason":"upgrade","incarnation":10000000000000000"#, Some("out_of_range")),
            (r#""deadline":1700000060000"#, r#""deadline":10000000000000000"#, Some("out_of_range")),
            (r#""reason":"upgrade","#, "", Some("malformed")),
        ],
    );
    check::<ScaleSignal>(
        SCALE,
        &[
            (r#""ts":1700000000000"#, r#""ts":1700000000000,"urgency":"high","targetNodes":6"#, None),
            (r#""ts":1700000000000"#, r#""ts":1700000000000,"targetNodes":"6""#, Some("malformed")),
            (r#","ts":1700000000000"#, "", Some("malformed")),
        ],
    );
}

#[test]
fn wire_names_are_those_of_the_design() {
    let weights = NodeWeights::new([
        (NodeId::new("b").unwrap(), Weight::new(50).unwrap()),
        (NodeId::new("a").unwrap(), Weight::new(100).unwrap()),
    ]);
    let update = RingUpdate::new(RingVersion::new(7).unwrap(), weights.unwrap(), 3, "why".into(), 12);
    assert!(update.has_right_hash());
    assert_eq!(
        String::from_utf8(update.encode().unwrap()).unwrap(),
        format!(
            r#"{{"version":{{"version":7,"issuedAt":12,"versionHash":"{}"}},"nodeWeights":{{"a":100,"b":50}},"seed":3,"reason":"why","ts":12}}"#,
            update.version.version_hash
        )
    );
    let heartbeat = Heartbeat::decode(HEARTBEAT.as_bytes()).unwrap();
    assert_eq!(
        String::from_utf8(heartbeat.encode().unwrap()).unwrap(),
        r#"{"nodeId":"a","activeConn":10,"mps":2.5,"p95LatencyMs":3.0,"kafkaTopicLagLatencyMs":0.0,"cpu":0.5,"mem":1.0,"timestampMs":1700000000000}"#
    );
    for (again, first) in [
        (DrainRequest::decode(DRAIN.as_bytes()).unwrap().encode().unwrap(), DRAIN),
        (ScaleSignal::decode(SCALE.as_bytes()).unwrap().encode().unwrap(), SCALE),
    ] {
        assert_eq!(String::from_utf8(again).unwrap(), first);
    }
}

#[test]
fn what_a_reader_would_refuse_is_not_written() {
    let mut heartbeat = Heartbeat::decode(HEARTBEAT.as_bytes()).unwrap();
    heartbeat.mps = f64::NAN;
    assert_eq!(heartbeat.encode().unwrap_err().cause(), "out_of_range");
    let scale = ScaleSignal { reason: "x".repeat(MESSAGE_BYTES_MAX), ts: 0, current_nodes: None, target_nodes: None };
    assert_eq!(scale.encode().unwrap_err().cause(), "too_large");
}

#[test]
fn nesting_is_refused_before_the_parser_recurses() {
    for (open, count, expected) in [
        ("[", 30_000, "too_deep"),
        (r#"{"a":"#, 12_000, "too_deep"),
        ("[", DEPTH_MAX + 1, "too_deep"),
        ("[", DEPTH_MAX, "malformed"),
        ("[", MESSAGE_BYTES_MAX + 1, "too_large"),
    ] {
        let error = Heartbeat::decode(open.repeat(count).as_bytes()).unwrap_err();
        assert_eq!(error.cause(), expected, "{open} × {count}");
    }
    let hidden = HEARTBEAT.replacen('}', &format!(r#","x":{}}}"#, "[".repeat(20_000)), 1);
    assert_eq!(Heartbeat::decode(hidden.as_bytes()).unwrap_err().cause(), "too_deep");
    let quoted = HEARTBEAT.replacen('}', &format!(r#","x":"\"{}\\"}}"#, "[".repeat(20_000)), 1);
    assert!(Heartbeat::decode(quoted.as_bytes()).is_ok(), "brackets in a string nest nothing");
}

#[test]
fn the_largest_ring_fits_its_message() {
    let name = |n: usize| NodeId::new(&format!("{n:0>64}")).unwrap();
    let weights = NodeWeights::new((0..NODES_MAX).map(|n| (name(n), Weight::MAX))).unwrap();
    let update = RingUpdate::new(RingVersion::MAX, weights, u64::MAX, "r".repeat(60_000), WHOLE_MAX);
    assert_eq!(RingUpdate::decode(&update.encode().unwrap()).unwrap(), update);
}

#[test]
fn bytes_that_are_no_text_are_refused() {
    for bytes in [&b""[..], b" ", b"null", b"{", b"\xff\xfe", b"{\"nodeId\":\"\xc3\x28\"}", b"[]", b"5", b"\0"] {
        assert_eq!(Heartbeat::decode(bytes).unwrap_err().cause(), "malformed", "{bytes:?}");
    }
    let trailing = format!("{HEARTBEAT} x");
    assert_eq!(Heartbeat::decode(trailing.as_bytes()).unwrap_err().cause(), "malformed");
}
