//! A program's TOML file: its errors name the line and the key, and its keys give the flags their defaults.

use std::path::Path;

use anyhow::{Context as _, anyhow};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{millis, values};

/// Reads the file at `path`; `example` is the file that lists the keys.
///
/// # Errors
/// Names the file, and the line and the key in it.
pub fn read<C: DeserializeOwned>(path: &Path, example: &str) -> anyhow::Result<C> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("config file {} cannot be read: check --config", path.display()))?;
    parse(&text, example).map_err(|(line, reason)| anyhow!("config file {}:{line}: {reason}", path.display()))
}

/// Reads TOML; an error says in which line, and names the key by showing that line.
///
/// # Errors
/// The number of the line, and the reason.
pub fn parse<C: DeserializeOwned>(text: &str, example: &str) -> Result<C, (usize, String)> {
    toml::from_str(text).map_err(|error| {
        let start = error.span().map_or(0, |span| span.start);
        let line = text.get(..start).unwrap_or_default().matches('\n').count();
        let shown = text.lines().nth(line).unwrap_or_default().trim();
        (line + 1, format!("{} in `{shown}`: {example} lists the keys", reason(&error)))
    })
}

/// What is wrong; the parser goes on to list every key there is.
pub fn reason(error: &toml::de::Error) -> &str {
    error.message().split(", expected one of").next().unwrap_or_default()
}

/// Flag and default of every key in `config`, as `--help` shows it: lengths of time and bytes with their units.
pub fn shown_defaults(config: &impl Serialize) -> Vec<(String, String)> {
    let table = toml::Table::try_from(config).unwrap_or_default();
    let shown = table.into_iter().map(|(key, value)| {
        let text = match &value {
            toml::Value::String(text) => text.clone(),
            toml::Value::Array(items) if items.is_empty() => "none".to_owned(),
            other => other.to_string(),
        };
        match (key.strip_suffix("_ms"), text.parse()) {
            (Some(flag), Ok(millis)) => (flag.to_owned(), millis::shown(millis)),
            (None, Ok(bytes)) if key.contains("_bytes_") => {
                (key, values::shown_bytes(usize::try_from(bytes).unwrap_or(usize::MAX)))
            }
            _ => (key, text),
        }
    });
    shown.collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Toy {
        #[serde(rename = "poll_ms", with = "millis")]
        poll: Duration,
        box_bytes_max: usize,
        tags: Vec<String>,
        name: String,
    }

    const TOY: &str = "poll_ms = 90000\nbox_bytes_max = 2048\ntags = []\nname = \"n\"\n";

    #[test]
    fn the_line_and_the_key_are_named() {
        assert!(parse::<Toy>(TOY, "toy.toml").is_ok());
        for (text, line, word) in
            [("\npol_ms = 1\n", 2, "pol_ms"), ("poll_ms = \"5s\"", 1, "poll_ms"), ("name = ", 1, "name")]
        {
            let (found, reason) = parse::<Toy>(text, "toy.toml").unwrap_err();
            assert_eq!(found, line, "{reason}");
            assert!(reason.contains(word) && reason.contains("toy.toml") && !reason.contains('\n'), "{reason}");
        }
        let reason = read::<Toy>(Path::new("/no/such/file"), "toy.toml").unwrap_err().to_string();
        assert!(reason.contains("/no/such/file") && reason.contains("--config"), "{reason}");
    }

    #[test]
    fn defaults_are_shown_with_their_units() {
        let toy: Toy = parse(TOY, "toy.toml").unwrap();
        let shown = shown_defaults(&toy);
        for (flag, default) in [("poll", "90s"), ("box_bytes_max", "2KiB"), ("tags", "none"), ("name", "n")] {
            assert!(shown.contains(&(flag.to_owned(), default.to_owned())), "{flag}: {shown:?}");
        }
    }
}
