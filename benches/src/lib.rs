//! The benches are under `benches/`; this crate holds nothing else.
