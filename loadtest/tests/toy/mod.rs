//! A server to test the load generator against: one thread per connection, and faults on demand.
//!
//! Speaks just enough of the client protocol to relay messages between the clients of one process.
#![allow(clippy::unwrap_used, reason = "part of a test")]

use std::{
    collections::HashMap,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
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
}

const FAULT_EVERY: u64 = 100;

struct Shared {
    fault: Fault,
    clients: Mutex<HashMap<String, Arc<Mutex<TcpStream>>>>,
    messages: AtomicU64,
    offsets: AtomicU64,
}

impl Shared {
    fn is_faulty(&self, fault: Fault) -> bool {
        self.fault == fault && self.messages.load(Relaxed).is_multiple_of(FAULT_EVERY)
    }
}

/// Serves on a free port of 127.0.0.1 until the test process ends.
pub fn serve(fault: Fault) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let shared =
        Arc::new(Shared { fault, clients: Mutex::default(), messages: AtomicU64::new(0), offsets: AtomicU64::new(0) });
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
    relay(stream, shared, query.get("clientId")?, query.contains_key("acks"))
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

fn relay(mut stream: TcpStream, shared: &Shared, client: &str, acks: bool) -> Option<()> {
    let writer = Arc::new(Mutex::new(stream.try_clone().ok()?));
    shared.clients.lock().unwrap().insert(client.to_owned(), Arc::clone(&writer));
    if shared.fault != Fault::NoWelcome {
        say(&writer, r#"{"type":"welcome","nodeId":"toy","recovered":true,"offset":0,"pingIntervalMs":20000}"#);
    }
    let mut decoder = Decoder::new(Role::Server, 1 << 20);
    let mut chunk = vec![0; 64 * 1024];
    let mut held_back = None;
    loop {
        let count = stream.read(&mut chunk).ok().filter(|count| *count > 0)?;
        let mut rest = &mut chunk[..count];
        while !rest.is_empty() {
            let next = decoder.decode(rest).ok()?;
            let consumed = next.consumed;
            match next.event {
                Some(Event::Text(text)) => {
                    let message: Value = sonic_rs::from_str(text).ok()?;
                    if message["type"].as_str() == Some("message") {
                        pass_on(shared, client, &message, acks, &writer, &mut held_back);
                    }
                }
                Some(Event::Close(_)) => {
                    let mut out = Vec::new();
                    encode_frame(&mut out, Opcode::Close, &1000u16.to_be_bytes());
                    writer.lock().unwrap().write_all(&out).ok()?;
                    return None;
                }
                _ => {}
            }
            rest = &mut rest[consumed..];
        }
    }
}

fn pass_on(
    shared: &Shared,
    from: &str,
    message: &Value,
    acks: bool,
    sender: &Arc<Mutex<TcpStream>>,
    held_back: &mut Option<String>,
) {
    shared.messages.fetch_add(1, Relaxed);
    let field = |name: &str| message[name].as_str().unwrap_or_default().to_owned();
    let (msg_id, to, mut payload) = (field("msgId"), field("toClientId"), field("payload"));
    if shared.is_faulty(Fault::Refuse) {
        say(sender, &format!(r#"{{"type":"error","code":"overloaded","reason":"toy","msgId":"{msg_id}"}}"#));
        return;
    }
    if shared.is_faulty(Fault::Corrupt) {
        payload.replace_range(0..1, "x");
    }
    let offset = shared.offsets.fetch_add(1, Relaxed);
    let text = format!(
        r#"{{"type":"message","msgId":"{msg_id}","from":"{from}","toClientId":"{to}","payload":"{payload}","offset":{offset},"ts":1}}"#
    );
    let recipient = shared.clients.lock().unwrap().get(&to).cloned();
    let recipient = if shared.is_faulty(Fault::Misdeliver) { Some(Arc::clone(sender)) } else { recipient };
    if let Some(recipient) = recipient {
        if shared.is_faulty(Fault::Reorder) {
            *held_back = Some(text);
        } else if !shared.is_faulty(Fault::Lose) {
            say(&recipient, &text);
            if shared.is_faulty(Fault::Duplicate) {
                say(&recipient, &text);
            }
            if let Some(text) = held_back.take() {
                say(&recipient, &text);
            }
        }
    }
    if acks {
        say(sender, &format!(r#"{{"type":"ack","msgId":"{msg_id}","status":"sent"}}"#));
    }
}

fn say(client: &Mutex<TcpStream>, text: &str) {
    let mut out = Vec::new();
    encode_frame(&mut out, Opcode::Text, text.as_bytes());
    // A recipient that has gone is noticed by its own thread.
    let _ = client.lock().unwrap().write_all(&out);
}
