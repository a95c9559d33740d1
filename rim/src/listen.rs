//! Where a program listens: who may reach it, and why it cannot.

use std::io;
use std::net::SocketAddr;

use anyhow::{anyhow, ensure};

/// Refuses an address that strangers may reach. Without authentication whoever reaches the port may be anyone: it had
/// better be out of reach.
///
/// # Errors
/// Names the `key`, the reason and both cures.
pub fn check_exposure(key: &str, addr: SocketAddr, is_allowed: bool) -> anyhow::Result<()> {
    ensure!(
        addr.ip().is_loopback() || is_allowed,
        "{key} is {addr}, not a loopback address, and nobody has to prove who they are: \
         bind 127.0.0.1, or add --insecure-allow-anonymous if the network keeps strangers out"
    );
    Ok(())
}

/// Says what keeps an address from being bound, and what to do about it.
pub fn cannot_listen(addr: SocketAddr, flag: &str, error: &io::Error) -> anyhow::Error {
    let port = addr.port();
    match error.kind() {
        io::ErrorKind::AddrInUse => anyhow!(
            "cannot listen on {addr}: the port is in use (ss -ltnp 'sport = :{port}' tells by whom): \
             stop that, or give another {flag}"
        ),
        io::ErrorKind::AddrNotAvailable => {
            anyhow!("cannot listen on {addr}: this machine has no such address: give one of its own to {flag}")
        }
        io::ErrorKind::PermissionDenied => anyhow!(
            "cannot listen on {addr}: permission denied: give a port from 1024 up to {flag}, \
             or the process CAP_NET_BIND_SERVICE"
        ),
        _ => anyhow!("cannot listen on {addr}: {error}: check {flag}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_are_kept_out_unless_they_were_let_in() {
        for local in ["127.0.0.1:1", "[::1]:1", "127.3.2.1:1"] {
            assert!(check_exposure("listen", local.parse().unwrap(), false).is_ok(), "{local}");
        }
        let public = SocketAddr::from(([0, 0, 0, 0], 8080));
        assert!(check_exposure("listen", public, true).is_ok());
        let reason = check_exposure("admin_listen", public, false).unwrap_err().to_string();
        assert!(reason.contains("admin_listen is 0.0.0.0:8080"), "{reason}");
        assert!(reason.contains("--insecure-allow-anonymous"), "{reason}");
    }

    #[test]
    fn a_port_in_use_is_named_with_its_flag() {
        let first = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = first.local_addr().unwrap();
        let error = std::net::TcpListener::bind(addr).unwrap_err();
        let reason = cannot_listen(addr, "--admin-listen", &error).to_string();
        assert!(reason.contains(&addr.to_string()) && reason.contains("another --admin-listen"), "{reason}");
    }
}
