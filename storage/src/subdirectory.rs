//! A directory of a storage, as a storage of its own: what works on a whole storage can work in a part of one.
//!
//! I1. Every name that is passed on begins with the directory's, and no name leads out of it: it is checked before it is put together.
//! I2. It keeps nothing: clock, randomness and scheduler are those of the storage it is in.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::name;
use crate::{File, FileId, Lock, Scheduler, Storage};

/// A directory in another storage.
#[derive(Clone, Debug)]
pub struct Subdirectory {
    inner: Arc<dyn Storage>,
    directory: String,
}

impl Subdirectory {
    /// The directory of this name, which need not be there. `InvalidInput` if the name leads out of the storage, or is that of all of it.
    pub fn new(inner: Arc<dyn Storage>, directory: &str) -> io::Result<Subdirectory> {
        name::file_parts(directory)?;
        Ok(Subdirectory { inner, directory: directory.to_owned() })
    }

    fn file(&self, name: &str) -> io::Result<String> {
        name::file_parts(name)?;
        Ok(format!("{}/{name}", self.directory))
    }

    fn any(&self, name: &str) -> io::Result<String> {
        if name.is_empty() { Ok(self.directory.clone()) } else { self.file(name) }
    }

    /// Removes all files in it and below, but those of these names in it, and not the directories; durably. Fine if it is not there.
    pub fn clear(&self, but: &[&str]) -> io::Result<()> {
        clear(&*self.inner, &self.directory, but)
    }

    /// Makes durable that the directory itself was made.
    pub fn sync_parent(&self) -> io::Result<()> {
        let parent = self.directory.rsplit_once('/').map_or("", |(parent, _)| parent);
        self.inner.sync_directory(parent)
    }
}

/// Removes the files in a directory and in those below. A link goes, and what it leads to stays: removing is tried first.
fn clear(storage: &dyn Storage, directory: &str, but: &[&str]) -> io::Result<()> {
    let names = match storage.list(directory) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        names => names?,
    };
    let mut removed = false;
    for name in names.iter().filter(|name| !but.contains(&name.as_str())) {
        let path = format!("{directory}/{name}");
        let Err(error) = storage.remove(&path) else {
            removed = true;
            continue;
        };
        match clear(storage, &path, &[]) {
            Err(e) if e.kind() == io::ErrorKind::NotADirectory => return Err(error),
            cleared => cleared?,
        }
    }
    if removed { storage.sync_directory(directory) } else { Ok(()) }
}

impl Storage for Subdirectory {
    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        self.inner.open(&self.file(name)?)
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        self.inner.create(&self.file(name)?)
    }

    fn exists(&self, name: &str) -> io::Result<bool> {
        self.inner.exists(&self.any(name)?)
    }

    fn list(&self, directory: &str) -> io::Result<Vec<String>> {
        self.inner.list(&self.any(directory)?)
    }

    fn create_directory(&self, name: &str) -> io::Result<()> {
        self.inner.create_directory(&self.any(name)?)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.inner.rename(&self.file(from)?, &self.file(to)?)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.inner.remove(&self.file(name)?)
    }

    fn sync_directory(&self, name: &str) -> io::Result<()> {
        self.inner.sync_directory(&self.any(name)?)
    }

    fn identity(&self, name: &str) -> io::Result<Option<FileId>> {
        self.inner.identity(&self.file(name)?)
    }

    fn lock(&self, name: &str) -> io::Result<Box<dyn Lock>> {
        self.inner.lock(&self.file(name)?)
    }

    fn now_micros(&self) -> u64 {
        self.inner.now_micros()
    }

    fn monotonic(&self) -> Duration {
        self.inner.monotonic()
    }

    fn random_u64(&self) -> u64 {
        self.inner.random_u64()
    }

    fn scheduler(&self) -> Option<&dyn Scheduler> {
        self.inner.scheduler()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::SimStorage;
    use crate::{OsStorage, read_exact_at, write_all_at};

    fn exercise(outer: &Arc<dyn Storage>) {
        outer.create_directory("").unwrap();
        outer.create("beside").unwrap();
        let inner = Subdirectory::new(outer.clone(), "aside").unwrap();
        inner.clear(&[]).unwrap();
        assert!(!inner.exists("").unwrap());
        inner.create_directory("deep/down").unwrap();
        let file = inner.create("deep/down/file").unwrap();
        write_all_at(&*file, b"bytes", 0).unwrap();
        assert!(outer.exists("aside/deep/down/file").unwrap());
        assert_eq!(inner.identity("deep/down/file").unwrap(), Some(file.identity().unwrap()));
        inner.rename("deep/down/file", "moved").unwrap();
        let mut found = [0; 5];
        read_exact_at(&*inner.open("moved").unwrap(), &mut found, 0).unwrap();
        assert_eq!(&found, b"bytes");
        inner.create("deep/other").unwrap();
        inner.sync_directory("").unwrap();
        assert_eq!(inner.list("").unwrap(), ["deep", "moved"]);
        let lock = inner.lock("LOCK").unwrap();
        assert_eq!(outer.lock("aside/LOCK").unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(lock);
        for name in ["../beside", "/beside", "deep/../../beside"] {
            assert_eq!(inner.open(name).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{name}");
            assert_eq!(inner.list(name).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{name}");
        }
        inner.sync_parent().unwrap();
        inner.remove("").unwrap_err();
        inner.clear(&["moved"]).unwrap();
        assert!(inner.exists("moved").unwrap() && !inner.exists("deep/other").unwrap());
        inner.clear(&[]).unwrap();
        assert!(!inner.exists("moved").unwrap());
        assert!(outer.exists("beside").unwrap(), "only what is inside goes");
        inner.clear(&[]).unwrap();
    }

    #[test]
    fn a_directory_is_a_storage_of_its_own_and_nothing_leads_out_of_it() {
        let disk: Arc<dyn Storage> = Arc::new(SimStorage::new(1));
        exercise(&disk);
        let directory = tempfile::tempdir().unwrap();
        let disk: Arc<dyn Storage> = Arc::new(OsStorage::new(directory.path()));
        exercise(&disk);
    }

    #[test]
    fn a_link_goes_and_what_it_leads_to_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        for made in ["db/scratch", "elsewhere"] {
            std::fs::create_dir_all(path(made)).unwrap();
        }
        std::fs::write(path("elsewhere/file"), b"bytes").unwrap();
        std::os::unix::fs::symlink(path("elsewhere"), path("db/scratch/link")).unwrap();
        let inner = Subdirectory::new(Arc::new(OsStorage::new(path("db"))), "scratch").unwrap();
        inner.clear(&[]).unwrap();
        assert_eq!(inner.list("").unwrap(), Vec::<String>::new());
        assert!(path("elsewhere/file").exists());
    }

    #[test]
    fn the_whole_storage_and_what_is_outside_are_no_directories_in_it() {
        for name in ["", "..", "/tmp", "a/../.."] {
            let made = Subdirectory::new(Arc::new(SimStorage::new(1)), name);
            assert_eq!(made.unwrap_err().kind(), io::ErrorKind::InvalidInput, "{name:?}");
        }
    }
}
