//! Keys and values as they are stored, without a copy where they are given that way.

use std::ops::Deref;

use super::scratch::Scratch;
use crate::{Result, Value};

/// The plain form of a key or value.
#[derive(Debug)]
pub(super) enum Plain<'v> {
    /// It was given as that.
    Given(&'v [u8]),
    Encoded(Scratch),
}

impl<'v> Plain<'v> {
    pub(super) fn of<T: Value>(view: &T::View<'v>) -> Result<Plain<'v>> {
        if let Some(given) = T::as_plain(view) {
            return Ok(Plain::Given(given));
        }
        let mut encoded = Scratch::new();
        T::encode(view, &mut encoded)?;
        Ok(Plain::Encoded(encoded))
    }

    /// The same in a buffer, which outlives what was given.
    pub(super) fn into_scratch(self) -> Scratch {
        match self {
            Plain::Given(given) => {
                let mut copy = Scratch::new();
                copy.extend_from_slice(given);
                copy
            }
            Plain::Encoded(encoded) => encoded,
        }
    }
}

impl Deref for Plain<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Plain::Given(given) => given,
            Plain::Encoded(encoded) => encoded,
        }
    }
}
