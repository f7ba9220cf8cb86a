//! JSON documents, taken apart one level deep without losing how they are written.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value as Json;
use serde_json::value::RawValue;

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
pub(super) fn is_compound(value: &RawValue) -> bool {
    value.get().starts_with(['{', '['])
}

/// Appends a JSON string.
pub(super) fn push_string(out: &mut Vec<u8>, text: &str) {
    // Writing into a `Vec` cannot fail, and a `str` is always a JSON string.
    let _ = serde_json::to_writer(out, text);
}

/// The document on one line: as it is written, unless it spans lines.
pub(super) fn on_one_line(text: &str) -> Cow<'_, str> {
    if !text.contains(['\n', '\r']) {
        return Cow::Borrowed(text);
    }
    // Line ends in valid JSON stand between tokens only, where a blank does as well.
    match serde_json::from_str::<&RawValue>(text) {
        Ok(_) => Cow::Owned(text.replace(['\n', '\r'], " ")),
        Err(_) => Cow::Owned(Json::String(text.to_owned()).to_string()),
    }
}
