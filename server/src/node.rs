//! A node: its shards, started and stopped together, and what may be asked of them from other threads.

use std::io;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, unbounded};
use ring::{NodeId, Ring, RingVersion, SharedRing, Weight};
use thiserror::Error;

use crate::cluster::{Cluster, ClusterSettings, JoinError, Links, begin_life};
use crate::drain::{Begun, Drain, Pace};
use crate::metrics::Counters;
use crate::protocol::ClientId;
use crate::shard::handover::{ClientView, Mail, Order};
use crate::shard::{self, Driver, Parts, Settings, Shared, mailbox};
use crate::sys;
use crate::vitals::Vitals;

/// Pieces of mail a shard's mailbox holds.
const MAILBOX_CAPACITY: usize = 16_384;
/// How often a full mailbox is tried again.
const MAILBOX_RETRY: Duration = Duration::from_millis(1);
/// How long a starting node waits for the brokers, to tell whether its topic fits; then it serves all the same.
const BROKER_PATIENCE: Duration = Duration::from_secs(3);
/// How long an order that concerns every shard is tried.
const ORDER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a shard may take to say what it knows of a client.
const LOOK_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a node does not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// Its address cannot be had.
    #[error("cannot listen on {addr}: {source}")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// It cannot join the others.
    #[error("{0}")]
    Join(#[from] JoinError),
    /// A shard's thread, runtime or mailbox cannot be had.
    #[error("a shard cannot be started: {0}")]
    Shard(io::Error),
    /// The thread that measures how the node is doing.
    #[error("the thread that measures the load cannot be started: {0}")]
    Vitals(io::Error),
}

/// A running node: whoever holds it waits for its end.
pub struct Node {
    handle: Handle,
    news: Receiver<News>,
    cluster: Option<Cluster>,
}

/// What may be asked of a running node, from any thread. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    inner: Arc<Inner>,
}

struct Inner {
    node_id: NodeId,
    listen: SocketAddr,
    driver: Driver,
    counters: Vec<Arc<Counters>>,
    ring: SharedRing,
    mailboxes: Vec<mailbox::Sender<Mail>>,
    drain: Drain,
    started_at: Instant,
    links: Option<Links>,
    vitals: Arc<Vitals>,
}

/// From a shard's thread to whoever holds the node.
enum News {
    Started,
    Ended(io::Result<()>),
}

impl Node {
    /// Binds `listen`, starts `shards` threads and waits until each of them serves.
    ///
    /// # Errors
    /// When the address or a thread cannot be had, or the ring of one node cannot be built.
    pub fn start(
        listen: SocketAddr,
        shards: NonZeroUsize,
        settings: Settings,
        driver: Driver,
        cluster: Option<ClusterSettings>,
    ) -> Result<Self, StartError> {
        let life = match &cluster {
            Some(cluster) => begin_life(&cluster.redis, &settings.node_id)?,
            None => 0,
        };
        // A node without this option uses more memory and is otherwise the same.
        let _ = sys::disable_huge_pages();
        let listeners = bind_all(listen, shards).map_err(|source| StartError::Listen { addr: listen, source })?;
        let listen = match listeners.first().map(std::net::TcpListener::local_addr) {
            Some(Ok(bound)) => bound,
            _ => listen,
        };
        let ring = match cluster {
            // Announced by the balancer; until then sessions are found through the store.
            Some(_) => SharedRing::new(),
            None => ring_of_one(&settings.node_id).map_err(StartError::Shard)?,
        };
        let mut mailboxes = Vec::new();
        let mut receivers = Vec::new();
        for _ in 0..shards.get() {
            let (sender, receiver) = mailbox::mailbox(MAILBOX_CAPACITY).map_err(StartError::Shard)?;
            mailboxes.push(sender);
            receivers.push(receiver);
        }
        let node_id = settings.node_id.clone();
        let settings = Arc::new(settings);
        let shared = Arc::new(Shared::default());
        let counters: Vec<_> = (0..shards.get()).map(|_| Arc::new(Counters::default())).collect();
        let vitals = Vitals::start(counters.clone()).map_err(StartError::Vitals)?;
        let drain = Drain::default();
        let drains = Arc::new(OnceLock::<Handle>::new());
        let cluster = match cluster {
            None => None,
            Some(cluster) => {
                let drains = Arc::clone(&drains);
                let on_drain = move |pace| {
                    if let Some(handle) = drains.get() {
                        handle.drain(pace);
                    }
                };
                let (counters, vitals) = (counters.clone(), Arc::clone(&vitals));
                let cluster = Cluster::start(cluster, &node_id, life, &mailboxes, &ring, counters, vitals, on_drain)?;
                cluster.check(BROKER_PATIENCE)?;
                Some(cluster)
            }
        };
        let links = cluster.as_ref().map(|cluster| cluster.links().clone());
        let (news_sender, news) = unbounded();
        for (index, ((listener, mail), counters)) in listeners.into_iter().zip(receivers).zip(&counters).enumerate() {
            let started = news_sender.clone();
            let parts = Parts {
                index,
                shards,
                settings: Arc::clone(&settings),
                shared: Arc::clone(&shared),
                counters: Arc::clone(counters),
                ring: ring.clone(),
                links: links.clone(),
                listener,
                mail,
                mailboxes: mailboxes.clone(),
                driver,
                on_start: Box::new(move || _ = started.send(News::Started)),
            };
            let ended = news_sender.clone();
            let thread = std::thread::Builder::new().name(format!("shard-{index}"));
            let run = move || {
                pin(index);
                let result = catch_unwind(AssertUnwindSafe(|| shard::run(parts)))
                    .unwrap_or_else(|_| Err(io::Error::other("it has panicked")));
                let _ = ended.send(News::Ended(result));
            };
            thread.spawn(run).map_err(StartError::Shard)?;
        }
        let started_at = Instant::now();
        let inner = Inner { node_id, listen, driver, counters, ring, mailboxes, drain, started_at, links, vitals };
        let node = Self { handle: Handle { inner: Arc::new(inner) }, news, cluster };
        let _ = drains.set(node.handle.clone());
        for _ in 0..shards.get() {
            node.await_start()?;
        }
        Ok(node)
    }

    fn await_start(&self) -> Result<(), StartError> {
        match self.news.recv() {
            Ok(News::Started) => Ok(()),
            Ok(News::Ended(Err(error))) => Err(StartError::Shard(error)),
            Ok(News::Ended(Ok(()))) | Err(_) => Err(StartError::Shard(io::Error::other("it has ended at once"))),
        }
    }

    /// What other threads ask it through.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Waits until every shard has ended, or the first has failed.
    ///
    /// # Errors
    /// The first shard's error, if one failed.
    pub fn join(mut self) -> io::Result<()> {
        let result = self.await_shards();
        if let Some(cluster) = self.cluster.take() {
            cluster.stop();
        }
        result
    }

    fn await_shards(&self) -> io::Result<()> {
        let mut running = self.handle.shards().get();
        while running > 0 {
            match self.news.recv() {
                Ok(News::Started) => {}
                Ok(News::Ended(result)) => {
                    result?;
                    running -= 1;
                }
                Err(_) => return Ok(()),
            }
        }
        Ok(())
    }
}

impl Handle {
    /// This node.
    pub fn node_id(&self) -> &NodeId {
        &self.inner.node_id
    }

    /// Where clients connect.
    pub fn listen(&self) -> SocketAddr {
        self.inner.listen
    }

    /// How its sockets are read and written.
    pub fn driver(&self) -> Driver {
        self.inner.driver
    }

    /// How long it has been running.
    pub fn uptime(&self) -> Duration {
        self.inner.started_at.elapsed()
    }

    /// One set of counters per shard.
    pub fn counters(&self) -> &[Arc<Counters>] {
        &self.inner.counters
    }

    /// The ring of nodes.
    pub fn ring(&self) -> &SharedRing {
        &self.inner.ring
    }

    /// What joins it to others; none if it runs alone.
    pub fn links(&self) -> Option<&Links> {
        self.inner.links.as_ref()
    }

    /// How it is doing.
    pub fn vitals(&self) -> &Vitals {
        &self.inner.vitals
    }

    /// How far it is on its way out.
    pub fn drain_state(&self) -> &Drain {
        &self.inner.drain
    }

    /// How many shards it has.
    pub fn shards(&self) -> NonZeroUsize {
        NonZeroUsize::new(self.inner.mailboxes.len()).unwrap_or(NonZeroUsize::MIN)
    }

    /// Open connections.
    pub fn connections(&self) -> u64 {
        self.inner.counters.iter().map(|shard| shard.connections.value()).sum()
    }

    /// Clients that are logged in.
    pub fn sessions(&self) -> u64 {
        self.inner.counters.iter().map(|shard| shard.sessions.value()).sum()
    }

    /// A client's hash, by which its home is found.
    pub fn hash_of(&self, client: &str) -> u64 {
        let ring = self.inner.ring.load();
        ring.map_or_else(|| ring::hash_key(client.as_bytes(), 0), |ring| ring.hash(client.as_bytes()))
    }

    /// Which shard is the home of a client on this node.
    pub fn home_of(&self, hash: u64) -> usize {
        ring::shard_of(hash, self.shards())
    }

    /// Gives one shard an order, trying again while its mailbox is full, until `deadline`.
    ///
    /// # Errors
    /// When there was no room in time, or there is no such shard.
    pub fn order(&self, shard: usize, order: Order, deadline: Instant) -> Result<(), NoRoom> {
        let mailbox = self.inner.mailboxes.get(shard).ok_or(NoRoom)?;
        let mut mail = Mail::Order(order);
        while let Err(back) = mailbox.post(mail) {
            if Instant::now() >= deadline {
                return Err(NoRoom);
            }
            mail = back;
            std::thread::sleep(MAILBOX_RETRY);
        }
        Ok(())
    }

    /// What this node knows of a client; none when its shard does not say in time.
    pub fn look(&self, client_id: &ClientId) -> Option<ClientView> {
        let (reply, view) = crossbeam::channel::bounded(1);
        let deadline = Instant::now() + LOOK_TIMEOUT;
        let home = self.home_of(self.hash_of(client_id.as_str()));
        self.order(home, Order::Look { client_id: client_id.clone(), reply }, deadline).ok()?;
        view.recv_deadline(deadline).ok()
    }

    /// Begins to drain: no new connections, those there are advised to move and closed at this pace.
    /// False when a drain is under way already; it goes on as it is.
    pub fn drain(&self, pace: Pace) -> bool {
        let connections = self.connections();
        let window = pace.length(connections);
        let begun = Begun { at: Instant::now(), window, disconnects_max: pace.disconnects_max, connections };
        if !self.inner.drain.begin(begun) {
            return false;
        }
        let window_ms = u64::try_from(window.as_millis()).unwrap_or(u64::MAX);
        self.order_all(|| Order::Drain { window_ms });
        true
    }

    /// Closes every connection at once and ends the shards.
    pub fn stop(&self) {
        self.inner.drain.stop();
        self.order_all(|| Order::Stop);
    }

    fn order_all(&self, order: impl Fn() -> Order) {
        let deadline = Instant::now() + ORDER_TIMEOUT;
        for shard in 0..self.shards().get() {
            if self.order(shard, order(), deadline).is_err() {
                tracing::error!(shard, "a shard takes no orders: its mailbox stays full");
            }
        }
    }
}

/// A shard's mailbox was full for as long as could be waited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("a shard's mailbox is full")]
pub struct NoRoom;

fn bind_all(listen: SocketAddr, shards: NonZeroUsize) -> io::Result<Vec<std::net::TcpListener>> {
    // The shards' listeners share their port, and would share it with another process too: better to be told.
    if listen.port() != 0 {
        shard::check_free(listen)?;
    }
    let first = shard::bind(listen)?;
    let listen = first.local_addr()?;
    let mut listeners = vec![first];
    for _ in 1..shards.get() {
        listeners.push(shard::bind(listen)?);
    }
    Ok(listeners)
}

fn ring_of_one(node_id: &NodeId) -> io::Result<SharedRing> {
    let ring = SharedRing::new();
    let version = RingVersion::new(1).map_err(io::Error::other)?;
    let alone = Ring::build(version, 0, [(node_id.clone(), Weight::new(100).map_err(io::Error::other)?)])
        .map_err(io::Error::other)?;
    ring.publish(Arc::new(alone)).map_err(io::Error::other)?;
    Ok(ring)
}

/// Pins the calling thread to the `index`-th of the cores it may use. Where that is refused it runs unpinned.
fn pin(index: usize) {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
    let Ok(allowed) = sched_getaffinity(None) else { return };
    let cores: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core)).collect();
    if let Some(core) = cores.get(index % cores.len().max(1)) {
        let mut set = CpuSet::new();
        set.set(*core);
        let _ = sched_setaffinity(None, &set);
    }
}
