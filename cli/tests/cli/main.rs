//! The `hamal` binary from outside: what goes in, what comes out, and the exit status.

#![expect(clippy::unwrap_used, reason = "tests and what they share")]

mod backing_up;
mod editing;
mod exploring;
mod failing;
mod loading;
mod scrubbing;
mod support;
