//! Bytes into events. A frame that lies whole in the input is unmasked in place and handed out as a slice of it, with
//! nothing allocated or copied; whatever arrives in parts is assembled aside.
//!
//! It answers nothing by itself: pongs and closes are the caller's to send.

use crate::close::CloseFrame;
use crate::error::ProtocolError;
use crate::frame::{FrameHeader, HEADER_BYTES_MAX, Opcode, Role};
use crate::mask::{apply_mask, key_at};
use crate::message::{Message, TextBuffer};
use crate::utf8;

/// How many fragments in a row may carry nothing.
pub const EMPTY_FRAGMENTS_MAX: u8 = 64;

/// A connection that is at work owns one of these; see also [`Decoder::is_between_messages`].
const DECODER_BYTES_MAX: usize = 64;
const _: () = assert!(size_of::<Decoder>() <= DECODER_BYTES_MAX);

/// What the peer said: a whole message, or a control frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// A whole text message.
    Text(&'a str),
    /// A whole binary message.
    Binary(&'a [u8]),
    /// To be answered by a Pong with the same payload, 125 bytes at most.
    Ping(&'a [u8]),
    /// An answer to a Ping, or an unasked one; 125 bytes at most.
    Pong(&'a [u8]),
    /// The last event. To be answered by a Close frame, unless one was sent already.
    Close(Option<CloseFrame<'a>>),
}

/// What one call of [`Decoder::decode`] came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decoded<'a> {
    /// How many bytes of the input are done with. All of them when there is no event.
    pub consumed: usize,
    /// The next event, or `None` until more bytes arrive.
    pub event: Option<Event<'a>>,
}

/// One connection's reading side. Owns no memory between messages.
#[derive(Debug)]
pub struct Decoder {
    message_bytes_max: usize,
    // Invariant: `None` in `State::Between`.
    held: Option<Box<Held>>,
    // Invariant: `header[..header_len]` is the unfinished header of the next frame; empty unless in `State::Header`.
    header: [u8; HEADER_BYTES_MAX],
    header_len: u8,
    role: Role,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing of a frame or message is held: the next byte begins a message.
    Between,
    /// Inside a header, or between the fragments of a message.
    Header,
    /// Inside the payload of `held.frame`.
    Payload,
    /// `held` was handed out whole and is freed by the next call.
    Delivered,
    /// A Close frame or an error has ended this direction.
    Closed,
}

/// What arrived in parts.
#[derive(Debug)]
struct Held {
    /// The frame whose payload is arriving.
    frame: FrameInProgress,
    /// Payload of a control frame, at most 125 bytes.
    control: Vec<u8>,
    /// The fragments so far.
    message: Option<Message>,
    empty_fragments: u8,
}

#[derive(Debug)]
struct FrameInProgress {
    fin: bool,
    opcode: Opcode,
    /// The masking key as it meets the next byte.
    mask: Option<[u8; 4]>,
    remaining_bytes: usize,
}

/// What `absorb` completed; the bytes themselves are in `held`.
enum Completed {
    Nothing,
    Message,
    Control(Opcode),
}

impl Decoder {
    /// Makes a decoder that refuses messages of more than `message_bytes_max` bytes. Costs nothing: no memory is taken
    /// until a message arrives in parts.
    pub const fn new(role: Role, message_bytes_max: usize) -> Self {
        Self {
            message_bytes_max,
            held: None,
            header: [0; HEADER_BYTES_MAX],
            header_len: 0,
            role,
            state: State::Between,
        }
    }

    /// Takes the next event from `input`, unmasking in place. Without an event all of `input` was absorbed.
    /// Bytes behind `consumed` are untouched.
    ///
    /// After a Close event or an error this direction is over: further input is absorbed and ignored.
    ///
    /// # Errors
    ///
    /// What the peer did wrong, as soon as the bytes that prove it are there.
    #[inline]
    pub fn decode<'a>(&'a mut self, input: &'a mut [u8]) -> Result<Decoded<'a>, ProtocolError> {
        if self.state == State::Between
            && let Some(header) = FrameHeader::decode_message(input, self.role)
            && header.payload_bytes <= self.message_bytes_max
            && let consumed = header.header_bytes + header.payload_bytes
            && let Some(payload) = input.get_mut(header.header_bytes..consumed)
        {
            if let Some(key) = header.mask {
                apply_mask(payload, key);
            }
            // Borrowed anew: what is returned must not keep `input` from the other paths.
            let payload = &input[header.header_bytes..consumed];
            if !header.is_text {
                return Ok(Decoded { consumed, event: Some(Event::Binary(payload)) });
            }
            return match utf8::validate(payload) {
                Some(text) => Ok(Decoded { consumed, event: Some(Event::Text(text)) }),
                None => Err(self.fail(ProtocolError::InvalidUtf8)),
            };
        }
        self.decode_any(input)
    }

    /// Whatever is no short message by itself.
    fn decode_any<'a>(&'a mut self, input: &'a mut [u8]) -> Result<Decoded<'a>, ProtocolError> {
        if self.state == State::Delivered {
            self.held = None;
            self.state = State::Between;
        }
        if self.state == State::Between {
            let decoded = match FrameHeader::decode(input, self.role) {
                Ok(decoded) => decoded,
                Err(error) => return Err(self.fail(error)),
            };
            if let Some((header, header_bytes)) = decoded
                && header.fin
                && let Ok(payload_bytes) = usize::try_from(header.payload_bytes)
                && input.len() - header_bytes >= payload_bytes
            {
                return self.take_whole_frame(input, &header, header_bytes, payload_bytes);
            }
        }
        self.decode_in_parts(input)
    }

    /// True when nothing of a frame or message is held and the peer may go on, so that the decoder may be dropped and
    /// made anew.
    #[inline]
    pub fn is_between_messages(&self) -> bool {
        matches!(self.state, State::Between | State::Delivered)
    }

    /// True after a Close event or an error: whatever follows is ignored.
    #[inline]
    pub fn is_closed(&self) -> bool {
        self.state == State::Closed
    }

    /// Bytes of memory behind a message or control frame that is arriving in parts: at most the message limit plus the
    /// 125 bytes of a control frame.
    pub fn held_bytes(&self) -> usize {
        self.held
            .as_ref()
            .map_or(0, |held| held.control.capacity() + held.message.as_ref().map_or(0, Message::capacity))
    }

    /// One frame of any kind and length that lies whole in `input`.
    fn take_whole_frame<'a>(
        &mut self,
        input: &'a mut [u8],
        header: &FrameHeader,
        header_bytes: usize,
        payload_bytes: usize,
    ) -> Result<Decoded<'a>, ProtocolError> {
        if header.opcode == Opcode::Continuation {
            return Err(self.fail(ProtocolError::UnexpectedContinuation));
        }
        if payload_bytes > self.message_bytes_max && !header.opcode.is_control() {
            return Err(self.fail(too_long(header.payload_bytes, self.message_bytes_max)));
        }
        let consumed = header_bytes + payload_bytes;
        let payload = &mut input[header_bytes..consumed];
        if let Some(key) = header.mask {
            apply_mask(payload, key);
        }
        let event = match header.opcode {
            Opcode::Text => match utf8::validate(payload) {
                Some(text) => Event::Text(text),
                None => return Err(self.fail(ProtocolError::InvalidUtf8)),
            },
            Opcode::Binary | Opcode::Continuation => Event::Binary(payload),
            Opcode::Ping => Event::Ping(payload),
            Opcode::Pong => Event::Pong(payload),
            Opcode::Close => {
                self.state = State::Closed;
                Event::Close(CloseFrame::decode(payload)?)
            }
        };
        Ok(Decoded { consumed, event: Some(event) })
    }

    /// The general path: headers, payloads and messages cut anywhere.
    #[inline(never)]
    fn decode_in_parts<'a>(&'a mut self, input: &mut [u8]) -> Result<Decoded<'a>, ProtocolError> {
        let (consumed, completed) = match self.absorb(input) {
            Ok(absorbed) => absorbed,
            Err(error) => return Err(self.fail(error)),
        };
        let held = self.held.as_deref();
        let control = held.map_or(&[][..], |held| &held.control);
        let event = match completed {
            Completed::Nothing => None,
            Completed::Message => held.and_then(|held| held.message.as_ref()).map(Message::as_event),
            Completed::Control(Opcode::Ping) => Some(Event::Ping(control)),
            Completed::Control(Opcode::Pong) => Some(Event::Pong(control)),
            Completed::Control(_) => Some(Event::Close(CloseFrame::decode(control)?)),
        };
        Ok(Decoded { consumed, event })
    }

    fn absorb(&mut self, input: &mut [u8]) -> Result<(usize, Completed), ProtocolError> {
        let mut consumed = 0;
        loop {
            let rest = &mut input[consumed..];
            match self.state {
                State::Closed => {
                    self.held = None;
                    return Ok((input.len(), Completed::Nothing));
                }
                State::Between | State::Header | State::Delivered => {
                    if rest.is_empty() {
                        return Ok((consumed, Completed::Nothing));
                    }
                    let (taken, header) = self.absorb_header(rest)?;
                    consumed += taken;
                    if let Some(header) = header {
                        self.begin_frame(&header)?;
                    }
                }
                State::Payload => {
                    let (taken, is_complete) = self.absorb_payload(rest)?;
                    consumed += taken;
                    if !is_complete {
                        return Ok((consumed, Completed::Nothing));
                    }
                    let completed = self.end_frame()?;
                    if !matches!(completed, Completed::Nothing) {
                        return Ok((consumed, completed));
                    }
                }
            }
        }
    }

    /// Adds `input` to the unfinished header: how many bytes it took, and the header once it is complete.
    fn absorb_header(&mut self, input: &[u8]) -> Result<(usize, Option<FrameHeader>), ProtocolError> {
        let held_len = usize::from(self.header_len);
        let len = HEADER_BYTES_MAX.min(held_len + input.len());
        self.header[held_len..len].copy_from_slice(&input[..len - held_len]);
        let Some((header, header_bytes)) = FrameHeader::decode(&self.header[..len], self.role)? else {
            self.header_len = u8::try_from(len).expect("a header has at most 14 bytes");
            self.state = State::Header;
            return Ok((len - held_len, None));
        };
        self.header_len = 0;
        // What was held was no whole header, so that this one ends inside the input.
        Ok((header_bytes - held_len, Some(header)))
    }

    /// Checks a header against the frames before it (§5.4) and against the limits, before anything is allocated.
    fn begin_frame(&mut self, header: &FrameHeader) -> Result<(), ProtocolError> {
        let message_len = self.held.as_ref().and_then(|held| held.message.as_ref()).map(Message::len);
        match (header.opcode, message_len) {
            (Opcode::Continuation, None) => return Err(ProtocolError::UnexpectedContinuation),
            (Opcode::Text | Opcode::Binary, Some(_)) => {
                return Err(ProtocolError::ExpectedContinuation);
            }
            _ => {}
        }
        let held_bytes = if header.opcode.is_control() { 0 } else { message_len.unwrap_or(0) };
        let total_bytes = header.payload_bytes.saturating_add(held_bytes as u64);
        let remaining_bytes = match usize::try_from(header.payload_bytes) {
            Ok(bytes) if header.opcode.is_control() || total_bytes <= self.message_bytes_max as u64 => bytes,
            _ => return Err(too_long(total_bytes, self.message_bytes_max)),
        };
        let frame = FrameInProgress { fin: header.fin, opcode: header.opcode, mask: header.mask, remaining_bytes };
        match &mut self.held {
            Some(held) => held.frame = frame,
            None => self.held = Some(Box::new(Held::new(frame))),
        }
        self.state = State::Payload;
        if let Some(held) = &mut self.held {
            held.begin_payload()?;
        }
        Ok(())
    }

    /// Takes payload from the front of `input`: how many bytes, and whether the frame is complete.
    fn absorb_payload(&mut self, input: &mut [u8]) -> Result<(usize, bool), ProtocolError> {
        let message_bytes_max = self.message_bytes_max;
        let held = self.held.as_mut().expect("State::Payload holds a frame");
        let taken = held.frame.remaining_bytes.min(input.len());
        let payload = &mut input[..taken];
        if let Some(key) = held.frame.mask {
            apply_mask(payload, key);
            held.frame.mask = Some(key_at(key, taken));
        }
        // The last fragment tells where the message ends: no room is made beyond that.
        let end = |message: &Message| {
            if held.frame.fin { message.len() + held.frame.remaining_bytes } else { message_bytes_max }
        };
        match &mut held.message {
            Some(message) if !held.frame.opcode.is_control() => {
                message.append(payload, end(message))?;
            }
            _ => held.control.extend_from_slice(payload),
        }
        held.frame.remaining_bytes -= taken;
        Ok((taken, held.frame.remaining_bytes == 0))
    }

    fn end_frame(&mut self) -> Result<Completed, ProtocolError> {
        let held = self.held.as_mut().expect("State::Payload holds a frame");
        let opcode = held.frame.opcode;
        if opcode.is_control() {
            self.state = match (opcode, &held.message) {
                (Opcode::Close, _) => State::Closed,
                (_, Some(_)) => State::Header,
                (_, None) => State::Delivered,
            };
            return Ok(Completed::Control(opcode));
        }
        if !held.frame.fin {
            self.state = State::Header;
            return Ok(Completed::Nothing);
        }
        if let Some(message) = &held.message {
            message.finish()?;
        }
        self.state = State::Delivered;
        Ok(Completed::Message)
    }

    #[cold]
    fn fail(&mut self, error: ProtocolError) -> ProtocolError {
        self.state = State::Closed;
        self.held = None;
        error
    }
}

impl Held {
    fn new(frame: FrameInProgress) -> Self {
        Self { frame, control: Vec::new(), message: None, empty_fragments: 0 }
    }

    /// Makes the place where the payload of `frame` goes.
    fn begin_payload(&mut self) -> Result<(), ProtocolError> {
        match self.frame.opcode {
            Opcode::Text => self.message = Some(Message::Text(TextBuffer::default())),
            Opcode::Binary => self.message = Some(Message::Binary(Vec::new())),
            Opcode::Continuation => {}
            Opcode::Close | Opcode::Ping | Opcode::Pong => {
                self.control = Vec::with_capacity(self.frame.remaining_bytes);
                return Ok(());
            }
        }
        if self.frame.remaining_bytes > 0 {
            self.empty_fragments = 0;
            return Ok(());
        }
        self.empty_fragments += 1;
        if self.empty_fragments > EMPTY_FRAGMENTS_MAX {
            return Err(ProtocolError::TooManyEmptyFragments { limit: EMPTY_FRAGMENTS_MAX });
        }
        Ok(())
    }
}

#[cold]
fn too_long(bytes: u64, limit: usize) -> ProtocolError {
    ProtocolError::MessageTooLong { bytes, limit }
}
