//! Buffers for encoded keys and values, kept per thread: a point read or write allocates none.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

/// Buffers one thread keeps, at most.
const KEPT_BUFFERS: usize = 8;
/// A buffer grown beyond this is not kept, bytes.
const KEPT_BYTES: usize = 64 << 10;

thread_local! {
    static POOL: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// An empty buffer of this thread's, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Scratch(Vec<u8>);

impl Scratch {
    pub(super) fn new() -> Self {
        // No pool while the thread ends: then it is just a buffer.
        Scratch(POOL.try_with(|pool| pool.borrow_mut().pop()).ok().flatten().unwrap_or_default())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.0.capacity() == 0 || self.0.capacity() > KEPT_BYTES {
            return;
        }
        self.0.clear();
        let _ = POOL.try_with(|pool| {
            let mut pool = pool.borrow_mut();
            if pool.len() < KEPT_BUFFERS {
                pool.push(std::mem::take(&mut self.0));
            }
        });
    }
}

impl Deref for Scratch {
    type Target = Vec<u8>;

    fn deref(&self) -> &Vec<u8> {
        &self.0
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        &mut self.0
    }
}
