//! Reading the pages of a backup: every one is checked, whoever reads.

use hamal_pager::{PageNo, header};

use super::manifest::{Manifest, PartitionEntry, pages_name};
use super::object::{Kind, ObjectIn};
use super::target::Target;
use crate::{Error, Result};

/// Hands all pages of a partition's object to `visit`, in runs of neighbours: the first one's number, and their images. `progress` hears how
/// many bytes of the object have been read. `Corrupt`, naming the object, for anything that is not what was written.
pub(crate) fn read(
    target: &dyn Target,
    backup: &str,
    manifest: &Manifest,
    entry: &PartitionEntry,
    visit: &mut dyn FnMut(PageNo, &[u8]) -> Result<()>,
    progress: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<()> {
    let name = pages_name(backup, entry.id);
    let page_bytes = manifest.page_bytes;
    let mut object = ObjectIn::open(target, &name, Kind::Pages)?;
    object.check_origin(manifest.database_id, manifest.history)?;
    if object.header.argument != u64::from(entry.id.0) {
        return Err(Error::corrupt(&name, 40, format!("partition {}", entry.id), object.header.argument));
    }
    let mut next = 0;
    let mut pages = 0;
    loop {
        let at = object.read_bytes();
        let Some(block) = object.next_block()? else { break };
        if !block.len().is_multiple_of(page_bytes) {
            let found = format!("{} bytes", block.len());
            return Err(Error::corrupt(&name, at, format!("whole pages of {page_bytes} bytes"), found));
        }
        // The run under way: its first page's number, and where it begins in the block.
        let mut run: Option<(u32, usize)> = None;
        for (index, image) in block.chunks_exact(page_bytes).enumerate() {
            let offset = at + 8 + (index * page_bytes) as u64;
            let page = header::page_no(image);
            header::check_image(image, (entry.id, page), manifest.database_id, &name, offset)?;
            if page.0 < next || page.0 >= entry.file_pages {
                let expected = format!("a page from {next} to below {}", entry.file_pages);
                return Err(Error::corrupt(&name, offset + 8, expected, page));
            }
            let lsn = header::page_lsn(image);
            if lsn >= manifest.end_lsn {
                let expected = format!("a page LSN below {}, where the log ends", manifest.end_lsn);
                return Err(Error::corrupt(&name, offset + 24, expected, lsn));
            }
            match run {
                Some((first, from)) if page.0 != next => {
                    visit(PageNo(first), &block[from..index * page_bytes])?;
                    run = Some((page.0, index * page_bytes));
                }
                None => run = Some((page.0, index * page_bytes)),
                Some(_) => {}
            }
            next = page.0 + 1;
            pages += 1;
        }
        if let Some((first, from)) = run {
            visit(PageNo(first), &block[from..])?;
        }
        progress(object.read_bytes())?;
    }
    object.check_sum(entry.sum)?;
    if pages != entry.pages {
        return Err(Error::corrupt(&name, 0, format!("{} pages", entry.pages), pages));
    }
    Ok(())
}
