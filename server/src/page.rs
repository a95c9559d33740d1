//! The files that the listen port serves: one page to try the node by hand, and the reference client it uses.

use rim::page::File;

/// The file under `path`, if there is one.
pub fn file(path: &str) -> Option<File> {
    match path {
        "/" => Some(File::html(include_str!("page/index.html"))),
        "/page.css" => Some(File::css(include_str!("page/page.css"))),
        "/page.js" => Some(File::javascript(include_str!("page/page.js"))),
        "/client.js" => Some(File::javascript(include_str!("page/client.js"))),
        "/icon.svg" => Some(File::svg(include_str!("page/icon.svg"))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_whole_and_keeps_to_its_policy() {
        let files = rim::page::check(file).unwrap();
        assert!(files >= 4, "{files}");
    }
}
