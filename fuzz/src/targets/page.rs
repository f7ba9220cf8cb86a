//! `page_bytes`: one page of a closed database, changed, its checksum repaired.
//!
//! Input: two bytes that pick the page, then edits of four bytes: where (two), how, and with what.

use std::sync::OnceLock;

use hamal::inspect;
use hamal_storage::Storage;

use super::{Small, allow};

struct Subject {
    small: Small,
    /// Every page that was ever written: file, partition and number.
    pages: Vec<(String, u32, u32)>,
}

fn subject() -> &'static Subject {
    static SUBJECT: OnceLock<Subject> = OnceLock::new();
    SUBJECT.get_or_init(|| {
        let small = Small::make(true);
        let mut pages = Vec::new();
        for file in small.disk.files().into_iter().filter(|file| file.starts_with("part/")) {
            let id = file.trim_start_matches("part/").trim_end_matches(".dat").parse().unwrap_or_default();
            let bytes = small.disk.read_file(&file).expect("a healthy disk");
            for (page, number) in bytes.chunks(small.plan.page_bytes).zip(0..) {
                if page.iter().any(|byte| *byte != 0) {
                    pages.push((file.clone(), id, number));
                }
            }
        }
        Subject { small, pages }
    })
}

/// One edit; all positions are taken modulo what there is.
fn edit(page: &mut [u8], [high, low, how, with]: [u8; 4]) {
    let at = (usize::from(high) << 8 | usize::from(low)) % page.len();
    match how % 4 {
        0 => page[at] = with,
        1 => page[at] ^= with,
        2 => {
            let end = page.len().min(at + usize::from(how >> 2) + 1);
            page[at..end].fill(with);
        }
        // Copies a run from elsewhere: slots that overlap, a page inside a page.
        _ => {
            let len = (usize::from(how >> 2) + 1).min(page.len() - at);
            let from = usize::from(with) * 16 % (page.len() - len + 1);
            page.copy_within(from..from + len, at);
        }
    }
}

/// Use of a database with one page changed.
///
/// # Panics
///
/// Where the database does not answer with `Corrupt` or better: that is the target's finding.
pub fn page_bytes(input: &[u8]) {
    let Some((&[high, low], edits)) = input.split_first_chunk::<2>() else { return };
    let subject = subject();
    let (file, partition, number) =
        &subject.pages[(usize::from(high) << 8 | usize::from(low)) % subject.pages.len()];
    let disk = subject.small.copy();
    let page_bytes = subject.small.plan.page_bytes;
    let start = *number as usize * page_bytes;
    let mut page = disk.read_file(file).expect("a healthy disk")[start..start + page_bytes].to_vec();
    for change in edits.as_chunks::<4>().0 {
        edit(&mut page, *change);
    }
    let crc = crc32c::crc32c(&page[4..]);
    page[..4].copy_from_slice(&crc.to_le_bytes());
    disk.overwrite(file, start as u64, &page).expect("a healthy disk");
    let storage: std::sync::Arc<dyn Storage> = std::sync::Arc::new(disk.clone());
    allow(inspect::page(&storage, *partition, *number));
    subject.small.exercise(&disk);
}

/// Inputs to start from: for each page, an edit in the header, among the slots, and in the cells.
pub fn page_corpus() -> Vec<Vec<u8>> {
    let subject = subject();
    let mut corpus = Vec::new();
    for index in 0..subject.pages.len().min(120) {
        let place = [(index >> 8) as u8, index as u8];
        for (at, how, with) in [(4, 0, 4), (5, 0, 1), (40 + index * 3, 1, 0xff), (100, 2, 0), (3000, 7, 9)] {
            corpus.push([&place[..], &[(at >> 8) as u8, at as u8, how, with]].concat());
        }
    }
    corpus
}
