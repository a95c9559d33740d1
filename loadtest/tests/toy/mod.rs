//! A server to test the load generator against: one thread per connection, and faults on demand.
//!
//! Speaks just enough of the client protocol to relay messages between the clients of one process, and to give a client
//! that returns what it has missed.
#![allow(clippy::unwrap_used, reason = "part of a test")]
#![allow(dead_code, reason = "each test program has its own faults")]

pub mod balancer;
pub mod runs;

use std::{
    collections::HashMap,
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
};

use sonic_rs::{JsonValueTrait as _, Value};
use websocket::{
    Decoder, Event, Opcode, Role, encode_frame,
    handshake::{Request, encode_response, encode_switching_protocols, query_pairs},
};

/// What the server does wrong, to every hundredth message (or connection).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    None,
    Lose,
    Duplicate,
    /// Holds a message back until the next one of its connection has passed.
    Reorder,
    Corrupt,
    /// Hands the message to its sender.
    Misdeliver,
    /// Answers with an error message instead of delivering.
    Refuse,
    /// Closes the connection.
    HangUp,
    /// Answers every upgrade with 503.
    RefuseUpgrade,
    /// Accepts connections and never says a word.
    Silent,
    /// Upgrades but never says welcome.
    NoWelcome,
    /// Delivers a message again under another name.
    Rename,
    /// Delivers what it never confirms.
    Unconfirmed,
    /// Keeps nothing for who is away, and says so when they return.
    Forget,
    /// Advises the sender to move, to where it is already.
    Advise,
    /// Closes the sender's connection with this code, and the reason `toy;delay=50`.
    Close(u16),
}

const FAULT_EVERY: u64 = 100;

struct Shared {
    fault: Fault,
    name: String,
    clients: Mutex<HashMap<String, Arc<Mutex<Client>>>>,
    messages: AtomicU64,
    offsets: AtomicU64,
}

/// A client that was here at least once.
#[derive(Default)]
struct Client {
    stream: Option<TcpStream>,
    /// All that was ever sent to it.
    history: Vec<(u64, String)>,
}

impl Client {
    fn deliver(&mut self, offset: u64, text: String, shared: &Shared) {
        self.say(&text);
        if self.stream.is_some() || shared.fault != Fault::Forget {
            self.history.push((offset, text));
        }
    }

    fn say(&mut self, text: &str) {
        let mut out = Vec::new();
        encode_frame(&mut out, Opcode::Text, text.as_bytes());
        if let Some(stream) = &mut self.stream
            && stream.write_all(&out).is_err()
        {
            self.stream = None;
        }
    }

    fn close(&mut self, code: u16, reason: &str) {
        let (mut payload, mut out) = (code.to_be_bytes().to_vec(), Vec::new());
        payload.extend_from_slice(reason.as_bytes());
        encode_frame(&mut out, Opcode::Close, &payload);
        if let Some(mut stream) = self.stream.take() {
            // It may have gone by itself.
            let _ = stream.write_all(&out);
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Shared {
    fn is_faulty(&self, fault: Fault) -> bool {
        self.fault == fault && self.messages.load(Relaxed).is_multiple_of(FAULT_EVERY)
    }

    fn client(&self, id: &str) -> Arc<Mutex<Client>> {
        Arc::clone(self.clients.lock().unwrap().entry(id.to_owned()).or_default())
    }
}

/// Serves on a free port of 127.0.0.1 until the test process ends.
pub fn serve(fault: Fault) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let shared = Arc::new(Shared {
        fault,
        name: format!("toy-{}", addr.port()),
        clients: Mutex::default(),
        messages: AtomicU64::new(0),
        // A new client begins after the newest offset, which may not be 0: that is the position of who is new.
        offsets: AtomicU64::new(1000),
    });
    thread::spawn(move || {
        for stream in listener.incoming() {
            let shared = Arc::clone(&shared);
            // A connection that breaks is the client's affair.
            thread::spawn(move || serve_connection(stream.ok()?, &shared));
        }
    });
    addr
}

fn serve_connection(mut stream: TcpStream, shared: &Shared) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    if shared.fault == Fault::Silent {
        let _ = stream.read_to_end(&mut Vec::new());
        return None;
    }
    let mut head = Vec::new();
    let mut chunk = vec![0; 64 * 1024];
    let (path, query) = loop {
        let count = stream.read(&mut chunk).ok().filter(|count| *count > 0)?;
        head.extend_from_slice(&chunk[..count]);
        if let Some((request, _)) = Request::parse(&head).ok()? {
            let mut answer = Vec::new();
            if shared.fault == Fault::RefuseUpgrade {
                encode_response(&mut answer, 503, &[("Retry-After", "1")], b"");
                stream.write_all(&answer).ok()?;
                return None;
            }
            encode_switching_protocols(&mut answer, request.upgrade().ok()?.key(), None);
            stream.write_all(&answer).ok()?;
            break (request.path().to_owned(), request.query().to_owned());
        }
    };
    if path == "/ws/echo" {
        return echo(stream, shared);
    }
    let query: HashMap<String, String> =
        query_pairs(&query).flatten().map(|(name, value)| (name.into_owned(), value.into_owned())).collect();
    let resume_offset = query.get("resumeOffset").and_then(|offset| offset.parse().ok());
    relay(stream, shared, query.get("clientId")?, query.contains_key("acks"), resume_offset)
}

fn echo(mut stream: TcpStream, shared: &Shared) -> Option<()> {
    let mut decoder = Decoder::new(Role::Server, 1 << 20);
    let mut chunk = vec![0; 64 * 1024];
    let (mut out, mut held_back) = (Vec::new(), Vec::new());
    loop {
        let count = stream.read(&mut chunk).ok().filter(|count| *count > 0)?;
        let mut rest = &mut chunk[..count];
        while !rest.is_empty() {
            let next = decoder.decode(rest).ok()?;
            let consumed = next.consumed;
            match next.event {
                Some(Event::Binary(payload)) => {
                    shared.messages.fetch_add(1, Relaxed);
                    let mut payload = payload.to_vec();
                    if shared.is_faulty(Fault::Corrupt) {
                        payload[0] ^= 1;
                    }
                    if shared.is_faulty(Fault::HangUp) {
                        return None;
                    }
                    if shared.is_faulty(Fault::Reorder) {
                        encode_frame(&mut held_back, Opcode::Binary, &payload);
                    } else if !shared.is_faulty(Fault::Lose) {
                        encode_frame(&mut out, Opcode::Binary, &payload);
                        out.append(&mut held_back);
                    }
                    if shared.is_faulty(Fault::Duplicate) {
                        encode_frame(&mut out, Opcode::Binary, &payload);
                    }
                }
                Some(Event::Close(_)) => {
                    encode_frame(&mut out, Opcode::Close, &1000u16.to_be_bytes());
                    stream.write_all(&out).ok()?;
                    return None;
                }
                _ => {}
            }
            rest = &mut rest[consumed..];
        }
        stream.write_all(&out).ok()?;
        out.clear();
    }
}

fn relay(mut stream: TcpStream, shared: &Shared, id: &str, acks: bool, resume_offset: Option<u64>) -> Option<()> {
    let client = shared.client(id);
    welcome(&mut client.lock().unwrap(), stream.try_clone().ok()?, shared, resume_offset);
    let mut decoder = Decoder::new(Role::Server, 1 << 20);
    let mut chunk = vec![0; 64 * 1024];
    let mut held_back = None;
    loop {
        let count = stream.read(&mut chunk).ok().filter(|count| *count > 0);
        let Some(count) = count else {
            // Gone without a word; unless it is back already.
            let stale = client.lock().unwrap().stream.take_if(|new| new.peer_addr().ok() == stream.peer_addr().ok());
            drop(stale);
            return None;
        };
        let mut rest = &mut chunk[..count];
        while !rest.is_empty() {
            let next = decoder.decode(rest).ok()?;
            let consumed = next.consumed;
            match next.event {
                Some(Event::Text(text)) => {
                    let message: Value = sonic_rs::from_str(text).ok()?;
                    if message["type"].as_str() == Some("message") {
                        pass_on(shared, id, &message, acks, &client, &mut held_back);
                    }
                }
                Some(Event::Close(_)) => {
                    let mut out = Vec::new();
                    encode_frame(&mut out, Opcode::Close, &1000u16.to_be_bytes());
                    let _ = stream.write_all(&out);
                    let mut client = client.lock().unwrap();
                    client.stream.take_if(|new| new.peer_addr().ok() == stream.peer_addr().ok());
                    return None;
                }
                _ => {}
            }
            rest = &mut rest[consumed..];
        }
    }
}

/// The newest login wins; it gets what came after its position, and then what is new.
fn welcome(client: &mut Client, stream: TcpStream, shared: &Shared, resume_offset: Option<u64>) {
    if shared.fault == Fault::NoWelcome {
        return;
    }
    client.close(4001, "replaced");
    client.stream = Some(stream);
    let newest = shared.offsets.load(Relaxed) - 1;
    let position = resume_offset.filter(|position| *position > 0);
    let recovered = position.is_none() || shared.fault != Fault::Forget;
    let offset = position.filter(|_| recovered).unwrap_or(newest);
    let name = &shared.name;
    client.say(&format!(
        r#"{{"type":"welcome","nodeId":"{name}","recovered":{recovered},"offset":{offset},"pingIntervalMs":20000}}"#
    ));
    let missed: Vec<_> = client.history.iter().filter(|(at, _)| *at > offset).map(|(_, text)| text.clone()).collect();
    for text in missed {
        client.say(&text);
    }
}

fn pass_on(
    shared: &Shared,
    from: &str,
    message: &Value,
    acks: bool,
    sender: &Arc<Mutex<Client>>,
    held_back: &mut Option<String>,
) {
    shared.messages.fetch_add(1, Relaxed);
    let field = |name: &str| message[name].as_str().unwrap_or_default().to_owned();
    let (msg_id, to, mut payload) = (field("msgId"), field("toClientId"), field("payload"));
    if shared.is_faulty(Fault::Refuse) {
        let error = format!(r#"{{"type":"error","code":"overloaded","reason":"toy","msgId":"{msg_id}"}}"#);
        sender.lock().unwrap().say(&error);
        return;
    }
    if shared.is_faulty(Fault::Corrupt) {
        payload.replace_range(0..1, "x");
    }
    let compose = |name: &str, offset: u64| {
        format!(
            r#"{{"type":"message","msgId":"{name}","from":"{from}","toClientId":"{to}","payload":"{payload}","offset":{offset},"ts":1}}"#
        )
    };
    let recipient = if shared.is_faulty(Fault::Misdeliver) { Arc::clone(sender) } else { shared.client(&to) };
    {
        let mut recipient = recipient.lock().unwrap();
        // Given under the lock, so that a recipient's offsets rise.
        let next_offset = || shared.offsets.fetch_add(1, Relaxed);
        if shared.is_faulty(Fault::Reorder) {
            *held_back = Some(compose(&msg_id, 0));
        } else if !shared.is_faulty(Fault::Lose) {
            let offset = next_offset();
            recipient.deliver(offset, compose(&msg_id, offset), shared);
            if shared.is_faulty(Fault::Duplicate) {
                recipient.deliver(offset, compose(&msg_id, offset), shared);
            }
            if shared.is_faulty(Fault::Rename) {
                let offset = next_offset();
                recipient.deliver(offset, compose(&format!("{msg_id}-again"), offset), shared);
            }
            if let Some(text) = held_back.take() {
                let offset = next_offset();
                recipient.deliver(offset, text.replace(r#""offset":0,"#, &format!(r#""offset":{offset},"#)), shared);
            }
        }
    }
    let mut sender = sender.lock().unwrap();
    if acks && shared.fault != Fault::Unconfirmed {
        sender.say(&format!(r#"{{"type":"ack","msgId":"{msg_id}","status":"sent"}}"#));
    }
    if shared.is_faulty(Fault::Advise) {
        sender.say(r#"{"type":"reconnect","reason":"drain","nodeId":"","url":"","afterMs":20,"resumeOffset":0}"#);
    }
    if let Fault::Close(code) = shared.fault
        && shared.is_faulty(shared.fault)
    {
        sender.close(code, "toy;delay=50");
    }
}
