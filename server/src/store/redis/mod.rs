//! The store that is Redis: sessions and replay buffers of all nodes, and who is alive.
//!
//! | module | holds |
//! |---|---|
//! | [`keys`] | the names of keys |
//! | [`scripts`] | the scripts, and how a request becomes a call |
//! | [`codec`] | messages as fields, replies as answers |
//! | [`pack`] | commands packed by hand |

pub mod codec;
pub mod keys;
pub mod pack;
pub mod scripts;
