//! The operators' port: health, numbers, a look at a client, publishing, draining. A small HTTP/1.1 server of its own on
//! plain threads, because what small servers there are bound neither their connections nor their requests in time.
//! It asks the shards by mail and never touches their state. It authenticates nobody: the address it binds must not be
//! reachable by strangers.
//!
//! | module | holds |
//! |---|---|
//! | `http` | requests and responses on a socket, limits and timeouts |
//! | `routes` | which request gets what |
//! | `views` | what is shown: health, ring, client, drain, metrics |
//! | `publish` | messages from outside |
//! | `idempotency` | requests that were answered already |
//! | `process` | what the kernel knows of this process |

mod http;
mod idempotency;
mod process;
mod publish;
mod routes;
mod views;

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use crate::node::Handle;

use http::{Connection, Problem, Response};
use idempotency::Remembered;

/// Connections that are served at once.
const CONNECTIONS_MAX: usize = 128;
/// While more are open than this, each is closed after its answer: an idle publisher must not keep a health check out.
const KEEP_ALIVE_CONNECTIONS_MAX: usize = 64;
/// Connections without a place that are refused in peace at once; more of them may miss the answer.
const LINGERING_MAX: usize = 16;
/// How long accepting rests when the process has no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

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
    connections: AtomicUsize,
    lingering: AtomicUsize,
    busy: AtomicUsize,
    publishers: AtomicUsize,
    tally: Tally,
}

/// What the port counts. Its threads are few and its requests rare: a lock will do.
#[derive(Default)]
struct Tally {
    responses: Mutex<BTreeMap<u16, u64>>,
    refused: Mutex<BTreeMap<&'static str, u64>>,
}

impl Tally {
    fn count_response(&self, status: u16) {
        *self.responses.lock().unwrap_or_else(PoisonError::into_inner).entry(status).or_insert(0) += 1;
    }

    fn count_refusal(&self, cause: &'static str) {
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner).entry(cause).or_insert(0) += 1;
    }
}

impl Admin {
    /// Serves on `listener` from a thread of its own.
    ///
    /// # Errors
    /// When the thread cannot be had.
    pub fn start(listener: TcpListener, node: Handle, settings: AdminSettings) -> io::Result<Self> {
        let office = Arc::new(Office {
            addr: listener.local_addr()?,
            started: SystemTime::now(),
            node,
            settings,
            remembered: Mutex::default(),
            connections: AtomicUsize::new(0),
            lingering: AtomicUsize::new(0),
            busy: AtomicUsize::new(0),
            publishers: AtomicUsize::new(0),
            tally: Tally::default(),
        });
        let serving = Arc::clone(&office);
        std::thread::Builder::new().name("admin".to_owned()).spawn(move || accept(&listener, &serving))?;
        Ok(Self { office })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.office.addr
    }

    /// True while a request is being answered.
    pub fn is_busy(&self) -> bool {
        self.office.busy.load(Ordering::Acquire) > 0
    }
}

fn accept(listener: &TcpListener, office: &Arc<Office>) {
    loop {
        match listener.accept() {
            Ok((stream, _)) => admit(stream, office),
            Err(error) if is_of_one_connection(&error) => {}
            Err(_) => {
                office.tally.count_refusal("descriptors");
                std::thread::sleep(ACCEPT_PAUSE);
            }
        }
    }
}

fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    )
}

/// Gives a connection a thread, or tells it that there is none left.
fn admit(stream: TcpStream, office: &Arc<Office>) {
    let place = Place::take(&office.connections, CONNECTIONS_MAX, office);
    let connection = Connection::new(stream);
    let Some(place) = place else {
        let problem = Problem::new(503, "connections", "too many connections on this port");
        office.tally.count_refusal(problem.code);
        office.tally.count_response(problem.status);
        return turn_away(connection, problem.into_response(), office);
    };
    let spawned = std::thread::Builder::new().name("admin-conn".to_owned()).spawn(move || serve(connection, &place));
    if spawned.is_err() {
        office.tally.count_refusal("threads");
    }
}

/// Tells a connection that there is no room for it, without waiting: this thread takes all connections.
fn turn_away(connection: Connection, response: Response, office: &Arc<Office>) {
    if office.lingering.fetch_add(1, Ordering::AcqRel) >= LINGERING_MAX {
        office.lingering.fetch_sub(1, Ordering::AcqRel);
        return connection.turn_away(&response);
    }
    let refusing = Arc::clone(office);
    let spawned = std::thread::Builder::new().name("admin-refuse".to_owned()).spawn(move || {
        connection.refuse(&response);
        refusing.lingering.fetch_sub(1, Ordering::AcqRel);
    });
    if spawned.is_err() {
        office.lingering.fetch_sub(1, Ordering::AcqRel);
    }
}

fn serve(mut connection: Connection, place: &Place) {
    let office = &place.office;
    loop {
        let request = match connection.next_request(http::body_bytes_max(office.settings.message_bytes_max)) {
            Ok(Some(request)) => request,
            Ok(None) => return,
            Err(problem) => {
                office.tally.count_refusal(problem.code);
                office.tally.count_response(problem.status);
                return connection.refuse(&problem.into_response());
            }
        };
        office.busy.fetch_add(1, Ordering::AcqRel);
        let response = routes::answer(office, &request).unwrap_or_else(|problem| {
            office.tally.count_refusal(problem.code);
            problem.into_response()
        });
        office.tally.count_response(response.status);
        let stays = request.keeps_alive && office.connections.load(Ordering::Relaxed) <= KEEP_ALIVE_CONNECTIONS_MAX;
        let written = connection.answer(&request, &response, stays);
        office.busy.fetch_sub(1, Ordering::AcqRel);
        if !written || !stays {
            return;
        }
    }
}

/// One of a limited number of places, given back when it goes.
struct Place {
    office: Arc<Office>,
}

impl Place {
    fn take(count: &AtomicUsize, limit: usize, office: &Arc<Office>) -> Option<Self> {
        let taken = count.fetch_update(Ordering::AcqRel, Ordering::Acquire, |open| (open < limit).then_some(open + 1));
        taken.ok().map(|_| Self { office: Arc::clone(office) })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.office.connections.fetch_sub(1, Ordering::AcqRel);
    }
}
