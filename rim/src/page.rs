//! The files of a page that is part of its program: it loads nothing from anywhere else, and its headers hold it to that.

/// What a browser may do with the page: load the program's own files, speak with the program, and nothing more.
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
    /// A page.
    pub const fn html(body: &'static str) -> Self {
        Self { content_type: "text/html; charset=utf-8", body }
    }

    /// How it looks.
    pub const fn css(body: &'static str) -> Self {
        Self { content_type: "text/css; charset=utf-8", body }
    }

    /// What it does.
    pub const fn javascript(body: &'static str) -> Self {
        Self { content_type: "text/javascript; charset=utf-8", body }
    }

    /// Its icon.
    pub const fn svg(body: &'static str) -> Self {
        Self { content_type: "image/svg+xml", body }
    }

    /// The headers it is served with.
    pub fn headers(&self) -> [(&'static str, &'static str); 5] {
        [
            ("Content-Type", self.content_type),
            ("Content-Security-Policy", CONTENT_SECURITY_POLICY),
            ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "no-referrer"),
            // A newer program has a newer page.
            ("Cache-Control", "no-cache"),
        ]
    }
}

/// Checks the page at `/`, for the test of a program that has one: each file that it asks for is there, it holds nothing
/// that its own policy forbids, and its script shows what came from elsewhere as text, never as markup. Returns how many
/// files it asks for.
///
/// # Errors
/// Names the first thing that is wrong.
pub fn check(file: impl Fn(&str) -> Option<File>) -> Result<usize, String> {
    let body = |path: &str| file(path).map(|file| file.body).ok_or_else(|| format!("{path} is not there"));
    let page = body("/")?;
    let quoted = page.split(['"', '\'']).zip(page.split(['"', '\'']).skip(1));
    let asked =
        quoted.filter(|(before, _)| before.ends_with("src=") || before.ends_with("href=")).map(|(_, path)| path);
    let mut files = 0;
    // What the program answers itself is no file.
    for path in asked.filter(|path| !path.starts_with("/api/")) {
        body(path)?;
        files += 1;
    }
    let forbidden = ["<style", "style=", "onclick=", "<script>", "http://", "https://"];
    if let Some(found) = forbidden.iter().find(|found| page.contains(**found)) {
        return Err(format!("/ holds {found}"));
    }
    let script = body("/page.js")?;
    let forbidden = ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("];
    match forbidden.iter().find(|found| script.contains(**found)) {
        Some(found) => Err(format!("/page.js holds {found}")),
        None => Ok(files),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_page(page: &'static str, script: &'static str) -> Result<usize, String> {
        check(|path| match path {
            "/" => Some(File::html(page)),
            "/page.js" => Some(File::javascript(script)),
            _ => None,
        })
    }

    #[test]
    fn a_page_is_checked() {
        assert_eq!(check_page(r#"<script src="/page.js"></script><a href="/api/v1/ring">ring</a>"#, ""), Ok(1));
        for (page, script, word) in [
            (r#"<link href="/page.css">"#, "", "/page.css"),
            ("<style>a{}</style>", "", "<style"),
            ("<a href='https://a'>", "", "https://a"),
            ("", "node.innerHTML = name", "innerHTML"),
        ] {
            let reason = check_page(page, script).unwrap_err();
            assert!(reason.contains(word), "{reason}");
        }
    }
}
