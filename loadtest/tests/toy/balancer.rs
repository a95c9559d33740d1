//! A balancer to test the load generator against: it names one node, or answers wrongly in one known way.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

/// What it does when it is asked where a client belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Names this node.
    Node(SocketAddr),
    /// Sends these bytes and closes.
    Bytes(Vec<u8>),
    /// Nothing, and holds the connection.
    Silence,
}

#[derive(Debug)]
pub struct Balancer {
    pub addr: SocketAddr,
    /// The targets it was asked for, in turn.
    asked: Arc<Mutex<Vec<String>>>,
}

impl Balancer {
    /// Answers on a free port of 127.0.0.1 until the test process ends.
    pub fn start(answer: Answer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let all_asked = Arc::clone(&asked);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (answer, asked) = (answer.clone(), Arc::clone(&all_asked));
                // A connection that breaks is the client's affair.
                thread::spawn(move || serve_request(stream.ok()?, &answer, &asked));
            }
        });
        Self { addr, asked }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

fn serve_request(mut stream: TcpStream, answer: &Answer, asked: &Mutex<Vec<String>>) -> Option<()> {
    let mut lines = BufReader::new(stream.try_clone().ok()?).lines();
    let first = lines.next()?.ok()?;
    let mut words = first.split(' ');
    if words.next() != Some("GET") {
        return None;
    }
    asked.lock().unwrap().push(words.next()?.to_owned());
    while !lines.next()?.ok()?.is_empty() {}
    match answer {
        Answer::Node(addr) => {
            let body = format!(r#"{{"nodeId":"toy","wsUrl":"ws://{addr}/ws/connect","ringVersion":1}}"#);
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            // In two pieces, as may come of any network.
            stream.write_all(head.as_bytes()).ok()?;
            stream.write_all(body.as_bytes()).ok()
        }
        Answer::Bytes(bytes) => stream.write_all(bytes).ok(),
        // Until the other side has had enough.
        Answer::Silence => lines.next()?.ok().map(drop),
    }
}
