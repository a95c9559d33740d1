//! Echo over `tokio-tungstenite`: one message read, one message sent and flushed.

use futures_util::{SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Error;

fn main() -> anyhow::Result<()> {
    rtc_bench_peers::serve(|stream| async {
        // An ended connection is no error to an echo server.
        let _ = echo(stream).await;
    })
}

async fn echo(stream: TcpStream) -> Result<(), Error> {
    let mut socket = tokio_tungstenite::accept_async(stream).await?;
    // Pings and Close are answered within `next`.
    while let Some(message) = socket.next().await {
        let message = message?;
        if message.is_text() || message.is_binary() {
            socket.send(message).await?;
        }
    }
    Ok(())
}
