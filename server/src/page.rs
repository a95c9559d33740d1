//! The files that the listen port serves: one page to try the node by hand, and the reference client it uses.

/// One file.
#[derive(Debug, Clone, Copy)]
pub struct File {
    /// Its media type.
    pub content_type: &'static str,
    /// Its text.
    pub body: &'static str,
}

const PAGE: File = File { content_type: "text/html; charset=utf-8", body: include_str!("page/index.html") };
const CLIENT: File = File { content_type: "text/javascript; charset=utf-8", body: include_str!("page/client.js") };

/// The file under `path`, if there is one.
pub fn file(path: &str) -> Option<File> {
    match path {
        "/" => Some(PAGE),
        "/client.js" => Some(CLIENT),
        _ => None,
    }
}
