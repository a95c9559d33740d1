//! A node: its shards, started and stopped together.

use std::io;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::thread::JoinHandle;

use ring::{Ring, RingVersion, SharedRing, Weight};

use crate::bus::{Bus, LocalBus};
use crate::metrics::Counters;
use crate::shard::handover::{Mail, Order};
use crate::shard::{self, Driver, Parts, Settings, Shared, mailbox};
use crate::sys;

/// Pieces of mail a shard's mailbox holds.
const MAILBOX_CAPACITY: usize = 16_384;

/// A running node.
pub struct Node {
    /// Where clients connect.
    pub listen: SocketAddr,
    /// One set of counters per shard.
    pub counters: Vec<Arc<Counters>>,
    /// The ring of nodes.
    pub ring: SharedRing,
    mailboxes: Vec<mailbox::Sender<Mail>>,
    threads: Vec<JoinHandle<io::Result<()>>>,
}

impl Node {
    /// Binds `listen` and starts `shards` threads.
    ///
    /// # Errors
    /// When the address or a thread cannot be had, or the ring of one node cannot be built.
    pub fn start(listen: SocketAddr, shards: NonZeroUsize, settings: Settings, driver: Driver) -> io::Result<Self> {
        // A node without this option uses more memory and is otherwise the same.
        let _ = sys::disable_huge_pages();
        let first = shard::bind(listen)?;
        let listen = first.local_addr()?;
        let mut listeners = vec![first];
        for _ in 1..shards.get() {
            listeners.push(shard::bind(listen)?);
        }
        let ring = SharedRing::new();
        let version = RingVersion::new(1).map_err(io::Error::other)?;
        let alone = Ring::build(version, 0, [(settings.node_id.clone(), Weight::new(100).map_err(io::Error::other)?)])
            .map_err(io::Error::other)?;
        ring.publish(Arc::new(alone)).map_err(io::Error::other)?;
        let mut mailboxes = Vec::new();
        let mut receivers = Vec::new();
        for _ in 0..shards.get() {
            let (sender, receiver) = mailbox::mailbox(MAILBOX_CAPACITY)?;
            mailboxes.push(sender);
            receivers.push(receiver);
        }
        let bus = Arc::new(LocalBus::default());
        bus.join(settings.node_id.clone(), mailboxes.clone());
        let settings = Arc::new(settings);
        let shared = Arc::new(Shared::default());
        let counters: Vec<_> = (0..shards.get()).map(|_| Arc::new(Counters::default())).collect();
        let mut threads = Vec::new();
        for (index, (listener, mail)) in listeners.into_iter().zip(receivers).enumerate() {
            let parts = Parts {
                index,
                shards,
                settings: Arc::clone(&settings),
                shared: Arc::clone(&shared),
                counters: counters.get(index).map(Arc::clone).unwrap_or_default(),
                ring: ring.clone(),
                bus: Arc::clone(&bus) as Arc<dyn Bus>,
                listener,
                mail,
                mailboxes: mailboxes.clone(),
                driver,
            };
            let thread = std::thread::Builder::new().name(format!("shard-{index}")).spawn(move || {
                pin(index);
                shard::run(parts)
            })?;
            threads.push(thread);
        }
        Ok(Self { listen, counters, ring, mailboxes, threads })
    }

    /// How many shards it has.
    pub fn shards(&self) -> NonZeroUsize {
        NonZeroUsize::new(self.mailboxes.len()).unwrap_or(NonZeroUsize::MIN)
    }

    /// Gives one shard an order.
    ///
    /// # Errors
    /// When its mailbox is full.
    pub fn order(&self, shard: usize, order: Order) -> Result<(), ()> {
        self.mailboxes.get(shard).map_or(Err(()), |mailbox| mailbox.post(Mail::Order(order)).map_err(drop))
    }

    /// Waits until every shard has ended.
    ///
    /// # Errors
    /// The first shard's error, if one failed.
    pub fn join(self) -> io::Result<()> {
        for thread in self.threads {
            thread.join().map_err(|_| io::Error::other("a shard has panicked"))??;
        }
        Ok(())
    }
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
