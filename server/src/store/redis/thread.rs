//! The thread that speaks to Redis for all shards: requests in by a bounded queue, many to a round trip, answers out by
//! mail. A request that was taken is answered once, however often the connection breaks; those of one client are done
//! and answered in order. It never gives up, and it never waits for a shard.

use std::collections::VecDeque;
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
use super::lanes::{Group, Job, Lanes, bytes_of};
use super::link::{Address, BadUrl, Link, Trouble};
use super::links::Links;
use super::scripts::{Caller, Script};
use super::sweeper::Sweeper;
use crate::shard::handover::Mail;
use crate::shard::mailbox;
use crate::store::BufferFull;
use crate::store::bounds::BufferLimits;
use crate::store::request::{StoreAnswer, StoreRequest, Ticket};

/// Requests under way at a time: enough to keep the server busy through a round trip and its disk write.
const WINDOW_REQUESTS: usize = 4096;
/// Bytes of requests under way at a time.
const WINDOW_BYTES: usize = 8 * 1024 * 1024;
/// After the replies to so many groups of requests the window is filled up again.
const GROUPS_PER_TURN: usize = 512;
/// Answers that shards have no room for, before no more requests are sent.
const UNDELIVERED_MAX: usize = 4096;
/// A request that the server refuses is asked again so often before it is answered as not done.
const ATTEMPTS_MAX: u32 = 3;
/// How long a reply may take before the connection is given up. What was asked is asked again.
pub(super) const REPLY_LIMIT: Duration = Duration::from_secs(5);
/// How long the thread sleeps when there is nothing to do, and so how soon it notices that it is to end.
const IDLE_WAIT: Duration = Duration::from_millis(500);
/// How long the server may have said nothing before it is asked for a sign: whoever looks whether this node is ready must
/// hear that it is away, though nothing be asked of it.
const SIGN_INTERVAL: Duration = Duration::from_secs(5);
/// How long it sleeps when a shard has no room.
const FULL_WAIT: Duration = Duration::from_millis(1);

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
        let job = Job { shard, ticket, request, bytes, attempts: 0, is_alone: false };
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
            links: None,
            name: format!("rtc-store-{}-{}", settings.node, settings.incarnation),
            former: Vec::new(),
            caller: caller.clone(),
            shared: Arc::clone(&shared),
            queue: receiver,
            lanes: Lanes::default(),
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            unanswered: 0,
            failed: Failed::default(),
            undelivered: shards.iter().map(|_| VecDeque::new()).collect(),
            undelivered_count: 0,
            shards,
            backoff: Backoff::default(),
            heard_at: Instant::now(),
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
        for thread in &self.threads {
            thread.thread().unpark();
        }
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

/// What must be done before requests that came back with an error are asked again.
#[derive(Default)]
struct Failed {
    must_wait: bool,
    must_load: bool,
}

struct Worker {
    address: Address,
    links: Option<Links>,
    // What the server calls the connections, and its numbers for the latest ones.
    name: String,
    former: Vec<i64>,
    caller: Caller,
    shared: Arc<Shared>,
    queue: Receiver<Job>,
    // Invariant: `lanes` and `in_flight` hold all that was taken and not answered, `unanswered` in number.
    lanes: Lanes,
    in_flight: VecDeque<Group>,
    in_flight_bytes: usize,
    unanswered: usize,
    failed: Failed,
    shards: Vec<mailbox::Sender<Mail>>,
    undelivered: Vec<VecDeque<Mail>>,
    undelivered_count: usize,
    backoff: Backoff,
    heard_at: Instant,
}

impl Worker {
    fn run(mut self) {
        while !self.is_over() {
            self.deliver();
            let result = match self.links {
                Some(_) => self.turn(),
                None => self.connect(),
            };
            if let Err(err) = result {
                self.lose(&err);
            }
        }
    }

    fn is_over(&self) -> bool {
        self.shared.is_stopping() && self.queue.is_empty() && self.unanswered == 0 && self.undelivered_count == 0
    }

    /// Sends what there is room for, then reads replies: all, or so many that it is worth sending again.
    fn turn(&mut self) -> Result<(), RedisError> {
        self.gather();
        self.send()?;
        let goes_on = !self.queue.is_empty() && !self.has_failed();
        let groups = if goes_on { GROUPS_PER_TURN.min(self.in_flight.len()) } else { self.in_flight.len() };
        for _ in 0..groups {
            self.receive()?;
        }
        if self.in_flight.is_empty() && self.has_failed() {
            self.recover()?;
        } else if self.in_flight.is_empty() && groups > 0 {
            // All of it was done. A connection alone is no success yet, nor is a part of what was asked.
            self.backoff.succeed();
        }
        self.look_for_sign(groups > 0)
    }

    fn look_for_sign(&mut self, has_heard: bool) -> Result<(), RedisError> {
        let now = Instant::now();
        if has_heard {
            self.heard_at = now;
        } else if self.in_flight.is_empty() && now.duration_since(self.heard_at) >= SIGN_INTERVAL {
            self.heard_at = now;
            // Whatever it answers, it is there.
            if let Some(links) = &mut self.links
                && let Err(err) = links.first().ask(&["PING"])
                && err.code().is_none()
            {
                return Err(err);
            }
        }
        Ok(())
    }

    fn has_failed(&self) -> bool {
        self.failed.must_wait || self.failed.must_load
    }

    /// Takes requests from the queue; waits for one when there is nothing else to do.
    fn gather(&mut self) {
        if self.undelivered_count >= UNDELIVERED_MAX {
            if self.in_flight.is_empty() {
                std::thread::sleep(FULL_WAIT);
            }
            return;
        }
        if self.unanswered == 0 {
            let wait = if self.undelivered_count > 0 { FULL_WAIT } else { IDLE_WAIT };
            match self.queue.recv_timeout(wait) {
                Ok(job) => self.take(job),
                Err(RecvTimeoutError::Timeout) => return,
                // All handles are gone: there will be no more requests.
                Err(RecvTimeoutError::Disconnected) => {
                    self.shared.is_stopping.store(true, Ordering::Relaxed);
                    return;
                }
            }
        }
        while self.unanswered < WINDOW_REQUESTS
            && let Ok(job) = self.queue.try_recv()
        {
            self.take(job);
        }
    }

    fn take(&mut self, job: Job) {
        self.unanswered += 1;
        self.lanes.push(job);
    }

    fn send(&mut self) -> Result<(), RedisError> {
        self.shared.counters.unanswered.set(self.unanswered as u64);
        // What failed goes first, when all that is under way has come back.
        if self.has_failed() {
            return Ok(());
        }
        let Some(links) = &mut self.links else { return Ok(()) };
        // A cluster knows no transaction over several of its servers.
        let can_be_several = !links.is_cluster();
        while self.in_flight_bytes < WINDOW_BYTES
            && let Some(jobs) = self.lanes.next_group(can_be_several)
        {
            let (link, mut group) = links.write(|pack| Group::write(jobs, &self.caller, pack));
            group.link = link;
            self.in_flight_bytes += group.bytes;
            self.in_flight.push_back(group);
        }
        links.send()
    }

    /// Reads the replies to one group of requests and answers them. From the first on that is to be asked again, all
    /// are: or a later one would be answered first.
    fn receive(&mut self) -> Result<(), RedisError> {
        let (Some(links), Some(group)) = (&mut self.links, self.in_flight.front()) else { return Ok(()) };
        let results = group.read(links.link(group.link))?;
        let Some(group) = self.in_flight.pop_front() else { return Ok(()) };
        self.in_flight_bytes -= group.bytes;
        let Some(client) = group.jobs.first().map(|job| job.client().clone()) else { return Ok(()) };
        let mut again = Vec::new();
        let mut jobs = group.jobs.into_iter();
        for (count, result) in results {
            let jobs = jobs.by_ref().take(count);
            if again.is_empty() {
                again = self.settle(jobs.collect(), result);
            } else {
                again.extend(jobs);
            }
        }
        self.lanes.end_group(&client, again);
        Ok(())
    }

    /// Answers the requests of one call, or gives them back to be asked again.
    fn settle(&mut self, mut jobs: Vec<Job>, result: Result<Value, RedisError>) -> Vec<Job> {
        let value = match result {
            Ok(value) => value,
            Err(err) => return jobs.into_iter().filter_map(|job| self.fail(job, &err)).collect(),
        };
        let counters = &self.shared.counters;
        let reply = codec::reply(value).ok();
        if let Some(reply) = &reply {
            counters.expired.add(reply.expired);
            counters.malformed.add(reply.malformed);
        }
        match (reply.map(|reply| reply.outcome), jobs.as_mut_slice()) {
            (Some(Outcome::Answer(StoreAnswer::Refused(_))), [_, _, ..]) => {
                // All or none are kept: there may be room for some of them.
                for job in &mut jobs {
                    job.is_alone = true;
                }
                return jobs;
            }
            (Some(Outcome::Answer(answer)), _) => jobs.iter().for_each(|job| self.answer(job, answer.clone())),
            (Some(Outcome::PageOn(offset)), [Job { request: StoreRequest::Page { after, .. }, .. }]) => {
                *after = offset;
                return jobs;
            }
            _ => {
                counters.refused.add(1);
                for job in &jobs {
                    self.answer(job, not_done(&job.request));
                }
            }
        }
        Vec::new()
    }

    /// A request came back with an error: it is given back, or answered as not done when it was refused too often.
    fn fail(&mut self, mut job: Job, err: &RedisError) -> Option<Job> {
        let trouble = Trouble::of(err);
        job.attempts += u32::from(trouble == Trouble::Refused);
        if job.attempts >= ATTEMPTS_MAX {
            warn!(%err, "the store refuses a request");
            self.shared.counters.refused.add(1);
            let answer = not_done(&job.request);
            self.answer(&job, answer);
            return None;
        }
        if trouble == Trouble::NoScript {
            self.failed.must_load = true;
        } else {
            self.failed.must_wait = true;
            if self.backoff.should_log(Instant::now()) {
                warn!(redis = self.address.shown(), %err, "the store cannot do its work; what was asked is asked again");
            }
        }
        self.shared.counters.retried.add(1);
        Some(job)
    }

    /// All replies are read: does what what failed needs before it is asked again.
    fn recover(&mut self) -> Result<(), RedisError> {
        let failed = std::mem::take(&mut self.failed);
        if failed.must_load {
            self.load()?;
        }
        if failed.must_wait {
            let wait = self.backoff.fail(Instant::now());
            self.rest(wait);
        }
        Ok(())
    }

    fn connect(&mut self) -> Result<(), RedisError> {
        let links = self.links.insert(Links::open(&mut self.address, REPLY_LIMIT)?);
        links.succeed(&mut self.former, &self.name)?;
        self.load()?;
        if let Some(links) = &mut self.links {
            let weakness = durability::weakness(links.first());
            if let Some(weakness) = &weakness
                && self.shared.weakness.load().as_ref().is_none_or(|before| **before != *weakness)
            {
                warn!(redis = self.address.shown(), "messages are kept less safely than promised: {weakness}");
            }
            self.shared.weakness.store(weakness.map(Arc::new));
        }
        self.heard_at = Instant::now();
        self.shared.counters.connects.add(1);
        self.shared.counters.up.set(1);
        self.shared.is_up.store(true, Ordering::Relaxed);
        info!(redis = self.address.shown(), "store connected");
        Ok(())
    }

    fn load(&mut self) -> Result<(), RedisError> {
        if let Some(links) = &mut self.links {
            let hashes = load_scripts(links.first())?;
            self.caller.set_hashes(hashes);
        }
        Ok(())
    }

    /// The connection is gone: all that was not answered is asked again on the next.
    fn lose(&mut self, err: &RedisError) {
        self.links = None;
        self.shared.is_up.store(false, Ordering::Relaxed);
        self.shared.counters.up.set(0);
        self.failed = Failed::default();
        self.in_flight_bytes = 0;
        for group in self.in_flight.drain(..).rev() {
            self.shared.counters.retried.add(group.jobs.len() as u64);
            if let Some(client) = group.jobs.first().map(|job| job.client().clone()) {
                self.lanes.end_group(&client, group.jobs);
            }
        }
        if self.backoff.should_log(Instant::now()) {
            warn!(redis = self.address.shown(), waiting = self.unanswered + self.queue.len(), %err, "store is away, trying again");
        }
        let wait = self.backoff.fail(Instant::now());
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
        self.unanswered -= 1;
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
