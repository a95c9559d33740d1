//! Clients that do what clients should: a sender that learns of each message, a recipient that remembers its position,
//! acks, and drops what it has had.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use sonic_rs::{JsonValueTrait, Value};

use crate::support::{Client, Close, Incoming, PATIENCE, Server};

/// Unconfirmed messages a sender allows itself: fewer than the server does.
const WINDOW: usize = 200;

/// Sends numbered messages and asks for acks.
pub struct Sender {
    pub id: String,
    client: Client,
    sent: u64,
    waiting: BTreeSet<u64>,
    pub statuses: BTreeMap<String, u64>,
}

impl Sender {
    pub fn log_in(node: &Server, id: &str) -> Self {
        let (client, _) = Client::log_in(node.listen, &format!("clientId={id}&acks=1"));
        Self { id: id.to_owned(), client, sent: 0, waiting: BTreeSet::new(), statuses: BTreeMap::new() }
    }

    /// Sends the next message; its name is its number.
    #[track_caller]
    pub fn send(&mut self, to: &str) {
        while self.waiting.len() >= WINDOW {
            self.take(PATIENCE);
        }
        let number = self.sent;
        self.sent += 1;
        self.waiting.insert(number);
        self.client.send(&format!(
            r#"{{"type":"message","msgId":"{number}","toClientId":"{to}","payload":{{"n":{number}}}}}"#
        ));
    }

    /// How many it has sent.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Waits until every message is confirmed.
    #[track_caller]
    pub fn settle(&mut self) {
        while !self.waiting.is_empty() {
            assert!(self.take(PATIENCE), "{} waits in vain for {:?}", self.id, self.waiting);
        }
    }

    #[track_caller]
    fn take(&mut self, patience: Duration) -> bool {
        let Some(incoming) = self.client.next_within(patience) else { return false };
        let Incoming::Text(text) = incoming else { panic!("{} got {incoming:?}", self.id) };
        let value: Value = sonic_rs::from_str(&text).unwrap();
        assert_eq!(value["type"].as_str(), Some("ack"), "{}: {text}", self.id);
        let number = value["msgId"].as_str().unwrap().parse().unwrap();
        assert!(self.waiting.remove(&number), "{}: an ack nobody waits for: {text}", self.id);
        *self.statuses.entry(value["status"].as_str().unwrap().to_owned()).or_default() += 1;
        true
    }
}

/// Receives, and judges.
pub struct Inbox {
    pub id: String,
    client: Client,
    /// The last offset it has had.
    pub position: u64,
    /// What the last welcome said.
    pub welcome: Value,
    /// Per sender, the number that must come next.
    next: BTreeMap<String, u64>,
    /// Messages that came again.
    pub repeats: u64,
    pub acks: bool,
}

impl Inbox {
    /// Logs in for the first time.
    #[track_caller]
    pub fn log_in(node: &Server, id: &str) -> Self {
        let (client, welcome) = Client::log_in(node.listen, &format!("clientId={id}&recvAck=1"));
        Self { id: id.to_owned(), client, position: 0, welcome, next: BTreeMap::new(), repeats: 0, acks: true }
    }

    /// Goes on at this node from where it was. The old connection is ended by whoever gets to it first.
    #[track_caller]
    pub fn hop(&mut self, node: &Server) -> Client {
        let query = format!("clientId={}&resumeOffset={}", self.id, self.position);
        let (client, welcome) = Client::log_in(node.listen, &query);
        assert_eq!(welcome["nodeId"].as_str(), Some(&*node.node_id));
        self.welcome = welcome;
        std::mem::replace(&mut self.client, client)
    }

    /// True when the last welcome promised that nothing is missing.
    pub fn is_recovered(&self) -> bool {
        self.welcome["recovered"].as_bool() == Some(true)
    }

    /// How many different messages have come from a sender.
    pub fn had(&self, sender: &str) -> u64 {
        self.next.get(sender).copied().unwrap_or_default()
    }

    /// How many different messages have come.
    pub fn total(&self) -> u64 {
        self.next.values().sum()
    }

    /// Reads until so many different messages of this sender have come, each in its order.
    #[track_caller]
    pub fn await_from(&mut self, sender: &str, count: u64) {
        let deadline = Instant::now() + 2 * PATIENCE;
        while self.had(sender) < count {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(self.read(left), "{} has {} of {count} messages of {sender}", self.id, self.had(sender));
        }
        assert_eq!(self.had(sender), count, "more came than was sent");
    }

    /// Reads what comes in so long, one message at most; false when nothing does.
    #[track_caller]
    pub fn read(&mut self, patience: Duration) -> bool {
        let Some(incoming) = self.client.next_within(patience) else { return false };
        let Incoming::Text(text) = incoming else { panic!("{} got {incoming:?}", self.id) };
        let value: Value = sonic_rs::from_str(&text).unwrap();
        assert_eq!(value["type"].as_str(), Some("message"), "{}: {text}", self.id);
        assert_eq!(value["toClientId"].as_str(), Some(&*self.id), "somebody else's message");
        let number: u64 = value["msgId"].as_str().unwrap().parse().unwrap();
        assert_eq!(value["payload"]["n"].as_u64(), Some(number));
        let offset = value["offset"].as_u64().unwrap();
        assert!(offset > self.position, "{}: offset {offset} after {}: {text}", self.id, self.position);
        self.position = offset;
        let next = self.next.entry(value["from"].as_str().unwrap().to_owned()).or_default();
        assert!(number <= *next, "{}: {number} came before {next}: {text}", self.id);
        if number == *next {
            *next += 1;
        } else {
            self.repeats += 1;
        }
        if self.acks {
            self.client.send(&format!(r#"{{"type":"ack","offset":{offset}}}"#));
        }
        true
    }

    /// True when nothing more comes in a moment: for what must not happen, after what must has.
    #[track_caller]
    pub fn is_quiet(&mut self) -> bool {
        !self.read(Duration::from_millis(300))
    }

    /// Reads on until the server ends the connection.
    #[track_caller]
    pub fn await_close(&mut self) -> Close {
        self.client.await_close()
    }
}
