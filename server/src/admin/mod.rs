//! The operators' port: health, numbers, a look at a client, publishing, draining. It asks the shards by mail and never touches their state. It authenticates nobody: the address it binds must not be
//! reachable by strangers.
//!
//! | module | holds |
//! |---|---|
//! | `routes` | which request gets what |
//! | `views` | what is shown: health, ring, client, drain, metrics |
//! | `publish` | messages from outside |
//! | `idempotency` | requests that were answered already |
//! | `process` | what the kernel knows of this process |

mod idempotency;
mod process;
mod publish;
mod routes;
mod views;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use rim::http::{self, Limits, Tally};

use crate::node::Handle;

use idempotency::Remembered;

/// Connections that are served at once.
const CONNECTIONS_MAX: usize = 128;
/// While more are open than this, each is closed after its answer.
const KEEP_ALIVE_MAX: usize = 64;
/// Bytes of a body, if the limit of one message does not ask for more.
const BODY_BYTES_MAX: usize = 4 * 1024 * 1024;

/// How the port behaves.
#[derive(Debug, Clone)]
pub struct AdminSettings {
    /// The longest payload of a published message, in bytes.
    pub message_bytes_max: usize,
    /// How long a publisher waits to learn what became of its messages.
    pub publish_wait: Duration,
    /// The window of a drain that names none.
    pub drain_window: Duration,
    /// The URL under which clients reach this node.
    pub advertise_url: Option<String>,
    /// The zone it stands in.
    pub zone: Option<String>,
}

/// The port at work.
pub struct Admin {
    office: Arc<Office>,
}

/// What every connection's thread needs.
struct Office {
    node: Handle,
    settings: AdminSettings,
    addr: SocketAddr,
    started: SystemTime,
    remembered: Mutex<Remembered>,
    publishers: AtomicUsize,
    tally: Arc<Tally>,
}

impl Admin {
    /// Serves on `listener` from threads of its own.
    ///
    /// # Errors
    /// When the thread that accepts cannot be had.
    pub fn start(listener: TcpListener, node: Handle, settings: AdminSettings) -> io::Result<Self> {
        let limits = Limits {
            connections_max: CONNECTIONS_MAX,
            keep_alive_max: KEEP_ALIVE_MAX,
            body_bytes_max: BODY_BYTES_MAX.max(settings.message_bytes_max.saturating_mul(2)),
        };
        let tally = Arc::new(Tally::default());
        let office = Arc::new(Office {
            addr: listener.local_addr()?,
            started: SystemTime::now(),
            node,
            settings,
            remembered: Mutex::default(),
            publishers: AtomicUsize::new(0),
            tally: Arc::clone(&tally),
        });
        let answering = Arc::clone(&office);
        http::start(listener, limits, tally, move |request| routes::answer(&answering, request))?;
        Ok(Self { office })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.office.addr
    }

    /// True while a request is being answered.
    pub fn is_busy(&self) -> bool {
        self.office.tally.is_busy()
    }
}
