//! The log as its users see it.
#![expect(
    clippy::unwrap_used,
    reason = "tests; clippy does not see that through the parent's `cfg(all(..))`"
)]

mod accounting;
mod basics;
mod campaign;
mod copying;
mod damage;
mod faults;
mod pieces;
mod resuming;
mod support;
mod tails;
