//! The thread that speaks to Redis for all shards: requests in by a bounded queue, many to a round trip, answers out by
//! mail. A request that was taken is answered once, however often the connection breaks; those of one client are
//! answered in order. It never gives up, and it never waits for a shard.

use std::collections::{HashSet, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use crossbeam::channel::{self, Receiver, RecvTimeoutError, TrySendError};
use redis::{RedisError, Value};
use ring::NodeId;
use tracing::{info, warn};

use super::backoff::Backoff;
use super::codec::{self, Outcome};
use super::counters::StoreCounters;
use super::durability;
use super::link::{Address, BadUrl, Link, Trouble};
use super::pack::Pack;
use super::scripts::{Caller, Script};
use super::sweeper::Sweeper;
use crate::protocol::ClientId;
use crate::shard::handover::Mail;
use crate::shard::mailbox;
use crate::store::BufferFull;
use crate::store::bounds::{BufferLimits, MESSAGE_OVERHEAD_BYTES};
use crate::store::request::{StoreAnswer, StoreRequest, Ticket};

/// Requests under way at a time: enough to keep the server busy through a round trip and its disk write.
const WINDOW_REQUESTS: usize = 4096;
/// Bytes of requests under way at a time.
const WINDOW_BYTES: usize = 8 * 1024 * 1024;
/// After so many replies the window is filled up again.
const REPLIES_PER_TURN: usize = 512;
/// Answers that shards have no room for, before no more requests are sent.
const UNDELIVERED_MAX: usize = 4096;
/// What a request costs beside its messages.
const REQUEST_OVERHEAD_BYTES: usize = 256;
/// A request that the server refuses is asked again so often before it is answered as not done.
const ATTEMPTS_MAX: u32 = 3;
/// How long a reply may take before the connection is given up. What was asked is asked again.
pub(super) const REPLY_LIMIT: Duration = Duration::from_secs(5);
/// How long the thread sleeps when there is nothing to do.
const IDLE_WAIT: Duration = Duration::from_millis(200);
/// How long it sleeps when a shard has no room.
const FULL_WAIT: Duration = Duration::from_millis(1);
/// After a passing error, one request per client and round trip for this long: a later one must not be done before it.
const CAREFUL_TIME: Duration = Duration::from_secs(30);

/// What the store needs to know.
#[derive(Debug, Clone)]
pub struct StoreSettings {
    /// Which Redis.
    pub url: String,
    /// This node.
    pub node: NodeId,
    /// This life of it.
    pub incarnation: u64,
    /// The bounds of one recipient's buffer.
    pub limits: BufferLimits,
    /// How long a client is remembered after it was last heard of: at least a message's greatest age.
    pub memory: Duration,
    /// Requests that wait at most.
    pub queue_requests: usize,
    /// Bytes that wait at most.
    pub queue_bytes: usize,
}

/// What the threads and the shards' handles share.
pub(super) struct Shared {
    pub(super) counters: Arc<StoreCounters>,
    is_up: AtomicBool,
    is_stopping: AtomicBool,
    queued_bytes: AtomicUsize,
    weakness: ArcSwapOption<String>,
}

impl Shared {
    pub(super) fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::Relaxed)
    }
}

struct Job {
    shard: u16,
    ticket: Ticket,
    request: StoreRequest,
    bytes: usize,
    replies: usize,
    attempts: u32,
}

/// The shards' end: posts requests.
#[derive(Clone)]
pub struct StoreHandle {
    queue: channel::Sender<Job>,
    queue_bytes: usize,
    shared: Arc<Shared>,
}

impl StoreHandle {
    /// Posts a request; its answer comes to `shard` as [`Mail::Stored`], once; for [`Ticket::NOBODY`] none comes.
    ///
    /// # Errors
    /// Gives the request back: the queue is full, or the store is stopping.
    pub fn post(&self, shard: u16, ticket: Ticket, request: StoreRequest) -> Result<(), StoreRequest> {
        let bytes = bytes_of(&request);
        let before = self.shared.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
        // One that is larger than the whole queue still goes when nothing else waits.
        let is_full = before > 0 && before.saturating_add(bytes) > self.queue_bytes;
        if is_full || self.shared.is_stopping() {
            self.shared.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
            return Err(request);
        }
        let job = Job { shard, ticket, request, bytes, replies: 1, attempts: 0 };
        self.queue.try_send(job).map_err(|err| {
            self.shared.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
            match err {
                TrySendError::Full(job) | TrySendError::Disconnected(job) => job.request,
            }
        })
    }

    /// True while the server answers.
    pub fn is_up(&self) -> bool {
        self.shared.is_up.load(Ordering::Relaxed)
    }

    /// What the server promises less than it should, in words.
    pub fn weakness(&self) -> Option<Arc<String>> {
        self.shared.weakness.load_full()
    }

    /// What is counted.
    pub fn counters(&self) -> &Arc<StoreCounters> {
        &self.shared.counters
    }
}

/// The running store.
pub struct RedisStore {
    handle: StoreHandle,
    threads: Vec<JoinHandle<()>>,
}

impl RedisStore {
    /// Starts it; it connects by itself, and again whenever it must.
    ///
    /// # Errors
    /// When the URL names no Redis, or no thread can be started.
    pub fn start(
        settings: &StoreSettings,
        shards: Vec<mailbox::Sender<Mail>>,
        counters: Arc<StoreCounters>,
    ) -> Result<Self, StartError> {
        let address = Address::parse(&settings.url)?;
        let sweeper_address = Address::parse(&settings.url)?;
        let shared = Arc::new(Shared {
            counters,
            is_up: AtomicBool::new(false),
            is_stopping: AtomicBool::new(false),
            queued_bytes: AtomicUsize::new(0),
            weakness: ArcSwapOption::empty(),
        });
        let memory_ms = u64::try_from(settings.memory.as_millis()).unwrap_or(u64::MAX);
        let caller = Caller::new(settings.node.clone(), settings.incarnation, memory_ms, settings.limits);
        let (sender, receiver) = channel::bounded(settings.queue_requests);
        let worker = Worker {
            address,
            link: None,
            name: format!("rtc-store-{}-{}", settings.node, settings.incarnation),
            former: None,
            caller: caller.clone(),
            shared: Arc::clone(&shared),
            queue: receiver,
            waiting: VecDeque::new(),
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            failed: Failed::default(),
            undelivered: shards.iter().map(|_| VecDeque::new()).collect(),
            undelivered_count: 0,
            shards,
            pack: Pack::default(),
            backoff: Backoff::default(),
            careful_until: None,
        };
        let sweeper = Sweeper::new(sweeper_address, caller, Arc::clone(&shared));
        let threads = vec![
            std::thread::Builder::new().name("store".into()).spawn(move || worker.run())?,
            std::thread::Builder::new().name("store-sweep".into()).spawn(move || sweeper.run())?,
        ];
        let handle = StoreHandle { queue: sender, queue_bytes: settings.queue_bytes, shared };
        Ok(Self { handle, threads })
    }

    /// The shards' end.
    pub fn handle(&self) -> StoreHandle {
        self.handle.clone()
    }

    /// Takes no more requests, and ends when all that were taken are answered, or after `patience`.
    /// Returns true when all were.
    pub fn stop(mut self, patience: Duration) -> bool {
        self.handle.shared.is_stopping.store(true, Ordering::Relaxed);
        let deadline = Instant::now() + patience;
        while self.threads.iter().any(|thread| !thread.is_finished()) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        // A thread that waits for a silent server is left behind; the process ends without it.
        let mut all_ended = true;
        for thread in self.threads.drain(..) {
            if thread.is_finished() {
                all_ended &= thread.join().is_ok();
            } else {
                all_ended = false;
            }
        }
        all_ended
    }
}

/// Why the store does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The URL is wrong.
    #[error(transparent)]
    Url(#[from] BadUrl),
    /// No thread.
    #[error("no thread for the store: {0}")]
    Thread(#[from] io::Error),
}

/// Requests of this round that must be asked again, in order, and the clients whose later ones must wait for that.
#[derive(Default)]
struct Failed {
    jobs: Vec<Job>,
    clients: HashSet<ClientId>,
    must_wait: bool,
    must_load: bool,
}

struct Worker {
    address: Address,
    link: Option<Link>,
    name: String,
    // The server's number for the connection before this one: it may still hold requests that were not done.
    former: Option<i64>,
    caller: Caller,
    shared: Arc<Shared>,
    queue: Receiver<Job>,
    // Invariant: in order, `failed`, `in_flight`, `waiting` are all that was taken and not answered.
    waiting: VecDeque<Job>,
    in_flight: VecDeque<Job>,
    in_flight_bytes: usize,
    failed: Failed,
    shards: Vec<mailbox::Sender<Mail>>,
    undelivered: Vec<VecDeque<Mail>>,
    undelivered_count: usize,
    pack: Pack,
    backoff: Backoff,
    careful_until: Option<Instant>,
}

impl Worker {
    fn run(mut self) {
        while !self.is_over() {
            self.deliver();
            let result = match self.link {
                Some(_) => self.turn(),
                None => self.connect(),
            };
            if let Err(err) = result {
                self.lose(&err);
            }
        }
    }

    fn is_over(&self) -> bool {
        self.shared.is_stopping()
            && self.queue.is_empty()
            && self.waiting.is_empty()
            && self.in_flight.is_empty()
            && self.undelivered_count == 0
    }

    /// Sends what there is room for, then reads replies: all, or so many that it is worth sending again.
    fn turn(&mut self) -> Result<(), RedisError> {
        self.gather();
        self.send()?;
        if self.in_flight.is_empty() {
            return Ok(());
        }
        let goes_on = !self.queue.is_empty() && self.failed.jobs.is_empty();
        let replies = if goes_on { REPLIES_PER_TURN.min(self.in_flight.len()) } else { self.in_flight.len() };
        for _ in 0..replies {
            self.receive()?;
        }
        if self.in_flight.is_empty() && !self.failed.jobs.is_empty() {
            self.ask_again()?;
        }
        Ok(())
    }

    /// Takes requests from the queue; waits for one when there is nothing else to do.
    fn gather(&mut self) {
        if self.undelivered_count >= UNDELIVERED_MAX {
            if self.in_flight.is_empty() {
                std::thread::sleep(FULL_WAIT);
            }
            return;
        }
        if self.waiting.is_empty() && self.in_flight.is_empty() {
            let wait = if self.undelivered_count > 0 { FULL_WAIT } else { IDLE_WAIT };
            match self.queue.recv_timeout(wait) {
                Ok(job) => self.waiting.push_back(job),
                Err(RecvTimeoutError::Timeout) => return,
                // All handles are gone: there will be no more requests.
                Err(RecvTimeoutError::Disconnected) => {
                    self.shared.is_stopping.store(true, Ordering::Relaxed);
                    return;
                }
            }
        }
        while self.waiting.len() + self.in_flight.len() < WINDOW_REQUESTS
            && let Ok(job) = self.queue.try_recv()
        {
            self.waiting.push_back(job);
        }
    }

    fn send(&mut self) -> Result<(), RedisError> {
        if !self.failed.jobs.is_empty() {
            return Ok(());
        }
        let is_careful = self.careful_until.is_some_and(|until| Instant::now() < until);
        let mut clients: HashSet<ClientId> = HashSet::new();
        if is_careful {
            clients.extend(self.in_flight.iter().map(|job| client_of(&job.request).clone()));
        }
        self.pack.clear();
        while self.in_flight.len() < WINDOW_REQUESTS
            && (self.in_flight_bytes < WINDOW_BYTES)
            && let Some(job) = self.waiting.front()
        {
            if is_careful && !clients.insert(client_of(&job.request).clone()) {
                break;
            }
            let Some(mut job) = self.waiting.pop_front() else { break };
            job.replies = self.caller.write(&job.request, &mut self.pack);
            self.in_flight_bytes += job.bytes;
            self.in_flight.push_back(job);
        }
        self.shared.counters.unanswered.set((self.in_flight.len() + self.waiting.len()) as u64);
        match &mut self.link {
            Some(link) if !self.pack.is_empty() => link.send(&self.pack),
            _ => Ok(()),
        }
    }

    /// Reads the replies to one request and answers it, or keeps it to be asked again.
    fn receive(&mut self) -> Result<(), RedisError> {
        let Some(link) = &mut self.link else { return Ok(()) };
        let count = self.in_flight.front().map_or(0, |job| job.replies);
        let mut replies: [Option<Result<Value, RedisError>>; 2] = [None, None];
        for reply in replies.iter_mut().take(count) {
            let result = link.receive();
            if let Err(err) = &result
                && Trouble::of(err) == Trouble::Lost
            {
                return result.map(|_| ());
            }
            *reply = Some(result);
        }
        let Some(mut job) = self.in_flight.pop_front() else { return Ok(()) };
        self.in_flight_bytes -= job.bytes;
        let [Some(first), second] = replies else { return Ok(()) };
        let second = second.unwrap_or(Ok(Value::Nil));
        // That the clock of ages is not what it should be is the sweeper's to mend; the message is kept.
        let second =
            second.or_else(|err| if Trouble::of(&err) == Trouble::Refused { Ok(Value::Nil) } else { Err(err) });
        let value = match second.and(first) {
            Ok(value) => value,
            Err(err) => {
                self.fail(job, &err);
                return Ok(());
            }
        };
        if self.failed.clients.contains(client_of(&job.request)) {
            // One before it is to be asked again: this one, too, or it would be answered first.
            self.failed.jobs.push(job);
            return Ok(());
        }
        let counters = &self.shared.counters;
        let reply = codec::reply(value).ok();
        if let Some(reply) = &reply {
            counters.expired.add(reply.expired);
            counters.malformed.add(reply.malformed);
        }
        let answer = match (reply.map(|reply| reply.outcome), &mut job.request) {
            (Some(Outcome::Answer(answer)), _) => answer,
            (Some(Outcome::PageOn(offset)), StoreRequest::Page { after, .. }) => {
                *after = offset;
                self.keep(job);
                return Ok(());
            }
            (_, request) => {
                counters.refused.add(1);
                not_done(request)
            }
        };
        self.answer(&job, answer);
        Ok(())
    }

    /// A request came back with an error.
    fn fail(&mut self, mut job: Job, err: &RedisError) {
        let trouble = Trouble::of(err);
        job.attempts += u32::from(trouble == Trouble::Refused);
        if job.attempts >= ATTEMPTS_MAX && !self.failed.clients.contains(client_of(&job.request)) {
            warn!(%err, "the store refuses a request");
            self.shared.counters.refused.add(1);
            let answer = not_done(&job.request);
            self.answer(&job, answer);
            return;
        }
        self.failed.must_load |= trouble == Trouble::NoScript;
        if trouble != Trouble::NoScript {
            self.failed.must_wait = true;
            if self.backoff.should_log(Instant::now()) {
                warn!(redis = self.address.shown(), %err, "the store cannot do its work; what was asked is asked again");
            }
        }
        self.shared.counters.retried.add(1);
        self.keep(job);
    }

    fn keep(&mut self, job: Job) {
        self.failed.clients.insert(client_of(&job.request).clone());
        self.failed.jobs.push(job);
    }

    /// All replies are read: what failed goes to the front.
    fn ask_again(&mut self) -> Result<(), RedisError> {
        let failed = std::mem::take(&mut self.failed);
        for job in failed.jobs.into_iter().rev() {
            self.waiting.push_front(job);
        }
        if failed.must_load {
            self.load()?;
        }
        if failed.must_wait {
            self.careful_until = Some(Instant::now() + CAREFUL_TIME);
            let wait = self.backoff.fail();
            self.rest(wait);
        }
        Ok(())
    }

    fn connect(&mut self) -> Result<(), RedisError> {
        self.link = Some(self.address.connect(REPLY_LIMIT)?);
        self.end_former();
        self.load()?;
        if let Some(link) = &mut self.link {
            let weakness = durability::weakness(link);
            if let Some(weakness) = &weakness
                && self.shared.weakness.load().as_ref().is_none_or(|before| **before != *weakness)
            {
                warn!(redis = self.address.shown(), "messages are kept less safely than promised: {weakness}");
            }
            self.shared.weakness.store(weakness.map(Arc::new));
        }
        self.shared.counters.connects.add(1);
        self.shared.counters.up.set(1);
        self.shared.is_up.store(true, Ordering::Relaxed);
        self.backoff.succeed();
        info!(redis = self.address.shown(), "store connected");
        Ok(())
    }

    /// The connection before may have requests under way that the server has yet to read: it must not do them after
    /// what is asked now. A server that was started anew numbers anew, hence the name.
    fn end_former(&mut self) {
        let Some(link) = &mut self.link else { return };
        if link.is_cluster() {
            return;
        }
        let _ = link.ask(&["CLIENT", "SETNAME", &self.name]);
        if let Some(former) = self.former.take().map(|id| id.to_string()) {
            let is_ours = match link.ask(&["CLIENT", "LIST", "ID", &former]) {
                Ok(Value::BulkString(text)) => {
                    String::from_utf8_lossy(&text).contains(&format!(" name={} ", self.name))
                }
                Ok(Value::VerbatimString { text, .. }) => text.contains(&format!(" name={} ", self.name)),
                _ => false,
            };
            if is_ours {
                let _ = link.ask(&["CLIENT", "KILL", "ID", &former]);
            }
        }
        self.former = match link.ask(&["CLIENT", "ID"]) {
            Ok(Value::Int(id)) => Some(id),
            _ => None,
        };
    }

    fn load(&mut self) -> Result<(), RedisError> {
        if let Some(link) = &mut self.link {
            let hashes = load_scripts(link)?;
            self.caller.set_hashes(hashes);
        }
        Ok(())
    }

    /// The connection is gone: all that was not answered is asked again on the next.
    fn lose(&mut self, err: &RedisError) {
        self.link = None;
        self.shared.is_up.store(false, Ordering::Relaxed);
        self.shared.counters.up.set(0);
        let failed = std::mem::take(&mut self.failed);
        self.shared.counters.retried.add((failed.jobs.len() + self.in_flight.len()) as u64);
        self.in_flight_bytes = 0;
        for job in failed.jobs.into_iter().chain(self.in_flight.drain(..)).rev() {
            self.waiting.push_front(job);
        }
        if self.backoff.should_log(Instant::now()) {
            warn!(redis = self.address.shown(), waiting = self.waiting.len() + self.queue.len(), %err, "store is away, trying again");
        }
        let wait = self.backoff.fail();
        self.rest(wait);
    }

    /// Waits, and goes on delivering answers meanwhile.
    fn rest(&mut self, wait: Duration) {
        let until = Instant::now() + wait;
        while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            self.deliver();
            std::thread::sleep(left.min(Duration::from_millis(10)));
        }
    }

    fn answer(&mut self, job: &Job, answer: StoreAnswer) {
        let counters = &self.shared.counters;
        match &job.request {
            StoreRequest::Claim { .. } => counters.claims.add(1),
            StoreRequest::Release { .. } => counters.releases.add(1),
            StoreRequest::Append { .. } => counters.appends.add(1),
            StoreRequest::Page { .. } => counters.pages.add(1),
            StoreRequest::Trim { .. } => counters.trims.add(1),
            StoreRequest::Remove { .. } => counters.removes.add(1),
        }
        match &answer {
            StoreAnswer::Elsewhere(_) => counters.elsewhere.add(1),
            StoreAnswer::Refused(_) => counters.buffer_full.add(1),
            _ => {}
        }
        self.shared.queued_bytes.fetch_sub(job.bytes, Ordering::Relaxed);
        if job.ticket == Ticket::NOBODY {
            return;
        }
        let shard = usize::from(job.shard);
        let mail = Mail::Stored(job.ticket, Box::new(answer));
        let (Some(sender), Some(undelivered)) = (self.shards.get(shard), self.undelivered.get_mut(shard)) else {
            debug_assert!(false, "no shard {shard}");
            return;
        };
        let mail = if undelivered.is_empty() { sender.post(mail).err() } else { Some(mail) };
        if let Some(mail) = mail {
            undelivered.push_back(mail);
            self.undelivered_count += 1;
        }
    }

    /// Tries again where a shard had no room.
    fn deliver(&mut self) {
        if self.undelivered_count == 0 {
            return;
        }
        for (undelivered, shard) in self.undelivered.iter_mut().zip(&self.shards) {
            while let Some(mail) = undelivered.pop_front() {
                if let Err(mail) = shard.post(mail) {
                    undelivered.push_front(mail);
                    break;
                }
                self.undelivered_count -= 1;
            }
        }
    }
}

/// Loads all scripts and returns what the server calls them.
pub(super) fn load_scripts(link: &mut Link) -> Result<Vec<String>, RedisError> {
    let mut hashes = Vec::with_capacity(Script::ALL.len());
    for script in Script::ALL {
        let hash = match link.ask(&["SCRIPT", "LOAD", &script.source()])? {
            Value::BulkString(hash) => String::from_utf8_lossy(&hash).into_owned(),
            Value::SimpleString(hash) => hash,
            _ => return Err(RedisError::from((redis::ErrorKind::UnexpectedReturnType, "no hash of a script"))),
        };
        hashes.push(hash);
    }
    Ok(hashes)
}

fn client_of(request: &StoreRequest) -> &ClientId {
    match request {
        StoreRequest::Claim { client, .. }
        | StoreRequest::Release { client, .. }
        | StoreRequest::Append { client, .. }
        | StoreRequest::Page { client, .. }
        | StoreRequest::Trim { client, .. }
        | StoreRequest::Remove { client, .. } => client,
    }
}

fn bytes_of(request: &StoreRequest) -> usize {
    let messages = match request {
        StoreRequest::Append { messages, .. } => messages.as_slice(),
        _ => &[],
    };
    let bytes: usize = messages.iter().map(|message| message.body.len() + MESSAGE_OVERHEAD_BYTES).sum();
    REQUEST_OVERHEAD_BYTES + client_of(request).as_str().len() + bytes
}

/// The answer to a request that the server will not do: nothing of it is kept, and nobody waits for it for ever.
fn not_done(request: &StoreRequest) -> StoreAnswer {
    match request {
        StoreRequest::Claim { generation, .. } => StoreAnswer::Claimed {
            generation: *generation,
            unreleased: Vec::new(),
            last_offset: 0,
            lost_offset: 0,
            is_known: false,
            has_messages: false,
        },
        StoreRequest::Append { .. } => StoreAnswer::Refused(BufferFull::Recipient),
        StoreRequest::Page { .. } => StoreAnswer::Page(Vec::new()),
        StoreRequest::Release { .. } | StoreRequest::Trim { .. } | StoreRequest::Remove { .. } => StoreAnswer::Done,
    }
}
