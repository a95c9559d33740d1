//! The report as one page that needs nothing else: style and plots are in it, nothing is fetched.

use std::{fmt, fmt::Write as _, fs, path::Path};

use anyhow::{Context as _, Result};

use super::{
    FaultReport, LatencyReport, Report, RoamingReport,
    plot::{Axis, Band, Line, legend, plot},
    text::{capacity_sentence, grouped, grouped_float, micros},
};
use crate::{
    capacity::Step,
    recorder::{Latency, Series},
    targets::{Outcome, approximate},
    timeline,
};

const STYLE: &str = include_str!("style.css");
/// Points of a latency curve; between them it is a straight line on the page.
const CURVE_POINTS: u32 = 160;
const NANOS_PER_SECOND: f64 = 1e9;
/// Points of the line of overdue messages.
const BACKLOG_POINTS_MAX: usize = 600;

/// Writes the page to `path`.
///
/// # Errors
/// The file cannot be written.
pub(crate) fn write(report: &Report, path: &Path) -> Result<()> {
    fs::write(path, page(report)).with_context(|| format!("cannot write --html {}", path.display()))
}

fn page(report: &Report) -> String {
    let mut html = String::new();
    write_page(&mut html, report).expect("writing to a string cannot fail");
    html
}

fn write_page(html: &mut String, report: &Report) -> fmt::Result {
    let scenario = report.scenario;
    let verdict = match report.verdict {
        Outcome::Pass => "pass",
        Outcome::Fail => "fail",
        Outcome::Void => "void",
    };
    write!(
        html,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <meta name=\"color-scheme\" content=\"light dark\">\
         <title>{scenario}: {verdict}</title><style>{STYLE}</style></head><body><main>"
    )?;
    write_head(html, report, verdict)?;
    write_figures(html, report)?;
    write_latency(html, report)?;
    write_throughput(html, report)?;
    write_backlog(html, report);
    write_capacity(html, report)?;
    write_faults(html, report)?;
    write_ledger(html, report)?;
    write_roaming(html, report)?;
    write_errors(html, report)?;
    write_setting(html, report)?;
    html.push_str("</main></body></html>\n");
    Ok(())
}

fn write_head(html: &mut String, report: &Report, verdict: &str) -> fmt::Result {
    let pacing = match (report.pacing, report.depth) {
        ("open", _) => "open loop: latency counts from the intended time".to_owned(),
        ("closed", Some(depth)) => {
            format!("closed loop with {depth} in flight per connection: latency counts from the send")
        }
        _ => String::new(),
    };
    write!(
        html,
        "<header><div><h1>{}</h1><p>{} connections, {:.1} s measured{}{pacing}</p></div>\
         <strong class=\"verdict {verdict}\">{verdict}</strong></header>",
        report.scenario,
        grouped(report.opened),
        report.duration_s,
        if pacing.is_empty() { "" } else { " · " },
    )?;
    let reasons: Vec<_> = report.void_reasons.iter().chain(&report.failures).collect();
    if !reasons.is_empty() {
        if report.verdict == Outcome::Void {
            html.push_str(
                "<p class=\"reasons\">The generator fell short: the numbers say nothing about the server.</p>",
            );
        }
        html.push_str("<ul class=\"reasons\">");
        for reason in reasons {
            write!(html, "<li>{}</li>", escaped(reason))?;
        }
        html.push_str("</ul>");
    } else if report.targets.is_empty() {
        html.push_str("<p class=\"quiet\">No targets were set: the ledger alone judged.</p>");
    } else {
        let targets: Vec<_> = report.targets.iter().map(|target| format!("<code>{}</code>", escaped(target))).collect();
        write!(html, "<p class=\"quiet\">Targets met: {}</p>", targets.join(" "))?;
    }
    Ok(())
}

/// The four or five numbers one came for.
fn write_figures(html: &mut String, report: &Report) -> fmt::Result {
    html.push_str("<section class=\"figures\">");
    let mut figure = |name: &str, value: String| write!(html, "<div><b>{value}</b><span>{name}</span></div>");
    if report.sent > 0 {
        let rate = match report.rate.intended {
            Some(intended) => format!("messages/s of {} intended", grouped_float(intended)),
            None => "messages/s".to_owned(),
        };
        figure(&rate, grouped_float(report.rate.achieved))?;
        figure("median latency", micros(report.latency_us.p50))?;
        figure("99 % within", micros(report.latency_us.p99))?;
        figure("lost", grouped(report.lost))?;
    } else {
        figure("connects/s", grouped_float(report.connects.per_second))?;
        figure("median handshake", micros(report.handshake_us.p50))?;
        figure("99 % within", micros(report.handshake_us.p99))?;
        figure("failed", grouped(report.failed))?;
    }
    if let Some(server) = &report.server {
        match (server.cpu_us_per_message, server.rss_bytes_per_connection) {
            (Some(micros), _) => figure("µs server CPU each", format!("{micros:.2}"))?,
            (None, Some(bytes)) => figure("server bytes per connection", format!("{bytes:.0}"))?,
            (None, None) => {}
        }
    }
    html.push_str("</section>");
    Ok(())
}

fn write_latency(html: &mut String, report: &Report) -> fmt::Result {
    let measures = &report.measures;
    let mut lines = vec![curve("from the intended time", "first", &measures.latency)];
    if report.pacing == "closed" {
        lines[0].name = "from the send";
    } else {
        lines.push(curve("from the send", "second dashed", &measures.raw_latency));
    }
    lines.push(curve("to the sender's ack", "third", &measures.ack_latency));
    if report.sent == 0 {
        lines = vec![curve("handshake", "first", &measures.handshake)];
    }
    let heights = || lines.iter().flat_map(|line| &line.points).map(|point| point.1);
    let (lowest, highest) = (heights().fold(f64::INFINITY, f64::min), heights().fold(0.0, f64::max));
    if highest <= 0.0 {
        return Ok(());
    }
    let most = lines.iter().filter_map(|line| line.points.last()).map(|point| point.0).fold(10.0, f64::max);
    // One tick per nine: 1 in 10^n messages is slower.
    let nines = [
        (1.0, "0"),
        (2.0, "50 %"),
        (10.0, "90 %"),
        (100.0, "99 %"),
        (1e3, "99.9 %"),
        (1e4, "99.99 %"),
        (1e5, "99.999 %"),
        (1e6, "99.9999 %"),
    ];
    let last = nines.iter().position(|(value, _)| *value >= most).unwrap_or(nines.len() - 1);
    let x = Axis::logarithmic_at(
        "share of messages that are no slower",
        nines[..=last].iter().map(|(value, name)| (*value, (*name).to_owned())).collect(),
    );
    let y = Axis::logarithmic("", lowest.max(0.1), highest, short_micros);
    html.push_str("<section><h2>Latency by percentile</h2>");
    html.push_str(&legend(&lines));
    html.push_str(&plot("Latency by percentile", &x, &y, &[], &lines));
    html.push_str("<div class=\"wide\"><table><thead><tr><th></th><th>p50</th><th>p90</th><th>p99</th><th>p99.9</th><th>max</th></tr></thead><tbody>");
    let mut row = |name: &str, latency: &LatencyReport| {
        if latency.count == 0 {
            return Ok(());
        }
        let cells = [latency.p50, latency.p90, latency.p99, latency.p999, latency.max]
            .map(|value| format!("<td>{}</td>", micros(value)));
        write!(html, "<tr><th>{name}</th>{}</tr>", cells.concat())
    };
    match report.pacing {
        "open" => {
            row("from the intended time", &report.latency_us)?;
            row("from the send", &report.raw_latency_us)?;
        }
        _ => row("from the send", &report.latency_us)?,
    }
    if let Some(acks) = &report.ack_latency_us {
        row("to the sender's ack", acks)?;
    }
    row("handshake", &report.handshake_us)?;
    if let Some(roaming) = &report.roaming {
        row("from a connection's end to the next welcome", &roaming.return_us)?;
        row("from a connection's end to nothing missed", &roaming.catch_up_us)?;
    }
    html.push_str("</tbody></table></div></section>");
    Ok(())
}

/// Latency against 1/(1 − quantile), which spreads the tail that matters.
fn curve(name: &'static str, class: &'static str, latency: &Latency) -> Line {
    let count = approximate(latency.count());
    let points = if latency.count() == 0 {
        Vec::new()
    } else {
        (0..=CURVE_POINTS)
            .map(|index| count.max(2.0).powf(f64::from(index) / f64::from(CURVE_POINTS)))
            .map(|one_in| (one_in, approximate(latency.quantile(1.0 - 1.0 / one_in)) / 1000.0))
            .collect()
    };
    Line { name, class, points }
}

fn short_micros(micros: f64) -> String {
    match micros {
        small if small < 1000.0 => format!("{small} µs"),
        middle if middle < 1e6 => format!("{} ms", middle / 1e3),
        large => format!("{} s", large / 1e6),
    }
}

fn write_throughput(html: &mut String, report: &Report) -> fmt::Result {
    let Series { bucket_nanos, intended, sent, received } = &report.measures.series;
    let bucket_s = approximate(*bucket_nanos) / NANOS_PER_SECOND;
    if received.iter().chain(sent).all(|count| *count == 0) {
        return Ok(());
    }
    let span_s = report.warm_up_s + report.duration_s;
    // The last bucket may be cut by the end of the run: it would show a drop that was none.
    let whole = received.len().min(whole_buckets(span_s, bucket_s));
    let rates = |name, class, counts: &[u64]| {
        let middle = |index: usize| (approximate(index as u64) + 0.5) * bucket_s;
        let points = counts[..whole.min(counts.len())].iter().enumerate();
        let points = points.map(|(index, count)| (middle(index), approximate(*count) / bucket_s)).collect();
        Line { name, class, points }
    };
    let mut lines = vec![rates(if report.sent > 0 { "received" } else { "opened" }, "first", received)];
    if report.pacing == "open" {
        lines.push(rates("intended", "second dashed", intended));
    }
    let highest = lines.iter().flat_map(|line| &line.points).map(|point| point.1).fold(0.0, f64::max);
    let x = Axis::exact("seconds since the start", span_s, |value| format!("{}", (value * 100.0).round() / 100.0));
    let y = Axis::linear("", highest * 1.05, short_count);
    let bands = bands(report, span_s);
    let title = if report.sent > 0 { "Messages per second" } else { "Connections opened per second" };
    write!(html, "<section><h2>{title}</h2>")?;
    html.push_str(&legend(&lines));
    html.push_str(&plot(title, &x, &y, &bands, &lines));
    html.push_str("</section>");
    Ok(())
}

/// The warm-up, and from each fault to its recovery.
fn bands(report: &Report, span_s: f64) -> Vec<Band> {
    let warm_up = Band { from: 0.0, to: report.warm_up_s, label: "warm-up" };
    let fault = |fault: &FaultReport| {
        let from = report.warm_up_s + fault.at_s;
        let to = fault.recovery_s.map_or(span_s, |recovery_s| from + recovery_s);
        Band { from, to: to.min(span_s), label: fault.action }
    };
    let all = std::iter::once(warm_up).chain(report.faults.iter().map(fault));
    all.filter(|band| band.to > band.from).collect()
}

/// Messages overdue over time, if there ever were any.
fn write_backlog(html: &mut String, report: &Report) {
    let Some(last) = report.overdue.iter().rposition(|count| *count > 0) else {
        return;
    };
    let bucket_s = approximate(timeline::BUCKET_NANOS) / NANOS_PER_SECOND;
    let span_s = (report.warm_up_s + report.duration_s).max(approximate(last as u64 + 2) * bucket_s);
    let shown = &report.overdue[..report.overdue.len().min(whole_buckets(span_s, bucket_s))];
    // The highest of several buckets, where there are more than the page can show.
    let step = shown.len().div_ceil(BACKLOG_POINTS_MAX).max(1);
    let points = shown.chunks(step).enumerate().map(|(index, counts)| {
        let at = (approximate((index * step) as u64) + 0.5) * bucket_s;
        (at, approximate(counts.iter().copied().max().unwrap_or(0)))
    });
    let line = Line { name: "not delivered a second after they were due", class: "first", points: points.collect() };
    let highest = line.points.iter().map(|point| point.1).fold(0.0, f64::max);
    let x = Axis::exact("seconds since the start", span_s, |value| format!("{}", (value * 100.0).round() / 100.0));
    let y = Axis::linear("", highest * 1.05, short_count);
    html.push_str("<section><h2>Messages overdue</h2>");
    html.push_str(&legend(std::slice::from_ref(&line)));
    html.push_str(&plot("Messages overdue", &x, &y, &bands(report, span_s), &[line]));
    html.push_str("</section>");
}

/// Every rate that was tried.
fn write_capacity(html: &mut String, report: &Report) -> fmt::Result {
    let Some(capacity) = &report.capacity else {
        return Ok(());
    };
    write!(html, "<section><h2>Rates</h2><p class=\"quiet\">{}</p>", escaped(&capacity_sentence(capacity)))?;
    html.push_str("<div class=\"wide\"><table class=\"ledger\"><tbody>");
    for Step { rate, verdict, p99_us, reasons } in &capacity.steps {
        let class = if *verdict == Outcome::Pass { "" } else { "bad" };
        let (rate, p99, reasons) = (grouped_float(*rate), micros(*p99_us), escaped(&reasons.join("; ")));
        write!(html, "<tr class=\"{class}\"><th>{rate}/s</th><td>p99 {p99}</td><td>{reasons}</td></tr>")?;
    }
    html.push_str("</tbody></table></div></section>");
    Ok(())
}

fn write_faults(html: &mut String, report: &Report) -> fmt::Result {
    if report.faults.is_empty() {
        return Ok(());
    }
    html.push_str(
        "<section><h2>Faults</h2><div class=\"wide\"><table><thead><tr><th></th><th>at</th><th>recovery</th>\
         <th>lost</th><th>repeats dropped</th></tr></thead><tbody>",
    );
    for FaultReport { at_s, action, pid, recovery_s, lost, repeats_dropped } in &report.faults {
        let recovery = recovery_s.map_or("none".to_owned(), |seconds| format!("{seconds:.1} s"));
        let class = if *lost > 0 || recovery_s.is_none() { "bad" } else { "" };
        write!(
            html,
            "<tr class=\"{class}\"><th>{action} {pid}</th><td>{at_s:.1} s</td><td>{recovery}</td><td>{}</td><td>{}</td></tr>",
            grouped(*lost),
            grouped(*repeats_dropped)
        )?;
    }
    html.push_str(
        "</tbody></table></div><p class=\"quiet\">Recovery: from the fault until no message was overdue any more, \
         up to the next kill, stop or term.</p></section>",
    );
    Ok(())
}

/// What became of connections, where clients outlive them.
fn write_roaming(html: &mut String, report: &Report) -> fmt::Result {
    let Some(roaming) = &report.roaming else {
        return Ok(());
    };
    html.push_str("<section><h2>Returns</h2><div class=\"wide\"><table class=\"ledger\"><tbody>");
    let RoamingReport { returns, cuts, goodbyes, moves, advised, unrecovered, resent, repeats_dropped, .. } = roaming;
    for (name, count, meaning) in [
        ("returns", returns, "welcomes after a client's first"),
        ("cuts", cuts, "connections we broke without a word"),
        ("goodbyes", goodbyes, "connections we closed, to return later"),
        ("moves", moves, "second connection opened before the first was closed"),
        ("advised", advised, "moves that a server asked for"),
        ("unrecovered", unrecovered, "the server could not vouch for the client's position"),
        ("sent again", resent, "messages not confirmed on an earlier connection, or refused for now"),
        ("repeats", repeats_dropped, "recognised by their name and dropped by the client"),
        ("across", &roaming.across, "messages that arrived while their sender was on another node"),
        ("silent", &roaming.silent_clients, "clients that acknowledged nothing for seconds at a time"),
    ] {
        write!(html, "<tr><th>{name}</th><td>{}</td><td>{meaning}</td></tr>", grouped(*count))?;
    }
    for (kind, causes) in [("break", &roaming.breaks), ("retry", &roaming.retries)] {
        for (cause, count) in causes {
            write!(html, "<tr><th>{kind}</th><td>{}</td><td>{}</td></tr>", grouped(*count), escaped(cause))?;
        }
    }
    for disorder in &roaming.disorders {
        write!(html, "<tr><th>disorder</th><td></td><td>{}</td></tr>", escaped(disorder))?;
    }
    html.push_str("</tbody></table></div></section>");
    Ok(())
}

fn whole_buckets(span_s: f64, bucket_s: f64) -> usize {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a few hundred at most")]
    let whole = (span_s / bucket_s + 1e-6).floor().max(0.0) as usize;
    whole
}

fn short_count(count: f64) -> String {
    match count {
        small if small < 10_000.0 => format!("{small}"),
        middle if middle < 1e6 => format!("{}k", middle / 1e3),
        large => format!("{}M", large / 1e6),
    }
}

fn write_ledger(html: &mut String, report: &Report) -> fmt::Result {
    if report.sent == 0 {
        return Ok(());
    }
    html.push_str("<section><h2>Ledger</h2><div class=\"wide\"><table class=\"ledger\"><tbody>");
    let faults = [
        (
            "lost",
            report.lost,
            if report.roaming.is_some() { "confirmed, never arrived" } else { "sent, not refused, never arrived" },
        ),
        ("reordered", report.reordered, "arrived after a later one of the same sender"),
        ("corrupt", report.corrupt, "arrived with another content"),
        ("misdelivered", report.misdelivered, "arrived at another client"),
    ];
    let mut row = |name: &str, count: u64, meaning: &str, class: &str| {
        write!(html, "<tr class=\"{class}\"><th>{name}</th><td>{}</td><td>{meaning}</td></tr>", grouped(count))
    };
    row("sent", report.sent, "warm-up included", "")?;
    row("received", report.received, "each counted once", "")?;
    for (name, count, meaning) in faults {
        row(name, count, meaning, if count > 0 { "bad" } else { "" })?;
    }
    if report.roaming.is_some() {
        let class = if report.duplicated > 0 { "bad" } else { "" };
        row("duplicated", report.duplicated, "arrived again, and was not recognised as a repeat", class)?;
        row("displaced", report.displaced, "arrived after a later one, having been sent again after it", "")?;
    } else {
        row("duplicated", report.duplicated, "arrived again; at-least-once delivery allows it", "")?;
    }
    row("refused", report.refused, "answered by the server with an error", "")?;
    if let (Some(accepted), Some(unconfirmed)) = (report.accepted, report.unconfirmed) {
        row("accepted", accepted, "confirmed by the server to the sender", "")?;
        row("unconfirmed", unconfirmed, "neither confirmed nor refused", "")?;
    }
    if report.pacing == "open" {
        row("late", report.late_sends, "left over 10 ms after they were due, the generator's fault", "")?;
        row(
            "missed",
            report.missed_slots,
            "could not be sent when due",
            if report.missed_slots > 0 { "bad" } else { "" },
        )?;
    }
    html.push_str("</tbody></table></div></section>");
    Ok(())
}

fn write_errors(html: &mut String, report: &Report) -> fmt::Result {
    if report.errors.is_empty() {
        return Ok(());
    }
    html.push_str("<section><h2>Errors</h2><div class=\"wide\"><table><tbody>");
    for (cause, count) in &report.errors {
        write!(html, "<tr><th>{}</th><td>{}</td></tr>", escaped(cause), grouped(*count))?;
    }
    html.push_str("</tbody></table></div></section>");
    Ok(())
}

fn write_setting(html: &mut String, report: &Report) -> fmt::Result {
    html.push_str("<section><h2>Setting</h2><dl>");
    let mut item = |name: &str, value: &str| write!(html, "<dt>{name}</dt><dd>{}</dd>", escaped(value));
    let (generator, environment) = (&report.generator, &report.environment);
    item("server", &report.urls.join(", "))?;
    if let Some(pairs) = report.pairs {
        item("pairs", &format!("{}, {} across two nodes", grouped(pairs.total), grouped(pairs.crossing)))?;
    }
    if report.payload_bytes > 0 {
        item("message", &format!("{} bytes", grouped(u64::from(report.payload_bytes))))?;
    }
    item(
        "connects",
        &format!(
            "{}/s, {} opened, {} failed",
            grouped_float(report.connects.per_second),
            grouped(report.opened),
            grouped(report.failed)
        ),
    )?;
    item(
        "generator",
        &format!(
            "{} × {} threads, {:.0} % of their cores, {}{}",
            generator.processes,
            generator.threads,
            generator.cpu_share * 100.0,
            generator.driver,
            generator.cpu_us_per_message.map(|micros| format!(", {micros:.2} µs CPU each")).unwrap_or_default()
        ),
    )?;
    if let Some(server) = &report.server {
        item(
            "server process",
            &format!(
                "{:.2} cores, {:.1} MiB resident",
                server.cpu_cores,
                approximate(server.rss_open_bytes) / 1_048_576.0
            ),
        )?;
    }
    item("machine", &format!("{}, {} CPUs", environment.cpu, environment.cpus))?;
    item("kernel", &environment.kernel)?;
    item("run", &format!("seed {}, {} {}", report.seed, env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION")))?;
    html.push_str("</dl></section>");
    Ok(())
}

fn escaped(text: &str) -> String {
    let mut html = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => html.push_str("&amp;"),
            '<' => html.push_str("&lt;"),
            '>' => html.push_str("&gt;"),
            '"' => html.push_str("&quot;"),
            plain => html.push(plain),
        }
    }
    html
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_cannot_become_markup() {
        assert_eq!(escaped("p99<10ms & \"x\">"), "p99&lt;10ms &amp; &quot;x&quot;&gt;");
    }

    #[test]
    fn a_curve_ends_at_the_slowest_message() {
        let mut latency = Latency::default();
        for millis in 1..=1000 {
            latency.record(millis * 1_000_000);
        }
        let line = curve("", "", &latency);
        let (one_in, micros) = line.points[line.points.len() - 1];
        assert!((one_in - 1000.0).abs() < 0.01);
        assert!((micros - 999_000.0).abs() < 2_000.0, "{micros}");
        assert!(line.points.windows(2).all(|pair| pair[0].1 <= pair[1].1));
    }

    #[test]
    fn values_are_short_on_an_axis() {
        assert_eq!(short_micros(500.0), "500 µs");
        assert_eq!(short_micros(2000.0), "2 ms");
        assert_eq!(short_count(1_500_000.0), "1.5M");
    }
}
