//! The store against a real Redis.

mod garbage;
mod membership;
mod redis_server;
mod rules;
mod running;
mod scripted;
mod thread;
