//! A range comes back as it was at any moment, whatever has become of its partitions since; and nothing else changes.

mod beside;
mod faults;
mod moments;
mod refused;
mod world;
