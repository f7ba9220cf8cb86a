//! The operating system's files, clock and random source.
//!
//! Positional I/O on plain file descriptors; no state of its own beyond the path of the directory, so any number of
//! handles may exist. Locks are `flock`s on a file description of their own: two holders exclude each other within
//! one process as well as between processes, and the kernel releases them when the process dies.
//!
//! I1. Nothing outside the directory is touched, but for the missing directories above it, which
//!     `create_directory` makes (and whose entries it syncs, as no caller could name them).
//! I2. What is written past the system's cache goes through a file description of its own, made at the first such write: others read and
//!     write through the cache, which the kernel keeps in step as long as nobody else writes the same range, or has it mapped, at the same
//!     time. It is opened by the descriptor and compared with the file before it is used.
//! I3. `EINTR` is retried here where the call has no partial result (sync, allocate, lock); reads and writes hand it
//!     to [`crate::read_exact_at`], [`crate::write_all_at`] and [`crate::write_all_direct_at`].

use std::collections::hash_map::RandomState;
use std::fs;
use std::hash::BuildHasher;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::fs::{FallocateFlags, FlockOperation, fallocate, flock};
use rustix::io::{Errno, retry_on_intr};

use crate::name;
use crate::{DIRECT_BLOCK_BYTES, File, FileId, Lock, Storage};

/// Zeros are written in pieces of this size where the file system cannot reserve space.
const FILL_BYTES: usize = 64 << 10;

/// A directory of the operating system.
#[derive(Debug)]
pub struct OsStorage {
    directory: PathBuf,
    start: Instant,
}

impl OsStorage {
    /// The storage rooted at `directory`, which need not exist until something is created: this touches nothing.
    pub fn new(directory: impl Into<PathBuf>) -> OsStorage {
        OsStorage { directory: directory.into(), start: Instant::now() }
    }

    /// Where the storage is rooted.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    fn file_path(&self, name: &str) -> io::Result<PathBuf> {
        name::file_parts(name)?;
        Ok(self.directory.join(name))
    }

    fn directory_path(&self, name: &str) -> io::Result<PathBuf> {
        let inside = name::parts(name)?;
        let path = if inside.is_empty() { self.directory.clone() } else { self.directory.join(name) };
        // The empty path means the working directory everywhere but in system calls.
        Ok(if path.as_os_str().is_empty() { PathBuf::from(".") } else { path })
    }
}

impl Storage for OsStorage {
    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let file = fs::OpenOptions::new().read(true).write(true).open(self.file_path(name)?)?;
        Ok(Arc::new(OsFile::new(file)))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let file =
            fs::OpenOptions::new().read(true).write(true).create_new(true).open(self.file_path(name)?)?;
        Ok(Arc::new(OsFile::new(file)))
    }

    fn exists(&self, name: &str) -> io::Result<bool> {
        match fs::metadata(self.directory_path(name)?) {
            Ok(_) => Ok(true),
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(false),
            Err(e) => Err(e),
        }
    }

    fn identity(&self, name: &str) -> io::Result<Option<FileId>> {
        match fs::metadata(self.file_path(name)?) {
            Ok(metadata) => Ok(Some(file_id(&metadata))),
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Names that are not UTF-8 are nobody's here and are left out.
    fn list(&self, directory: &str) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(self.directory_path(directory)?)? {
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn create_directory(&self, name: &str) -> io::Result<()> {
        create_root(&self.directory_path("")?)?;
        fs::create_dir_all(self.directory_path(name)?)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.file_path(from)?, self.file_path(to)?)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.file_path(name)?)
    }

    fn sync_directory(&self, name: &str) -> io::Result<()> {
        sync_directory(&self.directory_path(name)?)
    }

    fn lock(&self, name: &str) -> io::Result<Box<dyn Lock>> {
        let path = self.file_path(name)?;
        loop {
            let file =
                fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
            retry_on_intr(|| flock(&file, FlockOperation::NonBlockingLockExclusive))?;
            let lock = OsLock { file };
            // Between opening and locking, its last holder may have removed or renamed the file: then the lock is of nothing.
            let (locked, named) = (lock.file.metadata()?, fs::metadata(&path));
            if named.is_ok_and(|named| file_id(&named) == file_id(&locked)) {
                return Ok(Box::new(lock));
            }
        }
    }

    fn now_micros(&self) -> u64 {
        // A clock set before 1970 reads as 1970.
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
    }

    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }

    fn random_u64(&self) -> u64 {
        // The system's source does not fail on any system this runs on; if it did, the standard library's own
        // per-process keys, advanced per call, are the next best.
        getrandom::u64().unwrap_or_else(|_| RandomState::new().hash_one(self.now_micros()))
    }
}

/// Makes the root and whatever is missing above it, each made durable in its parent; the root itself even if it was there, for
/// whoever made it may have died before that.
fn create_root(root: &Path) -> io::Result<()> {
    let parent = match root.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None if root.is_dir() => return Ok(()),
        None => return fs::create_dir(root),
    };
    if root.is_dir() {
        return match sync_directory(parent) {
            // A directory that we may not look into was not ours to make the root in.
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Ok(()),
            other => other,
        };
    }
    create_root(parent)?;
    match fs::create_dir(root) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && root.is_dir() => Ok(()),
        Err(e) => Err(e),
        Ok(()) => sync_directory(parent),
    }
}

fn sync_directory(path: &Path) -> io::Result<()> {
    let directory = fs::File::open(path)?;
    if !directory.metadata()?.is_dir() {
        return Err(io::ErrorKind::NotADirectory.into());
    }
    directory.sync_all()
}

fn file_id(metadata: &fs::Metadata) -> FileId {
    FileId { device: metadata.dev(), number: metadata.ino() }
}

/// The `flock` lives as long as the file description, or until it is given back.
#[derive(Debug)]
struct OsLock {
    file: fs::File,
}

impl Lock for OsLock {}

impl Drop for OsLock {
    fn drop(&mut self) {
        // Not left to the closing: a child that another thread has just forked has the file description too, until it runs its
        // program.
        let _ = flock(&self.file, FlockOperation::Unlock);
    }
}

#[derive(Debug)]
struct OsFile {
    file: fs::File,
    /// Writes past the cache, where the system lets it (I2).
    direct: OnceLock<Option<fs::File>>,
    /// The file system has refused such a write.
    direct_refused: AtomicBool,
}

impl OsFile {
    fn new(file: fs::File) -> Self {
        OsFile { file, direct: OnceLock::new(), direct_refused: AtomicBool::new(false) }
    }

    fn direct(&self) -> Option<&fs::File> {
        if self.direct_refused.load(Ordering::Relaxed) {
            return None;
        }
        self.direct.get_or_init(|| direct_again(&self.file)).as_ref()
    }
}

/// Opens a file once more, for writes past the cache.
#[cfg(target_os = "linux")]
fn direct_again(file: &fs::File) -> Option<fs::File> {
    use std::os::fd::AsRawFd;

    // By the descriptor, as the file may have another name by now, or none. The thread's own: it need not share the process's.
    open_direct(Path::new(&format!("/proc/thread-self/fd/{}", file.as_raw_fd())), file)
}

#[cfg(not(target_os = "linux"))]
fn direct_again(_file: &fs::File) -> Option<fs::File> {
    None
}

/// Opens what is at a path for writes past the cache, if that is this file: whatever the path leads to, nothing else may be written to.
#[cfg(target_os = "linux")]
fn open_direct(path: &Path, file: &fs::File) -> Option<fs::File> {
    use std::os::unix::fs::OpenOptionsExt;

    use rustix::fs::OFlags;

    let direct = OFlags::DIRECT.bits().cast_signed();
    let opened = fs::OpenOptions::new().write(true).custom_flags(direct).open(path).ok()?;
    let is_same = file_id(&opened.metadata().ok()?) == file_id(&file.metadata().ok()?);
    is_same.then_some(opened)
}

impl File for OsFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        self.file.write_at(bytes, offset)
    }

    fn write_direct_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let block = DIRECT_BLOCK_BYTES;
        let is_aligned = bytes.as_ptr().addr().is_multiple_of(block)
            && bytes.len().is_multiple_of(block)
            && offset.is_multiple_of(block as u64);
        if is_aligned && let Some(direct) = self.direct() {
            match direct.write_at(bytes, offset) {
                // The file system cannot, or not with blocks of this size: it is not asked again.
                Err(e) if matches!(e.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => {
                    self.direct_refused.store(true, Ordering::Relaxed);
                }
                other => return other,
            }
        }
        self.write_at(bytes, offset)
    }

    #[cfg(target_os = "linux")]
    fn will_need(&self, offset: u64, len: u64) {
        use rustix::fs::{Advice, fadvise};
        // A length of 0 would mean all of the file.
        if let Some(len) = std::num::NonZero::new(len) {
            let _only_a_hint = fadvise(&self.file, offset, Some(len), Advice::WillNeed);
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn identity(&self) -> io::Result<FileId> {
        Ok(file_id(&self.file.metadata()?))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        match retry_on_intr(|| fallocate(&self.file, FallocateFlags::empty(), offset, len)) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => self.fill(offset, len),
            other => Ok(other?),
        }
    }
}

impl OsFile {
    /// Extends the file to the end of the range by writing zeros, for file systems that cannot reserve. Only beyond
    /// the current length: rewriting bytes that are there would race with their writers.
    fn fill(&self, offset: u64, len: u64) -> io::Result<()> {
        let end = offset.checked_add(len).ok_or(io::ErrorKind::InvalidInput)?;
        let zeros = vec![0; FILL_BYTES];
        let mut at = self.len()?;
        while at < end {
            let piece = usize::try_from(end - at).unwrap_or(FILL_BYTES).min(FILL_BYTES);
            crate::write_all_at(self, &zeros[..piece], at)?;
            at += piece as u64;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(file: &dyn File) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(file.len().unwrap()).unwrap()];
        crate::read_exact_at(file, &mut bytes, 0).unwrap();
        bytes
    }

    #[test]
    fn a_storage_creates_nothing_until_asked() {
        let outer = tempfile::tempdir().unwrap();
        let root = outer.path().join("a/b");
        let storage = OsStorage::new(&root);
        assert!(!storage.exists("").unwrap());
        assert_eq!(storage.open("x").unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(storage.list("").unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(!outer.path().join("a").exists());
        storage.create_directory("c/d").unwrap();
        assert!(root.join("c/d").is_dir());
        storage.create_directory("c/d").unwrap();
    }

    #[test]
    fn a_second_lock_in_the_same_process_is_refused_until_the_first_is_dropped() {
        let root = tempfile::tempdir().unwrap();
        let (one, two) = (OsStorage::new(root.path()), OsStorage::new(root.path()));
        let held = one.lock("LOCK").unwrap();
        assert_eq!(one.lock("LOCK").unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert_eq!(two.lock("LOCK").unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let _other = two.lock("OTHER").unwrap();
        drop(held);
        let _held = two.lock("LOCK").unwrap();
        assert_eq!(one.lock("LOCK").unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_lock_given_back_is_free_though_a_forked_child_has_its_file_still() {
        let root = tempfile::tempdir().unwrap();
        let storage = OsStorage::new(root.path());
        let file = fs::File::create(root.path().join("LOCK")).unwrap();
        // What a child has between `fork` and `exec`.
        let childs = file.try_clone().unwrap();
        flock(&file, FlockOperation::NonBlockingLockExclusive).unwrap();
        assert_eq!(storage.lock("LOCK").unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(OsLock { file });
        storage.lock("LOCK").unwrap();
        drop(childs);
    }

    #[test]
    fn locking_leaves_what_the_file_holds() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("LOCK"), b"pid 1").unwrap();
        drop(OsStorage::new(root.path()).lock("LOCK").unwrap());
        assert_eq!(fs::read(root.path().join("LOCK")).unwrap(), b"pid 1");
    }

    #[test]
    fn filling_extends_with_zeros_and_keeps_what_is_there() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("f");
        fs::write(&path, b"kept").unwrap();
        let file = OsFile::new(fs::OpenOptions::new().read(true).write(true).open(&path).unwrap());
        file.fill(2, 100_000).unwrap();
        let bytes = read_all(&file);
        assert_eq!(bytes.len(), 100_002);
        assert_eq!(&bytes[..4], b"kept");
        assert!(bytes[4..].iter().all(|byte| *byte == 0));
        file.fill(0, 10).unwrap();
        assert_eq!(file.len().unwrap(), 100_002);
        assert_eq!(file.fill(u64::MAX, 2).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn aligned_writes_pass_the_cache_where_the_file_system_lets_them() {
        use std::os::unix::fs::OpenOptionsExt;

        use rustix::fs::{OFlags, fcntl_getfl};

        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("f");
        let file = OsFile::new(fs::File::create_new(&path).unwrap());
        let memory = vec![7; 3 * DIRECT_BLOCK_BYTES];
        let from = memory.as_ptr().align_offset(DIRECT_BLOCK_BYTES);
        let block = &memory[from..from + DIRECT_BLOCK_BYTES];
        for (bytes, offset) in
            [(&block[..8], 0), (block, 8), (&memory[from + 8..from + 8 + DIRECT_BLOCK_BYTES], 0)]
        {
            file.write_direct_at(bytes, offset).unwrap();
            assert!(file.direct.get().is_none(), "what is not aligned goes through the cache");
        }
        // Another name, as a recycled segment of the log has.
        let renamed = root.path().join("g");
        fs::rename(&path, &renamed).unwrap();
        assert_eq!(file.write_direct_at(block, 0).unwrap(), DIRECT_BLOCK_BYTES);
        let direct = OFlags::DIRECT.bits().cast_signed();
        let lets = fs::OpenOptions::new().write(true).custom_flags(direct).open(&renamed).is_ok();
        let opened = file.direct.get().unwrap();
        assert_eq!(opened.is_some(), lets);
        if let Some(opened) = opened {
            assert!(fcntl_getfl(opened).unwrap().contains(OFlags::DIRECT));
            assert_eq!(file_id(&opened.metadata().unwrap()), file.identity().unwrap());
        }
        assert_eq!(open_direct(&renamed, &file.file).is_some(), lets);
        fs::write(&path, b"another file").unwrap();
        assert!(open_direct(&path, &file.file).is_none(), "nothing but this file is written to");
        file.direct_refused.store(true, Ordering::Relaxed);
        assert!(file.direct().is_none());
        assert_eq!(file.write_direct_at(block, 0).unwrap(), DIRECT_BLOCK_BYTES);
        assert_eq!(fs::read(&renamed).unwrap().len(), DIRECT_BLOCK_BYTES + 8);
    }

    #[test]
    fn allocated_space_is_really_taken() {
        use std::os::unix::fs::MetadataExt;
        let root = tempfile::tempdir().unwrap();
        let storage = OsStorage::new(root.path());
        let file = storage.create("f").unwrap();
        file.allocate(0, 1 << 20).unwrap();
        assert_eq!(file.len().unwrap(), 1 << 20);
        let metadata = fs::metadata(root.path().join("f")).unwrap();
        assert!(metadata.blocks() * 512 >= 1 << 20, "{} blocks", metadata.blocks());
    }

    #[test]
    fn random_bits_differ_and_monotonic_time_does_not_run_backwards() {
        let storage = OsStorage::new("");
        assert_ne!(storage.random_u64(), storage.random_u64());
        let first = storage.monotonic();
        assert!(storage.monotonic() >= first);
        // 2020-01-01: the clock is in microseconds since 1970, not milliseconds or seconds.
        assert!(storage.now_micros() > 1_577_836_800_000_000);
    }
}
