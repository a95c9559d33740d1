//! Whether the process may open as many descriptors as it has connections to hold.

use anyhow::bail;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::{CONNECTIONS_DEFAULT, Config};

/// Descriptors beside those of connections: logs, the admin port and its connections, the upgrades that are refused.
const RESERVED: usize = 256;
/// Descriptors of a shard: listener, poller, mailbox, timer, ring.
const RESERVED_PER_SHARD: usize = 16;

/// Asks for all the descriptors this process may have, and says how many that are.
pub fn raise() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let wanted = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let current = if setrlimit(Resource::Nofile, wanted).is_ok() { limit.maximum } else { limit.current };
    current.map_or(usize::MAX, |count| usize::try_from(count).unwrap_or(usize::MAX))
}

/// How many connections there are descriptors for, if that is not enough for what `config` asks for or implies.
///
/// # Errors
/// When a number was asked for that does not fit.
pub fn fit(config: &mut Config, descriptors: usize) -> anyhow::Result<Option<usize>> {
    let reserved = RESERVED + RESERVED_PER_SHARD * config.shards().get();
    let room = descriptors.saturating_sub(reserved);
    match config.connections_max {
        _ if room == 0 => bail!(
            "this process may open {descriptors} files and the node itself needs {reserved}: \
             raise the limit (ulimit -Hn, LimitNOFILE= in a systemd unit)"
        ),
        Some(wanted) if wanted > room => bail!(
            "connections_max is {wanted} but this process may open {descriptors} files, of which the node itself needs \
             {reserved}: raise the limit (ulimit -Hn, LimitNOFILE= in a systemd unit) or ask for {room} connections"
        ),
        Some(_) => Ok(None),
        None => {
            config.connections_max = Some(room.min(CONNECTIONS_DEFAULT));
            Ok((room < CONNECTIONS_DEFAULT).then_some(room))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_default_is_lowered_to_fit_and_a_wish_is_refused() {
        let wish = |connections_max| Config { connections_max, ..Config::default() };
        let mut config = wish(None);
        assert_eq!(fit(&mut config, 1_000_000).unwrap(), None);
        assert_eq!(config.connections_max, Some(CONNECTIONS_DEFAULT));
        let mut config = wish(None);
        assert_eq!(fit(&mut config, 1272).unwrap(), Some(1000));
        assert_eq!(config.connections_max, Some(1000));
        assert_eq!(fit(&mut wish(Some(1000)), 1272).unwrap(), None);
        for (mut config, descriptors) in [(wish(Some(1001)), 1272), (wish(None), 200)] {
            let reason = fit(&mut config, descriptors).unwrap_err().to_string();
            assert!(reason.contains("LimitNOFILE"), "{reason}");
        }
    }
}
