//! What the listen port serves beside sessions, and the reference client, against a node in a process of its own.

#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Longer than any answer takes.
const PATIENCE: Duration = Duration::from_secs(120);

/// How long a client may take to ack before its message counts as held: one that is there takes less, whatever else the
/// machine does, and one that is cut off is waited for.
const ACK_WAIT: &str = "5s";

/// A running node; it ends with its test.
struct Node {
    process: Child,
    listen: SocketAddr,
}

impl Node {
    fn start() -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_rtc-server"))
            .args(["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--ack-wait", ACK_WAIT])
            .stdout(Stdio::piped())
            .spawn()
            .expect("the node starts");
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let ready =
            lines.map(Result::unwrap).find(|line| line.starts_with("ready ")).expect("the node says it is ready");
        let listen = ready.split(' ').find_map(|word| word.strip_prefix("listen=")).expect("and where");
        let listen = listen.parse().expect("as an address");
        Self { process, listen }
    }

    /// Sends one request and returns the head and the body of the answer.
    fn ask(&self, method: &str, path: &str) -> (String, String) {
        let mut socket = TcpStream::connect(self.listen).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(socket, "{method} {path} HTTP/1.1\r\nHost: {}\r\n\r\n", self.listen).unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").expect("an HTTP answer");
        (head.to_owned(), body.to_owned())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn the_page_and_its_files_are_served_with_their_types_and_a_policy() {
    let node = Node::start();
    for (path, content_type, has) in [
        ("/", "text/html; charset=utf-8", "<title>rtc"),
        ("/page.css", "text/css; charset=utf-8", "prefers-color-scheme: dark"),
        ("/page.js", "text/javascript; charset=utf-8", "new RtcClient("),
        ("/client.js", "text/javascript; charset=utf-8", "class RtcClient"),
        ("/icon.svg", "image/svg+xml", "<svg"),
    ] {
        let (head, body) = node.ask("GET", path);
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{path}: {head}");
        assert!(head.contains(&format!("\r\nContent-Type: {content_type}\r\n")), "{path}: {head}");
        assert!(head.contains("\r\nContent-Security-Policy: default-src 'none'; script-src 'self';"), "{path}: {head}");
        assert!(head.contains("\r\nX-Content-Type-Options: nosniff\r\n"), "{path}: {head}");
        assert!(head.contains(&format!("\r\nContent-Length: {}", body.len())), "{path}: {head}");
        assert!(body.contains(has), "{path}");
    }
}

#[test]
fn other_paths_and_methods_are_refused() {
    let node = Node::start();
    for (method, path) in [("GET", "/nothing"), ("GET", "/page"), ("GET", "/../Cargo.toml"), ("POST", "/")] {
        let (head, _) = node.ask(method, path);
        assert!(head.starts_with("HTTP/1.1 404 "), "{method} {path}: {head}");
    }
}

#[test]
fn the_reference_client_delivers_once_and_in_order_across_cuts() {
    // Node 20 has a WebSocket behind a flag, later ones have it anyway.
    let accepts = |flag: &[&str]| {
        let script = "process.exit(typeof WebSocket === 'function' ? 0 : 1)";
        let status =
            Command::new("node").args(flag).args(["-e", script]).stdout(Stdio::null()).stderr(Stdio::null()).status();
        status.is_ok_and(|status| status.success())
    };
    let Some(flag) = [&[][..], &["--experimental-websocket"][..]].into_iter().find(|flag| accepts(flag)) else {
        // Written past the test's capture: a test that did not run must be seen.
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED the_reference_client_delivers_once_and_in_order_across_cuts: no `node` of version 20 or later here"
        );
        return;
    };
    let node = Node::start();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/client.cjs");
    let output = Command::new("node")
        .args(flag)
        .args([script, &node.listen.port().to_string()])
        .output()
        .expect("node has just run");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.trim_end().ends_with(" passed"), "{said}");
}
