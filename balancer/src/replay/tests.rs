use sonic_rs::{JsonContainerTrait as _, JsonValueTrait as _, Value};

use super::*;

fn heartbeat(node: &str, cpu: &str) -> String {
    format!(
        r#"{{"nodeId":"{node}","activeConn":100,"mps":10,"p95LatencyMs":20,"kafkaTopicLagLatencyMs":5,"cpu":{cpu},"mem":0.5,"timestampMs":1}}"#
    )
}

fn line(ts: u64, heartbeats: &[String]) -> String {
    format!(r#"{{"ts":{ts},"heartbeats":[{}]}}"#, heartbeats.join(","))
}

fn calm(ts: u64) -> String {
    line(ts, &[heartbeat("a", "0.5"), heartbeat("b", "0.5")])
}

struct Outcome {
    answers: Vec<Value>,
    complaints: String,
    tally: Tally,
}

fn run(lines: &[String]) -> Outcome {
    let (mut output, mut complaints) = (Vec::new(), Vec::new());
    let input = lines.join("\n") + "\n";
    let tally = replay(input.as_bytes(), &mut output, &mut complaints, &Rules::default(), 0).unwrap();
    let output = String::from_utf8(output).unwrap();
    let answers = output.lines().map(|line| sonic_rs::from_str(line).unwrap()).collect();
    Outcome { answers, complaints: String::from_utf8(complaints).unwrap(), tally }
}

fn nodes(answer: &Value) -> Vec<String> {
    let weights = answer["ringUpdate"]["nodeWeights"].as_object().unwrap();
    weights.iter().map(|(node, _)| node.to_owned()).collect()
}

#[test]
fn every_line_gets_one_answer_of_one_shape() {
    let outcome = run(&[calm(1000), calm(3000)]);
    assert_eq!(outcome.answers.len(), 2);
    let first = &outcome.answers[0];
    assert_eq!(first["ts"].as_u64(), Some(1000));
    assert_eq!(first["leader"].as_bool(), Some(true));
    assert_eq!(first["ringUpdate"]["version"]["version"].as_u64(), Some(1));
    assert_eq!(first["ringUpdate"]["reason"].as_str(), Some("nodes-joined: a, b"));
    assert!(first["scaleSignal"].is_null());
    assert!(outcome.answers[1]["ringUpdate"].is_null());
    let text = sonic_rs::to_string(&outcome.answers[1]).unwrap();
    assert_eq!(text, r#"{"ts":3000,"ringUpdate":null,"scaleSignal":null,"leader":true}"#);
}

#[test]
fn a_malformed_line_is_answered_in_its_place_and_the_run_goes_on() {
    for bad in [
        "{",
        "[]",
        "nonsense",
        r#"{"ts":1}"#,
        r#"{"heartbeats":[]}"#,
        r#"{"ts":-1,"heartbeats":[]}"#,
        r#"{"ts":1.5,"heartbeats":[]}"#,
        r#"{"ts":1e308,"heartbeats":[]}"#,
        r#"{"ts":"x","heartbeats":[]}"#,
        r#"{"ts":1,"heartbeats":{}}"#,
        &format!(r#"{{"ts":1,"heartbeats":{}"#, "[".repeat(100_000)),
    ] {
        let outcome = run(&[calm(1000), bad.to_owned(), calm(3000)]);
        assert_eq!(outcome.answers.len(), 3, "{bad}");
        assert!(outcome.answers[1]["error"].as_str().is_some_and(|error| !error.is_empty()), "{bad}");
        assert_eq!(outcome.answers[2]["ts"].as_u64(), Some(3000));
        assert_eq!((outcome.tally.lines, outcome.tally.errors, outcome.tally.updates), (3, 1, 1));
    }
}

#[test]
fn one_absurd_heartbeat_is_left_out_named_and_counted() {
    let cpu = |text: &str| heartbeat("odd", text);
    let whole = heartbeat("odd", "0.5");
    for absurd in [
        cpu("NaN"),
        cpu("Infinity"),
        cpu("-Infinity"),
        cpu("-0.1"),
        cpu("1.01"),
        cpu("1e308"),
        cpu("1e999"),
        cpu("\"0.5\""),
        cpu("null"),
        whole.replace(r#""mem":0.5,"#, ""),
        whole.replace(r#""activeConn":100"#, r#""activeConn":-1"#),
        whole.replace(r#""p95LatencyMs":20"#, r#""p95LatencyMs":1e308"#),
        whole.replace(r#""timestampMs":1"#, r#""timestampMs":1,"ringVersion":9007199254740991"#),
    ] {
        let outcome = run(&[line(1000, &[heartbeat("a", "0.5"), absurd.clone(), heartbeat("b", "0.5")])]);
        assert_eq!(nodes(&outcome.answers[0]), ["a", "b"], "{absurd}");
        assert!(outcome.complaints.contains("\"odd\""), "{absurd}: {}", outcome.complaints);
        assert_eq!(outcome.tally.refused.values().sum::<u64>(), 1, "{absurd}");
        assert_eq!(outcome.tally.errors, 0);
    }
    for nameless in ["5", "{}", "[[[]]]", r#"{"nodeId":"no spaces"}"#, r#"{"nodeId":7}"#] {
        let outcome = run(&[line(1000, &[nameless.to_owned(), heartbeat("a", "0.5")])]);
        assert_eq!(nodes(&outcome.answers[0]), ["a"], "{nameless}");
        assert_eq!(outcome.tally.refused.get("unreadable"), Some(&1));
    }
}

#[test]
fn a_node_that_becomes_absurd_keeps_its_weight_until_it_is_gone() {
    let odd = |cpu| heartbeat("odd", cpu);
    let beside = |ts, odd: &[String]| line(ts, &[&[heartbeat("a", "0.5"), heartbeat("b", "0.5")], odd].concat());
    let outcome = run(&[
        beside(1_000, &[odd("0.5")]),
        beside(3_000, &[odd("NaN")]),
        // Of one node's two the sound one counts, wherever it stands.
        beside(5_000, &[odd("-1"), odd("0.5")]),
        beside(7_000, &[]),
    ]);
    assert_eq!(nodes(&outcome.answers[0]), ["a", "b", "odd"]);
    assert!(outcome.answers[1]["ringUpdate"].is_null() && outcome.answers[2]["ringUpdate"].is_null());
    assert_eq!(outcome.answers[3]["ringUpdate"]["reason"].as_str(), Some("nodes-removed: odd"));
    assert_eq!(outcome.tally.refused, [("unreadable", 2)].into());
}

#[test]
fn of_two_heartbeats_of_one_node_the_first_counts() {
    let outcome = run(&[line(1000, &[heartbeat("a", "0.5"), heartbeat("a", "0.9"), heartbeat("b", "0.5")])]);
    assert_eq!(nodes(&outcome.answers[0]), ["a", "b"]);
    assert_eq!(outcome.answers[0]["ringUpdate"]["nodeWeights"]["a"].as_u64(), Some(100));
    assert_eq!(outcome.tally.refused.get("duplicate"), Some(&1));
}

#[test]
fn a_line_without_heartbeats_keeps_the_ring() {
    let outcome = run(&[calm(1000), r#"{"ts":2000,"heartbeats":[]}"#.to_owned(), calm(3000)]);
    assert!(outcome.answers[1]["ringUpdate"].is_null() && outcome.answers[2]["ringUpdate"].is_null());
}

#[test]
fn words_inside_strings_stay_and_empty_lines_need_no_answer() {
    assert_eq!(without_non_numbers(r#"{"a":"NaN \" Infinity","b":NaN}"#), r#"{"a":"NaN \" Infinity","b":null}"#);
    assert_eq!(run(&[String::new(), calm(1000), "  ".to_owned()]).answers.len(), 1);
}

#[test]
fn a_line_that_is_too_long_is_skipped_to_its_end() {
    let outcome = run(&["x".repeat(3 * LINE_BYTES_MAX), calm(1000)]);
    assert!(outcome.answers[0]["error"].as_str().unwrap().contains("longer than"));
    assert_eq!(nodes(&outcome.answers[1]), ["a", "b"]);
}

#[test]
fn the_answer_is_there_before_the_next_line_is_asked_for() {
    /// Hands out one line at a time, each only after the last was answered and flushed.
    struct Dialogue<'a> {
        lines: Vec<Vec<u8>>,
        current: Vec<u8>,
        flushed: &'a std::cell::Cell<usize>,
        asked: usize,
    }
    impl io::Read for Dialogue<'_> {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            let count = self.fill_buf()?.read(buf)?;
            self.consume(count);
            Ok(count)
        }
    }
    impl BufRead for Dialogue<'_> {
        fn fill_buf(&mut self) -> io::Result<&[u8]> {
            if self.current.is_empty() && self.asked < self.lines.len() {
                assert_eq!(self.flushed.get(), self.asked);
                self.current = self.lines[self.asked].clone();
                self.asked += 1;
            }
            Ok(&self.current)
        }
        fn consume(&mut self, count: usize) {
            self.current.drain(..count);
        }
    }
    struct Flushes<'a>(&'a std::cell::Cell<usize>);
    impl Write for Flushes<'_> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            self.0.set(self.0.get() + 1);
            Ok(())
        }
    }
    let flushed = std::cell::Cell::new(0);
    let lines = [calm(1000), "bad".to_owned(), calm(2000)].map(|line| (line + "\n").into_bytes()).into();
    let input = Dialogue { lines, current: Vec::new(), flushed: &flushed, asked: 0 };
    let tally = replay(input, Flushes(&flushed), io::sink(), &Rules::default(), 0).unwrap();
    assert_eq!((tally.lines, flushed.get()), (3, 3));
}
