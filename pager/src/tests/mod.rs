//! Behaviour of the whole pager, over a storage with hooks.

mod basics;
mod rig;
