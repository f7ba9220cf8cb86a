//! The copy of the crashed database that `demo --save-image` keeps.
//!
//! I1. Nothing is removed but files that an earlier copy of the same run wrote, and nothing is overwritten.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Component, Path, PathBuf};

use crate::failure::{Failure, Result};
use crate::session::must_be_free;

/// Where copies go; each replaces the one before.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    directory: PathBuf,
    written: Vec<PathBuf>,
}

impl Image {
    /// The directory must be missing or empty, and neither inside the database's nor around it.
    pub(crate) fn choose(directory: &Path, database: &Path) -> Result<Image> {
        must_be_free(directory)?;
        let fail = |error| Failure::input(format!("{}: {error}", directory.display()));
        let (inner, outer) = (resolved(directory).map_err(fail)?, resolved(database).map_err(fail)?);
        if inner.starts_with(&outer) || outer.starts_with(&inner) {
            return Err(Failure::input(format!(
                "{} is inside the database's directory, or around it",
                directory.display()
            )));
        }
        Ok(Image { directory: directory.to_owned(), written: Vec::new() })
    }

    /// Copies a database that no process has open.
    pub(super) fn replace(&mut self, database: &Path) -> Result<()> {
        self.try_replace(database).map_err(|error| {
            let to = self.directory.display();
            Failure::unusable(format!("cannot copy the crashed database to {to}: {error}"))
        })
    }

    fn try_replace(&mut self, database: &Path) -> io::Result<()> {
        for file in self.written.drain(..) {
            match fs::remove_file(file) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        let directory = self.directory.clone();
        self.copy(database, &directory)
    }

    fn copy(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        fs::create_dir_all(to)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            let target = to.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                self.copy(&entry.path(), &target)?;
            } else {
                let mut copy = OpenOptions::new().write(true).create_new(true).open(&target)?;
                self.written.push(target);
                io::copy(&mut File::open(entry.path())?, &mut copy)?;
            }
        }
        Ok(())
    }
}

/// Without links and dots, as far as it exists; behind that, as it is written.
fn resolved(path: &Path) -> io::Result<PathBuf> {
    let path = std::path::absolute(path)?;
    let mut resolved = PathBuf::new();
    for component in path.components() {
        if component == Component::ParentDir {
            resolved.pop();
            continue;
        }
        resolved.push(component);
        if let Ok(real) = resolved.canonicalize() {
            resolved = real;
        }
    }
    Ok(resolved)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_replaces_the_one_before_and_leaves_other_files() {
        let place = tempfile::tempdir().expect("a directory");
        let (database, target) = (place.path().join("db"), place.path().join("image"));
        let write = |name: &str| fs::write(place.path().join(name), name).expect(name);
        fs::create_dir_all(database.join("part")).expect("directories");
        write("db/part/old");
        let mut image = Image::choose(&target, &database).expect("a free directory");
        image.replace(&database).expect("a copy");
        write("image/mine");
        fs::rename(database.join("part/old"), database.join("part/new")).expect("a rename");
        image.replace(&database).expect("another copy");
        let exists = |name: &str| target.join(name).exists();
        assert!(exists("part/new") && !exists("part/old") && exists("mine"));
        write("db/mine");
        assert!(image.replace(&database).is_err(), "it would overwrite a file");
        assert_eq!(fs::read(target.join("mine")).expect("mine"), b"image/mine");
    }

    #[test]
    fn a_directory_inside_the_database_or_around_it_is_refused() {
        let place = tempfile::tempdir().expect("a directory");
        let at = |name: &str| place.path().join(name);
        std::os::unix::fs::symlink(place.path(), at("link")).expect("a link");
        for image in ["a/db", "a/db/image", "a", "b/../a/db/image", "link/a", "link/a/db/image"] {
            assert!(Image::choose(&at(image), &at("a/db")).is_err(), "{image}");
        }
        for image in ["a/image", "a/db2", "b"] {
            assert!(Image::choose(&at(image), &at("a/db")).is_ok(), "{image}");
        }
    }
}
