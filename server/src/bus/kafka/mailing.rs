//! Mail from the bus to the shards, in order for each: what a full mailbox refuses waits here, and its source with it.

use std::collections::VecDeque;

use crate::shard::handover::Mail;
use crate::shard::mailbox::Sender;

/// One thread's way into all mailboxes.
pub struct Mailing {
    mailboxes: Vec<Sender<Mail>>,
    waiting: Vec<VecDeque<Mail>>,
    waiting_count: usize,
}

impl Mailing {
    /// To these shards.
    pub fn new(mailboxes: Vec<Sender<Mail>>) -> Self {
        let waiting = mailboxes.iter().map(|_| VecDeque::new()).collect();
        Self { mailboxes, waiting, waiting_count: 0 }
    }

    /// How many shards there are.
    pub fn shards(&self) -> usize {
        self.mailboxes.len()
    }

    /// Posts, or keeps until [`Mailing::flush`]. False when there is no such shard.
    pub fn post(&mut self, shard: usize, mail: Mail) -> bool {
        let (Some(mailbox), Some(waiting)) = (self.mailboxes.get(shard), self.waiting.get_mut(shard)) else {
            return false;
        };
        let mail = if waiting.is_empty() {
            match mailbox.post(mail) {
                Ok(()) => return true,
                Err(mail) => mail,
            }
        } else {
            mail
        };
        waiting.push_back(mail);
        self.waiting_count += 1;
        true
    }

    /// Tries again what waits.
    pub fn flush(&mut self) {
        if self.waiting_count == 0 {
            return;
        }
        for (mailbox, waiting) in self.mailboxes.iter().zip(&mut self.waiting) {
            while let Some(mail) = waiting.pop_front() {
                match mailbox.post(mail) {
                    Ok(()) => self.waiting_count -= 1,
                    Err(mail) => {
                        waiting.push_front(mail);
                        break;
                    }
                }
            }
        }
    }

    /// How much waits.
    pub fn waiting(&self) -> usize {
        self.waiting_count
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::mailbox::mailbox;

    #[test]
    fn what_a_full_mailbox_refuses_keeps_its_order_and_holds_up_no_other_shard() {
        let (small, small_end) = mailbox(1).unwrap();
        let (other, other_end) = mailbox(8).unwrap();
        let mut mailing = Mailing::new(vec![small, other]);
        let take = |end: &crate::shard::mailbox::Receiver<Mail>| match end.next() {
            Some(Mail::Produced(ticket)) => Some(ticket),
            _ => None,
        };
        for ticket in 0..4 {
            assert!(mailing.post(0, Mail::Produced(ticket)));
            assert!(mailing.post(1, Mail::Produced(ticket)));
        }
        assert!(!mailing.post(2, Mail::Produced(9)));
        assert_eq!(mailing.waiting(), 3);
        assert_eq!((0..4).map(|_| take(&other_end)).collect::<Vec<_>>(), [Some(0), Some(1), Some(2), Some(3)]);
        for ticket in 0..4 {
            assert_eq!(take(&small_end), Some(ticket));
            mailing.flush();
        }
        assert_eq!((mailing.waiting(), take(&small_end)), (0, None));
    }
}
