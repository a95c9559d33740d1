use proptest::prelude::*;

use super::*;
use crate::bus::Lane;

const LIMIT: usize = 10_000;

fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

fn decoder() -> Decoder {
    Decoder { node: node("here"), value_bytes_max: LIMIT }
}

fn parcel(record: Record) -> Parcel {
    Parcel {
        to: node("b"),
        lane: Lane::Control,
        origin: Address { node: node("node-1.x_Y"), incarnation: u64::MAX, shard: 7 },
        record,
        ticket: Some(1),
    }
}

fn posted(msg_id: &str, from: &str, to: &str, payload: &str) -> Posted {
    Posted {
        msg_id: msg_id.into(),
        from: from.into(),
        sender: hash_key(from.as_bytes(), 5),
        to: to.into(),
        hash: hash_key(to.as_bytes(), 5),
        field: PayloadField::Payload,
        payload: payload.into(),
        origin: Origin::NOBODY,
        wants_ack: false,
        ts_ms: 1_700_000_000_000,
        ttl_ms: None,
        hops: 0,
        trail: Vec::new(),
        login: 0,
    }
}

/// Encodes, decodes, and compares by what a debugger would show: records are not `PartialEq`.
fn round_trip(parcel: &Parcel) -> (Address, Record) {
    let mut value = Vec::new();
    let headers = encode(parcel, &mut value);
    let hops = headers.hops.map(|hops| hops.to_string());
    let raw = Raw {
        value: Some(&value),
        kind: Some(headers.kind.as_bytes()),
        origin: Some(headers.origin.as_bytes()),
        hops: hops.as_ref().map(String::as_bytes),
        trail: headers.trail.as_ref().map(String::as_bytes),
        taken_ms: 3,
    };
    decoder().decode(&raw, 5).unwrap()
}

fn check_round_trip(record: Record) {
    let parcel = parcel(record);
    let (origin, record) = round_trip(&parcel);
    assert_eq!(origin, parcel.origin);
    assert_eq!(format!("{record:?}"), format!("{:?}", parcel.record));
}

fn decode_value(value: &[u8]) -> Result<Record, Poison> {
    decoder().decode(&Raw { value: Some(value), taken_ms: 9, ..Raw::default() }, 5).map(|(_, record)| record)
}

#[test]
fn every_notice_comes_back_as_it_was() {
    let holder = Holder { node: node("c"), incarnation: 1 << 60, generation: u64::MAX };
    for record in [
        Record::Fence { id: 0, hash: u64::MAX, pair: 7, trail: vec![1, u64::MAX] },
        Record::Fenced { id: u64::MAX, shard: 3, incarnation: 4 },
        Record::Claimed { client: "zoë \"{}\\".into(), generation: 7 },
        Record::Released { client: "a".into(), generation: 8 },
        Record::Moved { client: "b".into(), holder },
        Record::Nudge { client: "c".into() },
    ] {
        check_round_trip(record);
    }
}

#[test]
fn the_value_of_a_message_is_the_envelope_of_the_client_protocol() {
    let mut message = posted("m-1", "alice", "bob", r#"{"a" : [1,"\u00e9"]}"#);
    message.ttl_ms = Some(60_000);
    message.hops = 2;
    message.trail = vec![1, u64::MAX];
    let mut value = Vec::new();
    let headers = encode(&parcel(Record::Message(Box::new(message))), &mut value);
    assert_eq!(
        std::str::from_utf8(&value).unwrap(),
        r#"{"type":"message","msgId":"m-1","from":"alice","toClientId":"bob","payload":{"a" : [1,"\u00e9"]},"ts":1700000000000,"ttlMs":60000}"#
    );
    let origin = format!("node-1.x_Y/{}/7", u64::MAX);
    assert_eq!(
        headers,
        Headers { kind: "message", origin, hops: Some(2), trail: Some("0000000000000001ffffffffffffffff".to_owned()) }
    );
}

#[test]
fn a_record_of_the_former_system_is_a_message_whose_origin_waits_for_nothing() {
    let value =
        br#"{"toClientId":"b","from":"a","msgId":"m","type":"message","payloadJson":"{\"x\":1}","shard":3,"x":{}}"#;
    let raw = Raw { value: Some(value), taken_ms: 42, ..Raw::default() };
    let (origin, record) = decoder().decode(&raw, 5).unwrap();
    assert_eq!(origin, Address { node: node("here"), incarnation: 0, shard: 0 });
    let Record::Message(message) = record else { panic!("{record:?}") };
    assert_eq!((message.hops, message.ts_ms, message.field), (0, 42, PayloadField::PayloadJson));
    assert_eq!(&*message.payload, r#""{\"x\":1}""#);
    assert_eq!((message.hash, message.sender), (hash_key(b"b", 5), hash_key(b"a", 5)));
}

#[test]
fn what_cannot_be_used_is_refused_with_its_cause() {
    let deep = format!(
        r#"{{"type":"message","msgId":"m","from":"a","toClientId":"b","payload":{}{}}}"#,
        "[".repeat(4_000),
        "]".repeat(4_000)
    );
    let long_id =
        format!(r#"{{"type":"message","msgId":"m","from":"a","toClientId":"{}","payload":1}}"#, "x".repeat(129));
    let large = vec![b' '; LIMIT + 1];
    let table: &[(&[u8], &str)] = &[
        (b"", "malformed"),
        (b"nonsense", "malformed"),
        (b"{}", "malformed"),
        (b"[]", "malformed"),
        (b"\xff", "malformed"),
        (&large, "too_large"),
        (deep.as_bytes(), "malformed"),
        (long_id.as_bytes(), "client_id"),
        (br#"{"type":"ack","msgId":"m","from":"a","toClientId":"b","payload":1}"#, "malformed"),
        (br#"{"type":"message","msgId":"","from":"a","toClientId":"b","payload":1}"#, "malformed"),
        (br#"{"type":"message","msgId":"m","from":"","toClientId":"b","payload":1}"#, "client_id"),
        (br#"{"type":"message","msgId":"m","from":"a","toClientId":"b\u0001","payload":1}"#, "client_id"),
        (br#"{"type":"message","msgId":"m","from":"a","toClientId":7,"payload":1}"#, "malformed"),
        (br#"{"type":"message","msgId":"m","from":"a","toClientId":"b"}"#, "malformed"),
        (br#"{"type":"message","msgId":"m","from":"a","toClientId":"b","payload":01}"#, "malformed"),
        (br#"{"type":"message","msgId":"m","from":"a","toClientId":"b","payload":"\ud800"}"#, "malformed"),
        (br#"{"type":"message","msgId":"m","from":"a","toClientId":"b","payloadJson":1}"#, "malformed"),
        (br#"{"type":"message","msgId":"m","from":"a","toClientId":"b","payload":1,"payloadJson":"1"}"#, "malformed"),
        (br#"{"type":"message","msgId":"m","from":"a","toClientId":"b","payload":1,"ts":"x"}"#, "malformed"),
        (br#"{"type":"message","msgId":"m","from":"a","toClientId":"b","payload":1,"ttlMs":-1}"#, "malformed"),
    ];
    for (value, cause) in table {
        let poison = decode_value(value).expect_err(&String::from_utf8_lossy(value));
        assert_eq!(poison.cause(), *cause, "{}: {poison}", String::from_utf8_lossy(value));
    }
    assert_eq!(decoder().decode(&Raw::default(), 5).unwrap_err(), Poison::Empty);
}

#[test]
fn headers_that_cannot_be_read_are_refused() {
    let value = br#"{"type":"message","msgId":"m","from":"a","toClientId":"b","payload":1}"#;
    let plain = Raw { value: Some(value), ..Raw::default() };
    assert!(decoder().decode(&plain, 5).is_ok());
    for hops in ["", "256", "-1", "+1", "1 ", "x"] {
        let raw = Raw { hops: Some(hops.as_bytes()), ..plain };
        assert_eq!(decoder().decode(&raw, 5).unwrap_err(), Poison::Header(HOPS_HEADER), "{hops:?}");
    }
    for origin in ["", "a", "a/1", "a/1/2/3", "/1/2", "a b/1/2", "a/x/2", "a/1/65536", "a/-1/2"] {
        let raw = Raw { origin: Some(origin.as_bytes()), ..plain };
        assert_eq!(decoder().decode(&raw, 5).unwrap_err(), Poison::Header(ORIGIN_HEADER), "{origin:?}");
    }
    let dance = Raw { kind: Some(b"dance"), value: Some(br#"{"type":"dance"}"#), ..plain };
    assert_eq!(decoder().decode(&dance, 5).unwrap_err(), Poison::UnknownKind);
    for (kind, value) in [
        ("fence", r#"{"type":"fenced","id":1}"#),
        ("fence", r#"{"type":"fence"}"#),
        ("fence", r#"{"type":"fence","id":-1}"#),
        ("fenced", r#"{"type":"fenced","id":1,"shard":65536,"incarnation":1}"#),
        ("claimed", r#"{"type":"claimed","generation":1}"#),
        ("moved", r#"{"type":"moved","clientId":"a","nodeId":"a/b","incarnation":1,"generation":1}"#),
    ] {
        let raw = Raw { kind: Some(kind.as_bytes()), value: Some(value.as_bytes()), ..plain };
        assert_eq!(decoder().decode(&raw, 5).unwrap_err().cause(), "malformed", "{value}");
    }
    let bad_client = Raw { kind: Some(b"nudge"), value: Some(br#"{"type":"nudge","clientId":""}"#), ..plain };
    assert_eq!(decoder().decode(&bad_client, 5).unwrap_err().cause(), "client_id");
}

proptest! {
    #[test]
    fn every_message_comes_back_byte_for_byte(
        msg_id in "[^\u{0}]{1,30}", from in r#"[a-z"\\é😀]{1,20}"#, to in "[ -~]{1,40}",
        text in ".{0,60}", is_json in any::<bool>(), ttl_ms in any::<Option<u64>>(), ts_ms in any::<u64>(), hops in any::<u8>(),
    ) {
        let payload = sonic_rs::to_string(&text).unwrap();
        let mut message = posted(&msg_id, &from, &to, &payload);
        (message.ttl_ms, message.ts_ms, message.hops) = (ttl_ms, ts_ms, hops);
        if is_json {
            message.field = PayloadField::PayloadJson;
        }
        check_round_trip(Record::Message(Box::new(message)));
    }

    #[test]
    fn no_record_panics(
        value in prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..80),
            r#"[\\"{}\[\]:,a-du0-9 ]{0,80}"#.prop_map(String::into_bytes),
        ],
        kind in "(message|fence|fenced|claimed|released|moved|nudge|x)?", origin in "[a-z/0-9]{0,12}", hops in "[0-9x]{0,4}",
    ) {
        let raw = Raw {
            value: Some(&value), kind: Some(kind.as_bytes()), origin: Some(origin.as_bytes()), hops: Some(hops.as_bytes()),
            trail: Some(hops.as_bytes()), taken_ms: 0,
        };
        let _ = decoder().decode(&raw, 0);
    }
}
