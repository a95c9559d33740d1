//! How a seed's story is told.

use crate::bus::Record;
use crate::store::request::{StoreAnswer, StoreRequest};

/// One line of the story, with the time, if the world tells it.
macro_rules! tell {
    ($world:expr, $($arg:tt)*) => {
        if $world.tells {
            println!("{:>7} {}", $world.now, format_args!($($arg)*));
        }
    };
}
pub(super) use tell;

pub(super) fn name(record: &Record) -> String {
    match record {
        Record::Message(posted) => format!("{} (hops {})", posted.msg_id, posted.hops),
        other => format!("{other:?}"),
    }
}

pub(super) fn brief(request: &StoreRequest) -> String {
    match request {
        StoreRequest::Append { client, author, messages, room } => {
            let names: Vec<String> =
                messages.iter().map(|kept| format!("{}@{}", body_name(&kept.body), kept.offset)).collect();
            format!("append to {} by {author:?} {room:?} {names:?}", client.as_str())
        }
        other => format!("{other:?}"),
    }
}

pub(super) fn outcome(answer: &StoreAnswer) -> String {
    match answer {
        StoreAnswer::Page(page) => {
            let names: Vec<String> =
                page.iter().map(|kept| format!("{}@{}", body_name(&kept.body), kept.offset)).collect();
            format!("page {names:?}")
        }
        other => format!("{other:?}"),
    }
}

fn body_name(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    text.split('"').nth(7).unwrap_or_default().to_owned()
}
