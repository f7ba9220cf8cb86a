//! Runs in processes of their own, which end as a crash does.

use std::process::Command;

use crate::peer::Outcome;

/// Runs it, and returns what it says.
pub fn in_a_process_of_its_own(command: &mut Command) -> Outcome<Vec<u8>> {
    let done = command.output()?;
    if done.status.success() {
        return Ok(done.stdout);
    }
    Err(format!("{command:?}: {}", String::from_utf8_lossy(&done.stderr)).into())
}
