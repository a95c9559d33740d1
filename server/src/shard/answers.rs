//! Acks on their way back to senders, gathered while a recipient's session is busy and sent when it is not.

use crate::protocol::AckStatus;

use super::origin::Origin;

/// A run of answers. Reused, so that answering allocates nothing.
#[derive(Debug, Default)]
pub struct Answers {
    items: Vec<(Origin, AckStatus, usize)>,
    // The names of all of them, back to back, JSON escapes and all; an item says where its own begins.
    msg_ids: String,
}

impl Answers {
    /// Adds an answer to `origin` about its message `msg_id`, which is JSON-escaped already.
    pub fn push(&mut self, origin: Origin, msg_id: &str, status: AckStatus) {
        self.items.push((origin, status, self.msg_ids.len()));
        self.msg_ids.push_str(msg_id);
    }

    /// True when there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// The answers in order.
    pub fn iter(&self) -> impl Iterator<Item = (Origin, &str, AckStatus)> {
        let ends = self.items.iter().skip(1).map(|(_, _, start)| *start).chain([self.msg_ids.len()]);
        self.items
            .iter()
            .zip(ends)
            .map(|((origin, status, start), end)| (*origin, self.msg_ids.get(*start..end).unwrap_or_default(), *status))
    }

    /// Forgets all of them.
    pub fn clear(&mut self) {
        self.items.clear();
        self.msg_ids.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_come_out_as_they_went_in() {
        let mut answers = Answers::default();
        answers.push(Origin::NOBODY, "one", AckStatus::Held);
        answers.push(Origin::publisher(7), "", AckStatus::Sent);
        answers.push(Origin::NOBODY, "three", AckStatus::Delivered);
        let all: Vec<_> = answers.iter().map(|(_, msg_id, status)| (msg_id, status)).collect();
        assert_eq!(all, [("one", AckStatus::Held), ("", AckStatus::Sent), ("three", AckStatus::Delivered)]);
        answers.clear();
        assert!(answers.is_empty());
    }
}
