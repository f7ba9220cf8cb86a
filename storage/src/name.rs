//! Names of files and directories: relative, `/`-separated, UTF-8, and never a way out of the tree.

use std::io;

/// The parts of a name, checked; none for `""`, the directory itself.
pub(crate) fn parts(name: &str) -> io::Result<Vec<&str>> {
    if name.is_empty() {
        return Ok(Vec::new());
    }
    let parts: Vec<&str> = name.split('/').collect();
    let sound = |part: &&str| !part.is_empty() && *part != "." && *part != ".." && !part.contains('\0');
    if parts.iter().all(sound) { Ok(parts) } else { Err(refused(name)) }
}

/// The parts of a name that must not be the directory itself.
pub(crate) fn file_parts(name: &str) -> io::Result<Vec<&str>> {
    let parts = parts(name)?;
    if parts.is_empty() { Err(refused(name)) } else { Ok(parts) }
}

fn refused(name: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidInput,
        format!("{name:?} is not a relative name inside the directory"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_inside_the_tree_are_split_into_parts() {
        assert_eq!(parts("").unwrap(), Vec::<&str>::new());
        assert_eq!(parts("wal/0001.log").unwrap(), ["wal", "0001.log"]);
        assert_eq!(parts("a..b").unwrap(), ["a..b"]);
    }

    #[test]
    fn names_that_lead_out_or_nowhere_are_refused() {
        for name in ["/etc/passwd", "..", "a/../b", "a/..", "./a", "a//b", "a/", "a\0b", "/"] {
            assert_eq!(parts(name).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{name:?}");
        }
        assert_eq!(file_parts("").unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
