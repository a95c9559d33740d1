//! How many requests a second the store's thread gets through a Redis, without sockets.
//!
//! `store-bench [REDIS_URL] [REQUESTS] [CLIENTS]`: claims for so many clients, then appends of 200 B, each as fast as the
//! queue takes them. Without a URL it starts `redis-server` with `appendonly yes`, `appendfsync always` in a scratch
//! directory, and removes it again.

use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use ring::NodeId;
use rtc_server::protocol::ClientId;
use rtc_server::shard::handover::Mail;
use rtc_server::shard::mailbox::{Receiver, mailbox};
use rtc_server::store::bounds::BufferLimits;
use rtc_server::store::redis::{RedisStore, StoreCounters, StoreHandle, StoreSettings};
use rtc_server::store::request::{Author, ClaimKind, StoreAnswer, StoreRequest, Ticket};
use rtc_server::store::{Kept, Room};

const PAYLOAD_BYTES: usize = 200;
const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let url = args.next().filter(|url| !url.is_empty());
    let requests: u64 = args.next().map_or(Ok(200_000), |text| text.parse()).context("REQUESTS")?;
    let clients: u64 = args.next().map_or(Ok(50_000), |text| text.parse()).context("CLIENTS")?;
    let server = if url.is_none() { Some(Server::start()?) } else { None };
    let url = url.or_else(|| server.as_ref().map(Server::url)).context("no server")?;

    let settings = StoreSettings {
        url,
        node: NodeId::new("bench")?,
        incarnation: 1,
        limits: BufferLimits { recipient_bytes: 4 << 20, recipient_messages: 10_000 },
        memory: Duration::from_secs(900),
        queue_requests: 65_536,
        queue_bytes: 64 << 20,
    };
    let (sender, mail) = mailbox(65_536)?;
    let store = RedisStore::start(&settings, vec![sender], Arc::new(StoreCounters::default()))?;
    let handle = store.handle();
    let names: Vec<ClientId> =
        (0..clients).map(|at| ClientId::try_from(format!("bench-{at:08}").as_str())).collect::<Result<_, _>>()?;
    let name = |at: u64| names[usize::try_from(at % clients).unwrap_or(0)].clone();

    run("claims", requests, &handle, &mail, |at| StoreRequest::Claim {
        client: name(at),
        generation: at + 1,
        kind: ClaimKind::Fresh,
        ceiling: (now_ms() + 60_000) << 12,
    })?;
    run("renewals", requests, &handle, &mail, |at| StoreRequest::Claim {
        client: name(at),
        generation: requests - clients.min(requests) + at % clients + 1,
        kind: ClaimKind::Again,
        ceiling: (now_ms() + 120_000) << 12,
    })?;
    let body: Box<[u8]> = vec![b'{'; PAYLOAD_BYTES].into();
    run("appends", requests, &handle, &mail, |at| StoreRequest::Append {
        client: name(at),
        author: Author::Anyone,
        messages: vec![Kept {
            offset: 0,
            identity: at,
            sender: 1,
            ts_ms: now_ms(),
            expires_ms: now_ms() + 900_000,
            body: body.clone(),
        }],
        room: Room::IfFree,
    })?;
    store.stop(Duration::from_secs(5));
    Ok(())
}

fn run(
    what: &str,
    requests: u64,
    handle: &StoreHandle,
    mail: &Receiver<Mail>,
    request: impl Fn(u64) -> StoreRequest,
) -> Result<()> {
    let started = Instant::now();
    let (mut posted, mut answered, mut done) = (0, 0, 0);
    while answered < requests {
        let mut is_idle = true;
        while posted < requests && handle.post(0, Ticket(posted), request(posted)).is_ok() {
            posted += 1;
            is_idle = false;
        }
        mail.begin();
        while let Some(Mail::Stored(_, answer)) = mail.next() {
            answered += 1;
            done += u64::from(matches!(*answer, StoreAnswer::Claimed { .. } | StoreAnswer::Appended { .. }));
            is_idle = false;
        }
        if is_idle {
            std::thread::sleep(Duration::from_micros(500));
        }
        if started.elapsed() > PATIENCE {
            bail!("{what}: {answered} of {requests} answered in {PATIENCE:?}");
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    #[allow(clippy::cast_precision_loss, reason = "a rate for people")]
    let rate = requests as f64 / seconds;
    println!("{what}: {rate:.0}/s ({requests} in {seconds:.2} s, {done} done)");
    Ok(())
}

fn now_ms() -> u64 {
    UNIX_EPOCH.elapsed().map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

struct Server {
    child: Child,
    dir: std::path::PathBuf,
    port: u16,
}

impl Server {
    fn start() -> Result<Self> {
        let dir = std::env::temp_dir().join(format!("rtc-store-bench-{}", std::process::id()));
        std::fs::create_dir_all(&dir)?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let child = Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", ""])
            .args(["--appendonly", "yes", "--appendfsync", "always", "--maxmemory-policy", "noeviction"])
            .arg("--dir")
            .arg(&dir)
            .stdout(Stdio::null())
            .spawn()
            .context("cannot start redis-server; give a URL")?;
        let server = Self { child, dir, port };
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if Instant::now() > deadline {
                bail!("redis-server does not come up");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(server)
    }

    fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}
