//! What a simulation has shown, as one page with curves that needs nothing else: no script, no network.

use std::fmt::Write as _;

use super::{Run, Trial, Tried, text};

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 52.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 36.0;
/// Points of one curve: more than there are pixels would show nothing more.
const POINTS_MAX: usize = 720;
/// Nodes whose curves are drawn.
const CURVES_MAX: usize = 40;

const STYLE: &str = "\
:root{--ground:#f5f6f8;--surface:#fff;--text:#171a21;--muted:#5a6372;--line:#e2e5ea;--feedback:#2f5bea;\
--proportional:#b3352b;font:15px/1.5 system-ui,sans-serif;color-scheme:light dark}\
@media(prefers-color-scheme:dark){:root{--ground:#0f1115;--surface:#171a20;--text:#e8ebf0;--muted:#9aa3b2;\
--line:#2a2f39;--feedback:#86a2ff;--proportional:#f08a80}}\
*{box-sizing:border-box;margin:0}body{background:var(--ground);color:var(--text);padding:24px;max-width:820px;\
margin:auto}h1{font-size:22px}h2{font-size:17px;margin:32px 0 8px}h3{font-size:14px;color:var(--muted);\
font-weight:600;margin:16px 0 4px}p{color:var(--muted);margin:4px 0}section{background:var(--surface);\
border:1px solid var(--line);border-radius:14px;padding:16px;margin:12px 0}table{border-collapse:collapse;width:100%}\
td,th{padding:4px 8px;border-bottom:1px solid var(--line);text-align:right;font-variant-numeric:tabular-nums}\
td:first-child,th:first-child{text-align:left}svg{width:100%;height:auto;display:block}\
.grid{stroke:var(--line)}.tick{fill:var(--muted);font-size:12px}.curve{fill:none;stroke-width:1.6}\
.feedback{stroke:var(--feedback)}.proportional{stroke:var(--proportional)}.faint{stroke-width:1;opacity:.55}\
.key{display:inline-block;width:22px;height:3px;vertical-align:middle;margin:0 6px 0 14px}\
.key.feedback{background:var(--feedback)}.key.proportional{background:var(--proportional)}";

/// The page.
pub fn page(trials: &[Trial]) -> String {
    let mut html = String::from("<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">");
    html.push_str("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">");
    let _ = write!(html, "<title>rtc-balancer simulate</title><style>{STYLE}</style></head><body>");
    html.push_str("<h1>Fleets under the balancer’s rules</h1>");
    html.push_str(
        "<p>A fluid model in a closed loop with the real core and the real ring. Each figure is the worst of all seeds; \
         curves are of the seed with the highest late peak.</p>",
    );
    for trial in trials {
        fleet(&mut html, trial);
    }
    html.push_str("</body></html>\n");
    html
}

fn fleet(html: &mut String, trial: &Trial) {
    let _ = write!(html, "<h2>{}</h2><section><table><tr><th></th>", escaped(&text::title(trial)));
    for tried in &trial.policies {
        let _ = write!(html, "<th>{}</th>", tried.policy.as_str());
    }
    html.push_str("</tr>");
    for (name, cells) in text::rows(trial) {
        let _ = write!(html, "<tr><td>{}</td>", escaped(&name));
        for cell in cells {
            let _ = write!(html, "<td>{}</td>", escaped(&cell));
        }
        html.push_str("</tr>");
    }
    html.push_str("</table></section><section><h3>Peak over mean load, by minute");
    for tried in &trial.policies {
        let name = tried.policy.as_str();
        let _ = write!(html, "<span class=\"key {name}\"></span>{name}");
    }
    html.push_str("</h3>");
    let curves: Vec<Curve<'_>> = trial.policies.iter().map(peak_curve).collect();
    plot(html, "peak over mean load", &curves, 1.0);
    html.push_str("</section>");
    for tried in &trial.policies {
        let name = tried.policy.as_str();
        let _ = write!(html, "<section><h3>Use of each node under {name}, by minute</h3>");
        plot(html, &format!("use of each node under {name}"), &use_curves(&tried.curve), 0.0);
        html.push_str("</section>");
    }
}

struct Curve<'a> {
    class: &'a str,
    points: Vec<(f64, f64)>,
}

fn peak_curve(tried: &Tried) -> Curve<'_> {
    let points = tried.curve.peaks.iter().map(|(now_s, peak)| (now_s / 60.0, *peak)).collect();
    Curve { class: tried.policy.as_str(), points }
}

fn use_curves(run: &Run) -> Vec<Curve<'_>> {
    let minutes = || run.peaks.iter().map(|(now_s, _)| now_s / 60.0);
    let curve =
        |uses: &Vec<f64>| Curve { class: run.policy.as_str(), points: minutes().zip(uses.iter().copied()).collect() };
    run.uses.iter().take(CURVES_MAX).map(curve).collect()
}

fn plot(html: &mut String, label: &str, curves: &[Curve<'_>], floor: f64) {
    let all = || curves.iter().flat_map(|curve| curve.points.iter());
    let end = all().map(|point| point.0).fold(1.0, f64::max);
    let highest = all().map(|point| point.1).fold(floor + 0.2, f64::max);
    let step = round_step((highest - floor) / 4.0);
    let top = floor + (((highest - floor) / step).ceil()) * step;
    let across = |minute: f64| LEFT + minute / end * (WIDTH - LEFT - RIGHT);
    let down = |value: f64| TOP + (1.0 - (value - floor) / (top - floor)) * (HEIGHT - TOP - BOTTOM);
    let _ = write!(html, r#"<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">"#);
    for index in 0..=8 {
        let value = floor + f64::from(index) * step;
        if value > top + step / 2.0 {
            break;
        }
        let y = down(value);
        let _ = write!(html, r#"<line class="grid" x1="{LEFT}" x2="{:.0}" y1="{y:.1}" y2="{y:.1}"/>"#, WIDTH - RIGHT);
        let _ = write!(
            html,
            r#"<text class="tick" x="{}" y="{:.1}" text-anchor="end">{value:.2}</text>"#,
            LEFT - 8.0,
            y + 4.0
        );
    }
    let step = round_step(end / 6.0);
    for index in 0..=12 {
        let minute = f64::from(index) * step;
        if minute > end * 1.001 {
            break;
        }
        let _ = write!(
            html,
            r#"<text class="tick" x="{:.1}" y="{}" text-anchor="middle">{minute}</text>"#,
            across(minute),
            HEIGHT - 12.0
        );
    }
    let faint = if curves.len() > 2 { " faint" } else { "" };
    for curve in curves {
        let _ = write!(html, r#"<polyline class="curve {}{faint}" points=""#, curve.class);
        for (minute, value) in curve.points.iter().step_by((curve.points.len() / POINTS_MAX).max(1)) {
            let _ = write!(html, "{:.1},{:.1} ", across(*minute), down(*value));
        }
        html.push_str("\"/>");
    }
    html.push_str("</svg>");
}

/// 1, 2 or 5 times a power of ten, at or above `value`.
fn round_step(value: f64) -> f64 {
    let power = 10f64.powf(value.max(1e-9).log10().floor());
    let digit = [1.0, 2.0, 5.0, 10.0].into_iter().find(|digit| digit * power >= value * 0.999_999);
    digit.unwrap_or(10.0) * power
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::{PolicyKind, Rules};
    use crate::simulate::built_in;

    #[test]
    fn the_page_needs_nothing_else_and_takes_no_markup_from_a_file() {
        let mut fleet = built_in().remove(2);
        fleet.name = "<script>".to_owned();
        fleet.duration_ms = 60_000;
        let trial = Trial::run(fleet, &Rules::default(), &[PolicyKind::Feedback, PolicyKind::Proportional]);
        let page = page(&[trial]);
        for forbidden in ["<script", "http://", "https://", "src=", "href=", "NaN"] {
            assert!(!page.contains(forbidden), "{forbidden}");
        }
        assert_eq!(page.matches("<svg").count(), 3);
        assert!(page.contains("&lt;script&gt;"));
    }
}
