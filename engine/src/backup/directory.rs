//! A target in a directory of files.
//!
//! I1. An object is written under another name (`.tmp` behind its own), synced, renamed, and its directory synced: it appears whole.
//! I2. A name ending in `.tmp` is nobody's: not listed, and written over by whoever writes the object again.

use std::io;
use std::path::Path;
use std::sync::Arc;

use hamal_storage::{File, OsStorage, Storage, write_all_at};

use super::target::{ObjectReader, ObjectWriter, Target};

const TEMPORARY: &str = ".tmp";

/// Objects as files below a directory.
#[derive(Clone, Debug)]
pub struct DirectoryTarget {
    storage: Arc<dyn Storage>,
    /// With a `/` at its end, if it is not empty.
    prefix: String,
}

impl DirectoryTarget {
    /// In a directory of the system, which is made when something is written.
    pub fn new(path: impl AsRef<Path>) -> DirectoryTarget {
        DirectoryTarget { storage: Arc::new(OsStorage::new(path.as_ref())), prefix: String::new() }
    }

    /// In a directory of any storage; `""`: its root.
    pub fn within(storage: Arc<dyn Storage>, directory: &str) -> DirectoryTarget {
        let prefix = if directory.is_empty() { String::new() } else { format!("{directory}/") };
        DirectoryTarget { storage, prefix }
    }

    /// The file of an object. Names are checked: they come from others too.
    fn path(&self, name: &str) -> io::Result<String> {
        let is_sound = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-./".contains(c);
        if !name.chars().all(is_sound) || name.ends_with(TEMPORARY) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{name:?} is no object's name")));
        }
        Ok(format!("{}{name}", self.prefix))
    }
}

/// The directory that a path lies in.
fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(directory, _)| directory)
}

/// Makes a directory durable, and those above it.
fn make_directory(storage: &dyn Storage, directory: &str) -> io::Result<()> {
    storage.create_directory(directory)?;
    let mut below = directory;
    while !below.is_empty() {
        below = parent(below);
        storage.sync_directory(below)?;
    }
    Ok(())
}

impl Target for DirectoryTarget {
    fn create(&self, name: &str) -> io::Result<Box<dyn ObjectWriter>> {
        let path = self.path(name)?;
        if self.storage.exists(&path)? {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let directory = parent(&path);
        if directory.is_empty() || !self.storage.exists(directory)? {
            make_directory(&*self.storage, directory)?;
        }
        let temporary = format!("{path}{TEMPORARY}");
        let file = match self.storage.create(&temporary) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                self.storage.remove(&temporary)?;
                self.storage.create(&temporary)?
            }
            other => other?,
        };
        Ok(Box::new(FileWriter {
            storage: Arc::clone(&self.storage),
            path,
            file,
            written: 0,
            finished: false,
        }))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn ObjectReader>> {
        let file = self.storage.open(&self.path(name)?)?;
        Ok(Box::new(FileReader { file, at: 0 }))
    }

    fn list(&self, directory: &str) -> io::Result<Vec<String>> {
        let path = self.path(directory)?;
        let mut names = match self.storage.list(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            other => other?,
        };
        names.retain(|name| !name.ends_with(TEMPORARY));
        Ok(names)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let path = self.path(name)?;
        match self.storage.remove(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        }
        self.storage.sync_directory(parent(&path))
    }
}

struct FileWriter {
    storage: Arc<dyn Storage>,
    path: String,
    file: Arc<dyn File>,
    written: u64,
    finished: bool,
}

impl FileWriter {
    fn temporary(&self) -> String {
        format!("{}{TEMPORARY}", self.path)
    }
}

impl ObjectWriter for FileWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        write_all_at(&*self.file, bytes, self.written)?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> io::Result<()> {
        self.file.sync_data()?;
        // A rename would replace what somebody else has finished meanwhile.
        if self.storage.exists(&self.path)? {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.storage.rename(&self.temporary(), &self.path)?;
        self.finished = true;
        self.storage.sync_directory(parent(&self.path))
    }
}

impl Drop for FileWriter {
    fn drop(&mut self) {
        if !self.finished {
            // If even that fails it is in nobody's way (I2).
            let _left = self.storage.remove(&self.temporary());
        }
    }
}

struct FileReader {
    file: Arc<dyn File>,
    at: u64,
}

impl ObjectReader for FileReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.file.read_at(buffer, self.at) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Ok(count) => {
                    self.at += count as u64;
                    return Ok(count);
                }
                Err(e) => return Err(e),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use hamal_storage::sim::{CrashMode, SimStorage};

    use super::*;

    fn read_all(target: &DirectoryTarget, name: &str) -> Vec<u8> {
        let mut reader = target.open(name).unwrap();
        let (mut all, mut buffer) = (Vec::new(), [0; 7]);
        loop {
            match reader.read(&mut buffer).unwrap() {
                0 => return all,
                count => all.extend_from_slice(&buffer[..count]),
            }
        }
    }

    #[test]
    fn an_object_appears_whole_and_durable_or_not_at_all() {
        let disk = SimStorage::new(1);
        let target = DirectoryTarget::within(Arc::new(disk.clone()), "target");
        let mut dropped = target.create("a/b/dropped").unwrap();
        dropped.write(b"half").unwrap();
        drop(dropped);
        let mut writer = target.create("a/b/c").unwrap();
        writer.write(b"hello, ").unwrap();
        assert_eq!(target.list("a/b").unwrap(), Vec::<String>::new());
        writer.write(b"world").unwrap();
        writer.finish().unwrap();
        assert_eq!(target.list("a/b").unwrap(), ["c"]);
        let disk = disk.crash(CrashMode::LoseAll, 2);
        let target = DirectoryTarget::within(Arc::new(disk), "target");
        assert_eq!(read_all(&target, "a/b/c"), b"hello, world");
        assert_eq!(target.list("a/b").unwrap(), ["c"]);
        assert_eq!(target.list("a").unwrap(), ["b"]);
    }

    #[test]
    fn an_object_is_never_written_over_and_bad_names_are_refused() {
        let target = DirectoryTarget::within(Arc::new(SimStorage::new(1)), "");
        let (one, two) = (target.create("x").unwrap(), target.create("x").unwrap());
        drop(two);
        // Its file went with the other one's: it must not appear.
        assert!(one.finish().is_err());
        target.create("x").unwrap().finish().unwrap();
        assert_eq!(target.create("x").err().unwrap().kind(), io::ErrorKind::AlreadyExists);
        for name in ["../x", "/x", "X", "a b", "x.tmp"] {
            assert!(target.create(name).is_err(), "{name}");
        }
        target.remove("x").unwrap();
        target.remove("x").unwrap();
        assert_eq!(target.open("x").err().unwrap().kind(), io::ErrorKind::NotFound);
    }
}
