use proptest::prelude::*;
use ring::{NodeWeights, RingVersion, Weight};

use super::*;

fn id(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

fn ring() -> Ring {
    let weights = ["a", "b", "c"].map(|name| (id(name), Weight::new(100).unwrap()));
    Ring::from_weights(RingVersion::FIRST, 7, NodeWeights::new(weights).unwrap())
}

fn raw<'a>(value: &'a str, headers: &[(&'a str, &'a str)]) -> Raw<'a> {
    let headers = headers.iter().map(|(name, value)| (name.as_bytes(), Some(value.as_bytes()))).collect();
    Raw { value: Some(value.as_bytes()), headers }
}

fn planned(value: &str, headers: &[(&str, &str)]) -> Plan {
    plan(&raw(value, headers), &id("dead"), &ring())
}

const MESSAGE: &str = r#"{"type":"message","msgId":"1","from":"x","toClientId":"anna","payload":[1]}"#;

fn shown(headers: &[OwnHeader]) -> Vec<(String, String)> {
    let text = |value: &Option<Vec<u8>>| String::from_utf8(value.clone().unwrap_or_default()).unwrap();
    headers.iter().map(|(name, value)| (name.clone(), text(value))).collect()
}

fn mark() -> String {
    format!("{:016x}", node_mark(&id("dead")))
}

#[test]
fn a_message_goes_to_the_owner_of_its_recipient_with_one_hop_more() {
    let check = |headers: &[(&str, &str)], expected: &[(&str, &str)]| {
        let Plan::Copy { kind, to, headers } = planned(MESSAGE, headers) else { panic!("not copied") };
        assert_eq!((kind, &to), (Kind::Message, ring().owner(b"anna")));
        let expected: Vec<_> = expected.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        assert_eq!(shown(&headers), expected);
    };
    let mark = mark();
    check(&[], &[("rtc-trail", &mark), ("rtc-hops", "1")]);
    let before = "00000000000000ff";
    let after = format!("{before}{mark}");
    check(
        &[("rtc-kind", "message"), ("rtc-origin", "n/5/1"), ("rtc-hops", "2"), ("trace", "t"), ("rtc-trail", before)],
        &[("rtc-kind", "message"), ("rtc-origin", "n/5/1"), ("trace", "t"), ("rtc-trail", &after), ("rtc-hops", "3")],
    );
    // What is full stays: it is poison when it grows.
    let full = before.repeat(16);
    check(&[("rtc-hops", "255"), ("rtc-trail", &full)], &[("rtc-trail", &full), ("rtc-hops", "255")]);
}

#[test]
fn names_that_are_no_text_are_left_out_and_headers_without_a_value_stay() {
    let mut raw = raw(MESSAGE, &[]);
    raw.headers = vec![(b"\xff", Some(b"x")), (b"empty", None)];
    let Plan::Copy { headers, .. } = plan(&raw, &id("dead"), &ring()) else { panic!("not copied") };
    assert_eq!(headers[0], ("empty".to_owned(), None));
    assert_eq!(headers.len(), 3);
}

#[test]
fn a_fence_follows_the_messages_of_its_recipient_and_keeps_its_origin() {
    let hash = ring().hash(b"anna");
    let value = format!(r#"{{"type":"fence","id":3,"hash":{hash},"pair":9,"trail":[1]}}"#);
    let plan = planned(&value, &[("rtc-kind", "fence"), ("rtc-origin", "n/5/1")]);
    let Plan::Copy { kind: Kind::Fence, to, headers } = plan else { panic!("not copied") };
    assert_eq!(&to, ring().owner(b"anna"));
    let expected = [("rtc-kind", "fence"), ("rtc-origin", "n/5/1")];
    assert_eq!(shown(&headers), expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
}

#[test]
fn a_fence_that_would_come_back_to_who_wrote_it_is_echoed() {
    let hash = ring().hash(b"anna");
    let owner = ring().owner(b"anna").clone();
    let value = format!(r#"{{"type":"fence","id":3,"hash":{hash},"pair":9,"trail":[1]}}"#);
    let origin = format!("{owner}/5/1");
    let plan = planned(&value, &[("rtc-kind", "fence"), ("rtc-origin", &origin)]);
    let echo = br#"{"type":"fenced","id":3,"shard":1,"incarnation":5}"#.to_vec();
    assert_eq!(plan, Plan::Echo { to: owner, value: echo });
}

#[test]
fn a_claim_is_answered_to_who_claims() {
    let claim = r#"{"type":"claimed","clientId":"an\"na","generation":12}"#;
    let answer = planned(claim, &[("rtc-kind", "claimed"), ("rtc-origin", "n/5/1")]);
    assert_eq!(answer, Plan::Release { to: id("n"), client: "an\"na".to_owned(), generation: 12 });
    // Nobody waits.
    assert_eq!(planned(claim, &[("rtc-kind", "claimed")]), Plan::Drop(Kind::Claimed));
    let own = planned(claim, &[("rtc-kind", "claimed"), ("rtc-origin", "dead/1/0")]);
    assert_eq!(own, Plan::Drop(Kind::Claimed));
    assert_eq!(released("an\"na", 12), br#"{"type":"released","clientId":"an\"na","generation":12}"#);
    let headers = shown(&notice_headers(Kind::Released, &id("dead")));
    assert_eq!(headers[1], ("rtc-origin".to_owned(), "dead/0/0".to_owned()));
}

#[test]
fn what_was_for_the_dead_nodes_memory_is_dropped() {
    for kind in [Kind::Fenced, Kind::Released, Kind::Moved, Kind::Nudge] {
        assert_eq!(planned("{}", &[("rtc-kind", kind.as_str())]), Plan::Drop(kind));
    }
}

#[test]
fn what_nobody_can_use_is_buried_with_its_cause() {
    let check = |value: &str, headers: &[(&str, &str)], cause: &str| {
        let Plan::Bury(poison) = planned(value, headers) else { panic!("{value} is used") };
        assert_eq!(poison.cause(), cause, "{value}");
    };
    check("", &[], "malformed");
    check("{", &[], "malformed");
    check(r#"{"type":"fence","hash":1}"#, &[], "malformed");
    check(r#"{"type":"message"}"#, &[], "malformed");
    check(r#"{"type":"message","toClientId":""}"#, &[], "client_id");
    check(&format!(r#"{{"type":"message","toClientId":"{}"}}"#, "x".repeat(129)), &[], "client_id");
    check(&format!(r#"{{"type":"message","payload":{}"#, "[".repeat(100_000)), &[], "malformed");
    check(MESSAGE, &[("rtc-kind", "gossip")], "unknown_kind");
    check(MESSAGE, &[("rtc-hops", "-1")], "header");
    check(MESSAGE, &[("rtc-hops", "256")], "header");
    check(MESSAGE, &[("rtc-trail", "00ff")], "header");
    check(MESSAGE, &[("rtc-trail", &"0".repeat(17 * 16))], "header");
    check(r#"{"type":"fence"}"#, &[("rtc-kind", "fence")], "malformed");
    check(r#"{"type":"fence","hash":1}"#, &[("rtc-kind", "fence"), ("rtc-origin", "n/5")], "header");
    let claim = r#"{"type":"claimed","clientId":"anna","generation":12}"#;
    check(claim, &[("rtc-kind", "claimed"), ("rtc-origin", "n/5")], "header");
    check(r#"{"type":"claimed","clientId":"anna"}"#, &[("rtc-kind", "claimed")], "malformed");
    assert_eq!(plan(&Raw::default(), &id("dead"), &ring()), Plan::Bury(Poison::Empty));
    let large = vec![b'x'; VALUE_BYTES_MAX + 1];
    let large = Raw { value: Some(&large), headers: Vec::new() };
    assert!(matches!(plan(&large, &id("dead"), &ring()), Plan::Bury(Poison::TooLarge { .. })));
}

proptest! {
    #[test]
    fn whatever_stands_there_never_panics(
        value in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..64)),
        kind in proptest::collection::vec(any::<u8>(), 0..12),
        origin in proptest::collection::vec(any::<u8>(), 0..12),
        trail in proptest::collection::vec(any::<u8>(), 0..40),
    ) {
        let headers: Vec<(&[u8], Option<&[u8]>)> =
            vec![(b"rtc-kind", Some(&kind)), (b"rtc-origin", Some(&origin)), (b"rtc-trail", Some(&trail))];
        for headers in [headers.clone(), headers[1..].to_vec()] {
            plan(&Raw { value: value.as_deref(), headers }, &id("dead"), &ring());
        }
    }
}
