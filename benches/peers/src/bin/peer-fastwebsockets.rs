//! Echo over `fastwebsockets`: upgraded by hyper, one frame read, one frame written, as in that crate's own example.

use fastwebsockets::{FragmentCollector, OpCode, WebSocketError, upgrade};
use http_body_util::Empty;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

fn main() -> anyhow::Result<()> {
    rtc_bench_peers::serve(|stream| async {
        // An ended connection is no error to an echo server.
        let _ = serve_connection(stream).await;
    })
}

async fn serve_connection(stream: TcpStream) -> hyper::Result<()> {
    let service = service_fn(|request| async { accept_upgrade(request) });
    http1::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades().await
}

fn accept_upgrade(mut request: Request<Incoming>) -> Result<Response<Empty<Bytes>>, WebSocketError> {
    let (response, upgraded) = upgrade::upgrade(&mut request)?;
    // Unconstrained as in the crate's example: the task is not preempted by the runtime's budget.
    tokio::spawn(tokio::task::unconstrained(async {
        let _ = echo(upgraded).await;
    }));
    Ok(response)
}

async fn echo(upgraded: upgrade::UpgradeFut) -> Result<(), WebSocketError> {
    // The collector answers pings and Close by itself.
    let mut socket = FragmentCollector::new(upgraded.await?);
    loop {
        let frame = socket.read_frame().await?;
        match frame.opcode {
            OpCode::Close => return Ok(()),
            OpCode::Text | OpCode::Binary => socket.write_frame(frame).await?,
            OpCode::Continuation | OpCode::Ping | OpCode::Pong => {}
        }
    }
}
