//! The report for a person at a terminal.

use std::fmt::{self, Write as _};

use super::{FaultReport, LatencyReport, Report, RoamingReport};
use crate::{
    capacity::{Capacity, LimitedBy},
    targets::{Outcome, approximate},
};

/// The whole report as text, ending in a newline.
pub(crate) fn text(report: &Report) -> String {
    let mut text = String::new();
    write(report, &mut text).expect("writing to a string cannot fail");
    text
}

fn write(report: &Report, text: &mut String) -> fmt::Result {
    let loop_kind = match report.pacing {
        "open" => ", open loop: latency counts from the intended time",
        "closed" => ", closed loop: latency counts from the send",
        _ => "",
    };
    writeln!(text, "{}: {} connections{loop_kind}", report.scenario, grouped(report.opened))?;
    let connects = &report.connects;
    write!(text, "  connects      {}/s", grouped_float(connects.per_second))?;
    if connects.opening_s > 0.0 {
        write!(text, " ({:.2} s)", connects.opening_s)?;
    }
    writeln!(text)?;
    write_latency(text, "handshake", &report.handshake_us)?;
    if report.sent > 0 {
        match (report.rate.intended, report.depth) {
            (Some(intended), _) => {
                writeln!(
                    text,
                    "  rate          {}/s of {}/s intended",
                    grouped_float(report.rate.achieved),
                    grouped_float(intended)
                )?;
            }
            (None, Some(depth)) => {
                writeln!(
                    text,
                    "  rate          {}/s with {depth} in flight per connection",
                    grouped_float(report.rate.achieved)
                )?;
            }
            (None, None) => {}
        }
        write_latency(text, "latency", &report.latency_us)?;
        if report.pacing == "open" {
            write_latency(text, "raw latency", &report.raw_latency_us)?;
        }
        if let Some(acks) = &report.ack_latency_us {
            write_latency(text, "sender acks", acks)?;
        }
        write_ledger(report, text)?;
    }
    if let Some(pairs) = report.pairs.filter(|_| report.nodes.len() > 1) {
        writeln!(text, "  pairs         {}, {} across two nodes", grouped(pairs.total), grouped(pairs.crossing))?;
    }
    if let Some(roaming) = &report.roaming {
        write_roaming(roaming, text)?;
    }
    for fault in &report.faults {
        writeln!(text, "  fault         {}", fault_sentence(fault))?;
    }
    write_usage(report, text)?;
    for (cause, count) in &report.errors {
        writeln!(text, "  error         {} × {cause}", grouped(*count))?;
        if let Some(hint) = hint(cause, report.roaming.is_some()) {
            writeln!(text, "                {hint}")?;
        }
    }
    if let Some(capacity) = &report.capacity {
        writeln!(text, "  capacity      {}", capacity_sentence(capacity))?;
    }
    let verdict = match report.verdict {
        Outcome::Pass => "PASS",
        Outcome::Fail => "FAIL",
        Outcome::Void => "VOID: the generator fell short, the numbers say nothing about the server",
    };
    writeln!(text, "{verdict}")?;
    for reason in report.void_reasons.iter().chain(&report.failures) {
        writeln!(text, "  {reason}")?;
    }
    Ok(())
}

fn write_latency(text: &mut String, name: &str, latency: &LatencyReport) -> fmt::Result {
    if latency.count == 0 {
        return Ok(());
    }
    let LatencyReport { p50, p90, p99, p999, max, .. } = latency;
    writeln!(
        text,
        "  {name:<13} p50 {}  p90 {}  p99 {}  p99.9 {}  max {}",
        micros(*p50),
        micros(*p90),
        micros(*p99),
        micros(*p999),
        micros(*max)
    )
}

fn write_ledger(report: &Report, text: &mut String) -> fmt::Result {
    writeln!(
        text,
        "  ledger        {} sent, {} received: {} lost, {} duplicated, {} reordered, {} corrupt, {} misdelivered, {} refused",
        grouped(report.sent),
        grouped(report.received),
        grouped(report.lost),
        grouped(report.duplicated),
        grouped(report.reordered),
        grouped(report.corrupt),
        grouped(report.misdelivered),
        grouped(report.refused),
    )?;
    if let (Some(accepted), Some(unconfirmed)) = (report.accepted, report.unconfirmed) {
        writeln!(text, "  confirmed     {}, {} unconfirmed", grouped(accepted), grouped(unconfirmed))?;
    }
    if report.displaced > 0 {
        writeln!(text, "  displaced     {} sent again after later ones", grouped(report.displaced))?;
    }
    if report.late_sends > 0 || report.missed_slots > 0 {
        writeln!(
            text,
            "  late          {} sends over 10 ms late, {} could not be made",
            grouped(report.late_sends),
            grouped(report.missed_slots)
        )?;
    }
    Ok(())
}

/// What is mostly meant by an error that looks worse, or says less, than it is.
fn hint(cause: &str, follows_advice: bool) -> Option<&'static str> {
    match cause {
        "refused: 404" => Some("/ws/echo is there when the server was started with --echo"),
        "closed by the server with 1012" if !follows_advice => Some(
            "it asked the client to move to the node that owns it, or drains: these clients stay where they are put; \
             begin at the right node with --balancer, or use resume or churn, whose clients follow",
        ),
        _ => None,
    }
}

fn write_roaming(roaming: &RoamingReport, text: &mut String) -> fmt::Result {
    let RoamingReport { returns, cuts, goodbyes, moves, advised, unrecovered, resent, repeats_dropped, .. } = roaming;
    writeln!(
        text,
        "  returns       {}, after {} cuts, {} goodbyes, {} moves and {} asked for; {} not recovered",
        grouped(*returns),
        grouped(*cuts),
        grouped(*goodbyes),
        grouped(*moves),
        grouped(*advised),
        grouped(*unrecovered)
    )?;
    writeln!(
        text,
        "  repeats       {} messages sent again, {} dropped by their recipients",
        grouped(*resent),
        grouped(*repeats_dropped)
    )?;
    write_latency(text, "to welcome", &roaming.return_us)?;
    write_latency(text, "to caught up", &roaming.catch_up_us)?;
    for (cause, count) in &roaming.breaks {
        writeln!(text, "  break         {} × {cause}", grouped(*count))?;
    }
    for (cause, count) in &roaming.retries {
        writeln!(text, "  retry         {} × {cause}", grouped(*count))?;
    }
    for disorder in &roaming.disorders {
        writeln!(text, "  disorder      {disorder}")?;
    }
    Ok(())
}

/// What a search found, and what that is worth.
pub(crate) fn capacity_sentence(capacity: &Capacity) -> String {
    let Some(rate) = capacity.rate else {
        return "no rate held; the figures are of the last one tried".to_owned();
    };
    let rate = grouped_float(rate);
    match capacity.limited_by {
        LimitedBy::Server => format!("{rate}/s held, less than 10 % more did not"),
        LimitedBy::Generator => format!("at least {rate}/s: beyond that the generator fell short, not the server"),
        LimitedBy::Search => format!("at least {rate}/s: the search ended before a rate failed"),
    }
}

/// What there is to say about a fault.
pub(crate) fn fault_sentence(fault: &FaultReport) -> String {
    let FaultReport { at_s, action, pid, recovery_s, lost, repeats_dropped } = fault;
    let recovery = match recovery_s {
        Some(0.0) => "no message was a second late".to_owned(),
        Some(seconds) => format!("recovered after {seconds:.1} s"),
        None => "not recovered before the end or the next fault".to_owned(),
    };
    let (lost, repeats) = (grouped(*lost), grouped(*repeats_dropped));
    format!("{action} {pid} at {at_s:.1} s: {recovery}, {lost} lost, {repeats} repeats dropped")
}

fn write_usage(report: &Report, text: &mut String) -> fmt::Result {
    let generator = &report.generator;
    let each = if report.sent > 0 { "message" } else { "connection" };
    write!(
        text,
        "  generator     {:.0} % of {} cores",
        generator.cpu_share * 100.0,
        generator.processes * generator.threads
    )?;
    if let Some(micros) = generator.cpu_us_per_message {
        write!(text, ", {micros:.2} µs CPU per {each}")?;
    }
    writeln!(text, ", {}", generator.driver)?;
    if let Some(server) = &report.server {
        write!(text, "  server        {:.2} cores", server.cpu_cores)?;
        if let Some(micros) = server.cpu_us_per_message {
            write!(text, ", {micros:.2} µs CPU per {each}")?;
        }
        write!(text, ", {:.1} MiB resident", approximate(server.rss_open_bytes) / 1_048_576.0)?;
        // A server that has served before has memory to reuse: then the growth says nothing.
        if let Some(bytes) = server.rss_bytes_per_connection.filter(|bytes| *bytes > 0.0) {
            write!(text, ", {bytes:.0} bytes per connection")?;
        }
        writeln!(text)?;
    }
    Ok(())
}

/// A latency with three figures and its unit.
pub(crate) fn micros(micros: f64) -> String {
    match micros {
        small if small < 100.0 => format!("{small:.1} µs"),
        small if small < 1000.0 => format!("{small:.0} µs"),
        middle if middle < 100_000.0 => format!("{:.2} ms", middle / 1000.0),
        middle if middle < 1_000_000.0 => format!("{:.0} ms", middle / 1000.0),
        large => format!("{:.2} s", large / 1e6),
    }
}

/// `1234567` as `1,234,567`.
pub(crate) fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A rate, to be read.
pub(crate) fn grouped_float(value: f64) -> String {
    if value < 100.0 {
        return format!("{value:.1}");
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rate is neither negative nor beyond 2^64"
    )]
    grouped(value.round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_close_for_a_move_is_explained_to_who_does_not_move() {
        assert!(hint("closed by the server with 1012", false).unwrap().contains("--balancer"));
        assert_eq!(hint("closed by the server with 1012", true), None);
        assert!(hint("refused: 404", false).unwrap().contains("--echo"));
        assert_eq!(hint("refused: 503", false), None);
    }

    #[test]
    fn numbers_are_shown_to_be_read() {
        assert_eq!(grouped(7), "7");
        assert_eq!(grouped(1234), "1,234");
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(micros(1.25), "1.2 µs");
        assert_eq!(micros(1500.0), "1.50 ms");
        assert_eq!(micros(2_500_000.0), "2.50 s");
    }
}
