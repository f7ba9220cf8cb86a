//! Every encoding keeps order, comes back, and takes hostile bytes.

use std::cmp::Ordering;
use std::fmt::Debug;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use super::{Key, Value};
use crate::ErrorKind;

fn plain<T: Value>(value: &T::Owned) -> Vec<u8> {
    let mut out = Vec::new();
    T::encode(&T::view(value), &mut out).unwrap();
    assert!(
        T::as_plain(&T::view(value)).is_none_or(|given| given == out),
        "as_plain is not what encode appends"
    );
    out
}

fn part<T: Value>(value: &T::Owned) -> Vec<u8> {
    let mut out = Vec::new();
    T::encode_part(&T::view(value), &mut out).unwrap();
    out
}

/// Both forms decode to what encodes to the same bytes again, and a part takes exactly its own bytes.
fn comes_back<T: Value>(value: &T::Owned, same: impl Fn(&T::Owned, &T::Owned) -> bool)
where
    T::Owned: Debug,
{
    let mut bytes = plain::<T>(value);
    let decoded = T::decode(&bytes).unwrap();
    assert!(same(value, &decoded), "{value:?} came back as {decoded:?}");
    let decoded = T::decode_buffer(&mut bytes).unwrap();
    assert!(same(value, &decoded), "{value:?} came back from a buffer as {decoded:?}");

    let mut bytes = part::<T>(value);
    bytes.extend_from_slice(b"\x00\x01rest");
    let mut input = bytes.as_slice();
    let decoded = T::decode_part(&mut input).unwrap();
    assert!(same(value, &decoded), "{value:?} came back from a part as {decoded:?}");
    assert_eq!(input, b"\x00\x01rest");
}

/// The bytes of both forms compare as the values do; parts whatever follows them.
fn sorts<T: Key>(a: &T::Owned, b: &T::Owned, order: Ordering, tails: &(Vec<u8>, Vec<u8>))
where
    T::Owned: Debug,
{
    assert_eq!(plain::<T>(a).cmp(&plain::<T>(b)), order, "plain: {a:?}, {b:?}");
    let (mut bytes_a, mut bytes_b) = (part::<T>(a), part::<T>(b));
    if order == Ordering::Equal {
        assert_eq!(bytes_a, bytes_b);
    } else {
        bytes_a.extend_from_slice(&tails.0);
        bytes_b.extend_from_slice(&tails.1);
        assert_eq!(bytes_a.cmp(&bytes_b), order, "parts: {a:?}, {b:?}, followed by {tails:?}");
    }
}

/// Any bytes at all are either those of one value, or `Corrupt`.
fn survives<T: Key>(bytes: &[u8]) {
    match T::decode(bytes) {
        Ok(value) => assert_eq!(plain::<T>(&value), bytes, "two encodings of one {}", T::type_name()),
        Err(error) => assert_eq!(error.kind(), ErrorKind::Corrupt),
    }
    let mut input = bytes;
    match T::decode_part(&mut input) {
        Ok(value) => assert_eq!(part::<T>(&value), bytes[..bytes.len() - input.len()]),
        Err(error) => assert_eq!(error.kind(), ErrorKind::Corrupt),
    }
}

/// Bytes from a few that matter to escapes and marks.
fn sharp_bytes() -> impl Strategy<Value = Vec<u8>> {
    vec(select(&[0x00, 0x01, 0x02, b'a', b'b', 0x7f, 0x80, 0xfe, 0xff][..]), 0..24)
}

fn sharp_string() -> impl Strategy<Value = String> {
    vec(select(&['\0', '\u{1}', 'a', 'b', '\u{7f}', '\u{80}', 'ü', '\u{ffff}', '\u{10ffff}'][..]), 0..8)
        .prop_map(String::from_iter)
}

fn sharp_char() -> impl Strategy<Value = char> {
    prop_oneof![any::<char>(), select(&['\0', 'a', '\u{d7ff}', '\u{e000}', '\u{10ffff}'][..])]
}

fn f64s() -> impl Strategy<Value = f64> {
    let sharp = [
        0.0,
        -0.0,
        1.0,
        -1.0,
        f64::MIN_POSITIVE,
        -f64::MIN_POSITIVE,
        f64::INFINITY,
        f64::NEG_INFINITY,
        f64::NAN,
        -f64::NAN,
        f64::MAX,
        f64::MIN,
        5e-324,
        -5e-324,
    ];
    prop_oneof![any::<u64>().prop_map(f64::from_bits), select(sharp.to_vec())]
}

fn f32s() -> impl Strategy<Value = f32> {
    let sharp = [0.0, -0.0, 1.0, -1.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -f32::NAN, 1e-45, -1e-45];
    prop_oneof![any::<u32>().prop_map(f32::from_bits), select(sharp.to_vec())]
}

macro_rules! key_type {
    ($name:ident, $type:ty, $values:expr) => {
        key_type!($name, $type, $values, Ord::cmp);
    };
    ($name:ident, $type:ty, $values:expr, $compare:expr) => {
        mod $name {
            use super::*;

            proptest! {
                #[test]
                fn keeps_order_and_comes_back(
                    a in $values, b in $values, tails in (sharp_bytes(), sharp_bytes()),
                ) {
                    let compare: fn(&<$type as Value>::Owned, &<$type as Value>::Owned) -> Ordering = $compare;
                    comes_back::<$type>(&a, |a, b| compare(a, b) == Ordering::Equal);
                    sorts::<$type>(&a, &b, compare(&a, &b), &tails);
                    sorts::<$type>(&a, &a, Ordering::Equal, &tails);
                }

                #[test]
                fn takes_any_bytes(sharp in sharp_bytes(), any in vec(any::<u8>(), 0..40)) {
                    survives::<$type>(&sharp);
                    survives::<$type>(&any);
                }

                #[test]
                fn takes_any_damage(value in $values, at in any::<prop::sample::Index>(), flip in 1..=255u8) {
                    for mut bytes in [plain::<$type>(&value), part::<$type>(&value)] {
                        survives::<$type>(&bytes);
                        if !bytes.is_empty() {
                            let at = at.index(bytes.len());
                            survives::<$type>(&bytes[..at]);
                            bytes[at] ^= flip;
                            survives::<$type>(&bytes);
                        }
                    }
                }
            }
        }
    };
}

macro_rules! integers {
    ($($type:ident)*) => {$(
        key_type!($type, $type, prop_oneof![
            any::<$type>(),
            select(&[<$type>::MIN, <$type>::MIN + 1, <$type>::MAX / 2, 0, 1, <$type>::MAX - 1, <$type>::MAX][..]),
        ]);
    )*};
}

integers! { u8 u16 u32 u64 u128 i8 i16 i32 i64 i128 }
key_type!(float32, f32, f32s(), f32::total_cmp);
key_type!(float64, f64, f64s(), f64::total_cmp);
key_type!(boolean, bool, any::<bool>());
key_type!(character, char, sharp_char());
key_type!(unit, (), Just(()));
key_type!(borrowed_string, &str, sharp_string());
key_type!(string, String, ".*");
key_type!(borrowed_bytes, &[u8], sharp_bytes());
key_type!(bytes, Vec<u8>, vec(any::<u8>(), 0..40));
key_type!(byte_array, [u8; 5], any::<[u8; 5]>());
key_type!(empty_array, [u64; 0], Just([]));
key_type!(array_of_integers, [i32; 3], any::<[i32; 3]>());
key_type!(array_of_strings, [&str; 2], [sharp_string(), sharp_string()]);
key_type!(optional_integer, Option<u16>, option::of(any::<u16>()));
key_type!(optional_string, Option<&str>, option::of(sharp_string()));
key_type!(optional_optional, Option<Option<bool>>, option::of(option::of(any::<bool>())));
key_type!(pair, (&str, u64), (sharp_string(), any::<u64>()));
key_type!(pair_with_string_last, (u8, &str), (any::<u8>(), sharp_string()));
key_type!(triple, (&[u8], &[u8], &str), (sharp_bytes(), sharp_bytes(), sharp_string()));
key_type!(quadruple, (bool, char, i8, String), (any::<bool>(), sharp_char(), any::<i8>(), sharp_string()));
key_type!(
    quintuple,
    ((), Option<i64>, [u8; 2], &str, &[u8]),
    (Just(()), option::of(any::<i64>()), any::<[u8; 2]>(), sharp_string(), sharp_bytes())
);
key_type!(
    sextuple,
    (u8, &str, i16, &[u8], Option<&str>, [&str; 1]),
    (0..2u8, sharp_string(), any::<i16>(), sharp_bytes(), option::of(sharp_string()), [sharp_string()])
);
key_type!(
    nested,
    ((&str, (u8, Option<&[u8]>)), [(&str, bool); 2], Option<(&str, &str)>),
    (
        (sharp_string(), (0..2u8, option::of(sharp_bytes()))),
        [(sharp_string(), any::<bool>()), (sharp_string(), any::<bool>())],
        option::of((sharp_string(), sharp_string()))
    )
);
key_type!(pair_of_floats, (f64, f32), (f64s(), f32s()), |a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));

#[test]
fn the_bytes_are_those_of_the_file_format() {
    fn is<T: Value>(value: &T::View<'_>, expected: &[u8]) {
        let mut bytes = Vec::new();
        T::encode(value, &mut bytes).unwrap();
        assert_eq!(bytes, expected, "plain form of {}", T::type_name());
    }
    is::<u32>(&0x0102_0304, &[1, 2, 3, 4]);
    is::<i16>(&-2, &[0x7f, 0xfe]);
    is::<i16>(&2, &[0x80, 0x02]);
    is::<f32>(&1.0, &[0xbf, 0x80, 0, 0]);
    is::<f32>(&-1.0, &[0x40, 0x7f, 0xff, 0xff]);
    is::<bool>(&true, &[1]);
    is::<char>(&'A', &[0, 0, 0, 0x41]);
    is::<()>(&(), &[]);
    is::<&str>(&"a\0b", b"a\0b");
    is::<(&str, &str)>(&("a\0b", "c\0"), b"a\x00\xffb\x00\x01c\x00");
    is::<[&str; 2]>(&["a", ""], b"a\x00\x01\x00\x01");
    is::<Option<&str>>(&Some("a"), b"\x01a");
    is::<(Option<&str>, u8)>(&(Some("a"), 7), b"\x01a\x00\x01\x07");
    is::<Option<u8>>(&None, &[0]);
    is::<[u8; 3]>(&[0, 1, 2], &[0, 1, 2]);
}

#[test]
fn byte_strings_strings_and_pods_are_stored_from_where_they_are() {
    let (bytes, text, number) = (b"bytes".as_slice(), "text", 7_u32);
    assert_eq!(<&[u8]>::as_plain(&bytes).map(<[u8]>::as_ptr), Some(bytes.as_ptr()));
    assert_eq!(<&str>::as_plain(&text).map(<[u8]>::as_ptr), Some(text.as_ptr()));
    assert_eq!(super::Pod::<u32>::as_plain(&&number).map(<[u8]>::as_ptr), Some((&raw const number).cast()));
    assert_eq!(u32::as_plain(&number), None, "numbers are big-endian");
}

#[test]
fn type_names_are_those_of_the_file_format() {
    assert_eq!(<(&str, u64)>::type_name(), "(str,u64)");
    assert_eq!(<(String, [Option<Vec<u8>>; 4])>::type_name(), "(str,[option<bytes>;4])");
    assert_eq!(<(bool, char, (), f32, i128)>::type_name(), "(bool,char,(),f32,i128)");
    assert_eq!(<&[u8]>::type_name(), "bytes");
    assert_eq!(<[u8; 16]>::type_name(), "[u8;16]");
}

#[cfg(target_endian = "little")]
mod pods {
    use super::*;
    use crate::Pod;

    type Cell = [u32; 3];

    proptest! {
        #[test]
        fn come_back_from_any_alignment(cell in any::<Cell>(), shift in 0..8usize) {
            comes_back::<Pod<Cell>>(&cell, |a, b| a == b);
            comes_back::<(Pod<Cell>, u8, Pod<Cell>)>(&(cell, 1, cell), |a, b| a == b);
            let mut bytes = vec![0; shift];
            Pod::<Cell>::encode(&&cell, &mut bytes).unwrap();
            prop_assert_eq!(Pod::<Cell>::decode(&bytes[shift..]).unwrap(), cell);
        }

        #[test]
        fn take_any_bytes(bytes in vec(any::<u8>(), 0..20)) {
            match Pod::<Cell>::decode(&bytes) {
                Ok(cell) => prop_assert_eq!(plain::<Pod<Cell>>(&cell), bytes),
                Err(error) => {
                    prop_assert_eq!(error.kind(), ErrorKind::Corrupt);
                    prop_assert_ne!(bytes.len(), 12);
                }
            }
        }
    }

    #[test]
    fn are_named_by_their_size() {
        assert_eq!(Pod::<Cell>::type_name(), "pod:12");
    }
}

#[cfg(feature = "serde")]
mod serdes {
    use ::serde::{Deserialize, Serialize};

    use super::*;
    use crate::Serde;

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    enum Shape {
        Dot,
        Circle { radius: f64 },
        Group(Vec<Shape>),
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Old {
        name: String,
        shapes: Vec<Shape>,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct New {
        name: String,
        shapes: Vec<Shape>,
        #[serde(default)]
        born: Option<i32>,
    }

    fn shapes() -> impl Strategy<Value = Shape> {
        let leaf = prop_oneof![Just(Shape::Dot), (0.0..9.0).prop_map(|radius| Shape::Circle { radius })];
        leaf.prop_recursive(4, 20, 4, |inner| vec(inner, 0..4).prop_map(Shape::Group))
    }

    /// Groups within groups, `depth` of them.
    fn nest(depth: usize) -> Shape {
        (0..depth).fold(Shape::Dot, |inner, _| Shape::Group(vec![inner]))
    }

    proptest! {
        #[test]
        fn come_back(name in sharp_string(), shapes in vec(shapes(), 0..4)) {
            let old = Old { name, shapes };
            comes_back::<Serde<Old>>(&old, |a, b| a == b);
            let pair = (old, "behind".to_owned());
            comes_back::<(Serde<Old>, &str)>(&pair, |a, b| a == b);
        }

        #[test]
        fn take_any_bytes(bytes in vec(any::<u8>(), 0..60)) {
            if let Err(error) = Serde::<Old>::decode(&bytes) {
                prop_assert_eq!(error.kind(), ErrorKind::Corrupt);
            }
        }

        #[test]
        fn take_any_damage(shape in shapes(), at in any::<prop::sample::Index>(), flip in 1..=255u8) {
            let mut bytes = plain::<Serde<Shape>>(&shape);
            let at = at.index(bytes.len());
            prop_assert!(Serde::<Shape>::decode(&bytes[..at]).is_err());
            bytes[at] ^= flip;
            if let Err(error) = Serde::<Shape>::decode(&bytes) {
                prop_assert_eq!(error.kind(), ErrorKind::Corrupt);
            }
        }
    }

    #[test]
    fn gain_fields_at_the_end() {
        let old = Old { name: "a".to_owned(), shapes: vec![Shape::Dot] };
        let new = Serde::<New>::decode(&plain::<Serde<Old>>(&old)).unwrap();
        assert_eq!(new, New { name: old.name, shapes: old.shapes, born: None });
    }

    #[test]
    fn nested_deep_are_refused_when_written_not_when_read() {
        // A group is two levels: the variant and its list.
        let depth = super::super::serde::MAX_WRITTEN_DEPTH / 2 - 2;
        comes_back::<Serde<Shape>>(&nest(depth), |a, b| a == b);
        let error = Serde::<Shape>::encode(&&nest(depth + 4), &mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    }

    #[test]
    fn hostile_nesting_is_corrupt() {
        // {"Group": [{"Group": [ ... without end.
        let bytes = [&b"\x81\xa5Group\x91"[..]].concat().repeat(100_000);
        assert_eq!(Serde::<Shape>::decode(&bytes).unwrap_err().kind(), ErrorKind::Corrupt);
    }

    #[test]
    fn hostile_lengths_are_corrupt() {
        // A list of 2^32 - 1 shapes, in five bytes; a string of as many bytes.
        for bytes in [&b"\xdd\xff\xff\xff\xff"[..], b"\xdb\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"] {
            assert!(Serde::<Vec<Shape>>::decode(bytes).is_err());
            assert!(Serde::<String>::decode(bytes).is_err());
        }
    }
}
