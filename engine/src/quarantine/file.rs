//! The file that says that a partition is quarantined. Normative: docs/file-format.md section 11.
//!
//! I1. It is replaced as a whole: written under another name, synced, renamed, and the directory synced.
//! I2. A file that cannot be read still says that its partition is quarantined: its name does.

use std::sync::Arc;

use hamal_pager::PartitionId;
use hamal_storage::{Error as LowError, Storage, read_exact_at, write_all_at};
use hamal_wal::Lsn;

use super::DeferredChain;
use crate::codec::{
    put_list, put_string, put_u32, put_u64, take, take_list, take_string, take_u8, take_u32, take_u64,
};
use crate::ids::TxnId;
use crate::{Error, Result};

/// Where the files of quarantined partitions are.
pub(crate) const DIRECTORY: &str = "quarantine";
const MAGIC: &[u8; 8] = b"HAMALQRN";
const VERSION: u32 = 1;
/// With [`Origin`], and the stage [`LOST`].
const VERSION_RESTORED: u32 = 2;
pub(crate) const HEAD_BYTES: usize = 20;
/// Room for a million chains, and more.
pub(crate) const MAX_BYTES: u64 = 64 << 20;
/// Longest cause that is kept, bytes.
const MAX_CAUSE_BYTES: usize = 4096;

const OFFLINE: u8 = 1;
const LIFTED: u8 = 2;
const LOST: u8 = 3;

/// Whose log the kept records are from, where that is not this database's alone: it was restored since, and has a history of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    pub(crate) history: u64,
    /// Below this LSN the two histories have the same log.
    pub(crate) to: Lsn,
}

/// What the file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) database_id: u64,
    pub(crate) partition: PartitionId,
    pub(crate) since_micros: u64,
    /// The records kept aside are all there are of the partition from here on.
    pub(crate) from: Lsn,
    /// And to here: then nobody changed it any more.
    pub(crate) end: Lsn,
    /// Its file is whole again since this LSN, but for undoing the chains; [`Lsn::NEVER`]: it is not.
    pub(crate) lifted: Lsn,
    /// Length of the file with the records, bytes.
    pub(crate) kept_bytes: u64,
    pub(crate) cause: String,
    pub(crate) chains: Vec<DeferredChain>,
    pub(crate) origin: Option<Origin>,
    /// There are no records, and never will be: it cannot be repaired.
    pub(crate) is_lost: bool,
}

/// A cause no longer than one that is kept.
pub(crate) fn short_cause(cause: &str) -> &str {
    &cause[..cause.floor_char_boundary(MAX_CAUSE_BYTES)]
}

/// The name of a partition's file.
pub(crate) fn state_name(id: PartitionId) -> String {
    format!("{DIRECTORY}/{id}")
}

fn new_name(id: PartitionId) -> String {
    format!("{DIRECTORY}/{id}.new")
}

/// The name of the file with the records up to `end`.
pub(crate) fn log_name(id: PartitionId, end: Lsn) -> String {
    format!("{DIRECTORY}/{id}-{end}.log")
}

/// Where a partition's file is built again.
pub(crate) fn building_name(id: PartitionId) -> String {
    format!("{DIRECTORY}/{id}.building")
}

/// Where the damaged file is kept until the partition is in use again.
pub(crate) fn damaged_name(id: PartitionId) -> String {
    format!("{DIRECTORY}/{id}.damaged")
}

/// Whose file this is: the partition's number comes first in all names.
pub(crate) fn owner_of(name: &str) -> Option<PartitionId> {
    let digits = name.split(['.', '-']).next()?;
    let id = digits.parse().ok()?;
    (digits == format!("{id}")).then_some(PartitionId(id))
}

/// The names in the directory; none if there is no directory.
pub(crate) fn names(storage: &dyn Storage) -> Result<Vec<String>> {
    match storage.list(DIRECTORY) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        names => Ok(names.map_err(|e| LowError::io("list", DIRECTORY, e))?),
    }
}

/// Makes the directory, durably.
pub(crate) fn make_directory(storage: &dyn Storage) -> Result<()> {
    let io = |action| move |e| LowError::io(action, DIRECTORY, e);
    if !storage.exists(DIRECTORY).map_err(io("look for"))? {
        storage.create_directory(DIRECTORY).map_err(io("create"))?;
    }
    // Even if it was there: whoever made it may have died before this.
    storage.sync_directory("").map_err(|e| LowError::io("sync", "the database directory", e))?;
    Ok(())
}

/// Makes what has happened in the directory durable.
pub(crate) fn sync_directory(storage: &dyn Storage) -> Result<()> {
    Ok(storage.sync_directory(DIRECTORY).map_err(|e| LowError::io("sync", DIRECTORY, e))?)
}

/// Removes a file; fine if there is none.
pub(crate) fn remove(storage: &dyn Storage, name: &str) -> Result<()> {
    match storage.remove(name) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(LowError::io("remove", name, e).into()),
        _ => Ok(()),
    }
}

impl State {
    /// Writes it durably (I1).
    pub(crate) fn write(&self, storage: &Arc<dyn Storage>) -> Result<()> {
        let (name, new) = (state_name(self.partition), new_name(self.partition));
        remove(&**storage, &new)?;
        let file = storage.create(&new).map_err(|e| LowError::io("create", &new, e))?;
        write_all_at(&*file, &self.encode(), 0).map_err(|e| LowError::io("write", &new, e))?;
        file.sync_data().map_err(|e| LowError::io("sync", &new, e))?;
        storage.rename(&new, &name).map_err(|e| LowError::io("rename", &new, e))?;
        sync_directory(&**storage)
    }

    /// Reads what is there. `Corrupt`.
    pub(crate) fn read(storage: &dyn Storage, id: PartitionId, database_id: u64) -> Result<State> {
        let name = state_name(id);
        let io = |e| LowError::io("read", &name, e);
        let file = storage.open(&name).map_err(io)?;
        let len = file.len().map_err(io)?;
        if len > MAX_BYTES {
            let found = format!("{len} bytes");
            return Err(Error::corrupt(&name, 0, format!("at most {MAX_BYTES} bytes"), found));
        }
        let mut bytes = vec![0; len as usize];
        read_exact_at(&*file, &mut bytes, 0).map_err(io)?;
        let state = State::decode(&bytes, &name).map_err(|e| e.context(&name))?;
        if (state.partition, state.database_id) != (id, database_id) {
            let expected = format!("partition {id} of database {database_id:#x}");
            let found = format!("partition {} of database {:#x}", state.partition, state.database_id);
            return Err(Error::corrupt(&name, HEAD_BYTES as u64, expected, found));
        }
        Ok(state)
    }

    /// All bytes of the file.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut body = Vec::new();
        put_u64(&mut body, self.database_id);
        put_u32(&mut body, self.partition.0);
        body.push(match self.lifted {
            _ if self.is_lost => LOST,
            Lsn::NEVER => OFFLINE,
            _ => LIFTED,
        });
        put_u64(&mut body, self.since_micros);
        put_u64(&mut body, self.from.0);
        put_u64(&mut body, self.end.0);
        put_u64(&mut body, self.lifted.0);
        put_u64(&mut body, self.kept_bytes);
        put_string(&mut body, short_cause(&self.cause));
        put_list(&mut body, &self.chains, |out, chain| {
            put_u64(out, chain.txn.0);
            put_u64(out, chain.last_lsn.0);
            put_u64(out, chain.undo_next_lsn.0);
        });
        let mut version = VERSION;
        if self.origin.is_some() || self.is_lost {
            version = VERSION_RESTORED;
            body.push(u8::from(self.origin.is_some()));
            let origin = self.origin.unwrap_or(Origin { history: 0, to: Lsn::NEVER });
            put_u64(&mut body, origin.history);
            put_u64(&mut body, origin.to.0);
        }
        let mut out = MAGIC.to_vec();
        put_u32(&mut out, version);
        put_u32(&mut out, body.len() as u32);
        put_u32(&mut out, crc32c::crc32c(&body));
        out.extend_from_slice(&body);
        out
    }

    /// The length of what begins with this head, bytes: of what is at most [`MAX_BYTES`] long. `Corrupt` if it is none.
    pub(crate) fn encoded_bytes(head: [u8; HEAD_BYTES], name: &str) -> Result<usize> {
        let mut input = &head[MAGIC.len() + 4..];
        let len = u64::from(take_u32(&mut input, "the length")?);
        if head[..MAGIC.len()] != *MAGIC || len > MAX_BYTES - HEAD_BYTES as u64 {
            return Err(Error::corrupt(name, 0, "HAMALQRN, and a length of its range", "something else"));
        }
        Ok(HEAD_BYTES + len as usize)
    }

    /// What these bytes say. `Corrupt`.
    pub(crate) fn decode(bytes: &[u8], name: &str) -> Result<State> {
        let mut input = bytes;
        let i = &mut input;
        let magic = take(i, MAGIC.len(), "the magic number")?;
        let (version, len) = (take_u32(i, "the version")?, take_u32(i, "the length")?);
        if magic != MAGIC || !(VERSION..=VERSION_RESTORED).contains(&version) {
            let expected = format!("HAMALQRN, version {VERSION} or {VERSION_RESTORED}");
            return Err(Error::corrupt(name, 0, expected, "something else"));
        }
        let (crc, found) = (take_u32(i, "the checksum")?, crc32c::crc32c(i));
        if len as usize != i.len() || crc != found {
            let expected = format!("{len} bytes with the checksum {crc:#010x}");
            return Err(Error::corrupt(name, 12, expected, format!("{} with {found:#010x}", i.len())));
        }
        let database_id = take_u64(i, "the database id")?;
        let partition = PartitionId(take_u32(i, "the partition")?);
        let stage = take_u8(i, "the stage")?;
        let mut state = State {
            database_id,
            partition,
            since_micros: take_u64(i, "the time")?,
            from: Lsn(take_u64(i, "the first LSN")?),
            end: Lsn(take_u64(i, "the last LSN")?),
            lifted: Lsn(take_u64(i, "the LSN of its lifting")?),
            kept_bytes: take_u64(i, "the length of the records")?,
            cause: take_string(i, "the cause")?,
            chains: take_list(i, 24, "the chains", |i| {
                Ok(DeferredChain {
                    txn: TxnId(take_u64(i, "a transaction id")?),
                    last_lsn: Lsn(take_u64(i, "last_lsn")?),
                    undo_next_lsn: Lsn(take_u64(i, "undo_next_lsn")?),
                })
            })?,
            origin: None,
            is_lost: stage == LOST,
        };
        let mut has_sound_origin = true;
        if version == VERSION_RESTORED {
            let has_origin = take_u8(i, "whether there is an origin")?;
            let history = take_u64(i, "the origin's history")?;
            let to = Lsn(take_u64(i, "the end of the common history")?);
            state.origin = (has_origin == 1).then_some(Origin { history, to });
            has_sound_origin = has_origin <= 1
                && state.origin.map_or((history, to) == (0, Lsn::NEVER), |origin| origin.to < Lsn(1 << 62));
        }
        let is_empty = state.kept_bytes == 0 && state.end == Lsn::NEVER && state.chains.is_empty();
        let stages = [(OFFLINE, true), (LIFTED, false), (LOST, true)];
        let is_sound = i.is_empty()
            && has_sound_origin
            && stages.contains(&(stage, state.lifted == Lsn::NEVER))
            && (!state.is_lost || (is_empty && version == VERSION_RESTORED))
            && state.from <= state.end
            && state.end < Lsn(1 << 62)
            && state.lifted < Lsn(1 << 62)
            && state.chains.iter().all(|c| c.undo_next_lsn <= c.last_lsn && c.last_lsn < state.end);
        if !is_sound {
            return Err(Error::corrupt(
                name,
                HEAD_BYTES as u64,
                "fields within their ranges",
                format!("{state:?}"),
            ));
        }
        Ok(state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    fn sample() -> State {
        State {
            database_id: 7,
            partition: PartitionId(3),
            since_micros: 5,
            from: Lsn(4096),
            end: Lsn(8192),
            lifted: Lsn::NEVER,
            kept_bytes: 100,
            cause: "the file is gone".to_owned(),
            chains: vec![DeferredChain { txn: TxnId(9), last_lsn: Lsn(5000), undo_next_lsn: Lsn(4800) }],
            origin: None,
            is_lost: false,
        }
    }

    /// What a restored database may have: of another history, or with nothing kept.
    fn restored() -> [State; 2] {
        let lost = State {
            from: Lsn::NEVER,
            end: Lsn::NEVER,
            kept_bytes: 0,
            chains: Vec::new(),
            is_lost: true,
            ..sample()
        };
        [State { origin: Some(Origin { history: 77, to: Lsn(8192) }), ..sample() }, lost]
    }

    #[test]
    fn a_state_without_an_origin_is_what_the_first_version_says() {
        let bytes = sample().encode();
        assert_eq!(bytes[8..12], [1, 0, 0, 0]);
        for state in restored() {
            let bytes = state.encode();
            assert_eq!(bytes[8..12], [2, 0, 0, 0]);
            assert_eq!(
                State::encoded_bytes(bytes[..HEAD_BYTES].try_into().unwrap(), "q").unwrap(),
                bytes.len()
            );
        }
    }

    #[test]
    fn a_state_survives_encoding_and_is_refused_when_cut_flipped_or_absurd() {
        for state in restored().into_iter().chain([sample()]) {
            let bytes = state.encode();
            assert_eq!(State::decode(&bytes, "q").unwrap(), state);
            for len in 0..bytes.len() {
                assert!(State::decode(&bytes[..len], "q").is_err(), "{len}");
            }
            for bit in 0..bytes.len() * 8 {
                let mut bad = bytes.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                assert!(State::decode(&bad, "q").is_err(), "bit {bit}");
            }
        }
        let changes: [&dyn Fn(&mut State); 6] = [
            &|s| s.is_lost = true,
            &|s| s.origin = Some(Origin { history: 1, to: Lsn(1 << 62) }),
            &|s| s.from = Lsn(9000),
            &|s| s.chains[0].undo_next_lsn = Lsn(6000),
            &|s| s.chains[0].last_lsn = Lsn(8192),
            &|s| s.end = Lsn(1 << 62),
        ];
        for (index, change) in changes.iter().enumerate() {
            let mut state = sample();
            change(&mut state);
            let error = State::decode(&state.encode(), "q").unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "change {index}");
        }
        let long = State { cause: "ä".repeat(5000), ..sample() };
        assert_eq!(State::decode(&long.encode(), "q").unwrap().cause, "ä".repeat(2048));
    }

    #[test]
    fn names_say_whose_they_are() {
        let id = PartitionId(12);
        let all = [state_name(id), new_name(id), log_name(id, Lsn(77)), building_name(id), damaged_name(id)];
        for name in all {
            let name = name.strip_prefix("quarantine/").unwrap().to_owned();
            assert_eq!(owner_of(&name), Some(id), "{name}");
        }
        for name in ["", "x", "012", "-1", "1x"] {
            assert_eq!(owner_of(name), None, "{name}");
        }
    }
}
