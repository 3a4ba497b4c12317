//! The coordinator's configuration.

use std::net::SocketAddr;
use std::num::{NonZeroU16, NonZeroU64};
use std::path::{Path, PathBuf};
use std::time::Duration;

use muster_config::{Fault, Fragments};
use muster_daemon::resolve_path;
use muster_mtls::{CertificateFiles, CredentialPaths};
use serde::Deserialize;

use crate::{Error, NotifyConfig};

/// `coordinator.toml`. Paths are relative to the file's folder; `credential:NAME` is the credential of that name that systemd
/// passes.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CoordinatorConfig {
    /// Address and port to listen on; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Folder for the database and the blobs.
    pub state: PathBuf,
    /// The coordinator's certificate chain, PEM.
    pub certificate: PathBuf,
    /// Its private key, PEM, mode 0600.
    pub key: PathBuf,
    /// The CA that all identities are issued by, PEM.
    pub ca: PathBuf,
    /// The CA's revocation list, PEM, if there is one.
    pub crl: Option<PathBuf>,
    /// Folder with the issuing authority, `ca.pem` and `ca.key` (mode 0600). Without it certificates come from a PKI of your
    /// own, and the coordinator issues, renews and revokes none.
    pub issuer: Option<PathBuf>,
    /// Address and port for hosts that have no certificate yet; nobody enrols or recovers without it.
    pub enrol_listen: Option<SocketAddr>,
    /// Loopback address and port for monitoring, which reads `/metrics` there without TLS; nobody does without it.
    pub metrics_listen: Option<SocketAddr>,
    /// The command that is told what the audit log says; nobody is without it.
    pub notify: Option<NotifyConfig>,
    /// How long the certificates of hosts last, in milliseconds (default 7 days).
    #[serde(default = "default_host_certificate_ms")]
    pub host_certificate_ms: NonZeroU64,
    /// How long those of operators, pipelines and viewers last that they renew, in milliseconds (default 90 days).
    #[serde(default = "default_person_certificate_ms")]
    pub person_certificate_ms: NonZeroU64,
    /// How long the coordinator's own lasts that it gives itself, in milliseconds (default 90 days); without an `issuer` it gives
    /// itself none.
    #[serde(default = "default_coordinator_certificate_ms")]
    pub coordinator_certificate_ms: NonZeroU64,
    /// How long a list of revoked certificates lasts, in milliseconds (default 24 hours); it is renewed at half of that.
    #[serde(default = "default_revocation_list_ms")]
    pub revocation_list_ms: NonZeroU64,
    /// The pinned root document.
    pub root: PathBuf,
    /// The key that signs the audit log's checkpoints, PEM, mode 0600 (default: `audit.key` in the state, made at the first
    /// start).
    pub audit_key: Option<PathBuf>,
    /// How long a rollout may take to attest, in milliseconds (default 600,000).
    #[serde(default = "default_long_ms")]
    pub attest_timeout_ms: u64,
    /// How long a rollout may take to prepare, in milliseconds (default 600,000).
    #[serde(default = "default_long_ms")]
    pub prepare_timeout_ms: u64,
    /// How long a rollout may take to arm, in milliseconds (default 3,000).
    #[serde(default = "default_arm_ms")]
    pub arm_timeout_ms: u64,
    /// How long before its instant a flip in fast mode arms its hosts, in milliseconds (default 2,000).
    #[serde(default = "default_fast_lead_ms")]
    pub fast_lead_ms: u64,
    /// How many uploads are written at the same time; others wait (default 32).
    #[serde(default = "default_uploads_max")]
    pub uploads_max: NonZeroU16,
    /// How long an upload may send nothing before it loses its place, in milliseconds (default 30,000).
    #[serde(default = "default_upload_idle_ms")]
    pub upload_idle_timeout_ms: u64,
    /// After how many records the database is cut back to a snapshot (default 10,000).
    #[serde(default = "default_records_between_snapshots")]
    pub records_between_snapshots: NonZeroU64,
}

/// What bounds the uploads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct UploadLimits {
    /// How many are written at the same time; each takes a thread.
    pub(crate) at_once: usize,
    /// How long one may send nothing.
    pub(crate) idle: Duration,
}

const fn default_host_certificate_ms() -> NonZeroU64 {
    NonZeroU64::new(7 * 24 * 3_600_000).expect("it is not zero")
}

const fn default_person_certificate_ms() -> NonZeroU64 {
    NonZeroU64::new(90 * 24 * 3_600_000).expect("it is not zero")
}

const fn default_coordinator_certificate_ms() -> NonZeroU64 {
    NonZeroU64::new(90 * 24 * 3_600_000).expect("it is not zero")
}

const fn default_revocation_list_ms() -> NonZeroU64 {
    NonZeroU64::new(24 * 3_600_000).expect("it is not zero")
}

const fn default_long_ms() -> u64 {
    600_000
}

const fn default_arm_ms() -> u64 {
    3_000
}

const fn default_fast_lead_ms() -> u64 {
    2_000
}

const fn default_uploads_max() -> NonZeroU16 {
    NonZeroU16::new(32).expect("it is not zero")
}

const fn default_upload_idle_ms() -> u64 {
    30_000
}

pub(crate) const fn default_records_between_snapshots() -> NonZeroU64 {
    NonZeroU64::new(10_000).expect("it is not zero")
}

impl CoordinatorConfig {
    /// Reads the configuration from `file`, or from the system's folders.
    pub fn load(file: Option<&Path>) -> Result<Self, Error> {
        let fragments = Self::fragments(file)?;
        let base = match file {
            Some(file) => file.parent().unwrap_or(Path::new(".")).to_owned(),
            None => PathBuf::from("/etc/muster"),
        };
        let config: Self = fragments.merge()?;
        match config.faults().as_slice() {
            [] => config.relative_to(&base),
            faults => Err(fragments.refuse(faults).into()),
        }
    }

    /// The files that [`Self::load`] reads.
    pub fn fragments(file: Option<&Path>) -> Result<Fragments, Error> {
        Ok(match file {
            Some(file) => Fragments::from_file(file)?,
            None => Fragments::from_system("coordinator.toml")?,
        })
    }

    /// The TLS files.
    #[must_use]
    pub fn credentials(&self) -> CredentialPaths {
        CredentialPaths {
            certificate: self.certificate.clone(),
            key: self.key.clone(),
            ca: self.ca.clone(),
            crl: self.crl.clone(),
        }
    }

    /// The certificate files, and where those go that the coordinator gives itself.
    #[must_use]
    pub fn certificate_files(&self) -> CertificateFiles {
        CertificateFiles::new(self.credentials(), &self.state)
    }

    /// The limits of a rollout's steps.
    #[must_use]
    pub const fn limits(&self) -> muster_rollout::fleet::Limits {
        muster_rollout::fleet::Limits {
            attest: Duration::from_millis(self.attest_timeout_ms),
            prepare: Duration::from_millis(self.prepare_timeout_ms),
            arm: Duration::from_millis(self.arm_timeout_ms),
            fast_lead: Duration::from_millis(self.fast_lead_ms),
        }
    }

    pub(crate) fn upload_limits(&self) -> UploadLimits {
        UploadLimits {
            at_once: usize::from(self.uploads_max.get()),
            idle: Duration::from_millis(self.upload_idle_timeout_ms),
        }
    }

    /// Everything that the types do not say.
    fn faults(&self) -> Vec<Fault> {
        let public = self.metrics_listen.filter(|address| !address.ip().is_loopback());
        let public = public.map(|address| {
            let reason = format!("{address} is no address that only programs of this machine can read");
            Fault::new("metrics_listen", reason)
        });
        let notify = self.notify.as_ref().and_then(|notify| notify.check().err());
        let notify = notify.map(|reason| Fault::new("notify", reason));
        public.into_iter().chain(notify).collect()
    }

    fn relative_to(self, base: &Path) -> Result<Self, Error> {
        let resolve = |path: PathBuf| resolve_path(&path, base);
        Ok(Self {
            state: resolve(self.state)?,
            certificate: resolve(self.certificate)?,
            key: resolve(self.key)?,
            ca: resolve(self.ca)?,
            crl: self.crl.map(resolve).transpose()?,
            issuer: self.issuer.map(resolve).transpose()?,
            root: resolve(self.root)?,
            audit_key: self.audit_key.map(resolve).transpose()?,
            ..self
        })
    }
}
