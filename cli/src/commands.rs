//! The commands, one module each: its arguments and what it does.

pub(crate) mod backup;
pub(crate) mod check;
pub(crate) mod create;
pub(crate) mod del;
pub(crate) mod demo;
pub(crate) mod drop_table;
pub(crate) mod dump;
pub(crate) mod get;
pub(crate) mod load;
pub(crate) mod log;
pub(crate) mod page;
pub(crate) mod partitions;
pub(crate) mod put;
pub(crate) mod recover;
pub(crate) mod rename;
pub(crate) mod repair;
pub(crate) mod reshape;
pub(crate) mod restore;
pub(crate) mod scan;
pub(crate) mod scrub;
pub(crate) mod stat;
pub(crate) mod tables;
