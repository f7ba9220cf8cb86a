//! The tree of names: what is visible, what is durable, and the changes in between.
//!
//! A change of names (creation, rename, removal) is visible at once and durable when every directory it touches has
//! been synced. Until then a crash may lose it, but never half of it, and never keep it without the earlier changes
//! that it builds on (those that touch the same name).
//!
//! I1. Applying `pending` in order to the durable entries gives the visible ones.
//! I2. A file lives while a visible or durable entry, a pending change or an open handle refers to it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use super::crash::{NamePlan, Plan};
use super::data::FileData;
use super::fingerprint::Fingerprint;
use super::rng::Rng;

/// A file or directory, whatever its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct InodeId(pub(super) u64);

pub(super) const ROOT: InodeId = InodeId(0);

#[derive(Clone, Debug)]
pub(super) struct Inode {
    /// The current name, or the last one.
    pub(super) path: Arc<str>,
    pub(super) open_handles: u32,
    node: Node,
}

#[derive(Clone, Debug)]
enum Node {
    File(FileData),
    Directory(Directory),
}

#[derive(Clone, Debug, Default)]
struct Directory {
    visible: BTreeMap<String, InodeId>,
    durable: BTreeMap<String, InodeId>,
}

/// A name in a directory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    directory: InodeId,
    name: String,
}

/// A change of names that is not durable yet.
#[derive(Clone, Debug)]
struct Change {
    sequence: u64,
    inode: InodeId,
    /// Where the inode was, if it was anywhere.
    from: Option<Entry>,
    /// Where it is now, if it is anywhere.
    to: Option<Entry>,
    /// The directories still to be synced.
    unsynced: Vec<InodeId>,
}

impl Change {
    fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.from.iter().chain(&self.to)
    }

    fn apply(&self, mut directory: impl FnMut(InodeId, &dyn Fn(&mut BTreeMap<String, InodeId>))) {
        if let Some(from) = &self.from {
            directory(from.directory, &|entries| {
                // No change is applied before the earlier ones of the same names.
                let left = entries.remove(&from.name);
                debug_assert_eq!(left, Some(self.inode));
            });
        }
        if let Some(to) = &self.to {
            directory(to.directory, &|entries| {
                entries.insert(to.name.clone(), self.inode);
            });
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Namespace {
    inodes: BTreeMap<InodeId, Inode>,
    pending: Vec<Change>,
    next: u64,
}

impl Namespace {
    pub(super) fn new() -> Namespace {
        let root = Inode { path: "".into(), open_handles: 0, node: Node::Directory(Directory::default()) };
        Namespace { inodes: BTreeMap::from([(ROOT, root)]), pending: Vec::new(), next: 1 }
    }

    fn inode(&self, id: InodeId) -> &Inode {
        self.inodes.get(&id).expect("an inode outlives what refers to it (I2)")
    }

    pub(super) fn inode_mut(&mut self, id: InodeId) -> &mut Inode {
        self.inodes.get_mut(&id).expect("an inode outlives what refers to it (I2)")
    }

    fn directory(&self, id: InodeId) -> io::Result<&Directory> {
        match &self.inode(id).node {
            Node::Directory(directory) => Ok(directory),
            Node::File(_) => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    fn entries_mut(&mut self, id: InodeId) -> Option<&mut Directory> {
        match &mut self.inodes.get_mut(&id)?.node {
            Node::Directory(directory) => Some(directory),
            Node::File(_) => None,
        }
    }

    /// The file of an open handle.
    pub(super) fn file(&self, id: InodeId) -> &FileData {
        match &self.inode(id).node {
            Node::File(data) => data,
            Node::Directory(_) => unreachable!("only files are opened"),
        }
    }

    pub(super) fn file_mut(&mut self, id: InodeId) -> &mut FileData {
        match &mut self.inode_mut(id).node {
            Node::File(data) => data,
            Node::Directory(_) => unreachable!("only files are opened"),
        }
    }

    pub(super) fn path(&self, id: InodeId) -> Arc<str> {
        Arc::clone(&self.inode(id).path)
    }

    /// Follows names from the root.
    pub(super) fn find(&self, parts: &[&str]) -> io::Result<InodeId> {
        parts.iter().try_fold(ROOT, |directory, name| {
            self.directory(directory)?.visible.get(*name).copied().ok_or(io::ErrorKind::NotFound.into())
        })
    }

    /// Finds something that must be a file.
    pub(super) fn find_file(&self, parts: &[&str]) -> io::Result<InodeId> {
        let id = self.find(parts)?;
        match self.inode(id).node {
            Node::File(_) => Ok(id),
            Node::Directory(_) => Err(io::ErrorKind::IsADirectory.into()),
        }
    }

    /// The place of a name: its directory, which must exist, and what is there now.
    fn place(&self, parts: &[&str]) -> io::Result<(Entry, Option<InodeId>)> {
        let (name, above) = parts.split_last().ok_or(io::ErrorKind::InvalidInput)?;
        let directory = self.find(above)?;
        let there = self.directory(directory)?.visible.get(*name).copied();
        Ok((Entry { directory, name: (*name).to_owned() }, there))
    }

    pub(super) fn list(&self, parts: &[&str]) -> io::Result<Vec<String>> {
        Ok(self.directory(self.find(parts)?)?.visible.keys().cloned().collect())
    }

    /// Whether a file of this name could be created; the reason why not.
    pub(super) fn check_create(&self, parts: &[&str]) -> io::Result<()> {
        match self.place(parts)? {
            (_, None) => Ok(()),
            (_, Some(_)) => Err(io::ErrorKind::AlreadyExists.into()),
        }
    }

    pub(super) fn create_file(&mut self, parts: &[&str], sequence: u64) -> io::Result<InodeId> {
        self.check_create(parts)?;
        let (entry, _) = self.place(parts)?;
        Ok(self.add(entry, parts, Node::File(FileData::default()), sequence))
    }

    /// Makes one directory; `None` if there is one.
    pub(super) fn create_directory(&mut self, parts: &[&str], sequence: u64) -> io::Result<()> {
        let (entry, there) = self.place(parts)?;
        match there {
            None => {
                self.add(entry, parts, Node::Directory(Directory::default()), sequence);
                Ok(())
            }
            Some(id) if self.directory(id).is_ok() => Ok(()),
            Some(_) => Err(io::ErrorKind::AlreadyExists.into()),
        }
    }

    fn add(&mut self, entry: Entry, parts: &[&str], node: Node, sequence: u64) -> InodeId {
        let id = InodeId(self.next);
        self.next += 1;
        self.inodes.insert(id, Inode { path: parts.join("/").into(), open_handles: 0, node });
        self.change(Change {
            sequence,
            inode: id,
            from: None,
            unsynced: vec![entry.directory],
            to: Some(entry),
        });
        id
    }

    /// Whether a rename would work; the reason why not.
    pub(super) fn check_rename(&self, from: &[&str], to: &[&str]) -> io::Result<()> {
        // Refusals in the order in which Linux makes them.
        let ((_, moved), (_, there)) = (self.place(from)?, self.place(to)?);
        let moved = moved.ok_or(io::ErrorKind::NotFound)?;
        let moves_directory = self.directory(moved).is_ok();
        if moves_directory && to.len() > from.len() && to.starts_with(from) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        if from.len() > to.len() && from.starts_with(to) {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        let Some(there) = there else { return Ok(()) };
        match (moves_directory, self.directory(there)) {
            _ if there == moved => Ok(()),
            (false, Err(_)) => Ok(()),
            (false, Ok(_)) => Err(io::ErrorKind::IsADirectory.into()),
            (true, Err(_)) => Err(io::ErrorKind::NotADirectory.into()),
            (true, Ok(directory)) if directory.visible.is_empty() => Ok(()),
            (true, Ok(_)) => Err(io::ErrorKind::DirectoryNotEmpty.into()),
        }
    }

    pub(super) fn rename(&mut self, from: &[&str], to: &[&str], sequence: u64) -> io::Result<()> {
        self.check_rename(from, to)?;
        let (inode, (source, _), (target, there)) = (self.find(from)?, self.place(from)?, self.place(to)?);
        if there == Some(inode) {
            return Ok(());
        }
        let mut unsynced = vec![source.directory, target.directory];
        unsynced.dedup();
        self.change(Change { sequence, inode, from: Some(source), to: Some(target), unsynced });
        self.name_all(inode, &to.join("/"));
        Ok(())
    }

    /// Whether a file could be removed; the reason why not.
    pub(super) fn check_remove(&self, parts: &[&str]) -> io::Result<()> {
        self.find_file(parts).map(drop)
    }

    pub(super) fn remove(&mut self, parts: &[&str], sequence: u64) -> io::Result<()> {
        let inode = self.find_file(parts)?;
        let (entry, _) = self.place(parts)?;
        self.change(Change { sequence, inode, unsynced: vec![entry.directory], from: Some(entry), to: None });
        Ok(())
    }

    fn change(&mut self, change: Change) {
        change.apply(|directory, edit| {
            self.entries_mut(directory).into_iter().for_each(|entries| edit(&mut entries.visible));
        });
        self.pending.push(change);
    }

    /// Gives an inode, and everything below it, its new name.
    fn name_all(&mut self, id: InodeId, path: &str) {
        self.inode_mut(id).path = path.into();
        let Ok(directory) = self.directory(id) else { return };
        for (name, child) in directory.visible.clone() {
            let path = if path.is_empty() { name } else { format!("{path}/{name}") };
            self.name_all(child, &path);
        }
    }

    /// Makes what has happened in a directory durable.
    pub(super) fn sync_directory(&mut self, parts: &[&str]) -> io::Result<()> {
        let id = self.find(parts)?;
        self.directory(id)?;
        for change in &mut self.pending {
            change.unsynced.retain(|directory| *directory != id);
        }
        // A change cannot be durable without the earlier ones that it builds on.
        let mut needed = BTreeSet::new();
        for change in self.pending.iter_mut().rev() {
            if change.unsynced.is_empty() || change.entries().any(|entry| needed.contains(entry)) {
                change.unsynced.clear();
                needed.extend(change.entries().cloned());
            }
        }
        for change in self.pending.extract_if(.., |change| change.unsynced.is_empty()).collect::<Vec<_>>() {
            change.apply(|directory, edit| {
                self.entries_mut(directory).into_iter().for_each(|entries| edit(&mut entries.durable));
            });
        }
        self.forget_unreachable();
        Ok(())
    }

    /// Drops what I2 lets go.
    pub(super) fn forget_unreachable(&mut self) {
        let mut alive: BTreeSet<InodeId> = BTreeSet::from([ROOT]);
        alive.extend(self.pending.iter().map(|change| change.inode));
        for inode in self.inodes.values() {
            if let Node::Directory(directory) = &inode.node {
                alive.extend(directory.visible.values().chain(directory.durable.values()));
            }
        }
        self.inodes.retain(|id, inode| inode.open_handles > 0 || alive.contains(id));
    }

    /// Every file that has a name, in the order of names.
    pub(super) fn files(&self) -> Vec<(Arc<str>, InodeId)> {
        let mut files = Vec::new();
        self.walk(ROOT, &mut |id, inode| {
            if let Node::File(_) = inode.node {
                files.push((Arc::clone(&inode.path), id));
            }
        });
        files.sort_unstable();
        files
    }

    fn walk(&self, id: InodeId, visit: &mut impl FnMut(InodeId, &Inode)) {
        let inode = self.inode(id);
        visit(id, inode);
        if let Node::Directory(directory) = &inode.node {
            for child in directory.visible.values() {
                self.walk(*child, visit);
            }
        }
    }

    /// Blocks taken by files that have a name or are open.
    pub(super) fn allocated_blocks(&self) -> u64 {
        let mut named = BTreeSet::new();
        self.walk(ROOT, &mut |id, _| {
            named.insert(id);
        });
        let counts = |id: &InodeId, inode: &Inode| inode.open_handles > 0 || named.contains(id);
        let blocks = |inode: &Inode| match &inode.node {
            Node::File(data) => data.allocated_blocks(),
            Node::Directory(_) => 0,
        };
        self.inodes.iter().filter(|(id, inode)| counts(id, inode)).map(|(_, inode)| blocks(inode)).sum()
    }

    pub(super) fn pending_changes(&self) -> usize {
        self.pending.len()
    }

    /// The page cache forgets what it believes to be clean.
    pub(super) fn drop_clean_cache(&mut self) {
        for inode in self.inodes.values_mut() {
            if let Node::File(data) = &mut inode.node {
                data.drop_clean_cache();
            }
        }
    }

    /// The tree after the process was killed: as it is, with nothing open.
    pub(super) fn after_kill(&self) -> Namespace {
        let mut killed = self.clone();
        killed.inodes.values_mut().for_each(|inode| inode.open_handles = 0);
        killed.forget_unreachable();
        killed
    }

    /// The tree as it comes out of a power cut.
    pub(super) fn after_power_cut(&self, plan: &Plan, rng: &mut Rng) -> Namespace {
        let mut survivor = Namespace { inodes: BTreeMap::new(), pending: Vec::new(), next: self.next };
        let directories = self.surviving_entries(plan, rng);
        let mut reached = vec![(ROOT, String::new())];
        while let Some((id, path)) = reached.pop() {
            let node = match &self.inode(id).node {
                Node::File(data) => Node::File(data.after_power_cut(plan.file(rng), rng)),
                Node::Directory(_) => {
                    let entries = directories.get(&id).cloned().unwrap_or_default();
                    for (name, child) in &entries {
                        let below = if path.is_empty() { name.clone() } else { format!("{path}/{name}") };
                        reached.push((*child, below));
                    }
                    Node::Directory(Directory { visible: entries.clone(), durable: entries })
                }
            };
            survivor.inodes.insert(id, Inode { path: path.into(), open_handles: 0, node });
        }
        survivor
    }

    fn surviving_entries(&self, plan: &Plan, rng: &mut Rng) -> BTreeMap<InodeId, BTreeMap<String, InodeId>> {
        let mut directories = BTreeMap::new();
        for (id, inode) in &self.inodes {
            if let Node::Directory(directory) = &inode.node {
                directories.insert(*id, directory.durable.clone());
            }
        }
        let mut unsynced_changes: BTreeMap<InodeId, usize> = BTreeMap::new();
        for directory in self.pending.iter().flat_map(|change| &change.unsynced) {
            *unsynced_changes.entry(*directory).or_default() += 1;
        }
        let mut plan = NamePlan::new(plan);
        let mut lost = BTreeSet::new();
        for change in &self.pending {
            let touched: Vec<_> =
                change.unsynced.iter().map(|directory| (*directory, unsynced_changes[directory])).collect();
            let survives = plan.survives(change.sequence, &touched, rng);
            if survives && !change.entries().any(|entry| lost.contains(entry)) {
                change.apply(|directory, edit| directories.get_mut(&directory).into_iter().for_each(edit));
            } else {
                lost.extend(change.entries());
            }
        }
        directories
    }

    pub(super) fn fingerprint(&self, into: &mut Fingerprint) {
        for (id, inode) in &self.inodes {
            into.word(id.0);
            into.bytes(inode.path.as_bytes());
            match &inode.node {
                Node::File(data) => data.fingerprint(into),
                Node::Directory(directory) => {
                    for (name, child) in directory.visible.iter().chain(&directory.durable) {
                        into.bytes(name.as_bytes());
                        into.word(child.0);
                    }
                }
            }
        }
        for change in &self.pending {
            into.word(change.sequence);
        }
    }
}
