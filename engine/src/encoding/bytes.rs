//! Strings and byte strings: as they are where they stand alone or last, escaped where something follows.
//!
//! Escaped: each `00` becomes `00 ff`, and `00 01` ends it. The end sorts below anything that could stand in its place (`00 ff`, or
//! a byte from 1 on), so a string comes before its extensions, whatever follows.

use super::{Key, Value};
use crate::{Error, Result};

const END: [u8; 2] = [0, 1];
const ZERO: [u8; 2] = [0, 0xff];

/// Appends `bytes`, escaped.
fn escape(bytes: &[u8], out: &mut Vec<u8>) {
    let mut pieces = bytes.split(|byte| *byte == 0);
    out.extend_from_slice(pieces.next().unwrap_or_default());
    for piece in pieces {
        out.extend_from_slice(&ZERO);
        out.extend_from_slice(piece);
    }
    out.extend_from_slice(&END);
}

/// Takes an escaped string from the front of `input`.
fn unescape(input: &mut &[u8], type_name: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    loop {
        let Some(zero) = input.iter().position(|byte| *byte == 0) else {
            return Err(Error::undecodable(type_name, "it has no end"));
        };
        bytes.extend_from_slice(&input[..zero]);
        let mark = input.get(zero + 1).copied();
        *input = input.get(zero + 2..).unwrap_or_default();
        match mark {
            Some(0x01) => return Ok(bytes),
            Some(0xff) => bytes.push(0),
            Some(other) => {
                return Err(Error::undecodable(type_name, &format!("00 {other:02x} in an escaped string")));
            }
            None => return Err(Error::undecodable(type_name, "it has no end")),
        }
    }
}

fn utf8(bytes: Vec<u8>) -> Result<String> {
    String::from_utf8(bytes).map_err(|error| Error::undecodable("str", &error.to_string()))
}

/// The buffer itself where it fits its contents, else a copy: a short string does not keep a long buffer.
fn take_or_copy(buffer: &mut Vec<u8>) -> Vec<u8> {
    if buffer.capacity() / 2 <= buffer.len() { std::mem::take(buffer) } else { buffer.clone() }
}

macro_rules! strings {
    ($($type:ty)*) => {$(
        impl Value for $type {
            type View<'v> = &'v str;
            type Owned = String;

            fn type_name() -> String {
                "str".to_owned()
            }

            fn view(owned: &String) -> &str {
                owned
            }

            fn encode(view: &&str, out: &mut Vec<u8>) -> Result<()> {
                out.extend_from_slice(view.as_bytes());
                Ok(())
            }

            fn as_plain<'v>(view: &Self::View<'v>) -> Option<&'v [u8]> {
                Some(view.as_bytes())
            }

            fn decode(bytes: &[u8]) -> Result<String> {
                match std::str::from_utf8(bytes) {
                    Ok(text) => Ok(text.to_owned()),
                    Err(error) => Err(Error::undecodable("str", &error.to_string())),
                }
            }

            fn decode_buffer(buffer: &mut Vec<u8>) -> Result<String> {
                utf8(take_or_copy(buffer))
            }

            fn encode_part(view: &&str, out: &mut Vec<u8>) -> Result<()> {
                escape(view.as_bytes(), out);
                Ok(())
            }

            fn decode_part(input: &mut &[u8]) -> Result<String> {
                utf8(unescape(input, "str")?)
            }
        }

        impl Key for $type {}
    )*};
}

strings! { &str String }

macro_rules! byte_strings {
    ($($type:ty)*) => {$(
        impl Value for $type {
            type View<'v> = &'v [u8];
            type Owned = Vec<u8>;

            fn type_name() -> String {
                "bytes".to_owned()
            }

            fn view(owned: &Vec<u8>) -> &[u8] {
                owned
            }

            fn encode(view: &&[u8], out: &mut Vec<u8>) -> Result<()> {
                out.extend_from_slice(view);
                Ok(())
            }

            fn as_plain<'v>(view: &Self::View<'v>) -> Option<&'v [u8]> {
                Some(view)
            }

            fn decode(bytes: &[u8]) -> Result<Vec<u8>> {
                Ok(bytes.to_vec())
            }

            fn decode_buffer(buffer: &mut Vec<u8>) -> Result<Vec<u8>> {
                Ok(take_or_copy(buffer))
            }

            fn encode_part(view: &&[u8], out: &mut Vec<u8>) -> Result<()> {
                escape(view, out);
                Ok(())
            }

            fn decode_part(input: &mut &[u8]) -> Result<Vec<u8>> {
                unescape(input, "bytes")
            }
        }

        impl Key for $type {}
    )*};
}

byte_strings! { &[u8] Vec<u8> }
