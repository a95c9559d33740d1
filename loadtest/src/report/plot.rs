//! Line plots as inline SVG: scales, grid, lines, legend. Colours come from the page's style, so that one drawing
//! serves light and dark.

use std::fmt::{self, Write as _};

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 44.0;
/// Of a character of a label, on average.
const CHARACTER_WIDTH: f64 = 7.5;
/// Between two labels.
const LABEL_GAP: f64 = 8.0;

/// One axis: where a value lies from 0 to 1, and which values are named.
pub(crate) struct Axis {
    pub(crate) title: &'static str,
    pub(crate) ticks: Vec<(f64, String)>,
    min: f64,
    max: f64,
    scale: Scale,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scale {
    Linear,
    Logarithmic,
}

impl Axis {
    /// From 0 to a round number at or above `max`.
    pub(crate) fn linear(title: &'static str, max: f64, name: impl Fn(f64) -> String) -> Self {
        let step = round_step(max / 4.0);
        let count = (max / step).ceil().max(1.0);
        let ticks = (0..=20).map(f64::from).take_while(|index| *index <= count).map(|index| index * step);
        let ticks = ticks.map(|value| (value, name(value))).collect();
        Self { title, ticks, min: 0.0, max: count * step, scale: Scale::Linear }
    }

    /// From 0 to `max`, round or not, for time.
    pub(crate) fn exact(title: &'static str, max: f64, name: impl Fn(f64) -> String) -> Self {
        let mut axis = Self::linear(title, max, name);
        // A run is measured to the microsecond: its last second may be a little short.
        axis.ticks.retain(|(value, _)| *value <= max * 1.001);
        axis.max = max;
        axis
    }

    /// Whole steps of 1, 2 and 5 around `min` to `max`, both above 0.
    pub(crate) fn logarithmic(title: &'static str, min: f64, max: f64, name: impl Fn(f64) -> String) -> Self {
        let steps: Vec<f64> =
            (-3..=12).flat_map(|power| [1.0, 2.0, 5.0].map(|digit| digit * 10f64.powi(power))).collect();
        let first = steps.iter().rposition(|step| *step <= min).unwrap_or(0);
        let last = steps.iter().position(|step| *step >= max).unwrap_or(steps.len() - 1).max(first + 1);
        let ticks = steps[first..=last].iter().map(|step| (*step, name(*step))).collect();
        Self { title, ticks, min: steps[first], max: steps[last], scale: Scale::Logarithmic }
    }

    /// From `first` to `last` of the given ticks, by logarithm.
    pub(crate) fn logarithmic_at(title: &'static str, ticks: Vec<(f64, String)>) -> Self {
        let (min, max) = (ticks[0].0, ticks[ticks.len() - 1].0);
        Self { title, ticks, min, max, scale: Scale::Logarithmic }
    }

    fn place(&self, value: f64) -> f64 {
        let share = match self.scale {
            Scale::Linear => (value - self.min) / (self.max - self.min),
            Scale::Logarithmic => (value / self.min).ln() / (self.max / self.min).ln(),
        };
        share.clamp(0.0, 1.0)
    }
}

/// 1, 2 or 5 times a power of ten, at or above `value`.
fn round_step(value: f64) -> f64 {
    let power = 10f64.powf(value.max(1e-9).log10().floor());
    let digit = [1.0, 2.0, 5.0, 10.0].into_iter().find(|digit| digit * power >= value * 0.999_999);
    digit.unwrap_or(10.0) * power
}

/// One line of a plot.
pub(crate) struct Line {
    pub(crate) name: &'static str,
    /// The class that gives it its colour and stroke.
    pub(crate) class: &'static str,
    pub(crate) points: Vec<(f64, f64)>,
}

/// A part of the x axis that is set apart, such as the warm-up.
pub(crate) struct Band {
    pub(crate) from: f64,
    pub(crate) to: f64,
    pub(crate) label: &'static str,
}

/// The plot as an `<svg>` element; `description` is what a screen reader says.
pub(crate) fn plot(description: &str, x: &Axis, y: &Axis, bands: &[Band], lines: &[Line]) -> String {
    let mut svg = String::new();
    draw(&mut svg, description, x, y, bands, lines).expect("writing to a string cannot fail");
    svg
}

fn draw(svg: &mut String, description: &str, x: &Axis, y: &Axis, bands: &[Band], lines: &[Line]) -> fmt::Result {
    let (plot_width, plot_height) = (WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM);
    let across = |value: f64| LEFT + x.place(value) * plot_width;
    let down = |value: f64| TOP + (1.0 - y.place(value)) * plot_height;
    let floor = TOP + plot_height;
    write!(svg, r#"<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{description}">"#)?;
    for Band { from, to, label } in bands {
        let (left, right) = (across(*from), across(*to));
        let width = right - left;
        write!(svg, r#"<rect class="band" x="{left:.1}" y="{TOP}" width="{width:.1}" height="{plot_height}"/>"#)?;
        if width >= label_width(label) {
            let middle = left + width / 2.0;
            write!(
                svg,
                r#"<text class="tick" x="{middle:.1}" y="{:.1}" text-anchor="middle">{label}</text>"#,
                TOP + 14.0
            )?;
        }
    }
    for (value, name) in &y.ticks {
        let at = down(*value);
        write!(svg, r#"<line class="grid" x1="{LEFT}" x2="{:.1}" y1="{at:.1}" y2="{at:.1}"/>"#, WIDTH - RIGHT)?;
        write!(svg, r#"<text class="tick" x="{}" y="{:.1}" text-anchor="end">{name}</text>"#, LEFT - 8.0, at + 4.0)?;
    }
    let mut labelled_to = f64::NEG_INFINITY;
    for (value, name) in &x.ticks {
        let at = across(*value);
        write!(svg, r#"<line class="grid" x1="{at:.1}" x2="{at:.1}" y1="{floor}" y2="{}"/>"#, floor + 5.0)?;
        // Centred under its tick, except where that would leave the drawing.
        let width = label_width(name);
        let middle = at.min(WIDTH - width / 2.0);
        if middle - width / 2.0 >= labelled_to {
            write!(
                svg,
                r#"<text class="tick" x="{middle:.1}" y="{}" text-anchor="middle">{name}</text>"#,
                floor + 19.0
            )?;
            labelled_to = middle + width / 2.0 + LABEL_GAP;
        }
    }
    write!(svg, r#"<line class="axis" x1="{LEFT}" x2="{:.1}" y1="{floor}" y2="{floor}"/>"#, WIDTH - RIGHT)?;
    let middle = LEFT + plot_width / 2.0;
    write!(svg, r#"<text class="title" x="{middle}" y="{}" text-anchor="middle">{}</text>"#, HEIGHT - 6.0, x.title)?;
    for line in lines.iter().filter(|line| !line.points.is_empty()) {
        write!(svg, r#"<polyline class="line {}" points=""#, line.class)?;
        for (x, y) in &line.points {
            write!(svg, "{:.1},{:.1} ", across(*x), down(*y))?;
        }
        svg.push_str("\"/>");
    }
    svg.push_str("</svg>");
    Ok(())
}

fn label_width(label: &str) -> f64 {
    label.chars().map(|_| CHARACTER_WIDTH).sum()
}

/// The names of the lines, each with a sample of its stroke.
pub(crate) fn legend(lines: &[Line]) -> String {
    let shown = lines.iter().filter(|line| !line.points.is_empty());
    let entries = shown.map(|Line { name, class, .. }| {
        let sample = format!(r#"<line class="line {class}" x1="1" x2="25" y1="5" y2="5"/>"#);
        format!(r#"<span><svg width="26" height="10" aria-hidden="true">{sample}</svg> {name}</span>"#)
    });
    format!(r#"<p class="legend">{}</p>"#, entries.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_end_on_round_numbers() {
        for (max, expected) in [(7.0, 8.0), (99.0, 100.0), (1000.0, 1000.0), (0.0, 1e-9), (1234.0, 1500.0)] {
            let axis = Axis::linear("", max, |value| value.to_string());
            assert!((axis.max - expected).abs() <= expected * 0.26 + 1e-8, "{max}: {}", axis.max);
            assert!(axis.max >= max);
        }
        let axis = Axis::logarithmic("", 130.0, 4200.0, |value| value.to_string());
        assert_eq!((axis.min, axis.max), (100.0, 5000.0));
    }

    #[test]
    fn points_outside_stay_on_the_edge() {
        let axis = Axis::logarithmic("", 100.0, 1000.0, |value| value.to_string());
        assert_eq!((axis.place(1.0), axis.place(100.0), axis.place(1e9)), (0.0, 0.0, 1.0));
    }
}
