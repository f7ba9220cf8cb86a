//! Little-endian fields at the front of a byte slice: what log payloads and catalog rows are made of.
//!
//! Bytes from disk are input: every function returns `Corrupt` instead of panicking, and no count is trusted before the bytes
//! it stands for have been seen.

use crate::{Error, ErrorKind, Result};

#[cold]
fn short(what: &str) -> Error {
    Error::new(ErrorKind::Corrupt, format!("the encoding ends inside {what}"))
}

/// Takes `count` bytes.
#[inline]
pub(crate) fn take<'a>(input: &mut &'a [u8], count: usize, what: &str) -> Result<&'a [u8]> {
    let (front, rest) = input.split_at_checked(count).ok_or_else(|| short(what))?;
    *input = rest;
    Ok(front)
}

#[inline]
fn take_array<const N: usize>(input: &mut &[u8], what: &str) -> Result<[u8; N]> {
    let (front, rest) = input.split_first_chunk::<N>().ok_or_else(|| short(what))?;
    *input = rest;
    Ok(*front)
}

#[inline]
pub(crate) fn take_u8(input: &mut &[u8], what: &str) -> Result<u8> {
    Ok(take_array::<1>(input, what)?[0])
}

#[inline]
pub(crate) fn take_u16(input: &mut &[u8], what: &str) -> Result<u16> {
    Ok(u16::from_le_bytes(take_array(input, what)?))
}

#[inline]
pub(crate) fn take_u32(input: &mut &[u8], what: &str) -> Result<u32> {
    Ok(u32::from_le_bytes(take_array(input, what)?))
}

#[inline]
pub(crate) fn take_u64(input: &mut &[u8], what: &str) -> Result<u64> {
    Ok(u64::from_le_bytes(take_array(input, what)?))
}

#[inline]
pub(crate) fn take_i64(input: &mut &[u8], what: &str) -> Result<i64> {
    Ok(i64::from_le_bytes(take_array(input, what)?))
}

/// Takes a list: a `u32` count, then the items, each of at least `item_bytes`.
pub(crate) fn take_list<'a, T>(
    input: &mut &'a [u8],
    item_bytes: usize,
    what: &str,
    mut item: impl FnMut(&mut &'a [u8]) -> Result<T>,
) -> Result<Vec<T>> {
    let count = take_u32(input, what)? as usize;
    if count > input.len() / item_bytes.max(1) {
        return Err(short(what));
    }
    let mut items = Vec::with_capacity(count);
    for _ in 0..count {
        items.push(item(input)?);
    }
    Ok(items)
}

/// Takes a string: `u16` length, then UTF-8.
pub(crate) fn take_string(input: &mut &[u8], what: &str) -> Result<String> {
    let len = take_u16(input, what)? as usize;
    let bytes = take(input, len, what)?;
    String::from_utf8(bytes.to_vec())
        .map_err(|_| Error::new(ErrorKind::Corrupt, format!("{what} is not UTF-8")))
}

pub(crate) fn put_u16(out: &mut Vec<u8>, value: u16) {
    out.extend_from_slice(&value.to_le_bytes());
}

pub(crate) fn put_u32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_le_bytes());
}

pub(crate) fn put_u64(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_le_bytes());
}

pub(crate) fn put_i64(out: &mut Vec<u8>, value: i64) {
    out.extend_from_slice(&value.to_le_bytes());
}

/// Appends a list as [`take_list`] reads it.
pub(crate) fn put_list<T>(out: &mut Vec<u8>, items: &[T], mut item: impl FnMut(&mut Vec<u8>, &T)) {
    put_u32(out, items.len() as u32);
    for i in items {
        item(out, i);
    }
}

/// Appends a string as [`take_string`] reads it; at most 65,535 bytes.
pub(crate) fn put_string(out: &mut Vec<u8>, string: &str) {
    put_u16(out, string.len() as u16);
    out.extend_from_slice(string.as_bytes());
}
