//! Plain old data, stored as it lies in memory.

use std::marker::PhantomData;

use super::{Value, finish, take};
use crate::{Error, Result};

/// Values of any [`bytemuck::Pod`] type, stored as they lie in memory: nothing is encoded, and nothing need be aligned.
///
/// The bytes are those of a little-endian machine, and this type exists on such machines only, so a database means the same
/// everywhere. The catalog remembers the size of `T` and nothing else about it: fields that change places or meaning at the
/// same size go unnoticed. Numbers in a `Pod` do not sort, so it is no [`crate::Key`].
///
/// ```
/// use hamal::{Pod, TableDef};
///
/// #[repr(C)]
/// #[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
/// struct Candle { open: f32, high: f32, low: f32, close: f32 }
///
/// const CANDLES: TableDef<(&str, u64), Pod<Candle>> = TableDef::new("candles");
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Pod<T>(PhantomData<fn() -> T>);

impl<T: bytemuck::Pod> Value for Pod<T> {
    type View<'v> = &'v T;
    type Owned = T;

    fn type_name() -> String {
        format!("pod:{}", size_of::<T>())
    }

    fn view(owned: &T) -> &T {
        owned
    }

    fn encode(view: &&T, out: &mut Vec<u8>) -> Result<()> {
        out.extend_from_slice(bytemuck::bytes_of(*view));
        Ok(())
    }

    fn as_plain<'v>(view: &Self::View<'v>) -> Option<&'v [u8]> {
        Some(bytemuck::bytes_of(*view))
    }

    fn decode(mut bytes: &[u8]) -> Result<T> {
        let value = Self::decode_part(&mut bytes)?;
        finish(bytes, value, &Self::type_name)
    }

    fn encode_part(view: &&T, out: &mut Vec<u8>) -> Result<()> {
        Self::encode(view, out)
    }

    fn decode_part(input: &mut &[u8]) -> Result<T> {
        let bytes = take(input, size_of::<T>(), &Self::type_name)?;
        bytemuck::try_pod_read_unaligned(bytes)
            .map_err(|error| Error::undecodable(&Self::type_name(), &error.to_string()))
    }
}
