//! Pages at fixed addresses in anonymous memory maps: latches, eviction, write-back, free space.
//!
//! After vmcache (Leis et al., SIGMOD 2023): page p of a partition lives at a fixed place in an anonymous map, so there
//! is no hash table and no pointer swizzling; one atomic word per page is its latch, version and state. Pages are read with
//! `pread` and written with `pwrite`, through a doublewrite area, and never before the log is durable.
//!
//! In the order of reading: `state` (the word), `guard` (what callers hold), `region` (the memory), `partition`
//! (fixing a page), `frames` and `evict` (the budget), `dirty` and `write_back` (what must reach the disk),
//! `doublewrite` (torn pages), [`space`] (allocation bitmaps). `docs/concurrency.md` and `docs/unsafe.md` have the arguments.
//!
//! Under `--cfg loom` only the pieces with memory orderings are built, with their models.

#[cfg(not(loom))]
mod ahead;
#[cfg(not(loom))]
mod copy;
#[cfg(not(loom))]
mod core;
#[cfg_attr(loom, expect(dead_code, reason = "the models use the pieces, not their callers"))]
mod dirty;
#[cfg(not(loom))]
mod doublewrite;
#[cfg(not(loom))]
mod epoch;
#[cfg(not(loom))]
mod evict;
#[cfg(not(loom))]
mod frames;
#[cfg(not(loom))]
mod guard;
#[cfg(not(loom))]
pub mod header;
#[cfg(not(loom))]
mod heal;
mod id;
#[cfg(not(loom))]
mod pager;
#[cfg(not(loom))]
mod partition;
#[cfg(not(loom))]
mod region;
#[cfg(not(loom))]
mod scrub;
pub mod space;
#[cfg_attr(loom, expect(dead_code, reason = "the models use the pieces, not their callers"))]
mod state;
mod sync;
#[cfg(not(loom))]
mod write_back;

#[cfg(not(loom))]
pub use copy::Copied;
#[cfg(not(loom))]
pub use doublewrite::NAME as DOUBLEWRITE;
#[cfg(not(loom))]
pub use epoch::{EpochGuard, pin_epoch};
#[cfg(not(loom))]
pub use guard::{Attempt, ExclusivePage, OptimisticPage, SharedPage};
#[cfg(not(loom))]
pub use heal::{BadPage, CopyPlace, Healer, Healing, PageCopy};
pub use id::{PageNo, PartitionId};
#[cfg(not(loom))]
pub use pager::{
    DirtyPage, Mending, Pager, PagerOptions, PagerStats, RestoredPage, TornPages, WriteAhead, WrittenPage,
};
#[cfg(not(loom))]
pub use partition::Partition;
#[cfg(not(loom))]
pub use region::HugePages;
#[cfg(not(loom))]
pub use scrub::Scrubbed;
pub use state::PageClass;

#[cfg(test)]
#[cfg(loom)]
mod models;
#[cfg(test)]
#[cfg(not(loom))]
mod tests;
