//! On which machine a run took place.

use std::fs;

use serde::Serialize;

/// What a reader must know to compare two reports.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Environment {
    pub(crate) kernel: String,
    pub(crate) cpu: String,
    pub(crate) cpus: usize,
}

impl Environment {
    /// Looks at this machine; what it does not tell is "unknown".
    pub(crate) fn read() -> Self {
        let uname = rustix::system::uname();
        let kernel = format!("{} {}", uname.sysname().to_string_lossy(), uname.release().to_string_lossy());
        let cpu = fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| parse_model(&text));
        Self {
            kernel,
            cpu: cpu.unwrap_or_else(|| "unknown CPU".to_owned()),
            cpus: std::thread::available_parallelism().map_or(0, usize::from),
        }
    }
}

fn parse_model(cpuinfo: &str) -> Option<String> {
    let line = cpuinfo.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_is_named() {
        assert_eq!(parse_model("processor\t: 0\nmodel name\t: A CPU\n"), Some("A CPU".to_owned()));
        assert_eq!(parse_model("processor\t: 0\n"), None);
    }
}
