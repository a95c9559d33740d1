//! What the store's threads count; each number has one writer.

use crate::metrics::{Counter, Kind, Page};

macro_rules! counters {
    ($($field:ident: $kind:ident $metric:literal $labels:literal $help:literal,)*) => {
        /// The store's counters.
        #[derive(Debug, Default)]
        pub struct StoreCounters {
            $(#[doc = $help] pub $field: Counter,)*
        }

        impl StoreCounters {
            /// Adds all of them to a page.
            pub fn add_to(&self, page: &mut Page) {
                $(page.add($metric, $labels, Kind::$kind, $help, self.$field.value());)*
            }
        }
    };
}

// Lines of one metric stand together: the text format wants them so.
counters! {
    up: Gauge "rtc_socket_store_up" "" "1 while the store answers.",
    unanswered: Gauge "rtc_socket_store_unanswered_requests" "" "Requests to the store that wait for its answer.",
    connects: Counter "rtc_socket_store_connects_total" "" "Times the store was connected to.",
    claims: Counter "rtc_socket_store_requests_total" "kind=\"claim\"" "Requests that the store has answered, by kind.",
    releases: Counter "rtc_socket_store_requests_total" "kind=\"release\"" "Requests that the store has answered, by kind.",
    appends: Counter "rtc_socket_store_requests_total" "kind=\"append\"" "Requests that the store has answered, by kind.",
    pages: Counter "rtc_socket_store_requests_total" "kind=\"page\"" "Requests that the store has answered, by kind.",
    trims: Counter "rtc_socket_store_requests_total" "kind=\"trim\"" "Requests that the store has answered, by kind.",
    removes: Counter "rtc_socket_store_requests_total" "kind=\"remove\"" "Requests that the store has answered, by kind.",
    elsewhere: Counter "rtc_socket_store_not_done_total" "cause=\"elsewhere\"" "Requests that the store did not do, by cause.",
    buffer_full: Counter "rtc_socket_store_not_done_total" "cause=\"buffer_full\"" "Requests that the store did not do, by cause.",
    refused: Counter "rtc_socket_store_not_done_total" "cause=\"refused\"" "Requests that the store did not do, by cause.",
    retried: Counter "rtc_socket_store_retried_total" "" "Requests asked again, after a lost connection or a passing error.",
    expired: Counter "rtc_socket_store_expired_total" "found_by=\"request\"" "Messages dropped from replay buffers by age.",
    expired_swept: Counter "rtc_socket_store_expired_total" "found_by=\"sweep\"" "Messages dropped from replay buffers by age.",
    malformed: Counter "rtc_socket_store_malformed_total" "found_by=\"request\"" "Values in the store that were refused.",
    malformed_swept: Counter "rtc_socket_store_malformed_total" "found_by=\"sweep\"" "Values in the store that were refused.",
    malformed_members: Counter "rtc_socket_store_malformed_total" "found_by=\"membership\"" "Values in the store that were refused.",
    beats: Counter "rtc_socket_store_heartbeats_total" "" "Heartbeats that the store has taken.",
    beats_late: Counter "rtc_socket_store_heartbeats_late_total" "" "Times this node was silent so long that others may have taken it for dead.",
    nodes: Gauge "rtc_socket_store_live_nodes" "" "Nodes whose heartbeat is fresh.",
}
