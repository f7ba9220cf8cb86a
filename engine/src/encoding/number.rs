//! Integers, floats, `bool`, `char` and `()`: fixed widths, so plain form and part form are the same.

use super::{Key, Value, finish, take, take_array};
use crate::{Error, Result};

/// The functions that all types have alike that are their own view and owned form, and have one form only.
macro_rules! itself {
    ($type:ty, $name:expr) => {
        type View<'v> = $type;
        type Owned = $type;

        fn type_name() -> String {
            $name.to_owned()
        }

        fn view(owned: &$type) -> $type {
            *owned
        }

        fn decode(mut bytes: &[u8]) -> Result<$type> {
            let value = Self::decode_part(&mut bytes)?;
            finish(bytes, value, &Self::type_name)
        }

        fn encode_part(view: &$type, out: &mut Vec<u8>) -> Result<()> {
            Self::encode(view, out)
        }
    };
}

macro_rules! unsigned {
    ($($type:ident)*) => {$(
        impl Value for $type {
            itself!($type, stringify!($type));

            fn encode(view: &$type, out: &mut Vec<u8>) -> Result<()> {
                out.extend_from_slice(&view.to_be_bytes());
                Ok(())
            }

            fn decode_part(input: &mut &[u8]) -> Result<$type> {
                Ok($type::from_be_bytes(take_array(input, &Self::type_name)?))
            }
        }

        impl Key for $type {}
    )*};
}

unsigned! { u16 u32 u64 u128 }

/// `u8` by itself: arrays of it are copied whole.
impl Value for u8 {
    itself!(u8, "u8");

    fn encode(view: &u8, out: &mut Vec<u8>) -> Result<()> {
        out.push(*view);
        Ok(())
    }

    fn decode_part(input: &mut &[u8]) -> Result<u8> {
        let [byte] = take_array(input, &Self::type_name)?;
        Ok(byte)
    }

    fn encode_run(views: &[u8], out: &mut Vec<u8>) -> Result<()> {
        out.extend_from_slice(views);
        Ok(())
    }

    fn decode_run<const N: usize>(input: &mut &[u8]) -> Result<[u8; N]> {
        let name = || format!("[u8;{N}]");
        let mut array = [0; N];
        array.copy_from_slice(take(input, N, &name)?);
        Ok(array)
    }
}

impl Key for u8 {}

/// Types whose order is that of unsigned integers of the same width, after a mapping of the bits.
macro_rules! mapped {
    ($($type:ident as $bits:ident: $to:expr, $from:expr;)*) => {$(
        impl Value for $type {
            itself!($type, stringify!($type));

            fn encode(view: &$type, out: &mut Vec<u8>) -> Result<()> {
                let to: fn($type) -> $bits = $to;
                out.extend_from_slice(&to(*view).to_be_bytes());
                Ok(())
            }

            fn decode_part(input: &mut &[u8]) -> Result<$type> {
                let from: fn($bits) -> $type = $from;
                Ok(from($bits::from_be_bytes(take_array(input, &Self::type_name)?)))
            }
        }

        impl Key for $type {}
    )*};
}

mapped! {
    i8 as u8: |v| v.cast_unsigned() ^ (1 << 7), |bits| (bits ^ (1 << 7)).cast_signed();
    i16 as u16: |v| v.cast_unsigned() ^ (1 << 15), |bits| (bits ^ (1 << 15)).cast_signed();
    i32 as u32: |v| v.cast_unsigned() ^ (1 << 31), |bits| (bits ^ (1 << 31)).cast_signed();
    i64 as u64: |v| v.cast_unsigned() ^ (1 << 63), |bits| (bits ^ (1 << 63)).cast_signed();
    i128 as u128: |v| v.cast_unsigned() ^ (1 << 127), |bits| (bits ^ (1 << 127)).cast_signed();
    // All bits of a negative number flipped, the sign bit of any other: the order of `total_cmp`.
    f32 as u32:
        |v| v.to_bits() ^ (if v.is_sign_negative() { u32::MAX } else { 1 << 31 }),
        |bits| f32::from_bits(bits ^ (if bits >> 31 == 0 { u32::MAX } else { 1 << 31 }));
    f64 as u64:
        |v| v.to_bits() ^ (if v.is_sign_negative() { u64::MAX } else { 1 << 63 }),
        |bits| f64::from_bits(bits ^ (if bits >> 63 == 0 { u64::MAX } else { 1 << 63 }));
}

impl Value for bool {
    itself!(bool, "bool");

    fn encode(view: &bool, out: &mut Vec<u8>) -> Result<()> {
        out.push(u8::from(*view));
        Ok(())
    }

    fn decode_part(input: &mut &[u8]) -> Result<bool> {
        match take_array(input, &Self::type_name)? {
            [0] => Ok(false),
            [1] => Ok(true),
            [other] => Err(Error::undecodable("bool", &format!("{other} is neither 0 nor 1"))),
        }
    }
}

impl Key for bool {}

impl Value for char {
    itself!(char, "char");

    fn encode(view: &char, out: &mut Vec<u8>) -> Result<()> {
        out.extend_from_slice(&u32::from(*view).to_be_bytes());
        Ok(())
    }

    fn decode_part(input: &mut &[u8]) -> Result<char> {
        let number = u32::from_be_bytes(take_array(input, &Self::type_name)?);
        char::from_u32(number)
            .ok_or_else(|| Error::undecodable("char", &format!("{number:#x} is no character's number")))
    }
}

impl Key for char {}

impl Value for () {
    type View<'v> = ();
    type Owned = ();

    fn type_name() -> String {
        "()".to_owned()
    }

    fn view(_owned: &()) {}

    fn encode(_view: &(), _out: &mut Vec<u8>) -> Result<()> {
        Ok(())
    }

    fn decode(bytes: &[u8]) -> Result<()> {
        finish(bytes, (), &Self::type_name)
    }

    fn encode_part(_view: &(), _out: &mut Vec<u8>) -> Result<()> {
        Ok(())
    }

    fn decode_part(_input: &mut &[u8]) -> Result<()> {
        Ok(())
    }
}

impl Key for () {}
