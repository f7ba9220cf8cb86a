//! A slice of the damage campaign, under an allocator with a limit: an allocation sized by damage would end the process.

use std::alloc::System;

use cap::Cap;
use hamal_fuzz::flips::Victim;

#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, 512 << 20);

fn flip(page_bytes: usize, seed: u64, count: u64) {
    let victim = Victim::make(page_bytes).unwrap_or_else(|what| panic!("{what}"));
    let consequences = victim
        .campaign(seed, count, &mut |_| {})
        .unwrap_or_else(|what| panic!("pages of {page_bytes} bytes: {what}"));
    let seen = |what: &str| consequences.seen.iter().any(|(name, count)| name.ends_with(what) && *count > 0);
    assert!(seen("rows behind damage") && seen("no consequence"), "{consequences:?}");
}

#[test]
fn a_changed_byte_never_misleads_with_pages_of_4_kib() {
    flip(4096, 11, 300);
}

#[test]
fn a_changed_byte_never_misleads_with_pages_of_16_kib() {
    flip(16384, 12, 150);
}
