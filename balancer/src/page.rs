//! The files of the page at `/`: nodes, loads, weights, shares, rebalances, live.
//! They are part of the program: the page loads nothing from anywhere else, and its headers hold it to that.

/// What a browser may do with the page: load this balancer's own files, ask this balancer, and nothing more.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
    img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// One file.
#[derive(Debug, Clone, Copy)]
pub struct File {
    /// Its media type.
    pub content_type: &'static str,
    /// Its text.
    pub body: &'static str,
}

impl File {
    /// The headers it is served with.
    pub fn headers(&self) -> [(&'static str, &'static str); 5] {
        [
            ("Content-Type", self.content_type),
            ("Content-Security-Policy", CONTENT_SECURITY_POLICY),
            ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "no-referrer"),
            // A newer balancer has a newer page.
            ("Cache-Control", "no-cache"),
        ]
    }
}

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const JAVASCRIPT: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

/// The file under `path`, if there is one.
pub fn file(path: &str) -> Option<File> {
    let (content_type, body) = match path {
        "/" => (HTML, include_str!("page/index.html")),
        "/page.css" => (CSS, include_str!("page/page.css")),
        "/page.js" => (JAVASCRIPT, include_str!("page/page.js")),
        "/icon.svg" => (SVG, include_str!("page/icon.svg")),
        _ => return None,
    };
    Some(File { content_type, body })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_asks_only_for_files_that_are_there() {
        let page = file("/").unwrap().body;
        let asked: Vec<&str> = page
            .split(['"', '\''])
            .zip(page.split(['"', '\'']).skip(1))
            .filter(|(before, _)| before.ends_with("src=") || before.ends_with("href="))
            .map(|(_, path)| path)
            // What the program answers itself is no file.
            .filter(|path| !path.starts_with("/api/"))
            .collect();
        assert!(asked.len() >= 3, "{asked:?}");
        for path in asked {
            assert!(file(path).is_some(), "{path}");
        }
    }

    #[test]
    fn the_page_carries_no_script_or_style_that_its_own_policy_forbids() {
        let page = file("/").unwrap().body;
        for forbidden in ["<style", "style=", "onclick=", "<script>", "http://", "https://"] {
            assert!(!page.contains(forbidden), "{forbidden}");
        }
        // Everything that came from somewhere else is shown as text, never read as markup.
        let script = file("/page.js").unwrap().body;
        for forbidden in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("] {
            assert!(!script.contains(forbidden), "{forbidden}");
        }
    }
}
