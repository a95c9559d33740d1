//! What cannot go on goes to the dead letters, with what is wrong with it, so that the records behind it can.

use tracing::{debug, warn};

use super::Reading;
use crate::forwarder::plan::{OwnHeader, Poison};
use crate::forwarder::sender::{DEAD_LETTER_TOPIC, Outgoing, Place};

/// The longest value that is kept among the dead letters.
const DEAD_LETTER_BYTES_MAX: usize = 256 << 10;

impl Reading {
    /// A record that its topic does not take goes to the dead letters, shortened; a letter that is not taken either is
    /// given up.
    pub(super) fn bury_too_large(&mut self, outgoing: Outgoing) -> anyhow::Result<()> {
        let Outgoing { place, topic, key, value, headers, .. } = outgoing;
        let (node, bytes) = (&self.task.dead, value.as_ref().map_or(0, Vec::len));
        if topic == DEAD_LETTER_TOPIC {
            warn!(%node, ?place, bytes, "kafka takes no dead letter of this size: its record is given up");
            self.finish(place);
            return Ok(());
        }
        if !std::mem::replace(&mut self.has_told_of_size, true) {
            warn!(
                %node, ?place, bytes, topic,
                "kafka takes no record of this size: it goes to the dead letters, and the others on; \
                 raise max.message.bytes of the topic to what the dead node's takes"
            );
        }
        let poison = Poison::Refused { bytes };
        self.bury(place, &poison, Content { key, value, headers })
    }

    pub(super) fn bury(&mut self, place: Place, poison: &Poison, content: Content) -> anyhow::Result<()> {
        self.sender.need_dead_letters()?;
        self.task.counted.count_buried(poison);
        debug!(topic = self.topic, ?place, reason = %poison, "a record cannot be forwarded: see the dead letters");
        let source = format!("{}/{}/{}", self.topic, place.partition, place.offset);
        let (topic, letter) = (DEAD_LETTER_TOPIC.to_owned(), content.letter(poison, source));
        let Content { key, value, headers } = letter;
        self.waiting.push_back(Outgoing { place, topic, partition: 0, key, value, headers });
        Ok(())
    }
}

/// What a record is made of.
pub(super) struct Content {
    pub(super) key: Option<Vec<u8>>,
    pub(super) value: Option<Vec<u8>>,
    pub(super) headers: Vec<OwnHeader>,
}

impl Content {
    /// A dead letter, as the nodes write them: so much of a record as is kept, and what is wrong with it.
    fn letter(self, poison: &Poison, source: String) -> Self {
        let Self { mut key, mut value, mut headers } = self;
        let mut add = |name: &str, text: String| headers.push((name.to_owned(), Some(text.into_bytes())));
        add("rtc-cause", poison.cause().to_owned());
        add("rtc-reason", poison.to_string());
        add("rtc-source", source);
        if let Some(whole) = value.as_mut().filter(|whole| whole.len() > DEAD_LETTER_BYTES_MAX) {
            add("rtc-length", whole.len().to_string());
            whole.truncate(DEAD_LETTER_BYTES_MAX);
        }
        key = key.filter(|key| key.len() <= DEAD_LETTER_BYTES_MAX);
        Self { key, value, headers }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter(key: usize, value: usize) -> Content {
        let content = Content { key: Some(vec![b'k'; key]), value: Some(vec![b'v'; value]), headers: Vec::new() };
        content.letter(&Poison::Refused { bytes: value }, "topic/1/2".to_owned())
    }

    fn header(letter: &Content, name: &str) -> Option<String> {
        let value = letter.headers.iter().find(|(found, _)| found == name)?.1.clone();
        value.map(|value| String::from_utf8(value).unwrap())
    }

    #[test]
    fn a_letter_tells_where_a_record_stood_and_what_is_wrong_with_it() {
        let letter = letter(3, 5);
        assert_eq!(header(&letter, "rtc-source").as_deref(), Some("topic/1/2"));
        let poison = Poison::Refused { bytes: 5 };
        assert_eq!(header(&letter, "rtc-cause").as_deref(), Some(poison.cause()));
        assert_eq!(header(&letter, "rtc-reason"), Some(poison.to_string()));
    }

    #[test]
    fn what_is_too_long_is_shortened_and_says_so() {
        const MAX: usize = DEAD_LETTER_BYTES_MAX;
        for (value, kept, told) in [(MAX, MAX, None), (MAX + 1, MAX, Some((MAX + 1).to_string()))] {
            let letter = letter(1, value);
            assert_eq!(letter.value.as_ref().map(Vec::len), Some(kept));
            assert_eq!(header(&letter, "rtc-length"), told);
        }
        for (key, is_kept) in [(MAX, true), (MAX + 1, false)] {
            assert_eq!(letter(key, 1).key.is_some(), is_kept, "{key}");
        }
    }
}
