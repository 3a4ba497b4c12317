//! The last checkpoint on disk: two pages that are written in turn, so that a torn write leaves the other one whole. What a page
//! says is believed because the log's own key has signed it.

use std::fs::{File, OpenOptions};
use std::io::Read as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use muster_audit::{NOTE_BYTES_MAX, SignedCheckpoint};
use muster_model::PublicKey;
use muster_store::StoreError;

const PAGE_BYTES: usize = 4096;
const PAGES: usize = 2;

const _: () = assert!(NOTE_BYTES_MAX < PAGE_BYTES, "a checkpoint fits on a page");

/// The open file.
#[derive(Debug)]
pub(super) struct Slots {
    path: PathBuf,
    file: File,
    /// Where the next checkpoint goes.
    next: usize,
}

impl Slots {
    /// Makes the file with a first checkpoint.
    pub(super) fn create(path: &Path, first: &SignedCheckpoint) -> Result<Self, StoreError> {
        let file = options().create_new(true).open(path);
        let file = file.map_err(|source| StoreError::io("create", path, source))?;
        let mut slots = Self { path: path.to_owned(), file, next: 0 };
        slots.write(first)?;
        Ok(slots)
    }

    /// Opens the file, with the newest checkpoint in it that `key` has signed.
    pub(super) fn open(path: &Path, key: &PublicKey) -> Result<(Self, Option<SignedCheckpoint>), StoreError> {
        let failed = |action| move |source| StoreError::io(action, path, source);
        let file = options().open(path).map_err(failed("open"))?;
        let mut bytes = Vec::with_capacity(PAGES * PAGE_BYTES);
        (&file).take((PAGES * PAGE_BYTES) as u64).read_to_end(&mut bytes).map_err(failed("read"))?;
        let pages = bytes.chunks(PAGE_BYTES).enumerate();
        let signed = pages.filter_map(|(page, bytes)| Some((page, read_page(bytes, key)?)));
        let newest = signed.max_by_key(|(_, signed)| signed.checkpoint().size);
        let next = newest.as_ref().map_or(0, |(page, _)| PAGES - 1 - page);
        Ok((Self { path: path.to_owned(), file, next }, newest.map(|(_, signed)| signed)))
    }

    /// Makes a checkpoint durable.
    pub(super) fn write(&mut self, signed: &SignedCheckpoint) -> Result<(), StoreError> {
        let failed = |action| {
            let path = self.path.clone();
            move |source| StoreError::io(action, &path, source)
        };
        let mut page = signed.to_bytes();
        page.resize(PAGE_BYTES, 0);
        self.file.write_all_at(&page, (self.next * PAGE_BYTES) as u64).map_err(failed("write"))?;
        self.file.sync_data().map_err(failed("make durable"))?;
        self.next = PAGES - 1 - self.next;
        Ok(())
    }
}

/// The newest checkpoint in the file of a log that is no longer written, whatever key has signed it.
pub(super) fn last_text(path: &Path) -> Option<String> {
    let bytes = std::fs::read(path).ok().filter(|bytes| bytes.len() <= PAGES * PAGE_BYTES)?;
    let texts = bytes.chunks(PAGE_BYTES).filter_map(|page| {
        let note = muster_audit::SignedNote::parse(content(page)).ok()?;
        let checkpoint = muster_audit::Checkpoint::parse(note.text()).ok()?;
        Some((checkpoint.size, note.to_string()))
    });
    texts.max().map(|(_, text)| text)
}

fn read_page(page: &[u8], key: &PublicKey) -> Option<SignedCheckpoint> {
    SignedCheckpoint::open(content(page), key).ok()
}

fn content(page: &[u8]) -> &[u8] {
    let end = page.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    &page[..end]
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    options
}
