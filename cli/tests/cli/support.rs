//! Runs the binary in a directory of its own.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value as Json;
use tempfile::TempDir;

/// A directory with files and a database (`db`) that commands run in.
pub(crate) struct Place {
    directory: TempDir,
}

/// What a command answered.
#[derive(Debug)]
pub(crate) struct Answer {
    output: Output,
}

impl Place {
    pub(crate) fn new() -> Place {
        Place { directory: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, contents: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), contents).unwrap();
    }

    pub(crate) fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }

    /// Names in the directory, sorted.
    pub(crate) fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.directory.path()).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// A command to be run here.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hamal"));
        command.args(arguments).current_dir(self.directory.path());
        command
    }

    pub(crate) fn hamal(&self, arguments: &[&str]) -> Answer {
        self.hamal_fed(arguments, b"")
    }

    /// Runs a command with this on its standard input.
    pub(crate) fn hamal_fed(&self, arguments: &[&str], input: &[u8]) -> Answer {
        let mut child = self
            .command(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        // A command that does not read its input ends without it.
        let feeder = std::thread::spawn(move || {
            let _ = stdin.write_all(&input);
        });
        let output = child.wait_with_output().unwrap();
        feeder.join().unwrap();
        Answer { output }
    }

    /// Copies a directory, two levels deep.
    pub(crate) fn copy(&self, from: &str, to: &str) {
        std::fs::create_dir(self.path(to)).unwrap();
        for entry in std::fs::read_dir(self.path(from)).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            let (from, to) = (format!("{from}/{name}"), format!("{to}/{name}"));
            if entry.path().is_dir() {
                self.copy(&from, &to);
            } else {
                std::fs::copy(self.path(&from), self.path(&to)).unwrap();
            }
        }
    }

    /// Every file below a directory with its contents.
    pub(crate) fn image(&self, name: &str) -> Vec<(PathBuf, Vec<u8>)> {
        let mut files = Vec::new();
        collect(&self.path(name), &mut files);
        files.sort();
        files
    }
}

fn collect(directory: &Path, files: &mut Vec<(PathBuf, Vec<u8>)>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else {
            let contents = std::fs::read(&path).unwrap();
            files.push((path, contents));
        }
    }
}

impl Answer {
    pub(crate) fn status(&self) -> Option<i32> {
        self.output.status.code()
    }

    pub(crate) fn stderr(&self) -> String {
        String::from_utf8(self.output.stderr.clone()).unwrap()
    }

    /// Standard output of a command that must have succeeded without a word on standard error.
    #[track_caller]
    pub(crate) fn text(&self) -> String {
        assert_eq!((self.status(), self.stderr().as_str()), (Some(0), ""), "{self:?}");
        self.stdout()
    }

    pub(crate) fn stdout(&self) -> String {
        String::from_utf8(self.output.stdout.clone()).unwrap()
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.output.stdout
    }

    /// The JSON documents of a command that must have succeeded.
    #[track_caller]
    pub(crate) fn json_lines(&self) -> Vec<Json> {
        self.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Json {
        let mut documents = self.json_lines();
        assert_eq!(documents.len(), 1, "{self:?}");
        documents.remove(0)
    }

    /// The one line of a command that must have failed with this status.
    #[track_caller]
    pub(crate) fn failure(&self, status: i32) -> String {
        assert_eq!(self.status(), Some(status), "{self:?}");
        let stderr = self.stderr();
        let line = stderr.strip_suffix('\n').expect("a whole line");
        assert!(!line.contains('\n'), "one line: {stderr}");
        line.strip_prefix("hamal: ").expect("the name in front").to_owned()
    }
}
