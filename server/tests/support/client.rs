//! A blocking WebSocket client over the project's own codec.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use sonic_rs::{JsonValueTrait, Value};
use websocket::handshake::{ClientKey, encode_upgrade_request, parse_upgrade_response};
use websocket::{CloseCode, Decoder, Event, Opcode, ResponseError, Role, encode_masked_close, encode_masked_frame};

use super::PATIENCE;

const MESSAGE_BYTES_MAX: usize = 64 << 20;
const MASK: [u8; 4] = [7, 1, 8, 2];

/// How the server ended a connection: with a Close frame, or without one.
pub type Close = Option<(u16, String)>;

/// What came from the server.
#[derive(Debug, PartialEq)]
pub enum Incoming {
    Text(String),
    Binary(Vec<u8>),
    Close(Close),
}

/// An open connection.
pub struct Client {
    pub stream: TcpStream,
    decoder: Decoder,
    input: Vec<u8>,
}

impl Client {
    /// Logs in with this query, such as `clientId=a&acks=1`, and reads the welcome.
    #[track_caller]
    pub fn log_in(addr: SocketAddr, query: &str) -> (Self, Value) {
        let mut client = Self::connect(addr, &format!("/ws/connect?{query}")).unwrap();
        let welcome = client.json();
        assert_eq!(welcome["type"].as_str(), Some("welcome"), "{welcome:?}");
        (client, welcome)
    }

    /// Upgrades on `path`, or tells how that was refused.
    #[track_caller]
    pub fn connect(addr: SocketAddr, path: &str) -> Result<Self, ResponseError> {
        let mut stream = TcpStream::connect(addr).unwrap();
        stream.set_nodelay(true).unwrap();
        let key = ClientKey::new(*b"0123456789abcdef");
        let mut request = Vec::new();
        encode_upgrade_request(&mut request, &addr.to_string(), path, key.as_str(), None, &[]);
        stream.write_all(&request).unwrap();
        let decoder = Decoder::new(Role::Client, MESSAGE_BYTES_MAX);
        let mut client = Self { stream, decoder, input: Vec::new() };
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(consumed) = parse_upgrade_response(&client.input, key.as_str())? {
                client.input.drain(..consumed);
                return Ok(client);
            }
            assert!(client.read(deadline), "the connection ended before its upgrade");
        }
    }

    /// Sends a text message.
    pub fn send(&mut self, text: &str) {
        let mut frame = Vec::new();
        encode_masked_frame(&mut frame, Opcode::Text, text.as_bytes(), MASK);
        self.stream.write_all(&frame).unwrap();
    }

    /// Sends a Close frame.
    pub fn close(&mut self) {
        let mut frame = Vec::new();
        encode_masked_close(&mut frame, CloseCode::NORMAL, "", MASK);
        self.stream.write_all(&frame).unwrap();
    }

    /// The next message, answering pings on the way.
    #[track_caller]
    pub fn next(&mut self) -> Incoming {
        self.next_within(PATIENCE).expect("nothing came")
    }

    /// The next message; none when nothing comes in time.
    #[track_caller]
    pub fn next_within(&mut self, patience: Duration) -> Option<Incoming> {
        let deadline = Instant::now() + patience;
        loop {
            let decoded = self.decoder.decode(&mut self.input).expect("the server broke the protocol");
            let consumed = decoded.consumed;
            let mut pong = Vec::new();
            let incoming = match decoded.event {
                None | Some(Event::Pong(_)) => None,
                Some(Event::Text(text)) => Some(Incoming::Text(text.to_owned())),
                Some(Event::Binary(bytes)) => Some(Incoming::Binary(bytes.to_owned())),
                Some(Event::Ping(bytes)) => {
                    encode_masked_frame(&mut pong, Opcode::Pong, bytes, MASK);
                    None
                }
                Some(Event::Close(frame)) => {
                    Some(Incoming::Close(frame.map(|frame| (frame.code.number(), frame.reason.to_owned()))))
                }
            };
            let has_event = decoded.event.is_some();
            self.input.drain(..consumed);
            if !pong.is_empty() {
                self.stream.write_all(&pong).unwrap();
            }
            if incoming.is_some() {
                return incoming;
            }
            if has_event {
                continue;
            }
            if Instant::now() >= deadline {
                return None;
            }
            if !self.read(deadline) {
                return Some(Incoming::Close(None));
            }
        }
    }

    /// The next message, which must be JSON.
    #[track_caller]
    pub fn json(&mut self) -> Value {
        match self.next() {
            Incoming::Text(text) => sonic_rs::from_str(&text).unwrap(),
            other => panic!("no JSON: {other:?}"),
        }
    }

    /// Reads on until the server ends the connection.
    #[track_caller]
    pub fn await_close(&mut self) -> Close {
        loop {
            if let Incoming::Close(close) = self.next() {
                return close;
            }
        }
    }

    /// Reads what there is; false at the end.
    fn read(&mut self, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        self.stream.set_read_timeout(Some(left)).unwrap();
        let mut buf = [0; 16 * 1024];
        match self.stream.read(&mut buf) {
            Ok(count) => {
                self.input.extend_from_slice(&buf[..count]);
                count > 0
            }
            // A process that was stopped for a moment finds its reading interrupted.
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) =>
            {
                true
            }
            Err(_) => false,
        }
    }
}
