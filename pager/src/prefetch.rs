//! A word to the processor about memory that will be read soon.

/// Bytes of a line of the processor's caches, where they are asked for.
const LINE_BYTES: usize = 64;

/// Lets the processor fetch the bytes into its nearest cache while it goes on with something else. It is only a hint: nothing is read or
/// changed, and where there is no such instruction nothing happens. O(bytes / 64).
#[inline]
pub fn prefetch(bytes: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    for line in bytes.chunks(LINE_BYTES) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: the instruction is in every x86-64 processor's base set (SSE), takes any address, and does not access it as far as a program can
        // tell.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (bytes, LINE_BYTES);
}
