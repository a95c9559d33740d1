//! What a flag's value looks like: an address, a count, bytes and lengths of time with their units. Each error says what
//! would be right.

use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::time::Duration;

/// An IP address with a port; `localhost` means 127.0.0.1.
pub fn parse_addr(text: &str) -> Result<SocketAddr, String> {
    if let Some(port) = text.strip_prefix("localhost:").and_then(|port| port.parse().ok()) {
        return Ok((Ipv4Addr::LOCALHOST, port).into());
    }
    text.parse().map_err(|_| "give an IP address and a port, such as 127.0.0.1:8080 or [::1]:8080".to_owned())
}

/// A whole number from 1 up.
pub fn parse_count(text: &str) -> Result<usize, String> {
    parse_nonzero(text).map(NonZeroUsize::get)
}

/// The same, as a type that says so.
pub fn parse_nonzero(text: &str) -> Result<NonZeroUsize, String> {
    text.parse().map_err(|_| "give a whole number from 1 up".to_owned())
}

/// So many a second, from 1 up.
pub fn parse_rate(text: &str) -> Result<u32, String> {
    parse_count(text)?.try_into().map_err(|_| format!("give at most {}", u32::MAX))
}

/// Bytes, from 1 up: `4096`, `256KiB`, `1MiB`, `2GiB`.
pub fn parse_bytes(text: &str) -> Result<usize, String> {
    let (digits, unit) = split_unit(text);
    let factor: usize = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err("give bytes as 4096, 256KiB, 1MiB or 2GiB".to_owned()),
    };
    let count: Option<usize> = digits.parse().ok();
    match count.and_then(|count| count.checked_mul(factor)) {
        None | Some(0) => Err("give bytes as 4096, 256KiB, 1MiB or 2GiB, from 1 up".to_owned()),
        Some(bytes) => Ok(bytes),
    }
}

/// A length of time: `500ms`, `10s`, `15m`, `1h`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let (digits, unit) = split_unit(text);
    let factor: u64 = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err("give a length of time with its unit: 500ms, 10s, 15m or 1h".to_owned()),
    };
    let count: Option<u64> = digits.parse().ok();
    let millis = count.and_then(|count| count.checked_mul(factor));
    millis.map(Duration::from_millis).ok_or_else(|| "give a whole number with a unit: 500ms, 10s, 15m or 1h".to_owned())
}

fn split_unit(text: &str) -> (&str, &str) {
    text.split_at(text.bytes().take_while(u8::is_ascii_digit).count())
}

/// Bytes as [`parse_bytes`] reads them.
pub fn shown_bytes(bytes: usize) -> String {
    match bytes {
        0 => "0".to_owned(),
        _ if bytes.is_multiple_of(1 << 20) => format!("{}MiB", bytes >> 20),
        _ if bytes.is_multiple_of(1 << 10) => format!("{}KiB", bytes >> 10),
        _ => bytes.to_string(),
    }
}

/// Settings given as `key=value`, such as those of the Kafka client library.
///
/// # Errors
/// Names the one without a key, as `name`'s.
pub fn pairs(name: &str, settings: &[String]) -> anyhow::Result<Vec<(String, String)>> {
    let pair = |setting: &String| {
        let (key, value) = setting
            .split_once('=')
            .filter(|(key, _)| !key.trim().is_empty())
            .ok_or_else(|| anyhow::anyhow!("{name} has {setting}: give key=value, such as security.protocol=ssl"))?;
        Ok((key.trim().to_owned(), value.trim().to_owned()))
    };
    settings.iter().map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_times_and_addresses_are_read_with_their_units() {
        assert_eq!(parse_bytes("4096"), Ok(4096));
        assert_eq!(parse_bytes("256KiB"), Ok(256 << 10));
        assert_eq!(parse_bytes("2GiB"), Ok(2 << 30));
        assert_eq!(parse_duration("0s"), Ok(Duration::ZERO));
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("15m"), Ok(Duration::from_secs(900)));
        assert_eq!(parse_addr("localhost:1"), Ok(([127, 0, 0, 1], 1).into()));
        for bad in ["", "0", "-1", "1kb", "1.5MiB", "99999999999999GiB", "MiB"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
        for bad in ["", "10", "s", "1d", "-1s", "1.5s", "99999999999999999999s", "18446744073709551615h"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
        for bad in ["", ":8080", "127.0.0.1", "localhost:99999", "example.com:80"] {
            assert!(parse_addr(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn bytes_are_shown_as_they_are_read() {
        for bytes in [1, 1000, 1 << 10, 3 << 20, 1 << 30] {
            assert_eq!(parse_bytes(&shown_bytes(bytes)), Ok(bytes));
        }
    }

    #[test]
    fn counts_begin_at_one() {
        assert_eq!((parse_count("1"), parse_rate("4294967295")), (Ok(1), Ok(u32::MAX)));
        for bad in ["0", "-1", "", "many"] {
            assert!(parse_count(bad).is_err() && parse_rate(bad).is_err(), "{bad}");
        }
        assert!(parse_rate("4294967296").is_err());
    }

    #[test]
    fn settings_are_cut_at_their_first_sign_of_equality() {
        let given = ["a=b", " c = d=e ", "f="].map(str::to_owned);
        let expected = [("a", "b"), ("c", "d=e"), ("f", "")].map(|(key, value)| (key.to_owned(), value.to_owned()));
        assert_eq!(pairs("kafka_options", &given).unwrap(), expected);
        for bad in ["ssl", "=x"] {
            let reason = pairs("kafka_options", &[bad.to_owned()]).unwrap_err().to_string();
            assert!(reason.contains("kafka_options") && reason.contains("give key=value"), "{reason}");
        }
    }
}
