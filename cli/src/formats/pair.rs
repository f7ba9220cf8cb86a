//! A row as `{"key":...,"value":...}`; `key_hex` and `value_hex` for what is no text.
//!
//! I1. [`Pair::fill`] gives back the row that [`row_document`] wrote, whatever its bytes, for a table of the same types.

use std::borrow::Cow;

use serde_json::value::RawValue;
use serde_json::{Map, Value as Json};

use super::Row;
use super::document::Document;
use crate::codec::Codec;
use crate::text;

/// The row as an object.
pub(crate) fn row_document(codecs: &(Codec, Codec), key: &[u8], value: &[u8]) -> Json {
    let mut row = Map::new();
    codecs.0.decode(key).put_into(&mut row, "key");
    codecs.1.decode(value).put_into(&mut row, "value");
    Json::Object(row)
}

/// Such an object, taken apart.
pub(super) struct Pair<'d> {
    key: Member<'d>,
    value: Member<'d>,
}

enum Member<'d> {
    Json(&'d RawValue),
    Hex(&'d RawValue),
}

impl<'d> Pair<'d> {
    /// `None` if the document has other members, or others besides.
    pub(super) fn of(document: &Document<'d>) -> Option<Pair<'d>> {
        let Document::Object(members) = document else { return None };
        let [(key_name, key), (value_name, value)] = members.as_slice() else { return None };
        let member = |name: &str, at: &'d RawValue, plain: &str, hex: &str| match name {
            name if name == plain => Some(Member::Json(at)),
            name if name == hex => Some(Member::Hex(at)),
            _ => None,
        };
        Some(Pair {
            key: member(key_name, key, "key", "key_hex")?,
            value: member(value_name, value, "value", "value_hex")?,
        })
    }

    pub(super) fn fill(&self, row: &mut Row) -> Result<(), String> {
        row.key_is_text = self.key.fill(&mut row.key).map_err(|what| format!("the key: {what}"))?;
        row.value_is_text = self.value.fill(&mut row.value).map_err(|what| format!("the value: {what}"))?;
        Ok(())
    }
}

impl Member<'_> {
    /// Whether it is text that the table's type has to encode.
    fn fill(&self, bytes: &mut Vec<u8>) -> Result<bool, String> {
        bytes.clear();
        match self {
            Member::Json(json) => bytes.extend_from_slice(as_typed(json)?.as_bytes()),
            Member::Hex(json) => {
                let digits: String = serde_json::from_str(json.get())
                    .map_err(|_| format!("{} is no string of hexadecimal digits", json.get()))?;
                bytes.extend(text::unhex(&digits)?);
            }
        }
        Ok(matches!(self, Member::Json(_)))
    }
}

/// As it would be typed: a string's own text, else the JSON.
fn as_typed(json: &RawValue) -> Result<Cow<'_, str>, String> {
    if !json.get().starts_with('"') {
        return Ok(Cow::Borrowed(json.get()));
    }
    serde_json::from_str(json.get()).map(Cow::Owned).map_err(|_| format!("{} is no text", json.get()))
}
