use super::*;

fn store() -> (tempfile::TempDir, BlobStore) {
    let dir = tempfile::tempdir().expect("a folder");
    let store = BlobStore::open(&dir.path().join("a/b/blobs")).expect("a store");
    (dir, store)
}

fn put(store: &BlobStore, content: &[u8]) -> Digest {
    let digest = Digest::of(content);
    let mut writer = store.writer(digest, content.len() as u64, Durability::Each).expect("a writer");
    content.chunks(3).for_each(|chunk| writer.write(chunk).expect("written"));
    writer.finish().expect("the blob");
    digest
}

fn incoming(store: &BlobStore) -> usize {
    fs::read_dir(store.dir.join(INCOMING)).expect("a folder").count()
}

fn read_all(store: &BlobStore, digest: Digest) -> Result<Vec<u8>, ArtifactError> {
    let mut reader = store.reader(digest)?;
    let (mut content, mut buffer) = (Vec::new(), [0; 4]);
    loop {
        match reader.read(&mut buffer)? {
            0 => return Ok(content),
            bytes => content.extend_from_slice(&buffer[..bytes]),
        }
    }
}

#[test]
fn what_was_written_is_read_and_is_read_only() {
    let (_dir, store) = store();
    let digest = put(&store, b"content");
    assert_eq!(read_all(&store, digest).expect("the blob"), b"content");
    let mode = fs::metadata(store.path(digest)).expect("the file").permissions().mode();
    assert_eq!(mode & 0o7777, 0o400);
    for (size, there) in [(None, true), (Some(7), true), (Some(8), false)] {
        assert_eq!(store.contains(digest, size).expect("an answer"), there);
    }
    assert_eq!(put(&store, b"content"), digest, "again is no mistake");
    assert_eq!(put(&store, b""), Digest::of(b""));
    store.remove(digest).expect("removed");
    store.remove(digest).expect("removed already");
    assert!(matches!(store.reader(digest), Err(ArtifactError::BlobMissing { .. })));
    store.sync().expect("synced");
}

#[test]
fn what_is_not_the_blob_never_gets_its_name() {
    let (_dir, store) = store();
    let digest = Digest::of(b"content");
    let writer = |size| store.writer(digest, size, Durability::Each).expect("a writer");

    let mut longer = writer(7);
    longer.write(b"conte").expect("written");
    assert!(matches!(longer.write(b"nts"), Err(ArtifactError::WrongSize { stated: 7, found: 8, .. })));
    let mut shorter = writer(7);
    shorter.write(b"conten").expect("written");
    assert!(matches!(shorter.finish(), Err(ArtifactError::WrongSize { stated: 7, found: 6, .. })));
    let mut other = writer(7);
    other.write(b"contens").expect("written");
    assert!(matches!(other.finish(), Err(ArtifactError::WrongContent { .. })));
    drop(longer);
    drop(writer(7));

    assert!(!store.contains(digest, None).expect("an answer"));
    assert_eq!(incoming(&store), 0);
}

#[test]
fn damage_on_disk_is_noticed_by_the_reader() {
    let (_dir, store) = store();
    let digest = put(&store, b"content");
    for damaged in [b"c0ntent".as_slice(), b"conten", b"contents", b""] {
        fs::remove_file(store.path(digest)).expect("removed");
        fs::write(store.path(digest), damaged).expect("damaged");
        assert!(matches!(read_all(&store, digest), Err(ArtifactError::Damaged { .. })), "{damaged:?}");
    }
}

#[test]
fn opening_removes_what_died_and_spares_what_is_being_written() {
    let (_dir, store) = store();
    let kept = put(&store, b"kept");
    fs::write(store.dir.join(INCOMING).join("blob-dead"), b"half").expect("a file");
    let mut alive = store.writer(Digest::of(b"alive"), 5, Durability::Each).expect("a writer");
    alive.write(b"al").expect("written");

    let again = BlobStore::open(&store.dir).expect("a store");
    assert_eq!(incoming(&again), 1);
    alive.write(b"ive").expect("written");
    alive.finish().expect("the blob");
    assert!(again.contains(kept, Some(4)).expect("an answer"));
    assert!(again.contains(Digest::of(b"alive"), Some(5)).expect("an answer"));
}

#[test]
fn files_are_imported_under_their_digest() {
    let (dir, store) = store();
    let source = dir.path().join("file");
    fs::write(&source, vec![9; 600_000]).expect("a file");
    let (digest, size) = store.import_file(&source).expect("imported");
    assert_eq!((digest, size), (Digest::of(&vec![9; 600_000]), 600_000));
    assert_eq!(read_all(&store, digest).expect("the blob").len(), 600_000);
    assert!(matches!(store.import_file(&dir.path().join("none")), Err(ArtifactError::Io { .. })));
}

#[test]
fn only_a_regular_file_is_imported_and_a_pipe_is_not_waited_for() {
    let (dir, store) = store();
    let path = |name: &str| dir.path().join(name);
    fs::write(path("file"), "content").expect("written");
    assert_eq!(store.import_file(&path("file")).expect("imported"), (Digest::of(b"content"), 7));
    std::os::unix::fs::symlink(path("file"), path("link")).expect("a link");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mkfifoat(rustix::fs::CWD, path("pipe"), mode).expect("a pipe");
    for name in ["link", "pipe", ""] {
        assert!(matches!(store.import_file(&path(name)), Err(ArtifactError::Io { .. })), "{name}");
    }
}
