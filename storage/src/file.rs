//! The traits: a directory of files, and one file.

use std::fmt::Debug;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// What [`File::write_direct_at`] writes past the cache begins at multiples of this, in memory and in the file, and is a multiple of it long.
pub const DIRECT_BLOCK_BYTES: usize = 4096;

/// A directory with files in it, a clock and a random source: all of the outside that Hamal sees.
///
/// Names are relative, `/`-separated and UTF-8 (`"wal/00000000000000001000.log"`); the directory itself is
/// `""`. A name that is absolute or contains `..` is refused with `InvalidInput`.
pub trait Storage: Debug + Send + Sync + 'static {
    /// Opens an existing file for reading and writing.
    fn open(&self, name: &str) -> io::Result<Arc<dyn File>>;
    /// Creates a file; `AlreadyExists` if the name is taken. Durable once its directory is synced.
    fn create(&self, name: &str) -> io::Result<Arc<dyn File>>;
    /// Whether a file or directory of this name exists.
    fn exists(&self, name: &str) -> io::Result<bool>;
    /// The names (not paths) in a directory, sorted.
    fn list(&self, directory: &str) -> io::Result<Vec<String>>;
    /// Creates a directory and its parents; fine if it exists.
    fn create_directory(&self, name: &str) -> io::Result<()>;
    /// Renames within the tree, replacing the target; durable once both directories are synced.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file; durable once its directory is synced.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes creations, renames and removals in a directory durable.
    fn sync_directory(&self, name: &str) -> io::Result<()>;
    /// Which file has this name now; `None` if there is none. See [`File::identity`].
    fn identity(&self, name: &str) -> io::Result<Option<FileId>>;
    /// Takes the exclusive advisory lock on a file (created if missing) without waiting; `WouldBlock` if
    /// another holder, in this process or another, has it. Released when dropped, and when the process dies.
    fn lock(&self, name: &str) -> io::Result<Box<dyn Lock>>;
    /// Wall-clock time, microseconds since the Unix epoch.
    fn now_micros(&self) -> u64;
    /// Monotonic time since an arbitrary start.
    fn monotonic(&self) -> Duration;
    /// Fresh random bits.
    fn random_u64(&self) -> u64;
    /// Who decides which thread runs; `None`: the operating system. A simulation has one, so that a run replays from its seed.
    fn scheduler(&self) -> Option<&dyn Scheduler> {
        None
    }
}

/// Runs the threads of a simulation one at a time. Code that is told of one never waits by itself for another thread: it pauses until
/// what it waits for has come.
pub trait Scheduler: Debug + Send + Sync {
    /// Lets other threads run; returns when this one is chosen again. The caller holds no latch, no log permit, and no mutex that
    /// anybody waits for other than by this scheduler. `place` names the point, for traces.
    fn pause(&self, place: &'static str);
    /// As `pause`, for one that can go on only when another thread has done something or its time is over. If all threads only wait,
    /// one of them has been forgotten.
    fn wait(&self, place: &'static str) {
        self.pause(place);
    }
}

/// Holds an advisory lock until dropped.
pub trait Lock: Debug + Send + Sync {}

/// Tells files of one storage apart, whatever their names. Another file may have it once this one has no name and no handle any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileId {
    /// The device, or whatever else the number is of.
    pub device: u64,
    /// The number there.
    pub number: u64,
}

/// One open file. All transfers are positional; many threads may call at once.
pub trait File: Debug + Send + Sync {
    /// Reads at `offset`; returns how many bytes came, 0 at the end of the file. May be short.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes at `offset`, extending the file if needed; returns how many bytes went. May be short.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize>;
    /// Writes as [`File::write_at`] does, and where the system can do that, past its cache: for what is synced at once and not read back
    /// soon, and then faster. It can if their address, their number and `offset` are multiples of
    /// [`DIRECT_BLOCK_BYTES`]. They are no more durable before [`File::sync_data`] than those of any write.
    fn write_direct_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        self.write_at(bytes, offset)
    }
    /// A hint that the range will be read soon: the system may begin to read it. It returns at once, and whatever goes wrong is told by the
    /// read itself.
    fn will_need(&self, _offset: u64, _len: u64) {}
    /// Makes all completed writes, and the length they need, durable (`fdatasync`).
    fn sync_data(&self) -> io::Result<()>;
    /// The length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Whether the length is 0.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Which file it is: that of [`Storage::identity`] of its name, as long as nobody has removed or replaced that.
    fn identity(&self) -> io::Result<FileId>;
    /// Cuts or extends (with zeros) to `len` bytes.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Reserves disk space for the range, extending the file with zeros if it ends beyond the length; never
    /// changes bytes that are there. `StorageFull` when the disk has no room.
    fn allocate(&self, offset: u64, len: u64) -> io::Result<()>;
}

/// Fills `buffer` from `offset`, looping over short reads and `EINTR`. `UnexpectedEof` if the file ends first.
pub fn read_exact_at(file: &dyn File, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !buffer.is_empty() {
        match file.read_at(buffer, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                buffer = &mut buffer[n..];
                offset += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Writes all of `bytes` at `offset`, looping over short writes and `EINTR`.
pub fn write_all_at(file: &dyn File, bytes: &[u8], offset: u64) -> io::Result<()> {
    write_all(|bytes, offset| file.write_at(bytes, offset), bytes, offset)
}

/// Writes all of `bytes` at `offset` with [`File::write_direct_at`], looping over short writes and `EINTR`.
pub fn write_all_direct_at(file: &dyn File, bytes: &[u8], offset: u64) -> io::Result<()> {
    write_all(|bytes, offset| file.write_direct_at(bytes, offset), bytes, offset)
}

fn write_all(
    write: impl Fn(&[u8], u64) -> io::Result<usize>,
    mut bytes: &[u8],
    mut offset: u64,
) -> io::Result<()> {
    while !bytes.is_empty() {
        match write(bytes, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => {
                bytes = &bytes[n..];
                offset += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
