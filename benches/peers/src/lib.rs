//! What both peers share: the command line, one current-thread runtime, the accept loop, the ready line.
//!
//! A peer is the smallest echo server its crate's own example suggests. Nothing here touches a frame.

use std::future::Future;
use std::io::Write;
use std::net::SocketAddr;

use anyhow::Context;
use clap::Parser;
use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// Connections the kernel may hold for us while the accept loop is busy.
const LISTEN_BACKLOG: u32 = 4096;

#[derive(Parser)]
#[command(version, about = "WebSocket echo server on any path, to be measured beside rtc-server")]
struct Args {
    /// Where to listen; port 0 picks a free one and the ready line tells it.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
}

/// Serves every accepted connection with `echo` on this thread alone, until the process is ended.
///
/// Prints `ready listen=<addr>` on standard output once it serves. How a single connection ends is its own affair.
///
/// # Errors
/// The address cannot be bound, or standard output is closed.
pub fn serve<Echo, Ended>(echo: Echo) -> anyhow::Result<()>
where
    Echo: Fn(TcpStream) -> Ended,
    Ended: Future<Output = ()> + Send + 'static,
{
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let listener = bind(args.listen).with_context(|| format!("cannot listen on {}", args.listen))?;
        writeln!(std::io::stdout(), "ready listen={}", listener.local_addr()?)?;
        loop {
            // Out of descriptors or a peer already gone: the next accept may well succeed.
            let Ok((stream, _)) = listener.accept().await else {
                tokio::task::yield_now().await;
                continue;
            };
            if stream.set_nodelay(true).is_ok() {
                tokio::spawn(echo(stream));
            }
        }
    })
}

fn bind(addr: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    socket.listen(LISTEN_BACKLOG)
}
