//! A running store with one shard's mailbox, as a test holds it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ring::NodeId;
use rtc_server::protocol::ClientId;
use rtc_server::shard::handover::Mail;
use rtc_server::shard::mailbox::{Receiver, mailbox};
use rtc_server::store::bounds::BufferLimits;
use rtc_server::store::redis::{RedisStore, StoreCounters, StoreHandle, StoreSettings};
use rtc_server::store::request::{Author, ClaimKind, StoreAnswer, StoreRequest, Ticket};
use rtc_server::store::{Kept, Room};

/// How long anything may take before a test gives up: generous, for busy machines. A sentinel that finds its machine to
/// have stood still does nothing for half a minute.
pub const PATIENCE: Duration = Duration::from_secs(120);

pub struct Running {
    pub handle: StoreHandle,
    pub counters: Arc<StoreCounters>,
    mail: Receiver<Mail>,
    store: Option<RedisStore>,
    next_ticket: u64,
}

impl Running {
    pub fn start(url: &str) -> Self {
        Self::start_with(settings(url), 1 << 16)
    }

    pub fn start_with(settings: StoreSettings, mailbox_len: usize) -> Self {
        let counters = Arc::new(StoreCounters::default());
        let (sender, mail) = mailbox(mailbox_len).unwrap();
        let store = RedisStore::start(&settings, vec![sender], Arc::clone(&counters)).unwrap();
        Self { handle: store.handle(), counters, mail, store: Some(store), next_ticket: 0 }
    }

    /// Posts, however long the queue is full.
    pub fn post(&mut self, request: StoreRequest) -> Ticket {
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        let mut request = request;
        let deadline = Instant::now() + PATIENCE;
        while let Err(back) = self.handle.post(0, ticket, request) {
            request = back;
            assert!(Instant::now() < deadline, "the queue stays full");
            std::thread::sleep(Duration::from_millis(1));
        }
        ticket
    }

    /// The next answer that is there already.
    pub fn try_answer(&mut self) -> Option<(Ticket, StoreAnswer)> {
        self.mail.begin();
        match self.mail.next()? {
            Mail::Stored(ticket, answer) => Some((ticket, *answer)),
            other => panic!("not an answer: {other:?}"),
        }
    }

    #[track_caller]
    pub fn answer(&mut self) -> (Ticket, StoreAnswer) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(answer) = self.try_answer() {
                return answer;
            }
            assert!(Instant::now() < deadline, "no answer");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[track_caller]
    pub fn ask(&mut self, request: StoreRequest) -> StoreAnswer {
        let ticket = self.post(request);
        let (answered, answer) = self.answer();
        assert_eq!(answered, ticket);
        answer
    }

    /// All that is kept for a client.
    #[track_caller]
    pub fn kept(&mut self, client: &ClientId) -> Vec<Kept> {
        let mut kept: Vec<Kept> = Vec::new();
        loop {
            let after = kept.last().map_or(0, |last| last.offset);
            match self.ask(StoreRequest::Page { client: client.clone(), after, bytes_max: 64 * 1024 }) {
                StoreAnswer::Page(page) if page.is_empty() => return kept,
                StoreAnswer::Page(page) => kept.extend(page),
                other => panic!("no page: {other:?}"),
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(store) = self.store.take() {
            store.stop(Duration::from_secs(2));
        }
    }
}

pub fn settings(url: &str) -> StoreSettings {
    StoreSettings {
        url: url.to_owned(),
        node: NodeId::new("n0").unwrap(),
        incarnation: 1,
        limits: BufferLimits { recipient_bytes: 4 << 20, recipient_messages: 10_000 },
        memory: Duration::from_secs(900),
        queue_requests: 65_536,
        queue_bytes: 64 << 20,
    }
}

pub fn client(name: &str) -> ClientId {
    ClientId::try_from(format!("{name}-{}", std::process::id()).as_str()).unwrap()
}

pub fn message(identity: u64, ttl_ms: u64) -> Kept {
    let now_ms = u64::try_from(std::time::UNIX_EPOCH.elapsed().unwrap().as_millis()).unwrap();
    Kept { offset: 0, identity, sender: 1, ts_ms: now_ms, expires_ms: now_ms + ttl_ms, body: (*b"{\"a\":1").into() }
}

pub fn append(client: &ClientId, messages: Vec<Kept>) -> StoreRequest {
    StoreRequest::Append { client: client.clone(), author: Author::Other { past: None }, messages, room: Room::IfFree }
}

/// A client's life with one message: claimed, kept, read, taken out, let go. All answers are as they should be.
#[track_caller]
pub fn live(running: &mut Running, client: &ClientId, generation: u64) {
    let claim = |generation, kind, ceiling| StoreRequest::Claim { client: client.clone(), generation, kind, ceiling };
    let answer = running.ask(claim(generation, ClaimKind::Fresh, 1000));
    let StoreAnswer::Claimed { generation, unreleased, .. } = answer else { panic!("not claimed: {answer:?}") };
    assert_eq!(unreleased, []);
    let answer = running.ask(claim(generation, ClaimKind::Again, 1001));
    assert!(matches!(answer, StoreAnswer::Claimed { is_known: true, .. }), "not renewed: {answer:?}");
    let answer = running.ask(append(client, vec![message(generation, 600_000)]));
    let StoreAnswer::Appended { last_offset } = answer else { panic!("not kept: {answer:?}") };
    let kept: Vec<u64> = running.kept(client).iter().map(|kept| kept.identity).collect();
    assert_eq!(kept, [generation]);
    running.ask(StoreRequest::Trim { client: client.clone(), generation, offset: last_offset });
    assert_eq!(running.kept(client), []);
    running.ask(StoreRequest::Release { client: client.clone(), generation, last_offset });
}

#[track_caller]
pub fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
