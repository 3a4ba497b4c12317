//! The certificate that a process goes by and that is renewed while it runs, on disk.
//!
//! The files that the configuration names are the first one: put there when the process was provisioned, and by whoever
//! renews them where there is a PKI of its own. What was given since is in a folder of the state, a folder for each
//! certificate with its key, and a link to the one in force: there is never a key without its certificate. Of both, the one
//! that began later counts.
//!
//! ```text
//! STATE/identity/SERIAL/{certificate.pem,key.pem}
//! STATE/identity/current -> SERIAL
//! STATE/identity/.pending        the key of a request whose answer has not come yet
//! ```

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};

use muster_model::UnixTime;
use zeroize::Zeroizing;

use crate::credentials::{CredentialPaths, Credentials};
use crate::error::Error;
use crate::file::{create_private_directory, read_private, write_private, write_public};

const CURRENT: &str = "current";
const UNFINISHED: &str = ".new";
const PENDING: &str = ".pending";
const CERTIFICATE: &str = "certificate.pem";
const KEY: &str = "key.pem";

/// Where a process has its certificates.
#[derive(Debug, Clone)]
pub struct CertificateFiles {
    configured: CredentialPaths,
    folder: PathBuf,
}

/// What tells one content of the configured files from another, without reading them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FileMarks(Vec<Option<(u64, u64, i64, i64)>>);

/// How far the keeping of a certificate has come. Whoever dies at any of them finds a pair that can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keeping {
    /// It is on the disk, and was checked.
    Written,
    /// It has the name of its serial number.
    Named,
    /// It counts from now on.
    Linked,
}

impl CertificateFiles {
    /// The folder within the state.
    pub const FOLDER: &str = "identity";

    /// Those of a configuration, and those that were given since, in the state.
    #[must_use]
    pub fn new(configured: CredentialPaths, state: &Path) -> Self {
        Self { configured, folder: state.join(Self::FOLDER) }
    }

    /// Reads the certificate that counts. Blocks.
    pub fn load(&self) -> Result<Credentials, Error> {
        let configured = Credentials::load(&self.configured)?;
        let given = self.given(&self.folder.join(CURRENT));
        let Ok(given) = Credentials::load(&given) else { return Ok(configured) };
        let is_ours = given.identity() == configured.identity();
        let is_newer = given.validity().not_before > configured.validity().not_before;
        Ok(if is_ours && is_newer { given } else { configured })
    }

    /// The key that a certificate was asked for and that none has come for, if there is one. Blocks.
    #[must_use]
    pub fn pending_key(&self) -> Option<Zeroizing<Vec<u8>>> {
        read_private(&self.folder.join(PENDING)).ok()
    }

    /// Keeps the key that a certificate is asked for, until one has come: a lost answer is asked for again. Blocks.
    pub fn keep_pending(&self, key: &str) -> Result<(), Error> {
        create_private_directory(&self.folder)?;
        self.forget_pending();
        write_private(&self.folder.join(PENDING), key.as_bytes())
    }

    /// Forgets it.
    pub fn forget_pending(&self) {
        // What is left is asked for again, and refused or given.
        let _ = fs::remove_file(self.folder.join(PENDING));
    }

    /// Checks a certificate that was given in place of `in_use`, keeps it, and reads it as it will be read from now on. The
    /// pair before it stays until [`Self::forget_others`]. Blocks.
    ///
    /// It is checked before it is put in the place of what can be used: it must have the same identity, have its key beside
    /// it, and not have ended at `now`.
    pub fn keep(
        &self,
        in_use: &Credentials,
        (certificate, key): (&str, &str),
        now: UnixTime,
        reached: impl Fn(Keeping),
    ) -> Result<Credentials, Error> {
        create_private_directory(&self.folder)?;
        let unfinished = self.folder.join(UNFINISHED);
        remove_folder(&unfinished)?;
        create_private_directory(&unfinished)?;
        write_private(&unfinished.join(KEY), key.as_bytes())?;
        write_public(&unfinished.join(CERTIFICATE), certificate.as_bytes())?;
        let credentials = Credentials::load(&self.given(&unfinished))?;
        check(&credentials, in_use, now)?;
        reached(Keeping::Written);
        let serial = credentials.serial().to_string();
        let named = self.folder.join(&serial);
        if Credentials::load(&self.given(&named)).is_ok() {
            // It was given before, and this process died before it counted.
            remove_folder(&unfinished)?;
        } else {
            remove_folder(&named)?;
            fs::rename(&unfinished, &named).map_err(failed(&named))?;
        }
        self.sync()?;
        reached(Keeping::Named);
        let (link, current) = (self.folder.join(".link"), self.folder.join(CURRENT));
        match fs::remove_file(&link) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(&link)(error)),
            Ok(()) | Err(_) => {}
        }
        symlink(&serial, &link).map_err(failed(&link))?;
        fs::rename(&link, &current).map_err(failed(&current))?;
        self.sync()?;
        reached(Keeping::Linked);
        Ok(credentials)
    }

    /// Removes all pairs but the one that is in use now: old keys are of no use to anybody who should have them. What is left
    /// behind is removed the next time.
    pub fn forget_others(&self, in_use: &Credentials) {
        let serial = in_use.serial().to_string();
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if is_folder && entry.file_name() != serial.as_str() {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }

    /// What the configured files look like from outside, to see when somebody else has changed them.
    #[must_use]
    pub fn marks(&self) -> FileMarks {
        let CredentialPaths { certificate, key, ca, crl } = &self.configured;
        let files = [Some(certificate), Some(key), Some(ca), crl.as_ref()];
        let mark = |path: &PathBuf| {
            let metadata = fs::metadata(path).ok()?;
            Some((metadata.ino(), metadata.size(), metadata.mtime(), metadata.mtime_nsec()))
        };
        FileMarks(files.into_iter().flatten().map(mark).collect())
    }

    fn given(&self, folder: &Path) -> CredentialPaths {
        let CredentialPaths { ca, crl, .. } = self.configured.clone();
        CredentialPaths { certificate: folder.join(CERTIFICATE), key: folder.join(KEY), ca, crl }
    }

    fn sync(&self) -> Result<(), Error> {
        File::open(&self.folder).and_then(|folder| folder.sync_all()).map_err(failed(&self.folder))
    }
}

fn check(given: &Credentials, in_use: &Credentials, now: UnixTime) -> Result<(), Error> {
    if given.identity() != in_use.identity() {
        let reason = format!("this process runs as {}", in_use.identity());
        return Err(Error::Setup { identity: given.identity().clone(), reason });
    }
    if given.validity().not_after <= now {
        return Err(Error::Ended { identity: given.identity().clone() });
    }
    Ok(())
}

fn remove_folder(path: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(path)(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
    let path = path.to_owned();
    move |source| Error::Write { path, source }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::time::Duration;

    use muster_model::IdentityName;

    use super::*;
    use crate::authority::{Authority, IssuedIdentity, Usage};
    use crate::certificate::Validity;
    use crate::identity::{Identity, Role, TrustDomain};

    const NOW: UnixTime = UnixTime(1_800_000_000_000);

    /// A host with its first certificate, and the authority that gives it the next ones.
    struct Place {
        dir: tempfile::TempDir,
        authority: Authority,
        paths: CredentialPaths,
        files: CertificateFiles,
    }

    impl Place {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let authority = Authority::create(TrustDomain::new("test").unwrap(), minutes_ago(60)).unwrap();
            let paths = CredentialPaths::in_dir(dir.path());
            issue(&authority, "host-1", 30).save(&paths, &authority).unwrap();
            let files = CertificateFiles::new(paths.clone(), dir.path());
            Self { dir, authority, paths, files }
        }

        fn next(&self, minutes: u64) -> IssuedIdentity {
            issue(&self.authority, "host-1", minutes)
        }

        fn keep(&self, given: &IssuedIdentity, reached: impl Fn(Keeping)) -> Result<Credentials, Error> {
            let in_use = self.files.load().unwrap();
            self.files.keep(&in_use, (&given.certificate.cert_pem, &given.key_pem), NOW, reached)
        }

        fn entries(&self) -> usize {
            fs::read_dir(self.dir.path().join("identity")).unwrap().count()
        }
    }

    fn minutes_ago(minutes: u64) -> UnixTime {
        UnixTime(NOW.0 - minutes * 60_000)
    }

    /// A certificate for an hour.
    fn issue(authority: &Authority, name: &str, minutes: u64) -> IssuedIdentity {
        let name = IdentityName::new(name).unwrap();
        let identity = Identity::new(authority.trust_domain().clone(), Role::Agent, name);
        let began = minutes_ago(minutes);
        let validity = Validity { not_before: began, not_after: began.after(Duration::from_secs(3600)) };
        authority.issue(&identity, validity, &Usage::Client).unwrap()
    }

    fn none(_: Keeping) {}

    #[test]
    fn the_later_certificate_counts_and_what_was_left_unfinished_does_not() {
        let place = Place::new();
        for minutes in [20, 10] {
            let next = place.next(minutes);
            // As a crash leaves it.
            fs::create_dir_all(place.dir.path().join("identity/.new/x")).unwrap();
            let kept = place.keep(&next, none).unwrap();
            assert_eq!(kept.serial(), &next.certificate.serial);
            assert_eq!(place.files.load().unwrap().serial(), &next.certificate.serial);
            place.files.forget_others(&kept);
            assert_eq!(place.entries(), 2, "the folder and the link");
        }
        let marks = place.files.marks();
        for file in [&place.paths.certificate, &place.paths.key, &place.paths.ca] {
            fs::remove_file(file).unwrap();
        }
        let by_hand = place.next(5);
        by_hand.save(&place.paths, &place.authority).unwrap();
        assert_ne!(place.files.marks(), marks);
        assert_eq!(place.files.load().unwrap().serial(), &by_hand.certificate.serial, "it is later");
    }

    #[test]
    fn what_cannot_be_used_never_takes_the_place_of_what_can() {
        let place = Place::new();
        let good = place.next(20);
        place.keep(&good, none).unwrap();
        let other_key =
            IssuedIdentity { certificate: place.next(10).certificate, key_pem: place.next(10).key_pem };
        let unusable =
            [issue(&place.authority, "host-2", 10), issue(&place.authority, "host-1", 61), other_key];
        for given in &unusable {
            let refused = place.keep(given, |step| panic!("it came as far as {step:?}"));
            assert!(refused.is_err(), "{:?}", given.certificate.identity);
            assert_eq!(place.files.load().unwrap().serial(), &good.certificate.serial);
        }
    }

    #[test]
    fn whoever_dies_while_keeping_it_has_a_pair_and_is_given_the_same_again() {
        for last in [Keeping::Written, Keeping::Named, Keeping::Linked] {
            let place = Place::new();
            let (before, next) = (place.next(20), place.next(10));
            place.keep(&before, none).unwrap();
            let dies = |step| assert!(step != last, "dies");
            catch_unwind(AssertUnwindSafe(|| place.keep(&next, dies))).unwrap_err();
            let expected = if last == Keeping::Linked { &next } else { &before };
            assert_eq!(place.files.load().unwrap().serial(), &expected.certificate.serial, "{last:?}");
            let kept = place.keep(&next, none).unwrap();
            place.files.forget_others(&kept);
            assert_eq!(place.files.load().unwrap().serial(), &next.certificate.serial);
            assert_eq!(place.entries(), 2, "the folder and the link");
        }
    }
}
