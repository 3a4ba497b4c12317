//! Private files: made so that nobody else can ever read them, and refused when somebody can.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use zeroize::Zeroizing;

use crate::Error;

/// Group and others: none of these may be set on a private key.
const OTHERS: u32 = 0o077;

/// A PEM key has about 250 bytes, one of RSA-4096 about 3,300.
const MAX_KEY_BYTES: u64 = 64 << 10;

/// A revocation list of 100,000 entries has about 4 MiB; chains and CA bundles are smaller.
const MAX_PUBLIC_BYTES: u64 = 16 << 20;

/// Creates a folder, and what is missing above it, that only its owner can enter. It may exist already.
pub fn create_private_directory(path: &Path) -> Result<(), Error> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| Error::Write { path: path.to_owned(), source })
}

/// Writes a secret to a file that must not exist yet, with mode 0600 from its first instant, and syncs it and its folder.
pub fn write_private(path: &Path, contents: &[u8]) -> Result<(), Error> {
    write_new(path, contents, 0o600)
}

/// Writes something public to a file that must not exist yet.
pub fn write_public(path: &Path, contents: &[u8]) -> Result<(), Error> {
    write_new(path, contents, 0o644)
}

/// Reads a file with a secret; it is refused if group or others have any right to it.
///
/// A credential of systemd may show a right of its group to read: it is how the access list shows that gives it to the
/// service's user, and the folder is closed to everybody else.
pub fn read_private(path: &Path) -> Result<Zeroizing<Vec<u8>>, Error> {
    let failed = |source| Error::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    // The open file is asked, not the path: nothing can be exchanged between question and use.
    let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o7777;
    if mode & OTHERS & !credential_rights(path) != 0 {
        return Err(Error::KeyFileMode { path: path.to_owned(), mode });
    }
    read_bounded(path, file, MAX_KEY_BYTES)
}

/// The rights of others that are none, of a credential that systemd passes to this process.
fn credential_rights(path: &Path) -> u32 {
    const GROUP_READ: u32 = 0o040;
    let folder = std::env::var_os("CREDENTIALS_DIRECTORY").filter(|folder| !folder.is_empty());
    if folder.is_some_and(|folder| path.parent() == Some(Path::new(&folder))) { GROUP_READ } else { 0 }
}

/// Reads a file without secrets.
pub(crate) fn read_public(path: &Path) -> Result<Vec<u8>, Error> {
    let file = File::open(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    Ok(std::mem::take(&mut *read_bounded(path, file, MAX_PUBLIC_BYTES)?))
}

fn read_bounded(path: &Path, file: File, max: u64) -> Result<Zeroizing<Vec<u8>>, Error> {
    // A secret is read into memory that was reserved at once: growing would leave unwiped copies behind.
    let mut contents = Zeroizing::new(if max == MAX_KEY_BYTES {
        Vec::with_capacity(MAX_KEY_BYTES as usize + 1)
    } else {
        Vec::new()
    });
    file.take(max + 1)
        .read_to_end(&mut contents)
        .map_err(|source| Error::Read { path: path.to_owned(), source })?;
    if contents.len() as u64 > max {
        return Err(Error::TooLarge { path: path.to_owned(), max });
    }
    Ok(contents)
}

fn write_new(path: &Path, contents: &[u8], mode: u32) -> Result<(), Error> {
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        file.write_all(contents)?;
        file.sync_all()?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
    };
    write().map_err(|source| Error::Write { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_secret_is_private_from_the_start_and_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("a/b");
        create_private_directory(&folder).unwrap();
        let path = folder.join("key.pem");
        write_private(&path, b"secret").unwrap();
        assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(&**read_private(&path).unwrap(), b"secret");

        let Err(Error::Write { source, .. }) = write_private(&path, b"other") else { panic!("overwritten") };
        assert_eq!(source.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"secret");
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key.pem");
        write_private(&path, b"secret").unwrap();
        for mode in [0o640, 0o604, 0o620, 0o610, 0o601] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let Err(Error::KeyFileMode { mode: found, .. }) = read_private(&path) else { panic!("{mode:o}") };
            assert_eq!(found, mode);
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
        assert!(read_private(&path).is_ok());
    }

    #[test]
    fn reading_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key.pem");
        write_private(&path, &vec![b'x'; 65 << 10]).unwrap();
        assert!(matches!(read_private(&path), Err(Error::TooLarge { .. })));
    }
}
