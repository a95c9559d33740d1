//! Opening connections: from a source address to the server's 101, and to its welcome where one is due.
//!
//! A number of openers work side by side. Each may be interrupted by its deadline, which `Openers::interrupt_overdue`
//! watches, since the runtime's operations have no time limits of their own.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    fmt, io,
    net::{IpAddr, Shutdown, SocketAddr, TcpStream as StdStream},
    ops::ControlFlow,
    rc::Rc,
    time::Duration,
};

use monoio::{
    io::{AsyncReadRent as _, AsyncWriteRentExt as _},
    net::TcpStream,
};
use rustix::io::Errno;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use websocket::{
    Decoder, Event, ResponseError, Role,
    handshake::{ClientKey, encode_upgrade_request, parse_upgrade_response},
};

use super::{
    ENVELOPE_BYTES_MAX, Link,
    resolve::{self, ANSWER_BYTES_MAX, ResolveError},
    socket::set_bind_address_no_port,
};
use crate::{
    args::Scenario,
    clock::{Clock, Nanos, nanos},
    config::{Placement, Server, ServerKind, parse_url},
    envelope::Welcome,
    payload::Random,
    worker::Driver,
};

/// An answer to an upgrade request is a few hundred bytes.
const RESPONSE_BYTES_MAX: usize = 16 * 1024;
/// Nodes whose address is remembered after a balancer has named them: a host's name is not looked up for each client.
const NODES_KNOWN_MAX: usize = 1000;

/// Why a connection could not be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OpenError {
    /// No socket, or no local address for it.
    Local(io::ErrorKind),
    /// The server could not be reached, or hung up.
    Connect(io::ErrorKind),
    TimedOut,
    /// The server answered with another status than 101.
    Refused {
        status: u16,
        /// How long to stay away, where the server says so.
        retry_after: Option<Duration>,
    },
    Handshake(ResponseError),
    /// The connection did not begin with the welcome of the client protocol.
    NoWelcome,
    /// The balancer has not told where to connect.
    Unresolved(ResolveError),
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local(kind) => write!(f, "no local socket: {kind}"),
            Self::Connect(kind) => write!(f, "connect: {kind}"),
            Self::TimedOut => f.write_str("connect: timed out"),
            Self::Refused { status, .. } => write!(f, "refused: {status}"),
            Self::Handshake(error) => write!(f, "handshake: {error}"),
            Self::NoWelcome => f.write_str("no welcome message"),
            Self::Unresolved(error) => error.fmt(f),
        }
    }
}

/// What a connection begins with after the 101.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Greeting {
    /// Nothing: `/ws/echo`.
    None,
    /// The `welcome` of the client protocol.
    Welcome,
}

/// What happens to the client's side of a connection when it is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leaving {
    /// In good order.
    Gracefully,
    /// With a reset, so that no port of ours stays in `TIME_WAIT`.
    Abruptly,
}

/// How to open the connections of a worker.
pub(crate) struct Opener {
    pub(crate) servers: Vec<Server>,
    pub(crate) placement: Placement,
    /// Empty: the system chooses.
    pub(crate) sources: Vec<IpAddr>,
    pub(crate) greeting: Greeting,
    pub(crate) leaving: Leaving,
    pub(crate) payload_bytes: usize,
    pub(crate) timeout: Duration,
    pub(crate) driver: Driver,
    pub(crate) clock: Clock,
    pub(crate) random: RefCell<Random>,
    /// The deadlines of what is being opened, with a second handle to interrupt it by.
    under_way: RefCell<Vec<UnderWay>>,
    next_ticket: Cell<u64>,
    /// By the `wsUrl` of a balancer's answer.
    nodes_known: RefCell<HashMap<String, Server>>,
}

struct UnderWay {
    ticket: u64,
    deadline: Nanos,
    handle: Rc<StdStream>,
}

/// A connection that was opened, and how long it took.
pub(crate) struct Opened {
    stream: TcpStream,
    /// What came right behind the handshake.
    surplus: Vec<u8>,
    /// From the start of connecting to the server's 101.
    pub(crate) handshake: Nanos,
    /// Where one was awaited.
    pub(crate) welcome: Option<Welcome>,
    /// A second handle to the connection, by which it can be cut whatever it is doing.
    pub(crate) handle: Rc<StdStream>,
}

impl Opener {
    #[expect(clippy::too_many_arguments, reason = "one caller, every part named")]
    pub(crate) fn new(
        servers: Vec<Server>,
        placement: Placement,
        sources: Vec<IpAddr>,
        greeting: Greeting,
        leaving: Leaving,
        payload_bytes: usize,
        timeout: Duration,
        driver: Driver,
        clock: Clock,
        seed: u64,
    ) -> Self {
        assert!(!servers.is_empty());
        Self {
            servers,
            placement,
            sources,
            greeting,
            leaving,
            payload_bytes,
            timeout,
            driver,
            clock,
            random: RefCell::new(Random::new(seed)),
            under_way: RefCell::default(),
            next_ticket: Cell::new(0),
            nodes_known: RefCell::default(),
        }
    }

    /// Opens connection `index` of the run; `query` follows the server's path.
    pub(crate) async fn open(&self, index: u32, query: &str) -> Result<Opened, OpenError> {
        self.open_to(&self.servers[self.placement.server_of(index, self.servers.len())], index, query).await
    }

    /// Opens a connection of client `index` to `server`, or to the node that it names if it is a balancer. The time
    /// limit is for both together.
    pub(crate) async fn open_to(&self, server: &Server, index: u32, query: &str) -> Result<Opened, OpenError> {
        let deadline = self.clock.now().saturating_add(nanos(self.timeout));
        match server.kind {
            ServerKind::Node => self.open_node(server, index, query, deadline).await,
            ServerKind::Balancer => {
                let node = self.resolve(server, index, query, deadline).await.map_err(|error| match error {
                    OpenError::Connect(kind) => OpenError::Unresolved(ResolveError::Connect(kind)),
                    OpenError::TimedOut => OpenError::Unresolved(ResolveError::TimedOut),
                    error => error,
                })?;
                self.open_node(&node, index, query, deadline).await
            }
        }
    }

    async fn open_node(&self, node: &Server, index: u32, query: &str, deadline: Nanos) -> Result<Opened, OpenError> {
        let started = self.clock.now();
        let stream = self.socket(index, node.addr, self.leaving)?;
        self.until(deadline, stream, async |stream, handle| {
            self.shake_hands(stream, handle, node, query, started).await
        })
        .await
    }

    /// The node where `balancer` says that the client of `query` belongs.
    async fn resolve(&self, balancer: &Server, index: u32, query: &str, deadline: Nanos) -> Result<Server, OpenError> {
        // Nothing more is said once the answer is here.
        let stream = self.socket(index, balancer.addr, Leaving::Abruptly)?;
        let request = resolve::request(&balancer.authority, &balancer.path, query);
        let answer = self
            .until(deadline, stream, async |stream, handle| {
                let mut stream = self.stream(stream, handle)?;
                let (result, _) = stream.write_all(request).await;
                result.map_err(|error| OpenError::Connect(error.kind()))?;
                let mut answer = Vec::new();
                loop {
                    match read_more(&mut stream, &mut answer).await {
                        Ok(()) if answer.len() <= ANSWER_BYTES_MAX => {}
                        Ok(()) => return Err(OpenError::Unresolved(ResolveError::TooLong)),
                        // Its end, unless it is we who ended it.
                        Err(OpenError::Connect(io::ErrorKind::UnexpectedEof))
                            if !answer.is_empty() && self.clock.now() < deadline =>
                        {
                            return Ok(answer);
                        }
                        Err(error) => return Err(error),
                    }
                }
            })
            .await?;
        let url = resolve::ws_url(&answer).map_err(OpenError::Unresolved)?;
        let known = &mut *self.nodes_known.borrow_mut();
        if let Some(node) = known.get(&url) {
            return Ok(node.clone());
        }
        let node = parse_url(&url, Scenario::P2p).map_err(|_| OpenError::Unresolved(ResolveError::BadUrl))?;
        if known.len() < NODES_KNOWN_MAX {
            known.insert(url, node.clone());
        }
        Ok(node)
    }

    /// What `work` does with `stream`, which is interrupted at `deadline`. It is given a second handle as well.
    async fn until<T>(
        &self,
        deadline: Nanos,
        stream: StdStream,
        work: impl AsyncFnOnce(StdStream, &Rc<StdStream>) -> Result<T, OpenError>,
    ) -> Result<T, OpenError> {
        let handle = Rc::new(stream.try_clone().map_err(|error| OpenError::Local(error.kind()))?);
        let ticket = self.next_ticket.replace(self.next_ticket.get() + 1);
        self.under_way.borrow_mut().push(UnderWay { ticket, deadline, handle: Rc::clone(&handle) });
        let outcome = work(stream, &handle).await;
        let under_way = &mut *self.under_way.borrow_mut();
        let at = under_way.iter().position(|entry| entry.ticket == ticket);
        under_way.swap_remove(at.expect("only its own opening removes an entry"));
        // An interrupted opening fails in whichever way it happened to be waiting.
        let is_overdue = self.clock.now() >= deadline;
        outcome.map_err(|error| if is_overdue { OpenError::TimedOut } else { error })
    }

    /// Ends what has been under way for too long. To be called every few milliseconds while connections are opened.
    pub(crate) fn interrupt_overdue(&self) {
        let now = self.clock.now();
        for overdue in self.under_way.borrow().iter().filter(|entry| entry.deadline <= now) {
            // It may not be connected yet, or not any more: then there is nothing to interrupt.
            let _ = overdue.handle.shutdown(Shutdown::Both);
        }
    }

    /// A socket on its way to `server`.
    fn socket(&self, index: u32, server: SocketAddr, leaving: Leaving) -> Result<StdStream, OpenError> {
        let local = |error: io::Error| OpenError::Local(error.kind());
        let socket = Socket::new(Domain::for_address(server), Type::STREAM.nonblocking(), Some(Protocol::TCP));
        let socket = socket.map_err(local)?;
        match leaving {
            // A connection that is left so soon sends nothing that could be held back.
            Leaving::Abruptly => socket.set_linger(Some(Duration::ZERO)).map_err(local)?,
            Leaving::Gracefully => socket.set_tcp_nodelay(true).map_err(local)?,
        }
        let source = (index as usize / self.servers.len()).checked_rem(self.sources.len()).map(|at| self.sources[at]);
        // A balancer here may name nodes elsewhere, which cannot be reached from a loopback address.
        let source = source.filter(|source| !source.is_loopback() || server.ip().is_loopback());
        if let Some(source) = source {
            // The port is chosen in `connect`, when the other end is known: 28,000 per pair of addresses, not in all.
            set_bind_address_no_port(&socket).map_err(local)?;
            socket.bind(&SockAddr::from(SocketAddr::new(source, 0))).map_err(local)?;
        }
        match socket.connect(&SockAddr::from(server)) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(Errno::INPROGRESS.raw_os_error()) => {}
            Err(error) => return Err(OpenError::Connect(error.kind())),
        }
        Ok(socket.into())
    }

    /// `handle` is a second handle to `stream`, which the runtime's type hides.
    async fn shake_hands(
        &self,
        stream: StdStream,
        handle: &Rc<StdStream>,
        server: &Server,
        query: &str,
        started: Nanos,
    ) -> Result<Opened, OpenError> {
        let lost = |error: io::Error| OpenError::Connect(error.kind());
        let mut stream = self.stream(stream, handle)?;
        let key = self.key();
        let mut request = Vec::with_capacity(512);
        let target = format!("{}{query}", server.path);
        encode_upgrade_request(&mut request, &server.authority, &target, key.as_str(), None, &[]);
        // This waits for the connection, and fails as connecting failed.
        let (result, _) = stream.write_all(request).await;
        result.map_err(lost)?;

        let mut response = Vec::new();
        let consumed = loop {
            read_more(&mut stream, &mut response).await?;
            match parse_upgrade_response(&response, key.as_str()) {
                Ok(Some(consumed)) => break consumed,
                Ok(None) if response.len() < RESPONSE_BYTES_MAX => {}
                Ok(None) => return Err(OpenError::Handshake(ResponseError::Malformed)),
                Err(ResponseError::Refused { status, retry_after }) => {
                    return Err(OpenError::Refused { status, retry_after });
                }
                Err(error) => return Err(OpenError::Handshake(error)),
            }
        };
        let handshake = self.clock.now() - started;
        response.drain(..consumed);
        let mut surplus = response;
        let welcome = match self.greeting {
            Greeting::Welcome => Some(self.await_welcome(&mut stream, &mut surplus).await?),
            Greeting::None => None,
        };
        Ok(Opened { stream, surplus, handshake, welcome, handle: Rc::clone(handle) })
    }

    /// The runtime's stream.
    fn stream(&self, stream: StdStream, handle: &StdStream) -> Result<TcpStream, OpenError> {
        let lost = |error: io::Error| OpenError::Connect(error.kind());
        if self.driver == Driver::Uring {
            // On a nonblocking socket the ring would answer "would block" instead of waiting.
            handle.set_nonblocking(false).map_err(lost)?;
        }
        TcpStream::from_std(stream).map_err(lost)
    }

    /// What can be talked over.
    pub(crate) fn link(&self, opened: Opened) -> Link {
        let seed = self.random.borrow_mut().next_u64();
        Link::new(opened.stream, opened.surplus, self.payload_bytes, seed)
    }

    /// Takes the welcome off the front of `surplus`, reading more as needed. It fits in one frame.
    async fn await_welcome(&self, stream: &mut TcpStream, surplus: &mut Vec<u8>) -> Result<Welcome, OpenError> {
        loop {
            // A fresh decoder over all the bytes so far: the frame is short and nearly always whole at once.
            let mut decoder = Decoder::new(Role::Client, ENVELOPE_BYTES_MAX);
            let first = decoder.decode(surplus).map_err(|_| OpenError::NoWelcome)?;
            let consumed = first.consumed;
            match first.event {
                Some(Event::Text(text)) => {
                    let welcome = Welcome::read(text).ok_or(OpenError::NoWelcome)?;
                    surplus.drain(..consumed);
                    return Ok(welcome);
                }
                Some(_) => return Err(OpenError::NoWelcome),
                None if consumed > ENVELOPE_BYTES_MAX => return Err(OpenError::NoWelcome),
                None => read_more(stream, surplus).await?,
            }
        }
    }

    fn key(&self) -> ClientKey {
        let random = &mut *self.random.borrow_mut();
        let mut nonce = [0; 16];
        nonce[..8].copy_from_slice(&random.next_u64().to_le_bytes());
        nonce[8..].copy_from_slice(&random.next_u64().to_le_bytes());
        ClientKey::new(nonce)
    }
}

/// Appends what the server sends next.
async fn read_more(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> Result<(), OpenError> {
    use monoio::buf::IoBufMut as _;
    let len = bytes.len();
    let mut buffer = std::mem::take(bytes);
    buffer.reserve(1024);
    let capacity = buffer.capacity();
    let (result, slice) = stream.read(buffer.slice_mut(len..capacity)).await;
    *bytes = slice.into_inner();
    match result {
        Ok(0) => Err(OpenError::Connect(io::ErrorKind::UnexpectedEof)),
        Ok(_) => Ok(()),
        Err(error) => Err(OpenError::Connect(error.kind())),
    }
}

/// What to do with the outcome of one opening, and whether to go on.
pub(crate) type Outcome = dyn Fn(u32, Result<Opened, OpenError>) -> ControlFlow<()>;

/// Opens connections `indexes` of the run, `in_flight` at a time, until `each` has had enough.
pub(crate) async fn open_all(
    opener: &Rc<Opener>,
    indexes: std::ops::Range<u32>,
    in_flight: u32,
    query: Rc<dyn Fn(u32) -> String>,
    each: Rc<Outcome>,
) {
    let next = Rc::new(Cell::new(indexes.start));
    let tasks: Vec<_> = (0..in_flight.min(indexes.end - indexes.start))
        .map(|_| {
            let (opener, next) = (Rc::clone(opener), Rc::clone(&next));
            let (query, each) = (Rc::clone(&query), Rc::clone(&each));
            monoio::spawn(async move {
                while next.get() < indexes.end {
                    let index = next.replace(next.get() + 1);
                    if each(index, opener.open(index, &query(index)).await).is_break() {
                        next.set(indexes.end);
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await;
    }
}
