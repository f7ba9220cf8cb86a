//! JSON documents, taken apart one level deep without losing how they are written.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::KeyColumn;
use crate::codec::Codec;

/// An object's members or an array's elements, in order; each value as it is written.
#[derive(Debug)]
pub(super) enum Document<'d> {
    Object(Vec<(Cow<'d, str>, &'d RawValue)>),
    Array(Vec<&'d RawValue>),
}

impl<'d> Document<'d> {
    /// `None` if the text is no JSON object or array.
    pub(super) fn parse(text: &'d str) -> Result<Document<'d>, serde_json::Error> {
        serde_json::from_str(text)
    }

    /// The text of the key field.
    pub(super) fn key(&self, column: &KeyColumn) -> Result<Cow<'d, str>, String> {
        let value = match self {
            Document::Object(members) => {
                let at = column.find(members.iter().map(|(name, _)| name.as_ref()), members.len())?;
                members.get(at).map(|(_, value)| *value)
            }
            Document::Array(elements) => column.position(elements.len()).map(|at| elements[at]),
        };
        let value = value.ok_or("there is no field for the key")?;
        scalar_text(value)
            .filter(|_| !is_compound(value))
            .ok_or_else(|| format!("the key is {}; it must be text, a number or a boolean", value.get()))
    }

    /// Whether a load by this column gives it this key.
    pub(super) fn is_keyed(&self, column: &KeyColumn, codec: &Codec, key: &[u8]) -> bool {
        self.key(column).is_ok_and(|text| codec.parse(&text).is_ok_and(|bytes| bytes == key))
    }
}

/// The text of a value whose type can be that of documents.
pub(super) fn document_text<'v>(codec: &Codec, value: &'v [u8]) -> Option<&'v str> {
    match codec {
        Codec::Bytes | Codec::Str => std::str::from_utf8(value).ok(),
        _ => None,
    }
}

/// A borrowed name where the text has no escapes.
#[derive(Deserialize)]
struct Name<'d>(#[serde(borrow)] Cow<'d, str>);

impl<'d> Deserialize<'d> for Document<'d> {
    fn deserialize<D: Deserializer<'d>>(deserializer: D) -> Result<Self, D::Error> {
        struct Parts;

        impl<'d> Visitor<'d> for Parts {
            type Value = Document<'d>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object or array")
            }

            fn visit_map<A: MapAccess<'d>>(self, mut map: A) -> Result<Document<'d>, A::Error> {
                let mut members = Vec::new();
                while let Some((Name(name), value)) = map.next_entry()? {
                    members.push((name, value));
                }
                Ok(Document::Object(members))
            }

            fn visit_seq<A: SeqAccess<'d>>(self, mut elements: A) -> Result<Document<'d>, A::Error> {
                let mut values = Vec::new();
                while let Some(value) = elements.next_element()? {
                    values.push(value);
                }
                Ok(Document::Array(values))
            }
        }

        deserializer.deserialize_any(Parts)
    }
}

/// A scalar as the text a CSV field or a key has: a string's own text, else the JSON. `None` for what has no text of its own (null).
pub(super) fn scalar_text(value: &RawValue) -> Option<Cow<'_, str>> {
    let json = value.get();
    match json.as_bytes().first() {
        Some(b'"') => serde_json::from_str::<String>(json).ok().map(Cow::Owned),
        Some(b'n') => None,
        _ => Some(Cow::Borrowed(json)),
    }
}

/// Whether it is an object or array.
fn is_compound(value: &RawValue) -> bool {
    value.get().starts_with(['{', '['])
}

/// Appends a JSON string.
pub(super) fn push_string(out: &mut Vec<u8>, text: &str) {
    // Writing into a `Vec` cannot fail, and a `str` is always a JSON string.
    let _ = serde_json::to_writer(out, text);
}
