//! A new partition: header, bitmap, and two trees of one inner node and one leaf each.

use std::sync::Arc;

use hamal_pager::space::Geometry;
use hamal_pager::{ExclusivePage, PageClass, PageNo, Partition};

use super::{ROOT, SYSTEM_ROOT, Tree};
use crate::change::{Image, PageChange};
use crate::ids::TxnId;
use crate::journal::{Author, Journal, PageEdit};
use crate::node::{Builder, Shape};
use crate::space::{self, HEADER_PAGE};
use crate::{Error, Result};

/// Pages that a new partition has.
const PAGES: u32 = 6;
const BITMAP: PageNo = PageNo(1);

impl Tree {
    /// Formats a new partition's pages 0 to 5 (header, bitmap, two trees) in one structure-change record. Nobody else
    /// knows the partition yet, so its pages' latches may be held while waiting for frames.
    pub(crate) fn format_partition(journal: &Journal, partition: &Arc<Partition>) -> Result<()> {
        partition.ensure_file_pages(PAGES)?;
        let page_bytes = partition.page_bytes();
        let image_bytes = PageChange::max_image_bytes(page_bytes);
        let mut admission = journal.admit(Author::System, PAGES as usize, PAGES as usize * image_bytes, 0)?;
        let mut pages = Vec::new();
        for number in 0..PAGES {
            let page = PageNo(number);
            let class = if page == ROOT || page == SYSTEM_ROOT { PageClass::Inner } else { PageClass::Plain };
            pages.push(partition.fix_new(page, class)?);
        }
        let images: Vec<Vec<u8>> = pages.iter().map(image).collect::<Result<_>>()?;
        let mut edits: Vec<PageEdit<'_, '_, '_>> = pages
            .iter_mut()
            .zip(&images)
            .map(|(page, image)| (page, PageChange::Image(Image::of(image, TxnId::NONE))))
            .collect();
        journal.write(&mut admission, Author::System, &mut edits, None)?;
        Ok(())
    }
}

/// What the new page is to hold.
fn image(page: &ExclusivePage<'_>) -> Result<Vec<u8>> {
    let mut image = page.bytes().to_vec();
    match page.page_no() {
        HEADER_PAGE => space::format_header(&mut image),
        BITMAP => {
            let geometry = Geometry::new(image.len());
            space::format_bitmap(&mut image, geometry, 0, PAGES);
        }
        root @ (ROOT | SYSTEM_ROOT) => {
            empty_node(&mut image, Shape::Inner { level: 1, leftmost: PageNo(root.0 + 1) })?;
        }
        _ => empty_node(&mut image, Shape::Leaf)?,
    }
    Ok(image)
}

fn empty_node(page: &mut [u8], shape: Shape) -> Result<()> {
    let builder = Builder::new(page, shape, [b"", b""]);
    builder.ok_or_else(|| Error::invalid("a page too small for a node"))?.finish();
    Ok(())
}
