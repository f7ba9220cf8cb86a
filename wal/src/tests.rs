//! The log as its users see it.

mod basics;
mod support;
