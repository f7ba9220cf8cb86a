//! Pages at fixed addresses in anonymous memory maps: latches, eviction, write-back, free space.

pub mod header;
mod id;
mod pager;
mod partition;
pub mod space;

pub use id::{PageNo, PartitionId};
pub use pager::{DirtyPage, Pager, PagerOptions, PagerStats, RestoredPage, WriteAhead};
pub use partition::{
    Attempt, EpochGuard, ExclusivePage, OptimisticPage, PageClass, Partition, SharedPage, pin_epoch,
};
