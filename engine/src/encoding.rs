//! How typed keys and values become bytes: [`Value`], [`Key`], and the types that have them.
//!
//! Owns the encodings (normative: docs/file-format.md, "Keys and values"). Knows no table, page or log.
//!
//! A type has two forms. *Plain*: the whole key or value; its length is known from outside. *Part*: one of several that follow
//! each other in a tuple, array or option; it says itself where it ends.
//!
//! I1. For a [`Key`], comparing plain forms as bytes gives the type's order, and so does comparing part forms.
//! I2. No part form is a proper prefix of another of its type, so parts compare right whatever follows them.
//! I3. Decoding takes any bytes and gives a value or `Corrupt` (for a `Key`: only for its own bytes). It never panics, and allocates no more
//!     than a small multiple of the bytes it was given.
//!
//! | type | name | plain | part, where it differs |
//! |---|---|---|---|
//! | `u8` .. `u128` | `u8` .. | big-endian | |
//! | `i8` .. `i128` | `i8` .. | big-endian, sign bit flipped | |
//! | `f32`, `f64` | `f32`, `f64` | bits big-endian; all flipped if negative, else the sign bit | |
//! | `bool` | `bool` | 0 or 1 | |
//! | `char` | `char` | its number, 4 bytes big-endian | |
//! | `()` | `()` | nothing | |
//! | `&str`, `String` | `str` | UTF-8 | `00` becomes `00 ff`; `00 01` ends it |
//! | `&[u8]`, `Vec<u8>` | `bytes` | the bytes | as `str` |
//! | `[T; N]` | `[T;N]` | N parts | |
//! | tuples of 2 to 6 | `(A,B)` | parts, the last one plain | parts |
//! | `Option<T>` | `option<T>` | 0, or 1 and `T` plain | 0, or 1 and `T` as a part |
//! | [`Pod<T>`](Pod) | `pod:BYTES` | the bytes of `T` | |
//! | `Serde<T>` | `msgpack` | MessagePack | length (4 bytes, big-endian) before it |

mod bytes;
mod composite;
mod number;
#[cfg(target_endian = "little")]
mod pod;
#[cfg(feature = "serde")]
mod serde;
#[cfg(test)]
mod tests;

#[cfg(target_endian = "little")]
pub use self::pod::Pod;
#[cfg(feature = "serde")]
pub use self::serde::Serde;

use std::array;

use crate::{Error, ErrorKind, Result};

/// A type that a table can have as its values.
///
/// Implemented for integers, floats, `bool`, `char`, `()`, strings, byte strings, arrays, tuples and options of them; through
/// wrappers for any `bytemuck::Pod` type ([`Pod`]) and, with feature `serde`, for any serde type (`Serde`).
///
/// An implementation of your own for, say, a fixed pair of numbers:
///
/// ```
/// use hamal::{Error, Result, TableDef, Value};
///
/// #[derive(Clone, Copy, Debug, PartialEq)]
/// struct Position { x: f64, y: f64 }
///
/// impl Value for Position {
///     type View<'v> = Position;
///     type Owned = Position;
///     fn type_name() -> String { "position".to_owned() }
///     fn encode(view: &Position, out: &mut Vec<u8>) -> Result<()> { <(f64, f64)>::encode(&(view.x, view.y), out) }
///     fn decode(bytes: &[u8]) -> Result<Position> {
///         let (x, y) = <(f64, f64)>::decode(bytes)?;
///         if x.is_nan() || y.is_nan() {
///             return Err(Error::undecodable("position", "it is nowhere"));
///         }
///         Ok(Position { x, y })
///     }
///     fn view(owned: &Position) -> Position { *owned }
/// }
///
/// const SHIPS: TableDef<&str, Position> = TableDef::new("ships");
/// # let mut bytes = Vec::new();
/// # Position::encode(&Position { x: 1.0, y: -2.0 }, &mut bytes)?;
/// # assert_eq!(Position::decode(&bytes)?, Position { x: 1.0, y: -2.0 });
/// # assert!(Position::decode(&bytes[1..]).is_err());
/// # Ok::<(), Error>(())
/// ```
pub trait Value {
    /// What is given to be written: borrowed where that saves a copy.
    type View<'v>;

    /// What is given back: it borrows nothing.
    type Owned;

    /// The type's name in the catalog. It must never change for bytes that must stay readable.
    fn type_name() -> String;

    /// Appends the plain form. `InvalidArgument` ([`Error::unencodable`]) if the value has none.
    fn encode(view: &Self::View<'_>, out: &mut Vec<u8>) -> Result<()>;

    /// The plain form, where what is given is that already: most operations then use it from there, and copy nothing first. Must be what
    /// [`Value::encode`] appends. `None`, unless overridden.
    fn as_plain<'v>(view: &Self::View<'v>) -> Option<&'v [u8]> {
        let _ = view;
        None
    }

    /// The value whose plain form is exactly `bytes`; `Corrupt` ([`Error::undecodable`]) if there is none.
    fn decode(bytes: &[u8]) -> Result<Self::Owned>;

    /// An owned value, as it is given to be written.
    fn view(owned: &Self::Owned) -> Self::View<'_>;

    /// As [`Value::decode`], but may take the buffer itself instead of copying it.
    fn decode_buffer(buffer: &mut Vec<u8>) -> Result<Self::Owned> {
        Self::decode(buffer)
    }

    /// Appends the part form. Unless overridden: the length of the plain form (4 bytes, big-endian), and the plain form.
    fn encode_part(view: &Self::View<'_>, out: &mut Vec<u8>) -> Result<()> {
        let start = out.len();
        out.extend_from_slice(&[0; 4]);
        Self::encode(view, out)?;
        let length = u32::try_from(out.len() - start - 4)
            .map_err(|_| Error::unencodable(&Self::type_name(), "it takes 4 GiB or more"))?;
        out[start..start + 4].copy_from_slice(&length.to_be_bytes());
        Ok(())
    }

    /// Decodes a part from the front of `input` and advances it.
    fn decode_part(input: &mut &[u8]) -> Result<Self::Owned> {
        let length = u32::from_be_bytes(take_array(input, &Self::type_name)?);
        Self::decode(take(input, length as usize, &Self::type_name)?)
    }

    /// Appends the part forms of several. Overridden where that can be one copy.
    fn encode_run(views: &[Self::View<'_>], out: &mut Vec<u8>) -> Result<()> {
        for view in views {
            Self::encode_part(view, out)?;
        }
        Ok(())
    }

    /// Decodes `N` parts from the front of `input` and advances it. Overridden where that can be one copy.
    fn decode_run<const N: usize>(input: &mut &[u8]) -> Result<[Self::Owned; N]> {
        let mut failure = None;
        let parts: [Option<Self::Owned>; N] = array::from_fn(|_| {
            if failure.is_some() {
                return None;
            }
            Self::decode_part(input).map_err(|error| failure = Some(error)).ok()
        });
        match failure {
            Some(error) => Err(error),
            None => Ok(parts.map(|part| part.expect("every part was decoded, or there was a failure"))),
        }
    }
}

/// A type that a table can have as its keys: a [`Value`] whose bytes sort as it does.
///
/// For all `a` and `b`, the plain forms compare as `a` and `b` do; so do the part forms, and no part form is a proper prefix of
/// another. Where an implementation breaks this, the table's order is that of the bytes; nothing else is harmed.
///
/// Floats sort by `total_cmp`: -NaN, -infinity, ..., -0.0, 0.0, ..., infinity, NaN. So -0.0 and 0.0 are two keys, and so are two
/// NaNs with different bits. Strings sort by their UTF-8 bytes, which is the order of `str`. `None` comes before every `Some`, as in
/// the standard library.
pub trait Key: Value {}

impl Error {
    /// A value that has no bytes; for implementations of [`Value::encode`].
    pub fn unencodable(type_name: &str, why: &str) -> Error {
        Error::invalid(format!("a value of type {type_name} cannot be stored: {why}"))
    }

    /// Stored bytes that no value of this type encodes to; for implementations of [`Value::decode`].
    pub fn undecodable(type_name: &str, why: &str) -> Error {
        Error::new(ErrorKind::Corrupt, format!("not the bytes of a value of type {type_name}: {why}"))
    }
}

/// The first `count` bytes of `input`, which moves on.
fn take<'i>(input: &mut &'i [u8], count: usize, type_name: &dyn Fn() -> String) -> Result<&'i [u8]> {
    let (head, rest) = input.split_at_checked(count).ok_or_else(|| {
        let why = format!("{} bytes where {count} were expected", input.len());
        Error::undecodable(&type_name(), &why)
    })?;
    *input = rest;
    Ok(head)
}

/// As [`take`], for a length known at compile time.
fn take_array<const N: usize>(input: &mut &[u8], type_name: &dyn Fn() -> String) -> Result<[u8; N]> {
    let mut array = [0; N];
    array.copy_from_slice(take(input, N, type_name)?);
    Ok(array)
}

/// Refuses bytes behind the end of a value.
fn finish<T>(rest: &[u8], value: T, type_name: &dyn Fn() -> String) -> Result<T> {
    if rest.is_empty() {
        return Ok(value);
    }
    Err(Error::undecodable(&type_name(), &format!("{} bytes too many", rest.len())))
}
