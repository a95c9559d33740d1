//! One connection to the server after its handshake: reading frames, and writing all that is queued in one go.
//!
//! What is said is the scenario's business, through [`Conversation`]. Opening connections is in `open.rs`,
//! what is asked of a balancer before that in `resolve.rs`.

pub(crate) mod open;
mod resolve;
mod socket;

use std::{
    cell::{Cell, RefCell},
    fmt, io,
    rc::Rc,
    time::Duration,
};

use monoio::{
    io::{AsyncReadRent as _, AsyncWriteRentExt as _, OwnedReadHalf, OwnedWriteHalf},
    net::TcpStream,
};
use websocket::{CloseCode, Decoder, Event, Opcode, ProtocolError, Role, encode_masked_close, encode_masked_frame};

use crate::{
    clock::{Clock, Nanos},
    payload::Random,
};

/// What a hot connection reads into. Frames that end beyond it are assembled by the decoder.
const READ_BUFFER_BYTES: usize = 16 * 1024;
/// What the buffers of two connected sockets hold at the least, in either direction.
const SOCKET_BUFFER_BYTES: u64 = 64 * 1024;
/// Buffers kept for connections that hold none while they are silent.
const POOLED_BUFFERS_MAX: usize = 64;
/// The longest that a server may ask us to stay away.
const DELAY_ASKED_MAX: Duration = Duration::from_secs(3600);
/// Server messages are never larger than what was sent, echoed, plus an envelope.
const ENVELOPE_BYTES_MAX: usize = 4096;

/// Frames to be sent, encoded and masked.
pub(crate) struct Outbox {
    queued: Vec<u8>,
    /// The other buffer of the pair: empty, or with the write under way.
    spare: Vec<u8>,
    random: Random,
}

impl Outbox {
    fn new(seed: u64) -> Self {
        Self { queued: Vec::new(), spare: Vec::new(), random: Random::new(seed) }
    }

    /// Queues a text message.
    pub(crate) fn text(&mut self, payload: &[u8]) {
        encode_masked_frame(&mut self.queued, Opcode::Text, payload, self.random.mask_key());
    }

    /// Queues a binary message.
    pub(crate) fn binary(&mut self, payload: &[u8]) {
        encode_masked_frame(&mut self.queued, Opcode::Binary, payload, self.random.mask_key());
    }

    /// Bytes that wait for the write under way to complete.
    pub(crate) fn queued_bytes(&self) -> usize {
        self.queued.len()
    }
}

/// The sending side of a connection, shared by its reading task and the pacer.
pub(crate) struct Sender {
    outbox: RefCell<Outbox>,
    // Invariant: `None` while a write is in flight, and for good once the connection was closed.
    writer: Cell<Option<OwnedWriteHalf<TcpStream>>>,
    state: Cell<SenderState>,
    /// A task that will flush was started and has not yet run.
    is_flush_due: Cell<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SenderState {
    Open,
    /// We said goodbye; what the server does now is expected.
    Closing,
    /// The connection ended without our doing.
    Lost,
}

impl Sender {
    fn new(writer: OwnedWriteHalf<TcpStream>, seed: u64) -> Self {
        Self {
            outbox: RefCell::new(Outbox::new(seed)),
            writer: Cell::new(Some(writer)),
            state: Cell::new(SenderState::Open),
            is_flush_due: Cell::new(false),
        }
    }

    pub(crate) fn outbox(&self) -> std::cell::RefMut<'_, Outbox> {
        self.outbox.borrow_mut()
    }

    pub(crate) fn is_open(&self) -> bool {
        self.state.get() == SenderState::Open
    }

    /// Writes what is queued, and what is queued meanwhile. Returns at once if a write is in flight: it takes the rest.
    async fn flush(&self) -> io::Result<()> {
        let Some(mut writer) = self.writer.take() else {
            return Ok(());
        };
        let mut outcome = Ok(());
        while outcome.is_ok() {
            let batch = {
                let outbox = &mut *self.outbox.borrow_mut();
                if outbox.queued.is_empty() {
                    break;
                }
                std::mem::replace(&mut outbox.queued, std::mem::take(&mut outbox.spare))
            };
            let (result, mut batch) = writer.write_all(batch).await;
            batch.clear();
            self.outbox.borrow_mut().spare = batch;
            outcome = result.map(|_| ());
        }
        if self.state.get() == SenderState::Open {
            self.writer.set(Some(writer));
        } // Else the writer is dropped here, which ends our direction of the connection.
        outcome
    }

    /// Starts a write of what is queued unless one is in flight. For callers that cannot wait.
    pub(crate) fn flush_soon(self: &Rc<Self>) {
        if self.is_flush_due.replace(true) {
            return;
        }
        let sender = Rc::clone(self);
        monoio::spawn(async move {
            sender.is_flush_due.set(false);
            // The reading task of the connection meets the same error and reports it.
            let _ = sender.flush().await;
        });
    }

    /// Says goodbye (RFC 6455 §7.1.1) and ends our direction; the reading task ends when the server has answered.
    pub(crate) fn close(self: &Rc<Self>) {
        if !self.is_open() {
            return;
        }
        {
            let outbox = &mut *self.outbox.borrow_mut();
            let key = outbox.random.mask_key();
            encode_masked_close(&mut outbox.queued, CloseCode::NORMAL, "", key);
        }
        self.flush_soon();
        self.state.set(SenderState::Closing);
    }
}

/// An open connection, not yet read from.
pub(crate) struct Link {
    reader: OwnedReadHalf<TcpStream>,
    decoder: Decoder,
    pub(crate) sender: Rc<Sender>,
    /// What came right behind the handshake: the decoder's first input.
    surplus: Vec<u8>,
}

/// A whole message from the server.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Message<'a> {
    Text(&'a str),
    Binary(&'a [u8]),
}

/// What one side of a connection has to say to what it hears.
pub(crate) trait Conversation {
    /// A whole message arrived; answers go into `outbox` and leave with the others of this read in one write.
    fn handle_message(&mut self, message: Message<'_>, now: Nanos, outbox: &mut Outbox);

    /// All messages of one read were handled.
    fn handle_read_end(&mut self, _now: Nanos, _outbox: &mut Outbox) {}
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// We closed it.
    Closed,
    /// The server closed it: with a Close frame's code, or 1006 without one (RFC 6455 §7.1.5). Its reason may ask us to
    /// stay away for a while: `drain;delay=1830`.
    ClosedByServer {
        code: CloseCode,
        delay: Duration,
    },
    Protocol(ProtocolError),
    Io(io::ErrorKind),
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("closed"),
            Self::ClosedByServer { code, .. } => write!(f, "closed by the server with {}", code.number()),
            Self::Protocol(error) => write!(f, "protocol error of the server: {error}"),
            Self::Io(kind) => write!(f, "connection lost: {kind}"),
        }
    }
}

/// How a connection waits for bytes.
#[derive(Clone)]
pub(crate) enum Waiting {
    /// With a read in flight into a buffer of its own: fastest.
    Hot,
    /// For readiness, taking a buffer from the pool only to read what is there: smallest.
    Cold(BufferPool),
}

/// Who writes the answers to what was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answering {
    /// The reading task, before it reads on: cheapest. Only where all that can be under way on the connection fits into
    /// the sockets' buffers: else both ends could wait for the other to read.
    Inline,
    /// A task of its own.
    Apart,
}

impl Answering {
    /// The way to answer where at most `in_flight_bytes` are under way; `None` where nothing bounds them.
    pub(crate) fn for_bytes(in_flight_bytes: Option<u64>) -> Self {
        match in_flight_bytes {
            Some(bytes) if bytes <= SOCKET_BUFFER_BYTES => Self::Inline,
            Some(_) | None => Self::Apart,
        }
    }
}

/// Read buffers of the connections that hold none while they wait.
#[derive(Clone, Default)]
pub(crate) struct BufferPool(Rc<RefCell<Vec<Vec<u8>>>>);

impl BufferPool {
    fn take(&self) -> Vec<u8> {
        self.0.borrow_mut().pop().unwrap_or_else(|| Vec::with_capacity(READ_BUFFER_BYTES))
    }

    fn give_back(&self, buffer: Vec<u8>) {
        let pool = &mut *self.0.borrow_mut();
        if pool.len() < POOLED_BUFFERS_MAX {
            pool.push(buffer);
        }
    }
}

impl Link {
    fn new(stream: TcpStream, surplus: Vec<u8>, payload_bytes: usize, seed: u64) -> Self {
        use monoio::io::Splitable as _;
        let (reader, writer) = stream.into_split();
        let decoder = Decoder::new(Role::Client, payload_bytes + ENVELOPE_BYTES_MAX);
        Self { reader, decoder, sender: Rc::new(Sender::new(writer, seed)), surplus }
    }

    /// Holds `conversation` until the connection ends.
    pub(crate) async fn converse(
        mut self,
        mut conversation: impl Conversation,
        waiting: Waiting,
        answering: Answering,
        clock: Clock,
    ) -> Ending {
        let mut input = std::mem::take(&mut self.surplus);
        let ending = loop {
            if !input.is_empty() {
                if let Err(ending) = self.handle(&mut input, &mut conversation, clock.now()) {
                    break ending;
                }
                let has_answers = self.sender.outbox.borrow().queued_bytes() > 0;
                match answering {
                    Answering::Inline => {
                        if let Err(error) = self.sender.flush().await {
                            break Ending::Io(error.kind());
                        }
                    }
                    Answering::Apart if has_answers => self.sender.flush_soon(),
                    Answering::Apart => {}
                }
            }
            let (result, returned) = match &waiting {
                Waiting::Hot => {
                    if input.capacity() < READ_BUFFER_BYTES {
                        input = Vec::with_capacity(READ_BUFFER_BYTES);
                    }
                    // A read starts at byte 0 but never shortens the buffer.
                    input.clear();
                    self.reader.read(input).await
                }
                Waiting::Cold(pool) => self.read_cold(input, pool).await,
            };
            input = returned;
            match result {
                Ok(0) => break Ending::ClosedByServer { code: CloseCode::ABNORMAL, delay: Duration::ZERO },
                Ok(_) => {}
                Err(error) => break Ending::Io(error.kind()),
            }
        };
        if self.sender.state.get() == SenderState::Closing {
            return Ending::Closed;
        }
        self.sender.state.set(SenderState::Lost);
        ending
    }

    async fn read_cold(&mut self, input: Vec<u8>, pool: &BufferPool) -> (io::Result<usize>, Vec<u8>) {
        if input.capacity() > 0 {
            pool.give_back(input);
        }
        if let Err(error) = socket::readable(&self.reader).await {
            return (Err(error), Vec::new());
        }
        let mut buffer = pool.take();
        buffer.clear();
        let (result, buffer) = self.reader.read(buffer).await;
        if matches!(result, Ok(bytes) if bytes > 0) {
            return (result, buffer);
        }
        pool.give_back(buffer);
        (result, Vec::new())
    }

    /// Decodes all of `input` and lets `conversation` answer.
    fn handle(&mut self, input: &mut [u8], conversation: &mut impl Conversation, now: Nanos) -> Result<(), Ending> {
        let mut rest = input;
        let outbox = &mut *self.sender.outbox.borrow_mut();
        loop {
            let decoded = self.decoder.decode(rest).map_err(Ending::Protocol)?;
            let consumed = decoded.consumed;
            match decoded.event {
                None => break,
                Some(Event::Text(text)) => {
                    conversation.handle_message(Message::Text(text), now, outbox);
                }
                Some(Event::Binary(payload)) => {
                    conversation.handle_message(Message::Binary(payload), now, outbox);
                }
                Some(Event::Ping(payload)) => {
                    let key = outbox.random.mask_key();
                    encode_masked_frame(&mut outbox.queued, Opcode::Pong, payload, key);
                }
                Some(Event::Pong(_)) => {}
                Some(Event::Close(frame)) => {
                    let code = frame.map_or(CloseCode::NO_STATUS, |frame| frame.code);
                    let delay = frame.map_or(Duration::ZERO, |frame| delay_asked(frame.reason));
                    return Err(Ending::ClosedByServer { code, delay });
                }
            }
            rest = &mut rest[consumed..];
            if rest.is_empty() {
                break;
            }
        }
        conversation.handle_read_end(now, outbox);
        Ok(())
    }
}

/// The wait that a close reason such as `drain;delay=1830;node=n7` asks for, in milliseconds.
fn delay_asked(reason: &str) -> Duration {
    let delay = reason.split(';').find_map(|pair| pair.strip_prefix("delay="));
    let millis = delay.and_then(|delay| delay.parse::<u32>().ok()).unwrap_or(0);
    Duration::from_millis(u64::from(millis)).min(DELAY_ASKED_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_close_reason_may_ask_for_a_wait() {
        for (reason, millis) in [
            ("drain;delay=1830;node=n7", 1830),
            ("drain", 0),
            ("delay=5", 5),
            ("drain;delay=-1", 0),
            ("drain;delay=4294967295", 3_600_000),
        ] {
            assert_eq!(delay_asked(reason), Duration::from_millis(millis), "{reason}");
        }
    }
}
