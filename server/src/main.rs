//! `rtc-server`: quick main until args land.
use rtc_server::node::Node;
use rtc_server::shard::{Driver, OpeningRules, OutboxLimits, SessionLimits, Settings};
use rtc_server::store::StoreLimits;
use std::num::NonZeroUsize;
use std::time::Duration;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let value = |name: &str| args.iter().position(|a| a == name).and_then(|i| args.get(i + 1)).cloned();
    let listen = value("--listen").unwrap_or("127.0.0.1:8080".into()).parse()?;
    let shards = value("--shards").map_or(Ok(1), |v| v.parse())?;
    let settings = Settings {
        node_id: ring::NodeId::new("n1")?,
        opening: OpeningRules { has_echo: args.iter().any(|a| a == "--echo"), allowed_origins: vec![] },
        message_bytes_max: 256 * 1024,
        echo_bytes_max: 16 << 20,
        request_bytes_max: 16 * 1024,
        handshake_timeout: Duration::from_secs(5),
        ping_interval: Duration::from_secs(25),
        pong_timeout: Duration::from_secs(10),
        stall_timeout: Duration::from_secs(10),
        session: SessionLimits { outbox: OutboxLimits { bytes: 1 << 20, messages: 4096 }, ack_wait_ms: 1000 },
        message_ttl_ms: 900_000,
        store: StoreLimits {
            recipient_bytes: 4 << 20,
            recipient_messages: 10_000,
            sender_bytes: 64 << 20,
            total_bytes: 256 << 20,
            memory_ms: 900_000,
        },
        connections_max: 1_000_000,
        accepts_per_second: 50_000,
    };
    let driver = if args.iter().any(|a| a == "--direct") { Driver::Direct } else { Driver::Ring };
    let node = Node::start(listen, NonZeroUsize::new(shards).unwrap_or(NonZeroUsize::MIN), settings, driver)?;
    println!("ready node=n1 listen={} admin={}", node.listen, "127.0.0.1:0");
    node.join()?;
    Ok(())
}
