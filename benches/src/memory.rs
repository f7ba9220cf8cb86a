//! The memory of this process, as the kernel counts it.

use std::env;
use std::fs;
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::peer::Outcome;

/// The smallest map a page region makes, in pages of the smallest size, bytes.
const REGION_BYTES: u64 = 4096 * 4096;

/// Resident bytes of the page regions and of the whole process, from `/proc/self/smaps`. Page regions are large and mapped without
/// reserve (`nr`), as nothing else that holds memory here is: not with one malloc arena ([`with_one_arena`]).
pub fn resident() -> Outcome<(u64, u64)> {
    let smaps = fs::read_to_string("/proc/self/smaps")?;
    let (mut size, mut rss, mut regions, mut process) = (0, 0, 0, 0);
    for line in smaps.lines() {
        if line.starts_with("Size:") {
            size = bytes_of(line);
        } else if line.starts_with("Rss:") {
            rss = bytes_of(line);
            process += rss;
        } else if line.starts_with("VmFlags:") && size >= REGION_BYTES && line.contains(" nr") {
            regions += rss;
        }
    }
    Ok((regions, process))
}

/// The most that the whole process has been resident, bytes, since [`forget_peak`] or its start.
pub fn peak_resident() -> Outcome<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    Ok(status.lines().find(|line| line.starts_with("VmHWM:")).map(bytes_of).ok_or("no VmHWM")?)
}

/// The peak is what is resident now. Where the kernel does not let it be forgotten, it goes on from the process's start.
pub fn forget_peak() {
    let _goes_on = fs::write("/proc/self/clear_refs", "5");
}

/// The number of a line `Name: N kB`.
fn bytes_of(line: &str) -> u64 {
    line.split_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0) << 10
}

/// Starts the program again with glibc's malloc held to one arena: those of further threads are mapped without reserve too, and the
/// kernel may merge one with a page region beside it.
pub fn with_one_arena() -> Outcome<()> {
    const ARENAS: &str = "MALLOC_ARENA_MAX";
    if env::var_os(ARENAS).is_some() {
        return Ok(());
    }
    Err(Command::new(env::current_exe()?).args(env::args_os().skip(1)).env(ARENAS, "1").exec().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peak_is_at_least_what_is_resident() {
        let block = vec![1_u8; 32 << 20];
        let (_, resident) = resident().unwrap();
        assert!(resident >= block.len() as u64, "{resident}");
        assert!(peak_resident().unwrap() >= block.len() as u64);
        assert_eq!(bytes_of("VmHWM:\t    1234 kB"), 1234 << 10);
    }
}
