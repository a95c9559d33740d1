//! Whether the server keeps what it says it keeps: a message that is `stored` must survive the server's end.

use redis::Value;

use super::link::Link;

/// What the server must be set to.
const WANTED: [(&str, &str, &str); 3] = [
    ("appendonly", "yes", "what it keeps is gone when it ends"),
    ("appendfsync", "always", "the last second is gone when its machine ends"),
    ("maxmemory-policy", "noeviction", "it drops what it keeps when its memory is full"),
];

/// What is weaker than promised, in words; `None` when nothing is.
pub fn weakness(link: &mut Link) -> Option<String> {
    let mut found = Vec::new();
    for (name, wanted, consequence) in WANTED {
        // Of a cluster, all count: each has clients of its own.
        let settings: Option<Vec<String>> =
            link.ask_all(&["CONFIG", "GET", name]).ok().and_then(|replies| replies.iter().map(setting).collect());
        match settings.as_ref().map(|settings| settings.iter().find(|value| *value != wanted)) {
            Some(None) => {}
            Some(Some(value)) => found.push(format!("{name} is `{value}`, not `{wanted}`: {consequence}")),
            None => found.push(format!("{name} cannot be read (CONFIG GET is forbidden?), should be `{wanted}`")),
        }
    }
    (!found.is_empty()).then(|| found.join("; "))
}

fn setting(reply: &Value) -> Option<String> {
    let text = |value: &Value| match value {
        Value::BulkString(bytes) => String::from_utf8(bytes.clone()).ok(),
        Value::SimpleString(text) => Some(text.clone()),
        _ => None,
    };
    match reply {
        Value::Array(items) => items.get(1).and_then(text),
        Value::Map(entries) => entries.first().and_then(|(_, value)| text(value)),
        _ => None,
    }
}
