//! Anything serde can serialize, as MessagePack.
//!
//! MessagePack, because what is stored outlives the program that stored it: the format says itself what it holds, so
//! fields can be added at the end of a struct, other tools and languages can read it, and its decoder has a depth limit, which
//! keeps hostile bytes from overflowing the stack through a recursive type.

use std::io::Cursor;
use std::marker::PhantomData;

use ::serde::Serialize;
use ::serde::de::{DeserializeOwned, IgnoredAny};
use rmp_serde::decode::Error as DecodeError;

use super::Value;
use crate::{Error, Result};

/// Nested deeper than this, a value is not written.
pub(super) const MAX_WRITTEN_DEPTH: usize = 128;
/// Nested deeper than this, bytes are not read. More than is written, because types count levels in their own ways.
const MAX_READ_DEPTH: usize = 256;

/// Values of any serde type, stored as MessagePack: structs as arrays of their fields, enum variants by name. Needs feature
/// `serde`.
///
/// The catalog remembers that the values are MessagePack, not which type they are. A field added at the end, with
/// `#[serde(default)]`, reads older values; any other change of the type may make them undecodable (`Corrupt`). Values nested
/// deeper than about 100 levels are refused.
///
/// ```
/// use hamal::{Serde, TableDef};
///
/// #[derive(serde::Serialize, serde::Deserialize)]
/// struct Person { name: String, tags: Vec<String>, #[serde(default)] born: Option<i32> }
///
/// const PEOPLE: TableDef<u64, Serde<Person>> = TableDef::new("people");
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Serde<T>(PhantomData<fn() -> T>);

impl<T: Serialize + DeserializeOwned + 'static> Value for Serde<T> {
    type View<'v> = &'v T;
    type Owned = T;

    fn type_name() -> String {
        "msgpack".to_owned()
    }

    fn view(owned: &T) -> &T {
        owned
    }

    fn encode(view: &&T, out: &mut Vec<u8>) -> Result<()> {
        let start = out.len();
        let mut serializer = rmp_serde::Serializer::new(&mut *out);
        view.serialize(&mut serializer).map_err(|error| Error::unencodable("msgpack", &error.to_string()))?;
        // The serializer has no limit of its own: what could not be read back must not be written.
        read::<IgnoredAny>(&out[start..], MAX_WRITTEN_DEPTH)
            .map(|_| ())
            .map_err(|error| Error::unencodable("msgpack", &error.to_string()))
    }

    fn decode(bytes: &[u8]) -> Result<T> {
        let (value, read_bytes) = read(bytes, MAX_READ_DEPTH)
            .map_err(|error: DecodeError| Error::undecodable("msgpack", &error.to_string()))?;
        if read_bytes != bytes.len() as u64 {
            let why = format!("{read_bytes} of its {} bytes are a whole value", bytes.len());
            return Err(Error::undecodable("msgpack", &why));
        }
        Ok(value)
    }
}

/// The value at the front of `bytes`, and how many of them it takes.
fn read<T: DeserializeOwned>(bytes: &[u8], max_depth: usize) -> std::result::Result<(T, u64), DecodeError> {
    let mut deserializer = rmp_serde::Deserializer::new(Cursor::new(bytes));
    deserializer.set_max_depth(max_depth);
    Ok((T::deserialize(&mut deserializer)?, deserializer.position()))
}
