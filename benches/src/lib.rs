//! What the benchmarks share: rows, directories, and the engines that are measured beside Hamal.
//!
//! I1. Every engine gets the same rows in the same order, and reads them back in the same order.
//! I2. Nothing here is shipped: the crate may use what the engine may not (`std::fs`, wall clocks, C libraries).

pub mod floor;
pub mod memory;
pub mod peer;
pub mod place;
pub mod plot;
pub mod process;
pub mod rows;
pub mod spread;
pub mod writers;
pub mod zipf;
