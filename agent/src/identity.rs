//! The certificate that this host goes by, on disk.
//!
//! The files that the configuration names are the first one: put there when the host enrolled or by hand, and by whoever
//! renews them where the fleet has a PKI of its own. What the coordinator gave since is in the state, a folder for each
//! certificate with its key, and a link to the one in force: there is never a key without its certificate. Of both, the one
//! that began later counts.
//!
//! ```text
//! STATE/identity/SERIAL/{certificate.pem,key.pem}
//! STATE/identity/current -> SERIAL
//! STATE/identity/.pending        the key of a recovery whose answer has not come yet
//! ```

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};

use muster_daemon::crash_point;
use muster_mtls::{
    CredentialPaths, Credentials, Error, create_private_directory, read_private, write_private, write_public,
};
use zeroize::Zeroizing;

/// The folder within the state.
pub(crate) const FOLDER: &str = "identity";
const CURRENT: &str = "current";
const UNFINISHED: &str = ".new";
const PENDING: &str = ".pending";
const CERTIFICATE: &str = "certificate.pem";
const KEY: &str = "key.pem";

/// Where a host's certificates are.
#[derive(Debug, Clone)]
pub struct CertificateFiles {
    configured: CredentialPaths,
    folder: PathBuf,
}

/// What tells one content of a file from another, without reading it.
pub(crate) type Marks = Vec<Option<(u64, u64, i64, i64)>>;

impl CertificateFiles {
    /// Those of a configuration, and those that were given since, in the state.
    #[must_use]
    pub fn new(configured: CredentialPaths, state: &Path) -> Self {
        Self { configured, folder: state.join(FOLDER) }
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
    pub(crate) fn pending_key(&self) -> Option<Zeroizing<Vec<u8>>> {
        read_private(&self.folder.join(PENDING)).ok()
    }

    /// Keeps the key that a certificate is asked for, until one has come: a lost answer is asked for again. Blocks.
    pub(crate) fn keep_pending(&self, key: &str) -> Result<(), Error> {
        create_private_directory(&self.folder)?;
        self.forget_pending();
        write_private(&self.folder.join(PENDING), key.as_bytes())
    }

    /// Forgets it.
    pub(crate) fn forget_pending(&self) {
        // What is left is asked for again, and refused or given.
        let _ = fs::remove_file(self.folder.join(PENDING));
    }

    /// Keeps a certificate that was given, and reads it again as it will be read from now on. Blocks.
    pub(crate) fn keep(&self, certificate: &str, key: &str) -> Result<Credentials, Error> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source: io::Error| Error::Write { path, source }
        };
        create_private_directory(&self.folder)?;
        let unfinished = self.folder.join(UNFINISHED);
        if unfinished.exists() {
            fs::remove_dir_all(&unfinished).map_err(failed(&unfinished))?;
        }
        create_private_directory(&unfinished)?;
        write_private(&unfinished.join(KEY), key.as_bytes())?;
        write_public(&unfinished.join(CERTIFICATE), certificate.as_bytes())?;
        // What cannot be used is not put in the place of what can.
        let credentials = Credentials::load(&self.given(&unfinished))?;
        let serial = credentials.serial().to_string();
        let named = self.folder.join(&serial);
        crash_point("agent.identity.written");
        fs::rename(&unfinished, &named).map_err(failed(&named))?;
        crash_point("agent.identity.named");
        let (link, current) = (self.folder.join(".link"), self.folder.join(CURRENT));
        match fs::remove_file(&link) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(&link)(error)),
            Ok(()) | Err(_) => {}
        }
        symlink(&serial, &link).map_err(failed(&link))?;
        fs::rename(&link, &current).map_err(failed(&current))?;
        File::open(&self.folder).and_then(|folder| folder.sync_all()).map_err(failed(&self.folder))?;
        crash_point("agent.identity.linked");
        self.forget_others(&serial);
        Ok(credentials)
    }

    /// What the files look like from outside, to see when somebody else has changed them.
    pub(crate) fn marks(&self) -> Marks {
        let CredentialPaths { certificate, key, ca, crl } = &self.configured;
        let files = [Some(certificate), Some(key), Some(ca), crl.as_ref()];
        let mark = |path: &PathBuf| {
            let metadata = fs::metadata(path).ok()?;
            Some((metadata.ino(), metadata.size(), metadata.mtime(), metadata.mtime_nsec()))
        };
        files.into_iter().flatten().map(mark).collect()
    }

    fn given(&self, folder: &Path) -> CredentialPaths {
        let CredentialPaths { ca, crl, .. } = self.configured.clone();
        CredentialPaths { certificate: folder.join(CERTIFICATE), key: folder.join(KEY), ca, crl }
    }

    /// Old keys are of no use to anybody who should have them. What is left behind is removed the next time.
    fn forget_others(&self, serial: &str) {
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if is_folder && name != serial {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use muster_daemon::unix_time;
    use muster_model::{IdentityName, UnixTime};
    use muster_mtls::{Authority, Identity, IssuedIdentity, Role, TrustDomain, Usage, Validity};

    use super::*;

    fn issue(authority: &Authority, name: &str, began: UnixTime) -> IssuedIdentity {
        let name = IdentityName::new(name).unwrap();
        let identity = Identity::new(authority.trust_domain().clone(), Role::Agent, name);
        let validity = Validity { not_before: began, not_after: began.after(Duration::from_secs(3600)) };
        authority.issue(&identity, validity, &Usage::Client).unwrap()
    }

    #[test]
    fn the_later_certificate_counts_and_what_was_left_unfinished_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let now = unix_time();
        let before = |minutes: u64| UnixTime(now.0 - minutes * 60_000);
        let authority = Authority::create(TrustDomain::new("test").unwrap(), before(60)).unwrap();
        let first = issue(&authority, "host-1", before(30));
        let paths = CredentialPaths::in_dir(dir.path());
        first.save(&paths, &authority).unwrap();
        let files = CertificateFiles::new(paths.clone(), dir.path());
        assert_eq!(files.load().unwrap().serial(), &first.certificate.serial);

        for minutes in [20, 10] {
            let next = issue(&authority, "host-1", before(minutes));
            // As a crash leaves it.
            fs::create_dir_all(dir.path().join("identity/.new/x")).unwrap();
            let kept = files.keep(&next.certificate.cert_pem, &next.key_pem).unwrap();
            assert_eq!(kept.serial(), &next.certificate.serial);
            assert_eq!(files.load().unwrap().serial(), &next.certificate.serial);
            let folders = fs::read_dir(dir.path().join("identity")).unwrap().count();
            assert_eq!(folders, 2, "the folder and the link");
        }
        let in_force = files.load().unwrap();
        let (other, foreign) =
            (issue(&authority, "host-1", before(5)), issue(&authority, "host-2", before(1)));
        assert!(files.keep(&other.certificate.cert_pem, &foreign.key_pem).is_err(), "another's key");
        assert_eq!(files.load().unwrap().serial(), in_force.serial());

        let marks = files.marks();
        for file in [&paths.certificate, &paths.key, &paths.ca] {
            fs::remove_file(file).unwrap();
        }
        other.save(&paths, &authority).unwrap();
        assert_ne!(files.marks(), marks);
        assert_eq!(files.load().unwrap().serial(), &other.certificate.serial, "put there by hand, and later");
    }
}
