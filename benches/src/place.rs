//! Where benchmarks keep their files.

use std::io;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// A fresh directory below `HAMAL_BENCH_DIR` (or the system's temporary directory), removed when dropped. It should be on the
/// disk that is to be measured: a memory file system answers a sync at once and makes every commit look free.
pub fn fresh_directory() -> io::Result<TempDir> {
    fresh_directory_in(std::env::var_os("HAMAL_BENCH_DIR").map(PathBuf::from).as_deref())
}

/// The same below `place`, which is made if it is missing, or below the system's temporary directory.
pub fn fresh_directory_in(place: Option<&Path>) -> io::Result<TempDir> {
    let mut builder = tempfile::Builder::new();
    builder.prefix("hamal-bench-");
    match place {
        Some(place) => {
            std::fs::create_dir_all(place)?;
            builder.tempdir_in(place)
        }
        None => builder.tempdir(),
    }
}
