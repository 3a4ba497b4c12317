//! Keeps what the server goes by current: its own certificate files, the list of revoked certificates, and who is kept out.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use muster_model::{Refusal, UnixTime};
use muster_mtls::{CredentialPaths, Credentials, Validity};
use muster_proto::v1::certificates_server::CertificatesServer;
use tokio::time::Instant;
use tonic_health::server::HealthReporter;

use super::renewal::Renewal;
use super::{Enrolments, Issuer};
use crate::coordinator::Shared;
use crate::status::chain;
use crate::{CoordinatorConfig, Error};

/// How often files and times are looked at.
const INTERVAL: Duration = Duration::from_secs(1);

/// For how long a rollout keeps connections open whose certificates have expired meanwhile.
const GRACE: Duration = Duration::from_secs(3600);

/// The list, for whoever else wants to check certificates with it.
const LIST_FILE: &str = "crl.pem";

/// How it stands with the coordinator's own certificates.
#[derive(Debug, Clone, Default)]
pub(crate) struct Standing {
    /// Its own.
    pub(crate) certificate: Option<Validity>,
    /// The list of revoked ones that ends first.
    pub(crate) list: Option<Validity>,
    /// The authority that issues certificates.
    pub(crate) issuer: Option<Validity>,
    /// Why its files could not be read again.
    pub(crate) unreadable: Option<String>,
}

/// Runs beside the server.
pub(crate) struct Keeper {
    paths: CredentialPaths,
    list_path: PathBuf,
    seen: Vec<Option<Mark>>,
    list: Option<(String, Validity)>,
    expired_since: Option<Instant>,
}

/// What tells one content of a file from another, without reading it.
type Mark = (u64, u64, i64, i64);

impl Standing {
    /// What will be trouble unless somebody looks at it, by what it is about.
    pub(crate) fn warnings(&self, now: UnixTime) -> Vec<String> {
        let ending = [
            ("the coordinator's own certificate", self.certificate),
            ("the list of revoked certificates", self.list),
            ("the authority that issues certificates", self.issuer),
        ];
        let ending = ending.into_iter().filter_map(|(what, validity)| {
            let validity = validity.filter(|validity| validity.is_ending(now))?;
            Some(match validity.not_after.0.checked_sub(now.0) {
                Some(left_ms) => format!("{what} ends in {} s", left_ms / 1000),
                None => format!("{what} ended {} s ago", (now.0 - validity.not_after.0) / 1000),
            })
        });
        let unreadable = self.unreadable.iter().map(|reason| {
            format!("the coordinator's certificate files have changed and cannot be used: {reason}")
        });
        ending.chain(unreadable).collect()
    }
}

impl Keeper {
    /// Signs the first list, before anybody is let in.
    pub(crate) fn open(config: &CoordinatorConfig, shared: &Shared) -> Result<Self, Error> {
        let paths = config.credentials();
        let mut keeper = Self {
            seen: marks(&paths),
            paths,
            list_path: config.state.join(LIST_FILE),
            list: None,
            expired_since: None,
        };
        let credentials = shared.tls.credentials();
        keeper.sign_list(shared)?;
        keeper.put_in_force(shared, credentials)?;
        shared.enrolments.refresh_exclusions(shared);
        Ok(keeper)
    }

    /// Runs until it is dropped.
    pub(crate) async fn run(mut self, shared: Arc<Shared>, health: HealthReporter) {
        let mut was_well = None;
        loop {
            let revoked = tokio::select! {
                () = tokio::time::sleep(INTERVAL) => false,
                () = shared.enrolments.revoked.notified() => true,
            };
            self.look(&shared, revoked).await;
            let is_well = shared.enrolments.standing().warnings(shared.machine.unix_time()).is_empty();
            if was_well == Some(is_well) {
                continue;
            }
            was_well = Some(is_well);
            if is_well {
                health.set_serving::<CertificatesServer<Renewal>>().await;
            } else {
                tracing::warn!("certificates of the coordinator need a look: see `muster status`");
                health.set_not_serving::<CertificatesServer<Renewal>>().await;
            }
        }
    }

    async fn look(&mut self, shared: &Arc<Shared>, revoked: bool) {
        let paths = self.paths.clone();
        // A thread that ended without an outcome is asked again a second later.
        let now_seen = shared.machine.run_blocking(move || marks(&paths)).await.unwrap_or_default();
        let is_changed = now_seen != self.seen && !now_seen.is_empty();
        let now = shared.machine.unix_time();
        let is_list_old = self.list.as_ref().is_some_and(|(_, validity)| is_half_over(*validity, now));
        if is_changed || is_list_old || revoked {
            let renewed = self.renew(shared, is_changed, is_list_old || revoked).await;
            if let Err(error) = renewed {
                tracing::error!(error = chain(&error), "what the server goes by could not be renewed");
                shared.enrolments.note(|standing| standing.unreadable = Some(chain(&error)));
            }
            if is_changed {
                self.seen = now_seen;
            }
            // Whoever is not accepted by what is in force now has no business here any more.
            end_lapsed(shared).await;
        }
        self.end_expired(shared).await;
    }

    async fn renew(&mut self, shared: &Arc<Shared>, files: bool, list: bool) -> Result<(), Error> {
        let credentials = if files {
            let paths = self.paths.clone();
            let loaded = shared.machine.run_blocking(move || Credentials::load(&paths)).await;
            let loaded = loaded.map_err(|error| Error::Issuer { reason: error.to_string() })??;
            tracing::info!(serial = %loaded.serial(), "the coordinator's certificate files were read again");
            loaded
        } else {
            shared.tls.credentials()
        };
        if list {
            self.sign_list(shared)?;
        }
        self.put_in_force(shared, credentials)
    }

    fn sign_list(&mut self, shared: &Shared) -> Result<(), Error> {
        let Some(Issuer { authority, list_life, .. }) = &shared.enrolments.issuer else { return Ok(()) };
        let now = shared.machine.unix_time();
        let validity = Validity::starting(now, *list_life);
        let list = authority.revocation_list(&shared.enrolments.registry().revocations(now), validity)?;
        // For others only: what is in force here is in memory.
        if let Err(error) = replace(&self.list_path, list.as_bytes()) {
            tracing::warn!(path = %self.list_path.display(), %error, "the list cannot be written");
        }
        self.list = Some((list, validity));
        Ok(())
    }

    fn put_in_force(&self, shared: &Shared, credentials: Credentials) -> Result<(), Error> {
        let credentials = match &self.list {
            Some((list, _)) => credentials.with_own_list(list)?,
            None => credentials,
        };
        shared.tls.replace(&credentials)?;
        let issuer = shared.enrolments.issuer.as_ref().map(|issuer| issuer.authority.validity());
        shared.enrolments.note(|standing| {
            *standing = Standing {
                certificate: Some(credentials.validity()),
                list: credentials.crl_validity(),
                issuer,
                unreadable: None,
            };
        });
        Ok(())
    }

    /// An expired certificate ends its connection, but not in the middle of a rollout: a host that loses its session while it
    /// is armed may have to stop serving. The warnings began long before.
    async fn end_expired(&mut self, shared: &Arc<Shared>) {
        if !shared.tls.has_expired(shared.machine.unix_time()) {
            self.expired_since = None;
            return;
        }
        let is_over = self.expired_since.is_some_and(|since| since.elapsed() > GRACE);
        if !is_over && !shared.is_calm().await {
            self.expired_since.get_or_insert_with(Instant::now);
            return;
        }
        self.expired_since = None;
        for identity in shared.tls.end_expired(shared.machine.unix_time()) {
            tracing::warn!(who = %identity, "a connection was ended: its certificate has expired");
        }
    }
}

impl Enrolments {
    /// Lets the server keep out whom the registry does, from the next handshake on.
    pub(super) fn refresh_exclusions(&self, shared: &Shared) {
        // Of two at once the last to come sees what both have changed.
        let _one_by_one = self.excluding.lock().unwrap_or_else(PoisonError::into_inner);
        shared.tls.exclude(self.registry().exclusions());
    }

    fn note(&self, change: impl FnOnce(&mut Standing)) {
        change(&mut self.standing.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// Keeps out whom the registry does, and ends their connections. The list follows.
pub(super) async fn keep_out(shared: &Arc<Shared>) -> Result<usize, Refusal> {
    shared.enrolments.refresh_exclusions(shared);
    shared.enrolments.revoked.notify_one();
    Ok(end_lapsed(shared).await)
}

async fn end_lapsed(shared: &Arc<Shared>) -> usize {
    let (tls, now) = (shared.tls.clone(), shared.machine.unix_time());
    // Without an outcome nothing is known to be ended; the next look ends it.
    let ended = shared.machine.run_blocking(move || tls.end_lapsed(now)).await.unwrap_or_default();
    for (identity, error) in &ended {
        tracing::warn!(who = %identity, reason = chain(error), "a connection was ended");
    }
    ended.len()
}

fn is_half_over(validity: Validity, now: UnixTime) -> bool {
    let life = validity.not_after.0.saturating_sub(validity.began().0);
    validity.not_after.0.saturating_sub(now.0) <= life / 2
}

fn marks(paths: &CredentialPaths) -> Vec<Option<Mark>> {
    let files = [Some(&paths.certificate), Some(&paths.key), Some(&paths.ca), paths.crl.as_ref()];
    let mark = |path: &PathBuf| {
        let metadata = fs::metadata(path).ok()?;
        Some((metadata.ino(), metadata.size(), metadata.mtime(), metadata.mtime_nsec()))
    };
    files.into_iter().flatten().map(mark).collect()
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new().prefix(".crl-").tempfile_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path).map(drop).map_err(|error| error.error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_soon_or_cannot_be_read_is_said_by_name() {
        let now = UnixTime(1_000_000_000_000);
        let life = Duration::from_secs(3000);
        let fresh = Validity::starting(now, life);
        let ending = Validity::starting(UnixTime(now.0 - 2_500_000), life);
        let ended = Validity::starting(UnixTime(now.0 - 3_500_000), life);
        let standing =
            Standing { certificate: Some(fresh), list: Some(fresh), issuer: None, unreadable: None };
        assert!(standing.warnings(now).is_empty());
        let warnings = Standing {
            list: Some(ending),
            issuer: Some(ended),
            unreadable: Some("half a file".to_owned()),
            ..standing
        };
        let warnings = warnings.warnings(now);
        assert_eq!(warnings.len(), 3, "{warnings:?}");
        assert!(warnings[0].contains("list") && warnings[0].contains("ends in 500 s"), "{warnings:?}");
        assert!(warnings[1].contains("issues certificates ended 500 s ago"), "{warnings:?}");
        assert!(warnings[2].contains("half a file"), "{warnings:?}");
    }

    #[test]
    fn a_list_is_renewed_at_half_its_life() {
        let start = UnixTime(1_000_000_000_000);
        let validity = Validity::starting(start, Duration::from_secs(1000));
        assert!(!is_half_over(validity, UnixTime(start.0 + 499_000)));
        assert!(is_half_over(validity, UnixTime(start.0 + 500_000)));
    }
}
