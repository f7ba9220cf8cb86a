//! The fuzz targets outside a fuzzer: they replay inputs from files, so that findings need no fuzzer to be looked at.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Replays every file given on the command line, and every file in every directory given. A finding panics.
pub fn main(target: fn(&[u8])) -> ExitCode {
    let paths: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    if paths.is_empty() {
        eprintln!("give files or directories with inputs to replay");
        return ExitCode::FAILURE;
    }
    for path in paths {
        if let Err(error) = replay(&path, target) {
            eprintln!("{}: {error}", path.display());
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn replay(path: &Path, target: fn(&[u8])) -> std::io::Result<()> {
    if !path.is_dir() {
        println!("{}", path.display());
        target(&fs::read(path)?);
        return Ok(());
    }
    let mut entries =
        fs::read_dir(path)?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>()?;
    entries.sort();
    entries.iter().try_for_each(|entry| replay(entry, target))
}
