//! Keeps what the server goes by current: its own certificate, the list of revoked certificates, and who is kept out.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use muster_model::{Code, Refusal, UnixTime};
use muster_mtls::{CertificateFiles, Credentials, FileMarks, Validity};
use muster_proto::v1::certificates_server::CertificatesServer;
use tokio::time::Instant;
use tonic_health::server::HealthReporter;

use super::renewal::Renewal;
use super::{Enrolments, Issuer, own, warnings};
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
    /// When it gives itself the next one, if it does.
    pub(crate) renews: Option<UnixTime>,
    /// The list of revoked ones that ends first.
    pub(crate) list: Option<Validity>,
    /// The authority that issues certificates.
    pub(crate) issuer: Option<Validity>,
    /// What went wrong the last time that it was done, and why. Nothing but doing it again, and well, removes it.
    troubles: BTreeMap<Trouble, String>,
}

/// What can go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Trouble {
    /// Reading the files again that have changed.
    Files,
    /// Signing the list.
    List,
    /// Renewing its own certificate.
    Own,
}

/// Runs beside the server.
pub(crate) struct Keeper {
    files: CertificateFiles,
    list_path: PathBuf,
    seen: FileMarks,
    list: Option<(String, Validity)>,
    own: own::Schedule,
    expired_since: Option<Instant>,
    /// What the health was told last.
    was_well: Option<bool>,
}

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
        let troubles = self.troubles.iter().map(|(trouble, reason)| format!("{trouble}: {reason}"));
        ending.chain(troubles).collect()
    }

    fn settle(&mut self, trouble: Trouble, outcome: Result<(), String>) {
        match outcome {
            Ok(()) => drop(self.troubles.remove(&trouble)),
            Err(reason) => drop(self.troubles.insert(trouble, reason)),
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Files => "the coordinator's certificate files have changed and cannot be used",
            Self::List => "the list of revoked certificates was not renewed",
            Self::Own => "the coordinator's own certificate was not renewed",
        })
    }
}

impl Keeper {
    /// Signs the first list, before anybody is let in.
    pub(crate) fn open(config: &CoordinatorConfig, shared: &Shared) -> Result<Self, Error> {
        let files = config.certificate_files();
        let mut keeper = Self {
            seen: files.marks(),
            files,
            list_path: config.state.join(LIST_FILE),
            list: None,
            own: own::Schedule::default(),
            expired_since: None,
            was_well: None,
        };
        let credentials = shared.tls.credentials();
        keeper.sign_list(shared)?;
        keeper.put_in_force(shared, credentials)?;
        shared.enrolments.refresh_exclusions(shared);
        Ok(keeper)
    }

    /// Runs until it is dropped.
    pub(crate) async fn run(mut self, shared: Arc<Shared>, health: HealthReporter) {
        loop {
            let revoked = tokio::select! {
                () = tokio::time::sleep(INTERVAL) => false,
                () = shared.enrolments.revoked.notified() => true,
            };
            self.look(&shared, revoked).await;
            self.tell(&shared, &health).await;
        }
    }

    /// Tells the health what it does not know yet. It knows something before anybody can ask.
    pub(crate) async fn tell(&mut self, shared: &Shared, health: &HealthReporter) {
        let is_well = is_well(shared);
        match (self.was_well.replace(is_well), is_well) {
            (Some(false) | None, true) => health.set_serving::<CertificatesServer<Renewal>>().await,
            (Some(true) | None, false) => {
                tracing::warn!("certificates need a look: see `muster status`");
                health.set_not_serving::<CertificatesServer<Renewal>>().await;
            }
            (Some(true), true) | (Some(false), false) => {}
        }
    }

    async fn look(&mut self, shared: &Arc<Shared>, revoked: bool) {
        let files = self.files.clone();
        // A thread that ended without an outcome is asked again a second later.
        let now_seen = shared.machine.run_blocking(move || files.marks()).await.unwrap_or_default();
        let have_changed = now_seen != self.seen && now_seen != FileMarks::default();
        if have_changed {
            self.seen = now_seen;
            let read = self.read_files(shared).await;
            settle(shared, Trouble::Files, read);
        }
        let now = shared.machine.unix_time();
        let is_list_old = self.list.as_ref().is_some_and(|(_, validity)| is_half_over(*validity, now));
        if is_list_old || revoked {
            let signed =
                self.sign_list(shared).and_then(|()| self.put_in_force(shared, shared.tls.credentials()));
            settle(shared, Trouble::List, signed);
        }
        if self.own.is_due(shared, now) {
            let renewed = self.renew_own(shared).await;
            self.own.tried(shared, now, renewed.is_ok());
            settle(shared, Trouble::Own, renewed);
        }
        if have_changed || is_list_old || revoked {
            // Whoever is not accepted by what is in force now has no business here any more.
            end_lapsed(shared).await;
        }
        self.end_expired(shared).await;
    }

    async fn read_files(&self, shared: &Arc<Shared>) -> Result<(), Error> {
        let files = self.files.clone();
        let loaded = shared.machine.run_blocking(move || files.load()).await;
        let loaded = loaded.map_err(|error| Error::Issuer { reason: error.to_string() })??;
        tracing::info!(serial = %loaded.serial(), "the coordinator's certificate files were read again");
        self.put_in_force(shared, loaded)
    }

    /// Streams go on over the certificate that they began with.
    async fn renew_own(&self, shared: &Arc<Shared>) -> Result<(), Error> {
        let given = own::renew(shared, &self.files).await?;
        self.put_in_force(shared, given.clone())?;
        let files = self.files.clone();
        let forgotten = shared.machine.run_blocking(move || files.forget_others(&given)).await;
        forgotten.map_err(|error| Error::Issuer { reason: error.to_string() })
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
        let issuer = shared.enrolments.issuer.as_ref();
        shared.enrolments.note(|standing| {
            standing.certificate = Some(credentials.validity());
            standing.renews = issuer.and_then(|issuer| own::due(credentials.validity(), issuer));
            standing.list = credentials.crl_validity();
            standing.issuer = issuer.map(|issuer| issuer.authority.validity());
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

/// Whether no certificate will strand anybody unless somebody looks: not the coordinator's own, and not those of hosts.
fn is_well(shared: &Shared) -> bool {
    let is_ending = |blocker: &muster_model::Blocker| blocker.code == Code::CertificateEnding;
    warnings::of_coordinator(shared).is_empty()
        && !shared.fleets().iter().any(|fleet| warnings::of_hosts(shared, fleet).iter().any(is_ending))
}

fn settle(shared: &Shared, trouble: Trouble, outcome: Result<(), Error>) {
    if let Err(error) = &outcome {
        tracing::error!(error = chain(error), "{trouble}");
    }
    let outcome = outcome.map_err(|error| chain(&error));
    shared.enrolments.note(|standing| standing.settle(trouble, outcome));
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

/// When half of a life is over.
pub(super) fn half_of(validity: Validity) -> UnixTime {
    let life = validity.not_after.0.saturating_sub(validity.began().0);
    UnixTime(validity.not_after.0.saturating_sub(life / 2))
}

fn is_half_over(validity: Validity, now: UnixTime) -> bool {
    now >= half_of(validity)
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
    use std::fs;

    use super::*;
    use crate::testing::Place;

    #[test]
    fn what_ends_soon_or_cannot_be_read_is_said_by_name() {
        let now = UnixTime(1_000_000_000_000);
        let life = Duration::from_secs(3000);
        let fresh = Validity::starting(now, life);
        let ending = Validity::starting(UnixTime(now.0 - 2_500_000), life);
        let ended = Validity::starting(UnixTime(now.0 - 3_500_000), life);
        let mut standing = Standing { certificate: Some(fresh), list: Some(fresh), ..Standing::default() };
        assert!(standing.warnings(now).is_empty());
        (standing.list, standing.issuer) = (Some(ending), Some(ended));
        standing.settle(Trouble::Files, Err("half a file".to_owned()));
        let warnings = standing.warnings(now);
        assert_eq!(warnings.len(), 3, "{warnings:?}");
        assert!(warnings[0].contains("list") && warnings[0].contains("ends in 500 s"), "{warnings:?}");
        assert!(warnings[1].contains("issues certificates ended 500 s ago"), "{warnings:?}");
        assert!(warnings[2].contains("half a file"), "{warnings:?}");
    }

    #[test]
    fn nothing_but_reading_the_files_settles_that_they_could_not_be_read() {
        let place = Place::new();
        let (shared, _drivers) = place.open();
        let config = place.config();
        let mut keeper = Keeper::open(&config, &shared).unwrap();
        let said = |shared: &Shared| shared.enrolments.standing().warnings(shared.machine.unix_time());
        let whole = fs::read(&config.certificate).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let mut look = |revoked| runtime.block_on(keeper.look(&shared, revoked));

        look(false);
        assert_eq!(said(&shared), [""; 0]);
        fs::write(&config.certificate, &whole[..whole.len() / 2]).unwrap();
        look(false);
        assert!(said(&shared)[0].contains("cannot be used"), "{:?}", said(&shared));
        look(true);
        look(false);
        assert_eq!(said(&shared).len(), 1, "the list was renewed, and the files were not read");
        fs::write(&config.certificate, &whole).unwrap();
        look(false);
        assert_eq!(said(&shared), [""; 0]);
    }

    #[test]
    fn a_list_is_renewed_at_half_its_life() {
        let start = UnixTime(1_000_000_000_000);
        let validity = Validity::starting(start, Duration::from_secs(1000));
        assert!(!is_half_over(validity, UnixTime(start.0 + 499_000)));
        assert!(is_half_over(validity, UnixTime(start.0 + 500_000)));
    }
}
