//! Operations, crashes and reopenings against the model.
//!
//! Under `cargo fuzz` this is a libFuzzer target; otherwise a program that replays the files given to it.

#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|input: &[u8]| hamal_fuzz::targets::operations(input));

#[cfg(not(fuzzing))]
fn main() -> std::process::ExitCode {
    hamal_fuzz::replay::main(hamal_fuzz::targets::operations)
}
