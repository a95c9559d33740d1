//! A small HTTP/1.1 server for operators' ports, on plain threads, one for each connection: what small servers there are
//! bound neither their connections nor their requests in time, and one that was only promised a long body ended the
//! process. It authenticates nobody.

mod connection;

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use connection::Connection;
pub use connection::{Problem, Request, Response};

/// Connections without a place that are refused in peace at once; more of them may miss the answer.
const LINGERING_MAX: usize = 16;
/// How long accepting rests when the process has no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How much a port takes on.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections that are served at once.
    pub connections_max: usize,
    /// While more are open than this, each is closed after its answer: idle ones must not keep a health check out.
    pub keep_alive_max: usize,
    /// Bytes of a request's body.
    pub body_bytes_max: usize,
}

/// What a port counts. Its threads are few and its requests rare: a lock will do.
#[derive(Debug, Default)]
pub struct Tally {
    responses: Mutex<BTreeMap<u16, u64>>,
    refused: Mutex<BTreeMap<&'static str, u64>>,
    open: AtomicUsize,
    lingering: AtomicUsize,
    busy: AtomicUsize,
}

impl Tally {
    /// Counts something that was refused, under its cause.
    pub fn count_refusal(&self, cause: &'static str) {
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner).entry(cause).or_insert(0) += 1;
    }

    fn count_response(&self, status: u16) {
        *self.responses.lock().unwrap_or_else(PoisonError::into_inner).entry(status).or_insert(0) += 1;
    }

    /// Responses, by status.
    pub fn responses(&self) -> BTreeMap<u16, u64> {
        self.responses.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Requests and connections that were refused, by cause.
    pub fn refused(&self) -> BTreeMap<&'static str, u64> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// True while a request is being answered.
    pub fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Acquire) > 0
    }
}

/// What the threads share.
struct Port<A> {
    limits: Limits,
    tally: Arc<Tally>,
    answer: A,
}

/// Serves on `listener` with what `answer` says, from threads of its own, until the process ends.
///
/// # Errors
/// When the thread that accepts cannot be had.
pub fn start<A>(listener: TcpListener, limits: Limits, tally: Arc<Tally>, answer: A) -> io::Result<SocketAddr>
where
    A: Fn(&Request) -> Result<Response, Problem> + Send + Sync + 'static,
{
    let addr = listener.local_addr()?;
    let port = Arc::new(Port { limits, tally, answer });
    std::thread::Builder::new().name("http".to_owned()).spawn(move || {
        loop {
            match listener.accept() {
                Ok((stream, _)) => port.admit(stream),
                Err(error) if is_of_one_connection(&error) => {}
                Err(_) => {
                    port.tally.count_refusal("descriptors");
                    std::thread::sleep(ACCEPT_PAUSE);
                }
            }
        }
    })?;
    Ok(addr)
}

fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted)
}

impl<A> Port<A>
where
    A: Fn(&Request) -> Result<Response, Problem> + Send + Sync + 'static,
{
    /// Gives a connection a thread, or tells it that there is none left. Waits for nobody: this thread takes all of them.
    fn admit(self: &Arc<Self>, stream: TcpStream) {
        let connection = Connection::new(stream);
        if let Some(place) = Place::take(&self.tally, |tally| &tally.open, self.limits.connections_max) {
            let port = Arc::clone(self);
            let spawned = std::thread::Builder::new().name("http-conn".to_owned()).spawn(move || {
                port.serve(connection);
                drop(place);
            });
            if spawned.is_err() {
                self.tally.count_refusal("threads");
            }
            return;
        }
        let problem = Problem::new(503, "connections", "too many connections on this port");
        self.tally.count_refusal(problem.code);
        self.tally.count_response(problem.status);
        let response = problem.into_response();
        let Some(place) = Place::take(&self.tally, |tally| &tally.lingering, LINGERING_MAX) else {
            return connection.turn_away(&response);
        };
        // Without a thread it is closed, and may miss the answer.
        let _ = std::thread::Builder::new().name("http-refuse".to_owned()).spawn(move || {
            connection.refuse(&response);
            drop(place);
        });
    }

    fn serve(&self, mut connection: Connection) {
        let tally = &*self.tally;
        loop {
            let request = match connection.next_request(self.limits.body_bytes_max) {
                Ok(Some(request)) => request,
                Ok(None) => return,
                Err(problem) => {
                    tally.count_refusal(problem.code);
                    tally.count_response(problem.status);
                    return connection.refuse(&problem.into_response());
                }
            };
            let busy = Place::take(&self.tally, |tally| &tally.busy, usize::MAX);
            let response = (self.answer)(&request).unwrap_or_else(|problem| {
                tally.count_refusal(problem.code);
                problem.into_response()
            });
            tally.count_response(response.status);
            let stays = request.keeps_alive && tally.open.load(Ordering::Relaxed) <= self.limits.keep_alive_max;
            let is_written = connection.answer(&request, &response, stays);
            drop(busy);
            if !is_written || !stays {
                return;
            }
        }
    }
}

/// One of a limited number of places, given back when it goes.
struct Place {
    tally: Arc<Tally>,
    count: fn(&Tally) -> &AtomicUsize,
}

impl Place {
    fn take(tally: &Arc<Tally>, count: fn(&Tally) -> &AtomicUsize, limit: usize) -> Option<Self> {
        let one_more = |taken: usize| (taken < limit).then(|| taken + 1);
        let taken = count(tally).fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more);
        taken.ok().map(|_| Self { tally: Arc::clone(tally), count })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        (self.count)(&self.tally).fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    fn port(limits: Limits) -> (SocketAddr, Arc<Tally>) {
        let (listener, tally) = (TcpListener::bind("127.0.0.1:0").unwrap(), Arc::new(Tally::default()));
        let addr = start(listener, limits, Arc::clone(&tally), |request| match &*request.path {
            "/echo" => Ok(Response::text(200, "text/plain", request.body.clone())),
            _ => Err(Problem::new(404, "unknown_path", "there is /echo")),
        });
        (addr.unwrap(), tally)
    }

    const LIMITS: Limits = Limits { connections_max: 2, keep_alive_max: 2, body_bytes_max: 100 };

    /// What comes back for these bytes until the other side closes.
    fn ask(addr: SocketAddr, bytes: &str) -> String {
        let mut stream = TcpStream::connect(addr).unwrap();
        stream.write_all(bytes.as_bytes()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn requests_are_answered_one_after_the_other_and_counted() {
        let (addr, tally) = port(LIMITS);
        let text = ask(
            addr,
            "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi\
             GET /other HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        );
        assert!(text.starts_with("HTTP/1.1 200 ") && text.contains("\r\n\r\nhiHTTP/1.1 404 "), "{text}");
        assert!(text.contains("unknown_path") && text.contains("Connection: close"), "{text}");
        assert_eq!(tally.responses(), BTreeMap::from([(200, 1), (404, 1)]));
        assert_eq!(tally.refused(), BTreeMap::from([("unknown_path", 1)]));
    }

    #[test]
    fn a_body_that_is_only_promised_costs_nothing() {
        let (addr, tally) = port(LIMITS);
        for length in ["101", "18446744073709551615", "99999999999999999999999"] {
            let text = ask(addr, &format!("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n"));
            assert!(text.starts_with("HTTP/1.1 413 "), "{text}");
        }
        assert_eq!(tally.refused(), BTreeMap::from([("body_too_large", 3)]));
    }

    #[test]
    fn who_finds_no_place_is_told_so_and_a_place_comes_free_again() {
        let (addr, tally) = port(LIMITS);
        let held: Vec<_> = (0..2).map(|_| TcpStream::connect(addr).unwrap()).collect();
        // Accepted in the order of arrival: the third finds both taken.
        let text = ask(addr, "GET /echo HTTP/1.1\r\nHost: a\r\n\r\n");
        assert!(text.starts_with("HTTP/1.1 503 ") && text.contains("Retry-After"), "{text}");
        drop(held);
        while tally.open.load(Ordering::Acquire) > 0 {
            std::thread::yield_now();
        }
        let text = ask(addr, "GET /echo HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        assert!(text.starts_with("HTTP/1.1 200 "), "{text}");
        assert!(!tally.is_busy());
    }
}
