//! Requests on their way to the server, a lane to each client. Of one client's requests one group is under way at a time,
//! and the server does it as a whole: whatever it cannot do now, nothing behind that is done before it.

use std::collections::{HashMap, VecDeque};

use redis::{RedisError, Value};

use super::link::{Link, Trouble};
use super::pack::Pack;
use super::scripts::Caller;
use crate::protocol::ClientId;
use crate::store::bounds::MESSAGE_OVERHEAD_BYTES;
use crate::store::request::{StoreRequest, Ticket};

/// Requests of one client that the server does at once: others wait for it meanwhile.
const GROUP_REQUESTS_MAX: usize = 64;
/// Bytes of such requests.
const GROUP_BYTES_MAX: usize = 512 * 1024;
/// What a request costs beside its messages.
const REQUEST_OVERHEAD_BYTES: usize = 256;

/// A request that was taken and is not answered yet.
pub(super) struct Job {
    pub(super) shard: u16,
    pub(super) ticket: Ticket,
    pub(super) request: StoreRequest,
    pub(super) bytes: usize,
    pub(super) attempts: u32,
    /// Its messages go to the server by themselves: together with others' they were refused.
    pub(super) is_alone: bool,
}

impl Job {
    pub(super) fn client(&self) -> &ClientId {
        self.request.client()
    }

    /// True if it may be done at once with others of its client. Who holds the client changes, and is read from, alone.
    fn goes_with_others(&self) -> bool {
        match self.request {
            StoreRequest::Append { .. } | StoreRequest::Trim { .. } | StoreRequest::Remove { .. } => true,
            StoreRequest::Claim { .. } | StoreRequest::Release { .. } | StoreRequest::Page { .. } => false,
        }
    }

    /// True if the messages of both can be kept in one call. One call is judged as a whole, and costs a third of two.
    fn goes_in_one_call_with(&self, other: &Self) -> bool {
        match (&self.request, &other.request) {
            (
                StoreRequest::Append { author, room, .. },
                StoreRequest::Append { author: others_author, room: others_room, .. },
            ) => author == others_author && room == others_room && !self.is_alone && !other.is_alone,
            _ => false,
        }
    }
}

/// What a request costs while it is not answered.
pub(super) fn bytes_of(request: &StoreRequest) -> usize {
    let messages = match request {
        StoreRequest::Append { messages, .. } => messages.as_slice(),
        _ => &[],
    };
    let bytes: usize = messages.iter().map(|message| message.body.len() + MESSAGE_OVERHEAD_BYTES).sum();
    REQUEST_OVERHEAD_BYTES + request.client().as_str().len() + bytes
}

/// What waits to be sent.
#[derive(Default)]
pub(super) struct Lanes {
    // The next of each client that has nothing under way.
    heads: VecDeque<Job>,
    // Invariant: an entry for each client that has a head or a group under way, with what is behind it.
    behind: HashMap<ClientId, VecDeque<Job>>,
}

impl Lanes {
    /// Adds a request behind its client's others.
    pub(super) fn push(&mut self, job: Job) {
        if let Some(behind) = self.behind.get_mut(job.client()) {
            behind.push_back(job);
        } else {
            self.behind.insert(job.client().clone(), VecDeque::new());
            self.heads.push_back(job);
        }
    }

    /// The next requests of a client that has nothing under way, in order; one only unless `can_be_several`.
    pub(super) fn next_group(&mut self, can_be_several: bool) -> Option<Vec<Job>> {
        let head = self.heads.pop_front()?;
        if !can_be_several || !head.goes_with_others() {
            return Some(vec![head]);
        }
        let behind = self.behind.get_mut(head.client());
        let mut bytes = head.bytes;
        let mut jobs = vec![head];
        if let Some(behind) = behind {
            while jobs.len() < GROUP_REQUESTS_MAX
                && let Some(job) = behind.front()
                && job.goes_with_others()
                && bytes + job.bytes <= GROUP_BYTES_MAX
            {
                bytes += job.bytes;
                jobs.extend(behind.pop_front());
            }
        }
        Some(jobs)
    }

    /// A client's group is no longer under way; `again`, its last, go ahead of all that waits.
    pub(super) fn end_group(&mut self, client: &ClientId, again: Vec<Job>) {
        let Some(behind) = self.behind.get_mut(client) else { return };
        let mut again = again.into_iter();
        if let Some(head) = again.next() {
            again.rev().for_each(|job| behind.push_front(job));
            self.heads.push_front(head);
        } else if let Some(head) = behind.pop_front() {
            self.heads.push_back(head);
        } else {
            self.behind.remove(client);
        }
    }
}

/// Requests of one client that are under way.
pub(super) struct Group {
    pub(super) jobs: Vec<Job>,
    pub(super) bytes: usize,
    /// Which connection they took.
    pub(super) link: usize,
    calls: Vec<Call>,
}

/// What the server does for the next `jobs` of a group, and in how many replies it tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Call {
    jobs: usize,
    replies: usize,
}

/// How many of these jobs each call is for.
fn calls(jobs: &[Job]) -> impl Iterator<Item = usize> + '_ {
    jobs.chunk_by(Job::goes_in_one_call_with).map(<[Job]>::len)
}

impl Group {
    /// Appends the commands to `pack`: several requests as one transaction. What the server is short of is then judged
    /// once for all of them.
    pub(super) fn write(jobs: Vec<Job>, caller: &Caller, pack: &mut Pack) -> Self {
        let is_transaction = calls(&jobs).nth(1).is_some();
        if is_transaction {
            pack.command(&["MULTI"]);
        }
        let mut rest = jobs.iter();
        let calls = calls(&jobs)
            .map(|count| {
                let requests = rest.by_ref().take(count).map(|job| &job.request);
                Call { jobs: count, replies: caller.write_together(requests, pack) }
            })
            .collect();
        if is_transaction {
            pack.command(&["EXEC"]);
        }
        Self { bytes: jobs.iter().map(|job| job.bytes).sum(), link: 0, jobs, calls }
    }

    /// Reads what became of the requests, in order: of how many together, and what.
    ///
    /// # Errors
    /// When the connection is lost.
    pub(super) fn read(&self, link: &mut Link) -> Result<Vec<(usize, Reply)>, RedisError> {
        let count = self.calls.iter().map(|call| call.replies).sum();
        let mut replies = if self.calls.len() > 1 {
            read_transaction(link, count)?
        } else {
            let replies: Result<Vec<_>, _> = (0..count).map(|_| read_one(link)).collect();
            replies?
        }
        .into_iter();
        Ok(self.calls.iter().map(|call| (call.jobs, together(&mut replies, call.replies))).collect())
    }
}

/// What the server said to one command.
type Reply = Result<Value, RedisError>;

/// The reply of a request from those of its commands: the first's, unless one of the others was not done.
fn together(replies: &mut impl Iterator<Item = Result<Value, RedisError>>, count: usize) -> Result<Value, RedisError> {
    let first = replies.next().unwrap_or(Ok(Value::Nil));
    for other in replies.take(count.saturating_sub(1)) {
        // That the clock of ages is not what it should be is the sweeper's to mend; the message is kept.
        other.or_else(|err| if Trouble::of(&err) == Trouble::Refused { Ok(Value::Nil) } else { Err(err) })?;
    }
    first
}

fn read_one(link: &mut Link) -> Result<Result<Value, RedisError>, RedisError> {
    match link.receive() {
        Err(err) if Trouble::of(&err) == Trouble::Lost => Err(err),
        reply => Ok(reply),
    }
}

/// The replies of `count` commands that were sent as a transaction.
fn read_transaction(link: &mut Link, count: usize) -> Result<Vec<Result<Value, RedisError>>, RedisError> {
    // Its beginning and each command are confirmed, or refused and with it the whole.
    let mut refusal = None;
    for _ in 0..=count {
        let reply = read_one(link)?;
        refusal = refusal.or(reply.err());
    }
    let end = read_one(link)?;
    match (refusal, end) {
        (None, Ok(Value::Array(values))) if values.len() == count => {
            Ok(values.into_iter().map(Value::extract_error).collect())
        }
        (Some(err), _) | (None, Err(err)) => Ok((0..count).map(|_| Err(err.clone())).collect()),
        (None, Ok(_)) => {
            // Nobody knows which replies are missing. The connection is given up, and all is asked again.
            Err(RedisError::from((redis::ErrorKind::UnexpectedReturnType, "a transaction lacks replies")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Room;
    use crate::store::request::{Author, ClaimKind};

    fn trim(client: &str, ticket: u64) -> Job {
        let client = ClientId::try_from(client).unwrap();
        let request = StoreRequest::Trim { client, generation: 1, offset: 1 };
        Job { shard: 0, ticket: Ticket(ticket), bytes: bytes_of(&request), request, attempts: 0, is_alone: false }
    }

    fn claim(client: &str, ticket: u64) -> Job {
        let client = ClientId::try_from(client).unwrap();
        let request = StoreRequest::Claim { client, generation: 1, kind: ClaimKind::Again, ceiling: 1 };
        Job { request, ..trim("any", ticket) }
    }

    fn tickets(group: Option<&Vec<Job>>) -> Vec<u64> {
        group.into_iter().flatten().map(|job| job.ticket.0).collect()
    }

    #[test]
    fn one_group_of_a_client_is_under_way_at_a_time() {
        let mut lanes = Lanes::default();
        for job in [trim("a", 1), trim("a", 2), trim("b", 3), trim("a", 4)] {
            lanes.push(job);
        }
        let of_a = lanes.next_group(true).unwrap();
        assert_eq!(tickets(Some(&of_a)), [1, 2, 4]);
        lanes.push(trim("a", 5));
        let of_b = lanes.next_group(true).unwrap();
        assert_eq!(tickets(Some(&of_b)), [3]);
        assert!(lanes.next_group(true).is_none());
        // Of the group the last two are to be done again: ahead of what came meanwhile.
        let client = of_a[0].client().clone();
        lanes.end_group(&client, of_a.into_iter().skip(1).collect());
        lanes.end_group(&of_b[0].client().clone(), Vec::new());
        assert_eq!(tickets(lanes.next_group(true).as_ref()), [2, 4, 5]);
        lanes.end_group(&client, Vec::new());
        assert!(lanes.behind.is_empty());
    }

    #[test]
    fn who_holds_a_client_changes_alone_and_so_does_a_cluster() {
        let mut lanes = Lanes::default();
        for job in [trim("a", 1), claim("a", 2), trim("a", 3), trim("a", 4)] {
            lanes.push(job);
        }
        let client = ClientId::try_from("a").unwrap();
        for (can_be_several, expected) in [(true, &[1][..]), (true, &[2]), (false, &[3]), (false, &[4]), (false, &[])] {
            assert_eq!(tickets(lanes.next_group(can_be_several).as_ref()), expected);
            lanes.end_group(&client, Vec::new());
        }
        assert!(lanes.behind.is_empty());
    }

    fn append(client: &str, generation: u64, room: Room) -> Job {
        let client = ClientId::try_from(client).unwrap();
        let author = Author::Holder { generation };
        Job { request: StoreRequest::Append { client, author, messages: Vec::new(), room }, ..trim("any", 0) }
    }

    #[test]
    fn appends_that_follow_each_other_go_in_one_call() {
        let owed = || append("a", 1, Room::Owed);
        let alone = || Job { is_alone: true, ..owed() };
        for (jobs, expected) in [
            (vec![owed(), owed(), owed()], &[3][..]),
            (vec![owed(), trim("a", 1), owed(), owed()], &[1, 1, 2]),
            (vec![trim("a", 1), trim("a", 2)], &[1, 1]),
            (vec![owed(), append("a", 1, Room::IfFree), append("a", 2, Room::IfFree)], &[1, 1, 1]),
            (vec![alone(), alone(), owed(), owed()], &[1, 1, 2]),
        ] {
            assert_eq!(calls(&jobs).collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn a_group_has_bounds() {
        let mut lanes = Lanes::default();
        let large = || Job { bytes: GROUP_BYTES_MAX / 2, ..trim("large", 0) };
        (0..3).for_each(|_| lanes.push(large()));
        assert_eq!(lanes.next_group(true).unwrap().len(), 2);
        let huge = || Job { bytes: 2 * GROUP_BYTES_MAX, ..trim("huge", 0) };
        (0..2).for_each(|_| lanes.push(huge()));
        assert_eq!(lanes.next_group(true).unwrap().len(), 1);
        (0..=GROUP_REQUESTS_MAX as u64).for_each(|at| lanes.push(trim("many", at)));
        assert_eq!(lanes.next_group(true).unwrap().len(), GROUP_REQUESTS_MAX);
    }
}
