//! Behaviour of the whole pager, over a storage with hooks.

mod basics;
mod copies;
mod crash;
mod doublewrite;
mod faults;
mod healing;
mod redirty;
mod rig;
mod seal;
mod stress;
