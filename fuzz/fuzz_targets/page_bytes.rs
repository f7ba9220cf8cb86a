//! One page of a closed database changed, its checksum repaired.
//!
//! Under `cargo fuzz` this is a libFuzzer target; otherwise a program that replays the files given to it.

#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|input: &[u8]| hamal_fuzz::targets::page_bytes(input));

#[cfg(not(fuzzing))]
fn main() -> std::process::ExitCode {
    hamal_fuzz::replay::main(hamal_fuzz::targets::page_bytes)
}
