//! Crash simulator, fault campaigns and fuzz targets for Hamal.
//!
//! Everything runs on the simulated disk, on one thread at a time per run, and is a function of a seed or of a fuzzer's bytes; all but
//! [`histories`], whose clients are threads that the system chooses.
//!
//! | module | what it has |
//! |---|---|
//! | [`choice`], [`plan`], [`keys`], [`value`] | what a run is made of |
//! | [`model`] | what the database must hold, and may have lost |
//! | [`workload`] | transactions drawn and mirrored in the model |
//! | [`disk`], [`monitor`] | the simulated disk under the eyes of the write-ahead monitor |
//! | [`crash`] | random runs: lives that end at any I/O |
//! | [`concurrent`], [`scheduler`] | random runs of several clients at once, and who of them runs when |
//! | [`sweep`] | exhaustive runs: a crash, and every fault, at every I/O |
//! | [`flips`] | damage: any byte of any file of a closed database |
//! | [`rot`] | pages that go bad on the disk while the database runs, and between two runs |
//! | [`histories`], [`checker`] | clients at once, and whether any order of their transactions explains what they saw |
//! | [`targets`] | what the libFuzzer targets call |

#![forbid(unsafe_code)]

pub mod checker;
pub mod choice;
pub mod concurrent;
pub mod crash;
pub mod disk;
pub mod flips;
pub mod histories;
pub mod keys;
mod machine;
pub mod model;
pub mod monitor;
pub mod plan;
pub mod replay;
pub mod rot;
pub mod scheduler;
pub mod sweep;
pub mod tally;
pub mod targets;
pub mod value;
pub mod workload;
