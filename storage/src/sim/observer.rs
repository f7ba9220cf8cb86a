//! Watching what an engine does to its disk.

use std::fmt::Debug;

/// Told of every change to the disk, for monitors such as "no page before its log".
///
/// Called on the thread that makes the change, while the disk stands still: calls come in the order of their effects,
/// and an observer must not call the storage it observes (it would wait for itself). Reads, and calls that fail
/// without an effect, are not reported. A write that fails half way, or is cut by a crash, is reported with the bytes
/// that reached the page cache; a write that an injected fault loses or misdirects, as the engine meant it.
///
/// Names are the current ones: a file that was renamed while open is reported under its new name.
pub trait Observer: Debug + Send + Sync {
    /// `bytes` are about to be written to `file` at `offset`.
    fn write(&self, file: &str, offset: u64, bytes: &[u8]) {
        let _ = (file, offset, bytes);
    }
    /// All earlier writes to `file` became durable.
    fn synced(&self, file: &str) {
        let _ = file;
    }
    /// `file` is about to be cut or extended to `len` bytes.
    fn resized(&self, file: &str, len: u64) {
        let _ = (file, len);
    }
    /// `file`, or a directory, is about to be created.
    fn created(&self, file: &str) {
        let _ = file;
    }
    /// `from` is about to become `to`.
    fn renamed(&self, from: &str, to: &str) {
        let _ = (from, to);
    }
    /// `file` is about to be removed.
    fn removed(&self, file: &str) {
        let _ = file;
    }
    /// All earlier changes of names in `directory` became durable.
    fn directory_synced(&self, directory: &str) {
        let _ = directory;
    }
}
