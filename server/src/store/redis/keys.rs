//! The names of keys. Ids stand inside `{}`, so that all keys of one client share a cluster slot; what would end the
//! braces early is percent-encoded, and only checked ids get here at all.

use std::borrow::Cow;

use crate::protocol::ClientId;

/// Sorted set: client, percent-encoded → when its next message expires, in milliseconds since 1970.
pub const DUE: &str = "{rtc}:due";
/// Sorted set: node → when it was last heard of, in milliseconds since 1970 by the server's clock.
pub const HEARTBEATS: &str = "{rtc}:heartbeats";
/// The last `RingUpdate`, as JSON.
pub const RING_VERSION: &str = "{rtc}:ring-version";
/// The lease of whoever balances.
pub const LEADER: &str = "{rtc}:leader";

/// The key of a client's session.
pub fn session(client: &ClientId) -> String {
    format!("sess:{{{}}}", encode(client.as_str()))
}

/// The key of a client's replay buffer.
pub fn buffer(client: &ClientId) -> String {
    format!("buf:{{{}}}", encode(client.as_str()))
}

/// The key of a node's last heartbeat.
pub fn node(node: &ring::NodeId) -> String {
    // Its alphabet has nothing to encode.
    format!("{{rtc}}:node:{node}")
}

/// The key of the number of a node's life.
pub fn life(node: &ring::NodeId) -> String {
    format!("{{rtc}}:life:{node}")
}

/// An id as it stands in a key.
pub fn encode(id: &str) -> Cow<'_, str> {
    if !id.contains(['{', '}', '%']) {
        return Cow::Borrowed(id);
    }
    Cow::Owned(id.replace('%', "%25").replace('{', "%7B").replace('}', "%7D"))
}

/// The client whose id stands encoded in a set; `None` when none can be meant.
pub fn decode(encoded: &str) -> Option<ClientId> {
    let id = encoded.replace("%7D", "}").replace("%7B", "{").replace("%25", "%");
    let client = ClientId::try_from(id.as_str()).ok()?;
    (encode(client.as_str()) == encoded).then_some(client)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_cannot_leave_their_braces() {
        for (id, key) in [
            ("anna", "sess:{anna}"),
            ("a:b", "sess:{a:b}"),
            ("}x{", "sess:{%7Dx%7B}"),
            ("50%7D", "sess:{50%257D}"),
            ("ü {}", "sess:{ü %7B%7D}"),
        ] {
            let client = ClientId::try_from(id).unwrap();
            assert_eq!(session(&client), key);
            assert_eq!(decode(&encode(id)), Some(client));
        }
        for foreign in ["", "a{b", "%", "%41", "a\nb", &"x".repeat(10 * 1024)] {
            assert_eq!(decode(foreign), None, "{foreign:?}");
        }
    }
}
