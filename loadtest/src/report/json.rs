//! The report for machines: the fields of [`Report`], as they are.

use std::{fs, io, path::Path};

use anyhow::{Context as _, Result};

use super::Report;

/// Writes the report to `path`, or to standard output where that is `-`.
///
/// # Errors
/// The file cannot be written.
pub(crate) fn write(report: &Report, path: &Path) -> Result<()> {
    let mut json = sonic_rs::to_string_pretty(report).context("the report is no JSON")?;
    json.push('\n');
    if path == Path::new("-") {
        io::Write::write_all(&mut io::stdout().lock(), json.as_bytes()).context("cannot write to standard output")
    } else {
        fs::write(path, json).with_context(|| format!("cannot write --json {}", path.display()))
    }
}
