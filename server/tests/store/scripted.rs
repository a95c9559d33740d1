//! One connection that runs the scripts, in a test's own time.

use redis::{Connection, Value};
use ring::NodeId;
use rtc_server::protocol::ClientId;
use rtc_server::store::bounds::BufferLimits;
use rtc_server::store::redis::codec::{self, Outcome, Reply};
use rtc_server::store::redis::pack::Pack;
use rtc_server::store::redis::scripts::{Caller, Script};
use rtc_server::store::request::{StoreAnswer, StoreRequest};

/// A moment in 2027.
pub const NOW: u64 = 1_800_000_000_000;

pub struct Scripted {
    pub connection: Connection,
    limits: BufferLimits,
    hashes: Vec<String>,
}

impl Scripted {
    pub fn new(url: &str, limits: BufferLimits) -> Self {
        let mut connection = redis::Client::open(url).unwrap().get_connection().unwrap();
        let hashes = Script::ALL
            .map(|script| redis::cmd("SCRIPT").arg("LOAD").arg(script.source()).query(&mut connection).unwrap())
            .to_vec();
        Self { connection, limits, hashes }
    }

    fn caller(&self, node: &NodeId, incarnation: u64, now_ms: u64) -> Caller {
        let mut caller = Caller::new(node.clone(), incarnation, 900_000, self.limits);
        caller.set_hashes(self.hashes.clone());
        caller.set_now_ms(now_ms);
        caller
    }

    /// Runs the request `times` times in one round trip.
    pub fn replies(
        &mut self,
        (node, incarnation): (&NodeId, u64),
        request: &StoreRequest,
        now_ms: u64,
        times: usize,
    ) -> Vec<Reply> {
        let caller = self.caller(node, incarnation, now_ms);
        let mut pack = Pack::default();
        let replies: Vec<usize> = (0..times).map(|_| caller.write(request, &mut pack)).collect();
        self.connection.send_packed_command(pack.bytes()).unwrap();
        replies
            .into_iter()
            .map(|count| {
                let reply = self.receive();
                for _ in 1..count {
                    self.connection.recv_response().unwrap();
                }
                reply
            })
            .collect()
    }

    /// Runs the request once.
    pub fn ask(&mut self, life: (&NodeId, u64), request: &StoreRequest, now_ms: u64) -> StoreAnswer {
        match self.replies(life, request, now_ms, 1).remove(0).outcome {
            Outcome::Answer(answer) => answer,
            other => panic!("not an answer: {other:?}"),
        }
    }

    /// Drops what is too old of one client's.
    pub fn sweep(&mut self, node: &NodeId, client: &ClientId, now_ms: u64) -> Reply {
        let caller = self.caller(node, 1, now_ms);
        let mut pack = Pack::default();
        caller.write_sweep(client, &mut pack);
        self.connection.send_packed_command(pack.bytes()).unwrap();
        self.receive()
    }

    fn receive(&mut self) -> Reply {
        let value = self.connection.recv_response().unwrap();
        assert!(!matches!(value, Value::ServerError(_)), "{value:?}");
        let text = format!("{value:?}");
        codec::reply(value).unwrap_or_else(|err| panic!("{err}: {text}"))
    }
}
