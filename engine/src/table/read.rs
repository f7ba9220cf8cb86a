//! Reading a table.

#![expect(
    clippy::needless_pass_by_value,
    reason = "a view goes in by value: so literals, &String and &[u8; N] coerce to it"
)]

use std::fmt;
use std::marker::PhantomData;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use super::iter::{Keys, Range, Values};
use super::plain::Plain;
use super::scratch::Scratch;
use crate::raw::RawTable;
use crate::{Error, Key, Result, Value, ValueReader};

/// Rows as they come out of a table.
pub(super) type Row<K, V> = (<K as Value>::Owned, <V as Value>::Owned);

/// A table to read: from a [`crate::Snapshot`], or as part of a [`super::Table`], which derefs to it.
pub struct ReadTable<'t, K, V> {
    name: Arc<str>,
    raw: RawTable<'t>,
    types: PhantomData<fn() -> (K, V)>,
}

impl<K, V> Clone for ReadTable<'_, K, V> {
    fn clone(&self) -> Self {
        ReadTable { name: Arc::clone(&self.name), raw: self.raw.clone(), types: PhantomData }
    }
}

impl<K, V> fmt::Debug for ReadTable<'_, K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadTable").field("name", &self.name).finish_non_exhaustive()
    }
}

impl<'t, K: Key, V: Value> ReadTable<'t, K, V> {
    pub(super) fn new((name, raw): (Arc<str>, RawTable<'t>)) -> Self {
        ReadTable { name, raw, types: PhantomData }
    }

    pub(super) fn raw(&self) -> &RawTable<'t> {
        &self.raw
    }

    /// Its name when it was opened.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Longest key this table takes, bytes of its encoding.
    pub fn max_key_bytes(&self) -> usize {
        self.raw.max_key_bytes()
    }

    /// The key's value.
    pub fn get(&self, key: K::View<'_>) -> Result<Option<V::Owned>> {
        let encoded = Plain::of::<K>(&key)?;
        let mut value = Scratch::new();
        if !self.raw.get_into(&encoded, &mut value)? {
            return Ok(None);
        }
        self.decode_value(&encoded, &mut value).map(Some)
    }

    /// Whether the key is there.
    pub fn contains_key(&self, key: K::View<'_>) -> Result<bool> {
        self.raw.contains(&Plain::of::<K>(&key)?)
    }

    /// The first row.
    pub fn first(&self) -> Result<Option<Row<K, V>>> {
        self.iter()?.next().transpose()
    }

    /// The last row.
    pub fn last(&self) -> Result<Option<Row<K, V>>> {
        self.iter()?.next_back().transpose()
    }

    /// The rows between two bounds, from both ends. `InvalidArgument` if the bounds are reversed. (`a..a` is an empty
    /// range, `a..=a` is that one key.)
    ///
    /// The range does not borrow the table, so the table may be written to meanwhile. It goes by key: it sees what its own
    /// transaction has written ahead of it, and never comes back to what it has passed.
    pub fn range<'k>(&self, bounds: impl RangeBounds<K::View<'k>>) -> Result<Range<'t, K, V>> {
        let lower = encode_bound::<K>(bounds.start_bound())?;
        let upper = encode_bound::<K>(bounds.end_bound())?;
        check_bounds(&lower, &upper)?;
        Ok(Range::new(self.clone(), self.raw.range(lower, upper)?))
    }

    /// All rows; as [`ReadTable::range`].
    #[expect(clippy::iter_not_returning_iterator, reason = "it does, once the range is there")]
    pub fn iter(&self) -> Result<Range<'t, K, V>> {
        Ok(Range::new(self.clone(), self.raw.range(Bound::Unbounded, Bound::Unbounded)?))
    }

    /// All keys; as [`ReadTable::range`].
    pub fn keys(&self) -> Result<Keys<'t, K, V>> {
        self.iter().map(Keys::new)
    }

    /// All values, by key; as [`ReadTable::range`].
    pub fn values(&self) -> Result<Values<'t, K, V>> {
        self.iter().map(Values::new)
    }

    /// Exact number of rows, without counting them: looked up among the counts that recent commits have left for snapshots and
    /// transactions, O(log of their number); where there is no old one of these, that is a few.
    pub fn len(&self) -> Result<u64> {
        self.raw.len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Streams the encoded bytes of a value, for values too large for memory; of a byte string or string, its own bytes.
    pub fn reader(&self, key: K::View<'_>) -> Result<Option<ValueReader<'t>>> {
        self.raw.read_stream(&Plain::of::<K>(&key)?)
    }

    pub(super) fn decode_key(&self, key: &[u8]) -> Result<K::Owned> {
        K::decode(key).map_err(|error| self.bad_row(key, error))
    }

    pub(super) fn decode_value(&self, key: &[u8], value: &mut Vec<u8>) -> Result<V::Owned> {
        V::decode_buffer(value).map_err(|error| self.bad_row(key, error))
    }

    fn bad_row(&self, key: &[u8], error: Error) -> Error {
        error.context(format_args!("table {:?}, key {}", self.name, excerpt(key)))
    }
}

/// A key as it may stand in a message: text if it is, else hexadecimal; shortened.
fn excerpt(key: &[u8]) -> String {
    const SHOWN_BYTES: usize = 32;
    let shown = &key[..key.len().min(SHOWN_BYTES)];
    let text = match std::str::from_utf8(shown) {
        Ok(text) if !text.chars().any(char::is_control) => format!("{text:?}"),
        _ => shown.iter().fold("0x".to_owned(), |hex, byte| hex + &format!("{byte:02x}")),
    };
    if shown.len() == key.len() { text } else { format!("{text}... ({} bytes)", key.len()) }
}

fn encode_bound<K: Key>(bound: Bound<&K::View<'_>>) -> Result<Bound<Vec<u8>>> {
    let encode = |key| {
        let mut encoded = Vec::new();
        K::encode(key, &mut encoded).map(|()| encoded)
    };
    Ok(match bound {
        Bound::Included(key) => Bound::Included(encode(key)?),
        Bound::Excluded(key) => Bound::Excluded(encode(key)?),
        Bound::Unbounded => Bound::Unbounded,
    })
}

/// Bounds are reversed by the order of their bytes, which is the keys' order (encoding I1).
fn check_bounds(lower: &Bound<Vec<u8>>, upper: &Bound<Vec<u8>>) -> Result<()> {
    let (Bound::Included(from) | Bound::Excluded(from), Bound::Included(to) | Bound::Excluded(to)) =
        (lower, upper)
    else {
        return Ok(());
    };
    if from > to {
        return Err(Error::invalid(format!(
            "the range starts at key {}, behind its end at key {}",
            excerpt(from),
            excerpt(to)
        )));
    }
    Ok(())
}
