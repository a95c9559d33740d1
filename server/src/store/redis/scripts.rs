//! The scripts, and how a request becomes a call of one. Each touches the two keys of one client and is safe to be
//! called twice; what it promises is in `store/model.rs`.

use std::time::{SystemTime, UNIX_EPOCH};

use ring::NODE_ID_BYTES_MAX;

use super::codec;
use super::keys;
use super::pack::Pack;
use crate::protocol::ClientId;
use crate::store::bounds::{
    BufferLimits, EXPIRED_PER_APPEND_MAX, MESSAGE_OVERHEAD_BYTES, NUMBER_MAX, OFFSETS_RESERVED_MIN, REPEAT_WINDOW,
    UNRELEASED_MAX,
};
use crate::store::request::{Author, ClaimKind, StoreRequest};
use crate::store::{Kept, Room};

/// Keys outlive the last message in them by this much.
const TTL_MARGIN_MS: u64 = 600_000;
/// The longest list of former holders: a node's id, two numbers, what stands between them.
const UNRELEASED_BYTES_MAX: usize = UNRELEASED_MAX * (NODE_ID_BYTES_MAX + 2 * 16 + 3);

/// Which script.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Script {
    /// Takes or keeps a client.
    Claim,
    /// Lets it go.
    Release,
    /// Keeps messages.
    Append,
    /// Reads messages.
    Page,
    /// Drops messages up to an offset.
    Trim,
    /// Drops one message.
    Remove,
    /// Drops what is too old.
    Sweep,
}

impl Script {
    /// All of them, in the order of their discriminants.
    pub const ALL: [Self; 7] =
        [Self::Claim, Self::Release, Self::Append, Self::Page, Self::Trim, Self::Remove, Self::Sweep];

    /// The script's text.
    pub fn source(self) -> String {
        let holders = include_str!("scripts/holders.lua");
        let buffer = include_str!("scripts/buffer.lua");
        let unreleased = include_str!("scripts/unreleased.lua");
        // Only what it needs: each of a script's functions is made anew at each call. Claims are many.
        let parts: &[&str] = match self {
            Self::Claim => &[include_str!("scripts/claim.lua"), unreleased],
            Self::Release => &[holders, include_str!("scripts/release.lua"), unreleased],
            Self::Append => &[holders, buffer, include_str!("scripts/append.lua")],
            Self::Page => &[buffer, include_str!("scripts/page.lua")],
            Self::Trim => &[holders, buffer, include_str!("scripts/trim.lua")],
            Self::Remove => &[holders, buffer, include_str!("scripts/remove.lua")],
            Self::Sweep => &[buffer, include_str!("scripts/sweep.lua")],
        };
        let (prelude, parts) = (include_str!("scripts/prelude.lua"), parts.join("\n"));
        format!(
            "local NUMBER_MAX = {NUMBER_MAX}\n\
             local REPEAT_WINDOW = {REPEAT_WINDOW}\n\
             local EXPIRED_PER_APPEND_MAX = {EXPIRED_PER_APPEND_MAX}\n\
             local OVERHEAD_BYTES = {MESSAGE_OVERHEAD_BYTES}\n\
             local BODY_BYTES_MAX = {}\n\
             local META_BYTES_MAX = {}\n\
             local OFFSETS_RESERVED_MIN = {OFFSETS_RESERVED_MIN}\n\
             local UNRELEASED_MAX = {UNRELEASED_MAX}\n\
             local UNRELEASED_BYTES_MAX = {UNRELEASED_BYTES_MAX}\n\
             local TTL_MARGIN_MS = {TTL_MARGIN_MS}\n\
             {prelude}\n{parts}",
            codec::BODY_BYTES_MAX,
            codec::META_BYTES_MAX,
        )
    }
}

/// Writes calls: who calls, under which bounds, and what the server calls the scripts.
#[derive(Debug, Clone)]
pub struct Caller {
    node: ring::NodeId,
    incarnation: String,
    keys_ttl_ms: String,
    limits: BufferLimits,
    hashes: Vec<String>,
    /// Stands in for the server's clock in tests; empty for its own.
    now_ms: String,
}

impl Caller {
    /// For this life of a node. `keys_ttl_ms`: how long a client is remembered after the last call.
    pub fn new(node: ring::NodeId, incarnation: u64, keys_ttl_ms: u64, limits: BufferLimits) -> Self {
        Self {
            node,
            incarnation: incarnation.min(NUMBER_MAX).to_string(),
            keys_ttl_ms: keys_ttl_ms.to_string(),
            limits,
            hashes: Vec::new(),
            now_ms: String::new(),
        }
    }

    /// Takes what the server calls the scripts, in the order of [`Script::ALL`].
    pub fn set_hashes(&mut self, hashes: Vec<String>) {
        debug_assert_eq!(hashes.len(), Script::ALL.len(), "a hash for each script");
        self.hashes = hashes;
    }

    /// Lets the scripts take this for the time.
    pub fn set_now_ms(&mut self, now_ms: u64) {
        self.now_ms = now_ms.to_string();
    }

    /// Appends the call that does what `request` asks for, and returns how many replies it has.
    pub fn write(&self, request: &StoreRequest, pack: &mut Pack) -> usize {
        match request {
            StoreRequest::Claim { client, generation, kind, ceiling } => {
                self.begin(pack, Script::Claim, client, 4);
                pack.number((*generation).min(NUMBER_MAX));
                pack.text(match kind {
                    ClaimKind::Fresh => "fresh",
                    ClaimKind::Again => "again",
                });
                pack.number((*ceiling).min(NUMBER_MAX));
                pack.number(wall_ms());
                1
            }
            StoreRequest::Release { client, generation, last_offset } => {
                self.begin(pack, Script::Release, client, 3);
                pack.number((*generation).min(NUMBER_MAX));
                pack.number((*last_offset).min(NUMBER_MAX));
                pack.number(wall_ms());
                1
            }
            StoreRequest::Append { client, author, messages, room } => {
                self.write_append(pack, client, author, &[messages], *room)
            }
            StoreRequest::Page { client, after, bytes_max } => {
                self.begin(pack, Script::Page, client, 2);
                pack.number((*after).min(NUMBER_MAX));
                pack.number((*bytes_max as u64).min(NUMBER_MAX));
                1
            }
            StoreRequest::Trim { client, generation, offset } => {
                self.begin(pack, Script::Trim, client, 2);
                pack.number((*generation).min(NUMBER_MAX));
                pack.number((*offset).min(NUMBER_MAX));
                1
            }
            StoreRequest::Remove { client, generation, offset } => {
                self.begin(pack, Script::Remove, client, 2);
                pack.number((*generation).min(NUMBER_MAX));
                pack.number((*offset).min(NUMBER_MAX));
                1
            }
        }
    }

    /// The same for several requests at once, which are all [`Self::write_append`]'s of one kind: see `lanes`.
    pub fn write_together<'a>(&self, requests: impl Iterator<Item = &'a StoreRequest>, pack: &mut Pack) -> usize {
        let mut first = None;
        let mut all: Vec<&[Kept]> = Vec::new();
        for request in requests {
            let StoreRequest::Append { client, author, messages, room } = request else {
                return self.write(request, pack);
            };
            first.get_or_insert((client, author, *room));
            all.push(messages);
        }
        first.map_or(0, |(client, author, room)| self.write_append(pack, client, author, &all, room))
    }

    /// Appends the call that drops what is too old of `client`'s.
    pub fn write_sweep(&self, client: &ClientId, pack: &mut Pack) {
        self.begin(pack, Script::Sweep, client, 0);
    }

    fn write_append(
        &self,
        pack: &mut Pack,
        client: &ClientId,
        author: &Author,
        messages: &[&[Kept]],
        room: Room,
    ) -> usize {
        let count: usize = messages.iter().map(|messages| messages.len()).sum();
        self.begin(pack, Script::Append, client, 6 + 3 * count);
        match author {
            Author::Holder { generation } => {
                pack.text("holder");
                pack.number((*generation).min(NUMBER_MAX));
                pack.text("0");
            }
            Author::Other { past } => {
                pack.text("other");
                pack.text(past.as_ref().map_or("", |(node, _)| node.as_str()));
                pack.number(past.as_ref().map_or(0, |(_, incarnation)| (*incarnation).min(NUMBER_MAX)));
            }
            Author::Anyone => {
                pack.text("anyone");
                pack.text("");
                pack.text("0");
            }
        }
        pack.text(if room == Room::IfFree { "free" } else { "owed" });
        pack.number(self.limits.recipient_messages as u64);
        pack.number(self.limits.recipient_bytes as u64);
        for message in messages.iter().copied().flatten() {
            pack.number(message.offset);
            pack.arg(codec::meta(message).as_bytes());
            pack.arg(&message.body);
        }
        let Some(due) = messages.iter().copied().flatten().map(|message| message.expires_ms).min() else { return 1 };
        // So that its age is noticed though nobody ever asks for it. Earlier than all that waits already, or nothing new.
        pack.begin(5);
        pack.text("ZADD");
        pack.text(keys::DUE);
        pack.text("LT");
        pack.number(due.min(NUMBER_MAX));
        pack.text(&keys::encode(client.as_str()));
        2
    }

    fn begin(&self, pack: &mut Pack, script: Script, client: &ClientId, args: usize) {
        pack.begin(5 + 4 + args);
        pack.text("EVALSHA");
        pack.text(self.hashes.get(script as usize).map_or("", String::as_str));
        pack.text("2");
        pack.text(&keys::session(client));
        pack.text(&keys::buffer(client));
        pack.text(&self.now_ms);
        pack.text(&self.keys_ttl_ms);
        pack.text(self.node.as_str());
        pack.text(&self.incarnation);
    }
}

fn wall_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(0)
}
