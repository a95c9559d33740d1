//! The benches are under `benches/`, what they cannot measure under `examples/`; this crate itself holds nothing.
