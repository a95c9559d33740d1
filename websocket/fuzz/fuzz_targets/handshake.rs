//! Any bytes as a request and as a response: nothing panics, and no length is beyond the input.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rtc_websocket::handshake::{Request, parse_upgrade_response};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(Some((request, consumed))) = Request::parse(bytes) {
        assert!(consumed <= bytes.len());
        let _ = request.query_pairs().count();
        if let Ok(upgrade) = request.upgrade() {
            let _ = upgrade.subprotocols().count();
        }
    }
    if let Ok(Some(consumed)) = parse_upgrade_response(bytes, "dGhlIHNhbXBsZSBub25jZQ==") {
        assert!(consumed <= bytes.len());
    }
});
