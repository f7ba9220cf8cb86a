//! Keys and values of typed tables, as people and JSON see them.
//!
//! The catalog names the types a table was made with (`str`, `u64`, `(str,u64)`); this turns their bytes into text or JSON and
//! back. The bytes themselves are the engine's affair: every leaf goes through [`hamal::Value`].
//!
//! I1. `encode(decode(bytes)) == bytes` for bytes that are of the type.
//! I2. Type names and bytes come from a file: any of them gives a codec or datum, at worst plain bytes. Nesting, array lengths and
//!     the number of parts are bounded, so neither the stack nor an allocation follows a hostile name.

use std::str::FromStr;

use hamal::Value;
use serde_json::{Map, Value as Json, json};

use crate::text;

/// Deepest nesting of a type name that is taken apart.
const MAX_DEPTH: usize = 8;
/// Longest array that is taken apart.
const MAX_ARRAY: usize = 1024;
/// Most parts of a type that is taken apart. Those of no width count too: each is a JSON value.
const MAX_PARTS: usize = 64 << 10;

/// Encodes and decodes one type.
#[derive(Clone, Debug)]
pub(crate) enum Codec {
    Bytes,
    Str,
    Scalar(&'static Scalar),
    Tuple(Vec<Codec>),
    Array(Box<Codec>, usize),
    Option(Box<Codec>),
    /// A type that only its application knows.
    Opaque(String),
}

/// A decoded key or value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Datum {
    Text(String),
    Json(Json),
    /// Neither text nor of a known type.
    Bytes(Vec<u8>),
}

impl Datum {
    /// On one line; reversible by [`Codec::parse`] or, for bytes, [`text::unescape`].
    pub(crate) fn shown(&self) -> String {
        match self {
            Datum::Text(text) => text::escape(text.as_bytes()),
            Datum::Json(json) => json.to_string(),
            Datum::Bytes(bytes) => text::escape(bytes),
        }
    }

    /// Puts it into a JSON object: as `name` or, where it is no text, in hexadecimal as `name_hex`.
    pub(crate) fn put_into(self, object: &mut Map<String, Json>, name: &str) {
        match self {
            Datum::Text(text) => object.insert(name.to_owned(), Json::String(text)),
            Datum::Json(json) => object.insert(name.to_owned(), json),
            Datum::Bytes(bytes) => object.insert(format!("{name}_hex"), Json::String(text::hex(&bytes))),
        };
    }
}

/// A fixed-width type: its part form is its plain form.
#[derive(Debug)]
pub(crate) struct Scalar {
    name: &'static str,
    decode: fn(&mut &[u8]) -> Option<Json>,
    encode: fn(&Json, &mut Vec<u8>) -> Option<()>,
}

macro_rules! scalars {
    ($($type:ident)*) => {
        static SCALARS: &[Scalar] = &[$(Scalar {
            name: stringify!($type),
            decode: |input| <$type as Value>::decode_part(input).ok().map(IntoJson::into_json),
            encode: |json, out| <$type as Value>::encode(&from_json::<$type>(json)?, out).ok(),
        }),*];
    };
}

scalars! { u8 u16 u32 u64 u128 i8 i16 i32 i64 i128 f32 f64 bool char }

/// JSON for a scalar; as a string where JSON has no exact form.
trait IntoJson {
    fn into_json(self) -> Json;
}

macro_rules! into_json {
    (plain: $($plain:ident)*; text: $($text:ident)*; float: $($float:ident)*) => {
        $(impl IntoJson for $plain {
            fn into_json(self) -> Json {
                json!(self)
            }
        })*
        $(impl IntoJson for $text {
            fn into_json(self) -> Json {
                Json::String(self.to_string())
            }
        })*
        $(impl IntoJson for $float {
            fn into_json(self) -> Json {
                if self.is_finite() { json!(self) } else { Json::String(self.to_string()) }
            }
        })*
    };
}

into_json! { plain: u8 u16 u32 u64 i8 i16 i32 i64 bool char; text: u128 i128; float: f32 f64 }

fn from_json<T: FromStr>(json: &Json) -> Option<T> {
    match json {
        Json::String(text) => text.parse().ok(),
        Json::Number(_) | Json::Bool(_) => json.to_string().parse().ok(),
        _ => None,
    }
}

/// Whether something follows: the plain form ends with its bytes, a part says itself where it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Plain,
    Part,
}

impl Codec {
    /// The codec of a type as the catalog names it.
    pub(crate) fn of(type_name: &str) -> Codec {
        Codec::parse_name(type_name, 0)
            .filter(|codec| codec.parts().is_some_and(|parts| parts <= MAX_PARTS))
            .unwrap_or_else(|| Codec::Opaque(type_name.to_owned()))
    }

    /// How many JSON values a decoded one is made of, at least 1; `None` if that is no number.
    fn parts(&self) -> Option<usize> {
        match self {
            Codec::Tuple(parts) => parts.iter().try_fold(1_usize, |sum, part| sum.checked_add(part.parts()?)),
            Codec::Array(element, length) => element.parts()?.checked_mul(*length)?.checked_add(1),
            Codec::Option(inner) => inner.parts()?.checked_add(1),
            Codec::Bytes | Codec::Str | Codec::Scalar(_) | Codec::Opaque(_) => Some(1),
        }
    }

    fn parse_name(name: &str, depth: usize) -> Option<Codec> {
        if depth > MAX_DEPTH {
            return None;
        }
        match name {
            "bytes" => return Some(Codec::Bytes),
            "str" => return Some(Codec::Str),
            "()" => return Some(Codec::Tuple(Vec::new())),
            _ => {}
        }
        if let Some(scalar) = SCALARS.iter().find(|scalar| scalar.name == name) {
            return Some(Codec::Scalar(scalar));
        }
        if let Some(inner) = name.strip_prefix("option<").and_then(|rest| rest.strip_suffix('>')) {
            return Some(Codec::Option(Box::new(Codec::parse_name(inner, depth + 1)?)));
        }
        if let Some(inner) = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            let (element, length) = inner.rsplit_once(';')?;
            let length = length.trim().parse().ok().filter(|length| *length <= MAX_ARRAY)?;
            return Some(Codec::Array(Box::new(Codec::parse_name(element, depth + 1)?), length));
        }
        let inner = name.strip_prefix('(')?.strip_suffix(')')?;
        let parts = split_top(inner)?;
        parts
            .into_iter()
            .map(|part| Codec::parse_name(part.trim(), depth + 1))
            .collect::<Option<_>>()
            .map(Codec::Tuple)
    }

    /// A stored key or value.
    pub(crate) fn decode(&self, bytes: &[u8]) -> Datum {
        let as_bytes = || Datum::Bytes(bytes.to_vec());
        match self {
            Codec::Bytes | Codec::Str => match std::str::from_utf8(bytes) {
                Ok(text) => Datum::Text(text.to_owned()),
                Err(_) => as_bytes(),
            },
            Codec::Opaque(_) => as_bytes(),
            _ => {
                let mut input = bytes;
                match self.decode_json(&mut input, Form::Plain) {
                    Some(json) if input.is_empty() => Datum::Json(json),
                    _ => as_bytes(),
                }
            }
        }
    }

    fn decode_json(&self, input: &mut &[u8], form: Form) -> Option<Json> {
        match self {
            Codec::Str if form == Form::Plain => {
                Some(Json::String(std::str::from_utf8(std::mem::take(input)).ok()?.to_owned()))
            }
            Codec::Str => String::decode_part(input).ok().map(Json::String),
            Codec::Bytes if form == Form::Plain => Some(bytes_json(std::mem::take(input))),
            Codec::Bytes => Vec::<u8>::decode_part(input).ok().map(|bytes| bytes_json(&bytes)),
            Codec::Scalar(scalar) => (scalar.decode)(input),
            Codec::Tuple(parts) => {
                let mut values = Vec::with_capacity(parts.len());
                for (i, part) in parts.iter().enumerate() {
                    let last = i + 1 == parts.len();
                    values.push(part.decode_json(input, if last { form } else { Form::Part })?);
                }
                Some(Json::Array(values))
            }
            Codec::Array(element, length) => (0..*length)
                .map(|_| element.decode_json(input, Form::Part))
                .collect::<Option<_>>()
                .map(Json::Array),
            Codec::Option(inner) => {
                let (mark, rest) = input.split_first()?;
                *input = rest;
                match mark {
                    0 => Some(Json::Null),
                    1 => Some(json!({ "some": inner.decode_json(input, form)? })),
                    _ => None,
                }
            }
            Codec::Opaque(_) => None,
        }
    }

    /// A key or value as it is typed: text as it stands, numbers, JSON for tuples and arrays.
    pub(crate) fn parse(&self, typed: &str) -> Result<Vec<u8>, String> {
        match self {
            Codec::Bytes | Codec::Str => return Ok(typed.as_bytes().to_vec()),
            Codec::Opaque(name) => {
                return Err(format!(
                    "the type {name} is known to its application only; give its bytes with --hex"
                ));
            }
            Codec::Scalar(_) => self.encode(&Json::String(typed.to_owned())),
            Codec::Tuple(_) | Codec::Array(..) | Codec::Option(_) => {
                serde_json::from_str(typed).ok().and_then(|json| self.encode(&json))
            }
        }
        .ok_or_else(|| format!("{typed:?} is no {}", self.name()))
    }

    /// The plain form of a JSON value.
    pub(crate) fn encode(&self, json: &Json) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        self.encode_json(json, &mut out, Form::Plain)?;
        Some(out)
    }

    fn encode_json(&self, json: &Json, out: &mut Vec<u8>, form: Form) -> Option<()> {
        match self {
            Codec::Str => {
                let text = json.as_str()?;
                match form {
                    Form::Plain => <&str as Value>::encode(&text, out).ok(),
                    Form::Part => <&str as Value>::encode_part(&text, out).ok(),
                }
            }
            Codec::Bytes => {
                let bytes = json_bytes(json)?;
                match form {
                    Form::Plain => <&[u8] as Value>::encode(&bytes.as_slice(), out).ok(),
                    Form::Part => <&[u8] as Value>::encode_part(&bytes.as_slice(), out).ok(),
                }
            }
            Codec::Scalar(scalar) => (scalar.encode)(json, out),
            Codec::Tuple(parts) => {
                let values = json.as_array().filter(|values| values.len() == parts.len())?;
                for (i, (part, value)) in parts.iter().zip(values).enumerate() {
                    let last = i + 1 == parts.len();
                    part.encode_json(value, out, if last { form } else { Form::Part })?;
                }
                Some(())
            }
            Codec::Array(element, length) => {
                let values = json.as_array().filter(|values| values.len() == *length)?;
                values.iter().try_for_each(|value| element.encode_json(value, out, Form::Part))
            }
            Codec::Option(inner) => {
                if json.is_null() {
                    out.push(0);
                    return Some(());
                }
                out.push(1);
                inner.encode_json(json.get("some")?, out, form)
            }
            Codec::Opaque(_) => None,
        }
    }

    /// The type as the catalog names it.
    pub(crate) fn name(&self) -> String {
        match self {
            Codec::Bytes => "bytes".into(),
            Codec::Str => "str".into(),
            Codec::Scalar(scalar) => scalar.name.into(),
            Codec::Tuple(parts) => {
                format!("({})", parts.iter().map(Codec::name).collect::<Vec<_>>().join(","))
            }
            Codec::Array(element, length) => format!("[{};{length}]", element.name()),
            Codec::Option(inner) => format!("option<{}>", inner.name()),
            Codec::Opaque(name) => name.clone(),
        }
    }
}

/// Bytes inside a compound: text if they are, else an object that cannot be mistaken for it.
fn bytes_json(bytes: &[u8]) -> Json {
    match std::str::from_utf8(bytes) {
        Ok(text) => Json::String(text.to_owned()),
        Err(_) => json!({ "hex": text::hex(bytes) }),
    }
}

fn json_bytes(json: &Json) -> Option<Vec<u8>> {
    match json {
        Json::String(text) => Some(text.as_bytes().to_vec()),
        other => text::unhex(other.get("hex")?.as_str()?).ok(),
    }
}

/// Splits at the commas that are not inside brackets.
fn split_top(inner: &str) -> Option<Vec<&str>> {
    let mut parts = Vec::new();
    let (mut depth, mut start) = (0_usize, 0);
    for (at, c) in inner.char_indices() {
        match c {
            '(' | '[' | '<' => depth += 1,
            ')' | ']' | '>' => depth = depth.checked_sub(1)?,
            ',' if depth == 0 => {
                parts.push(&inner[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&inner[start..]);
    (depth == 0).then_some(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(name: &str, json: &Json) {
        let codec = Codec::of(name);
        assert_eq!(codec.name(), name);
        let bytes = codec.encode(json).unwrap_or_else(|| panic!("{name} takes {json}"));
        assert_eq!(codec.decode(&bytes), Datum::Json(json.clone()), "{name}");
    }

    #[test]
    fn scalars_and_compounds_round_trip() {
        round_trip("u64", &json!(u64::MAX));
        round_trip("i128", &json!(i128::MIN.to_string()));
        round_trip("f64", &json!(-0.5));
        round_trip("f32", &json!("NaN"));
        round_trip("bool", &json!(true));
        round_trip("char", &json!("漢"));
        round_trip("(str,u64)", &json!(["a\0b", 7]));
        round_trip("(u8,(str,bytes),str)", &json!([1, ["x", { "hex": "00ff" }], "tail"]));
        round_trip("[i16;3]", &json!([-1, 0, 1]));
        round_trip("option<str>", &json!({ "some": "x" }));
        round_trip("option<str>", &Json::Null);
        round_trip("()", &json!([]));
    }

    #[test]
    fn a_typed_key_has_the_bytes_the_engine_gives_it() {
        let mut expected = Vec::new();
        <(&str, u64)>::encode(&("alice", 7), &mut expected).unwrap();
        assert_eq!(Codec::of("(str,u64)").parse(r#"["alice", 7]"#), Ok(expected));
        assert_eq!(Codec::of("i8").parse("-1"), Ok(vec![0x7f]));
        assert_eq!(Codec::of("str").parse("[1]"), Ok(b"[1]".to_vec()));
    }

    #[test]
    fn what_is_not_of_the_type_is_refused_when_typed_and_shown_as_bytes_when_stored() {
        for (name, typed) in [
            ("u8", "256"),
            ("u8", ""),
            ("bool", "yes"),
            ("(str,u64)", "[1,2]"),
            ("(str,u64)", "x"),
            ("[u8;2]", "[1]"),
        ] {
            let message = Codec::of(name).parse(typed).expect_err(name);
            assert!(message.ends_with(&format!("is no {name}")), "{message}");
        }
        assert_eq!(Codec::of("u64").decode(b"short"), Datum::Bytes(b"short".to_vec()));
        assert_eq!(Codec::of("u8").decode(b"xx"), Datum::Bytes(b"xx".to_vec()));
        assert_eq!(Codec::of("str").decode(b"\xff"), Datum::Bytes(b"\xff".to_vec()));
        assert!(Codec::of("msgpack").parse("x").expect_err("opaque").contains("--hex"));
    }

    #[test]
    fn hostile_type_names_are_opaque() {
        let deep = "(".repeat(10_000) + &")".repeat(10_000);
        for name in
            ["", "(", ")", "(str", "[u8]", "[u8;]", "[();1000000]", "option<>", "(str,)", "(a>,<b)", &deep]
        {
            assert!(matches!(Codec::of(name), Codec::Opaque(_)), "{name:.20}");
        }
    }

    #[test]
    fn a_type_of_too_many_parts_is_opaque_even_if_it_has_no_width() {
        for name in ["[[[();1024];1024];1024]", "[[u8;256];256]", "([[u8;255];255],[[u8;255];255])"] {
            assert!(matches!(Codec::of(name), Codec::Opaque(_)), "{name}");
            assert_eq!(Codec::of(name).decode(b""), Datum::Bytes(Vec::new()));
        }
        for name in ["[[u8;255];255]", "[();1024]", "[[();0];1024]"] {
            assert!(matches!(Codec::of(name), Codec::Array(..)), "{name}");
        }
    }

    #[test]
    fn a_datum_is_named_by_what_it_is() {
        let mut object = Map::new();
        Codec::Bytes.decode(b"text").put_into(&mut object, "key");
        Codec::Bytes.decode(b"\xff\x00").put_into(&mut object, "value");
        assert_eq!(Json::Object(object), json!({ "key": "text", "value_hex": "ff00" }));
        assert_eq!(Codec::Bytes.decode(b"a\nb").shown(), "a\\nb");
    }
}
