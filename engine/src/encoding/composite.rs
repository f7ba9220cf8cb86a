//! Tuples, arrays and options: parts one after the other.

use std::array;

use super::{Key, Value, finish, take_array};
use crate::{Error, Result};

/// A tuple of parts `A` and a last part `Z`.
macro_rules! tuple {
    ($($A:ident $a:tt)+ ; $Z:ident $z:tt) => {
        impl<$($A: Value,)+ $Z: Value> Value for ($($A,)+ $Z,) {
            type View<'v> = ($($A::View<'v>,)+ $Z::View<'v>,);
            type Owned = ($($A::Owned,)+ $Z::Owned,);

            fn type_name() -> String {
                let names = [$($A::type_name(),)+ $Z::type_name()];
                format!("({})", names.join(","))
            }

            fn view(owned: &Self::Owned) -> Self::View<'_> {
                ($($A::view(&owned.$a),)+ $Z::view(&owned.$z),)
            }

            fn encode(view: &Self::View<'_>, out: &mut Vec<u8>) -> Result<()> {
                $($A::encode_part(&view.$a, out)?;)+
                $Z::encode(&view.$z, out)
            }

            fn decode(mut bytes: &[u8]) -> Result<Self::Owned> {
                Ok(($($A::decode_part(&mut bytes)?,)+ $Z::decode(bytes)?,))
            }

            fn encode_part(view: &Self::View<'_>, out: &mut Vec<u8>) -> Result<()> {
                $($A::encode_part(&view.$a, out)?;)+
                $Z::encode_part(&view.$z, out)
            }

            fn decode_part(input: &mut &[u8]) -> Result<Self::Owned> {
                Ok(($($A::decode_part(input)?,)+ $Z::decode_part(input)?,))
            }
        }

        impl<$($A: Key,)+ $Z: Key> Key for ($($A,)+ $Z,) {}
    };
}

tuple! { A 0; B 1 }
tuple! { A 0 B 1; C 2 }
tuple! { A 0 B 1 C 2; D 3 }
tuple! { A 0 B 1 C 2 D 3; E 4 }
tuple! { A 0 B 1 C 2 D 3 E 4; F 5 }

impl<T: Value, const N: usize> Value for [T; N] {
    type View<'v> = [T::View<'v>; N];
    type Owned = [T::Owned; N];

    fn type_name() -> String {
        format!("[{};{N}]", T::type_name())
    }

    fn view(owned: &Self::Owned) -> Self::View<'_> {
        array::from_fn(|index| T::view(&owned[index]))
    }

    fn encode(view: &Self::View<'_>, out: &mut Vec<u8>) -> Result<()> {
        T::encode_run(view, out)
    }

    fn decode(mut bytes: &[u8]) -> Result<Self::Owned> {
        let value = T::decode_run(&mut bytes)?;
        finish(bytes, value, &Self::type_name)
    }

    fn encode_part(view: &Self::View<'_>, out: &mut Vec<u8>) -> Result<()> {
        T::encode_run(view, out)
    }

    fn decode_part(input: &mut &[u8]) -> Result<Self::Owned> {
        T::decode_run(input)
    }
}

impl<T: Key, const N: usize> Key for [T; N] {}

impl<T: Value> Value for Option<T> {
    type View<'v> = Option<T::View<'v>>;
    type Owned = Option<T::Owned>;

    fn type_name() -> String {
        format!("option<{}>", T::type_name())
    }

    fn view(owned: &Self::Owned) -> Self::View<'_> {
        owned.as_ref().map(T::view)
    }

    fn encode(view: &Self::View<'_>, out: &mut Vec<u8>) -> Result<()> {
        out.push(u8::from(view.is_some()));
        match view {
            Some(view) => T::encode(view, out),
            None => Ok(()),
        }
    }

    fn decode(mut bytes: &[u8]) -> Result<Self::Owned> {
        if is_some(&mut bytes, &Self::type_name)? {
            return T::decode(bytes).map(Some);
        }
        finish(bytes, None, &Self::type_name)
    }

    fn encode_part(view: &Self::View<'_>, out: &mut Vec<u8>) -> Result<()> {
        out.push(u8::from(view.is_some()));
        match view {
            Some(view) => T::encode_part(view, out),
            None => Ok(()),
        }
    }

    fn decode_part(input: &mut &[u8]) -> Result<Self::Owned> {
        if is_some(input, &Self::type_name)? { T::decode_part(input).map(Some) } else { Ok(None) }
    }
}

impl<T: Key> Key for Option<T> {}

fn is_some(input: &mut &[u8], type_name: &dyn Fn() -> String) -> Result<bool> {
    match take_array(input, type_name)? {
        [0] => Ok(false),
        [1] => Ok(true),
        [other] => Err(Error::undecodable(&type_name(), &format!("{other} is neither 0 nor 1"))),
    }
}
