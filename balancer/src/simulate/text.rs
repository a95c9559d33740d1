//! What a simulation has shown, as a table for a terminal.

use std::fmt::Write as _;

use super::{EVEN_PEAK, FULL, SEEDS, Trial};
use crate::simulate::Worst;

/// Minutes at which the peak is shown.
const MINUTES: [u32; 8] = [0, 2, 4, 6, 8, 15, 30, 59];

/// The rows of the table: what is measured, and how each policy did.
pub fn rows(trial: &Trial) -> Vec<(String, Vec<String>)> {
    let row = |name: String, cell: &dyn Fn(&Worst) -> String| {
        (name, trial.policies.iter().map(|tried| cell(&tried.worst)).collect())
    };
    #[allow(clippy::cast_precision_loss, reason = "a few hours")]
    let hours = trial.fleet.duration_ms as f64 / 3_600_000.0;
    vec![
        row(format!("time to peak/mean < {EVEN_PEAK:.2}, for good"), &|worst| match worst.even_after_s {
            None => "never".to_owned(),
            Some(seconds) => format!("{:.1} min", seconds / 60.0),
        }),
        row("peak/mean in the second half".to_owned(), &|worst| format!("{:.3}", worst.late_peak)),
        row("ring updates".to_owned(), &|worst| worst.updates.to_string()),
        #[allow(clippy::cast_precision_loss, reason = "a few thousand updates")]
        row("ring updates per hour".to_owned(), &|worst| format!("{:.1}", worst.updates as f64 / hours)),
        row("ring updates in the second half".to_owned(), &|worst| worst.late_updates.to_string()),
        row("keys moved in all".to_owned(), &|worst| format!("{:.1} %", worst.moved_share * 100.0)),
        row("keys moved by one update".to_owned(), &|worst| format!("{:.1} %", worst.moved_share_max * 100.0)),
        row(format!("node-seconds over {:.0} %", FULL * 100.0), &|worst| format!("{:.0}", worst.full_node_seconds)),
    ]
}

/// What was simulated, in one line.
pub fn title(trial: &Trial) -> String {
    let fleet = &trial.fleet;
    format!(
        "fleet {}: {} nodes, load {:.2} of the whole, noise {:.0} %, a decision every {} s, {} s drain, {} min; \
         worst of seeds {} to {}",
        fleet.name,
        fleet.capacities.len(),
        fleet.offered,
        fleet.noise * 100.0,
        fleet.decision_ms / 1000,
        fleet.drain_ms / 1000,
        fleet.duration_ms / 60_000,
        SEEDS.start(),
        SEEDS.end()
    )
}

/// The whole table.
pub fn table(trial: &Trial) -> String {
    let mut text = format!("{}\n", title(trial));
    let mut line = |name: &str, cells: &[String]| {
        let _ = write!(text, "  {name:<36}");
        for cell in cells {
            let _ = write!(text, "{cell:>14}");
        }
        text.push('\n');
    };
    let policies: Vec<String> = trial.policies.iter().map(|tried| tried.policy.as_str().to_owned()).collect();
    line("", &policies);
    for (name, cells) in rows(trial) {
        line(&name, &cells);
    }
    for minute in MINUTES.into_iter().filter(|minute| u64::from(*minute) * 60_000 < trial.fleet.duration_ms) {
        let at_s = f64::from(minute) * 60.0;
        let peak = |peaks: &[(f64, f64)]| peaks.iter().find(|(now_s, _)| *now_s >= at_s).map_or(0.0, |peak| peak.1);
        let cells: Vec<String> =
            trial.policies.iter().map(|tried| format!("{:.3}", peak(&tried.curve.peaks))).collect();
        line(&format!("peak/mean after {minute} min (worst seed)"), &cells);
    }
    text.push('\n');
    text
}
