//! Where backups and archived log go: a flat space of named, immutable objects. A directory today; an object store fits too.

use std::fmt::Debug;
use std::io;

/// A place for named, immutable objects.
///
/// Names are relative and `/`-separated, of lower-case letters, digits, `-`, `.` and `/`. An object appears whole, when its writer finishes,
/// or not at all: whoever lists or opens never sees a part of one. Many threads may call at once.
pub trait Target: Debug + Send + Sync {
    /// Begins an object. It is there once [`ObjectWriter::finish`] has returned; one of that name that is there already is an error
    /// (`AlreadyExists`), then at the latest.
    fn create(&self, name: &str) -> io::Result<Box<dyn ObjectWriter>>;
    /// Opens an object. `NotFound` if there is none.
    fn open(&self, name: &str) -> io::Result<Box<dyn ObjectReader>>;
    /// The last parts of all names that begin with `directory` and a `/`, up to the next `/`, sorted, each once; none if there is no such
    /// name.
    fn list(&self, directory: &str) -> io::Result<Vec<String>>;
    /// Removes an object. Fine if there is none.
    fn remove(&self, name: &str) -> io::Result<()>;
}

/// An object that is being written. Dropped unfinished, it never was.
pub trait ObjectWriter: Send {
    /// Appends bytes.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Makes the object appear, durably.
    fn finish(self: Box<Self>) -> io::Result<()>;
}

/// An object that is being read, from its start.
pub trait ObjectReader: Send {
    /// Reads what follows; returns how many bytes came, 0 at the end. May be short.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize>;
}
