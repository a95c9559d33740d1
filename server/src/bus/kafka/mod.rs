//! The bus over Kafka.

pub mod fences;
pub mod watermark;
