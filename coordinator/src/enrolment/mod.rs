//! Certificates: how hosts come by them, get the next one, and lose them.
//!
//! What is decided is in `registry`, which is pure; the ledger makes it durable. `door` answers strangers, `renewal` peers, and
//! `keeper` keeps what the server goes by current: the list of revoked certificates, and the coordinator's own certificate,
//! which `own` renews.
//!
//! Without an issuing authority the fleet's certificates come from somewhere else, and all of this says so.

mod door;
mod keeper;
mod own;
mod rate;
mod registry;
mod renewal;
mod warnings;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use muster_audit::Kind;
use muster_model::{Blocker, Code, Digest, FleetName, HostName, Refusal, UnixTime};
use muster_mtls::{Authority, Credentials, Identity, IssuedCertificate, Serial, Usage, Validity};
use muster_trust::{JoinToken, TOKEN_SECRET_LEN, token_digest};
use tokio::sync::{Notify, watch};

use crate::coordinator::Shared;
use crate::fleet::FleetHandle;
use crate::ledger::Entry;
use crate::status::chain;
use crate::{CoordinatorConfig, Error};
use registry::{Issued, REVOKED_MAX, TOKENS_MAX, TokenRecord};

pub(crate) use door::{LIMITS as DOOR_LIMITS, STREAMS_MAX, TIMEOUT as DOOR_TIMEOUT, service as door_service};
pub(crate) use keeper::{Keeper, Standing};
pub(crate) use registry::{Change, Registry, TOKEN_LIFE_MAX};
pub(crate) use renewal::service as renewal_service;

/// The longest reason for an eviction or a revocation.
const REASON_BYTES_MAX: usize = 400;

/// What the coordinator has to do with certificates.
pub(crate) struct Enrolments {
    issuer: Option<Issuer>,
    registry: watch::Sender<Arc<Registry>>,
    /// Held from a verdict to the change that follows from it.
    turn: tokio::sync::Mutex<()>,
    /// Where strangers are expected.
    door: OnceLock<SocketAddr>,
    /// Where peers are expected.
    main: OnceLock<SocketAddr>,
    /// Tells the keeper that somebody is to be kept out.
    revoked: Notify,
    standing: Mutex<Standing>,
    /// Held while the server is told whom to keep out.
    excluding: Mutex<()>,
}

/// The authority that issues certificates, and for how long.
struct Issuer {
    authority: Authority,
    host_life: Duration,
    person_life: Duration,
    own_life: Duration,
    list_life: Duration,
}

impl Enrolments {
    /// Reads the issuing authority that the configuration names. Everybody who trusts what the coordinator trusts must
    /// accept what it issues.
    pub(crate) fn open(
        config: &CoordinatorConfig,
        credentials: &Credentials,
        registry: Arc<Registry>,
    ) -> Result<Self, Error> {
        let unusable = |reason: String| Error::Issuer { reason };
        let issuer = match &config.issuer {
            None if config.enrol_listen.is_some() => {
                return Err(unusable("`enrol_listen` needs an `issuer`".to_owned()));
            }
            None => None,
            Some(folder) => {
                let authority = Authority::load(folder)?;
                if authority.trust_domain() != &credentials.identity().trust_domain {
                    return Err(unusable(format!("it is one of `{}`", authority.trust_domain())));
                }
                if !credentials.trusts(&authority) {
                    let reason = "none of the authorities in `ca` is it or the one above it";
                    return Err(unusable(reason.to_owned()));
                }
                let millis = |ms: std::num::NonZeroU64| Duration::from_millis(ms.get());
                Some(Issuer {
                    authority,
                    host_life: millis(config.host_certificate_ms),
                    person_life: millis(config.person_certificate_ms),
                    own_life: millis(config.coordinator_certificate_ms),
                    list_life: millis(config.revocation_list_ms),
                })
            }
        };
        Ok(Self {
            issuer,
            registry: watch::Sender::new(registry),
            turn: tokio::sync::Mutex::default(),
            door: OnceLock::new(),
            main: OnceLock::new(),
            revoked: Notify::new(),
            standing: Mutex::default(),
            excluding: Mutex::default(),
        })
    }

    /// Takes note of where peers are expected.
    pub(crate) fn listening(&self, main: SocketAddr) {
        // It is said once, before anybody can ask.
        let _ = self.main.set(main);
    }

    /// Takes note of where strangers are expected.
    pub(crate) fn open_door(&self, door: SocketAddr) {
        // It is said once, before anybody can ask.
        let _ = self.door.set(door);
    }

    /// What is known of tokens and certificates.
    pub(crate) fn registry(&self) -> Arc<Registry> {
        Arc::clone(&self.registry.borrow())
    }

    /// How it stands with the coordinator's own certificates.
    pub(crate) fn standing(&self) -> Standing {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn issuer(&self) -> Result<&Issuer, Refusal> {
        self.issuer.as_ref().ok_or_else(|| {
            let detail = "this coordinator issues no certificates; they come from a PKI of your own";
            Refusal::of(Code::NoIssuer, detail)
        })
    }

    /// Makes changes durable, then lets them count.
    async fn change(&self, shared: &Shared, changes: Vec<Change>) -> Result<(), Refusal> {
        let entries = changes.into_iter().map(|change| Entry::Certificates(Box::new(change))).collect();
        let registry = shared.write(move |ledger| {
            ledger.append(entries)?;
            Ok(Arc::clone(ledger.state().certificates()))
        });
        self.registry.send_replace(registry.await?);
        Ok(())
    }
}

impl Issuer {
    /// Signs a certificate for the key of a request.
    fn issue(
        &self,
        identity: &Identity,
        request: &[u8],
        life: Duration,
        now: UnixTime,
    ) -> Result<IssuedCertificate, Refusal> {
        let validity = Validity::starting(now, life);
        let issued = self.authority.issue_for_csr(request, identity, validity, &Usage::Client);
        issued.map_err(|error| Refusal::of(Code::RequestRefused, chain(&error)))
    }
}

/// What is kept of a certificate.
fn record_of(issued: &IssuedCertificate, now: UnixTime) -> Issued {
    Issued { serial: issued.serial.to_string(), at: now, not_after: issued.validity.not_after }
}

/// Which certificates will be trouble unless somebody looks: the coordinator's own, then those of a fleet's hosts.
pub(crate) fn certificate_warnings(shared: &Shared, fleet: &FleetHandle) -> Vec<Blocker> {
    [warnings::of_coordinator(shared), warnings::of_hosts(shared, fleet)].concat()
}

/// A token that was made.
pub(crate) struct MadeToken {
    pub(crate) token: JoinToken,
    pub(crate) expires: UnixTime,
    pub(crate) port: u16,
}

/// Makes a token for one host, and keeps its digest.
pub(crate) async fn make_token(
    shared: &Shared,
    host: HostName,
    fleets: BTreeSet<FleetName>,
    life: Duration,
    operator: &str,
) -> Result<MadeToken, Refusal> {
    let enrolments = &shared.enrolments;
    enrolments.issuer()?;
    let Some(door) = enrolments.door.get() else {
        let detail = "nobody can enrol here: `enrol_listen` is not set in coordinator.toml";
        return Err(Refusal::of(Code::NoIssuer, detail));
    };
    let now = shared.machine.unix_time();
    let expires = now.after(life.min(TOKEN_LIFE_MAX));
    let secret: [u8; TOKEN_SECRET_LEN] = crate::random(&shared.machine)?;
    let digest = token_digest(&secret);
    let _turn = enrolments.turn.lock().await;
    if enrolments.registry().live_tokens(now) >= TOKENS_MAX {
        let detail = format!("{TOKENS_MAX} tokens have not expired yet");
        return Err(Refusal::of(Code::TooManyTokens, detail));
    }
    let entry = shared.audit.entry(Kind::Token, operator).of_hosts([&host]).with("token", digest);
    shared.audit(vec![entry]).await?;
    let record = TokenRecord::new(host.clone(), fleets, operator.to_owned(), now, expires);
    enrolments.change(shared, vec![Change::Token { digest, record }]).await?;
    Ok(MadeToken { token: JoinToken::new(host, secret), expires, port: door.port() })
}

/// A host that has enrolled, with the fleets whose rosters do not list it with its key.
pub(crate) struct EnrolledHost {
    pub(crate) host: HostName,
    pub(crate) fleets: BTreeSet<FleetName>,
    pub(crate) attestation_key: String,
    pub(crate) at: UnixTime,
    pub(crate) certificate_expires: UnixTime,
    pub(crate) pending: Vec<FleetName>,
}

/// The hosts that have enrolled here, by name.
pub(crate) fn enrolled(shared: &Shared) -> Vec<EnrolledHost> {
    let registry = shared.enrolments.registry();
    let hosts = registry.hosts.iter().filter_map(|(host, record)| {
        let enrolled = record.enrolled.as_ref()?;
        let is_listed = |fleet: &FleetName| {
            let roster = shared.fleet(fleet).map(|fleet| fleet.roster().roster);
            roster.is_some_and(|roster| {
                // One that is parked waits for no roster, and one that has retired comes back with another key only.
                let serving = roster.member(host).map(|it| &it.attestation_key);
                let aside = roster.parked_host(host).or_else(|| roster.retired_host(host));
                serving.or(aside.map(|it| &it.attestation_key)) == Some(&enrolled.attestation_key)
            })
        };
        Some(EnrolledHost {
            host: host.clone(),
            fleets: record.fleets.clone(),
            attestation_key: enrolled.attestation_key.to_string(),
            at: enrolled.at,
            certificate_expires: record.certificates.iter().map(|it| it.not_after).max().unwrap_or_default(),
            pending: record.fleets.iter().filter(|fleet| !is_listed(fleet)).cloned().collect(),
        })
    });
    hosts.collect()
}

/// What an eviction did.
pub(crate) struct Evicted {
    pub(crate) certificates: usize,
    pub(crate) connections: usize,
}

/// What the operator knows of an eviction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Finality {
    /// A new token takes it back.
    UntilToken,
    /// Nothing may.
    ForGood,
}

/// Revokes every certificate of a host, cuts its connections, and gives it no other one.
pub(crate) async fn evict(
    shared: &Arc<Shared>,
    (host, finality): (HostName, Finality),
    reason: &str,
    operator: &str,
) -> Result<Evicted, Refusal> {
    check_reason(reason)?;
    let enrolments = &shared.enrolments;
    if enrolments.issuer.is_none() && finality != Finality::ForGood {
        let detail = "this coordinator issues no certificates, so that nothing takes an eviction back: the name stays out for \
                      good. Say that it is meant so (`--yes`)";
        return Err(Refusal::because(Blocker::host(Code::NoIssuer, &host, detail)));
    }
    let turn = enrolments.turn.lock().await;
    let entry = shared.audit.entry(Kind::Evict, operator).of_hosts([&host]).saying(reason);
    shared.audit(vec![entry]).await?;
    let registry = enrolments.registry();
    let certificates = registry.hosts.get(&host).map_or(0, |record| record.certificates.len());
    let change = Change::Evicted { host: host.clone(), at: shared.machine.unix_time() };
    enrolments.change(shared, vec![change]).await?;
    drop(turn);
    tracing::warn!(%host, %operator, reason, "host evicted");
    let connections = keeper::keep_out(shared).await?;
    Ok(Evicted { certificates, connections })
}

/// Whether those go with a certificate that were renewed from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// They do: whoever stole it may have renewed it.
    Renewed,
    /// It is known that they are in good hands.
    Alone,
}

/// Revokes a certificate and cuts the connections that rest on it: how many were renewed from it and go as well, and how many
/// connections there were. Nobody revokes the certificate that they come with, whose serial number is `own`.
pub(crate) async fn revoke(
    shared: &Arc<Shared>,
    (serial, reach): (&Serial, Reach),
    reason: &str,
    (operator, own): (&str, &str),
) -> Result<(usize, usize), Refusal> {
    check_reason(reason)?;
    let enrolments = &shared.enrolments;
    enrolments.issuer()?;
    let turn = enrolments.turn.lock().await;
    let (registry, serial) = (enrolments.registry(), serial.to_string());
    let mut serials = match reach {
        Reach::Renewed => registry.renewed_from(&serial),
        Reach::Alone => Vec::new(),
    };
    let renewed = serials.len();
    serials.push(serial);
    if serials.iter().any(|it| it == own) {
        let detail = "the certificate that you come with would go as well: have another operator do it, or issue yourself \
                      another one first, or revoke this one alone";
        return Err(Refusal::of(Code::RequestRefused, detail));
    }
    if registry.revoked_count() + serials.len() > REVOKED_MAX {
        let detail = format!("{REVOKED_MAX} certificates are on the list");
        return Err(Refusal::of(Code::TooManyCertificates, detail));
    }
    let said = |serial: &String| format!("certificate {serial}: {reason}");
    let entries = serials.iter().map(|it| shared.audit.entry(Kind::Revoke, operator).saying(said(it)));
    shared.audit(entries.collect()).await?;
    tracing::warn!(?serials, %operator, reason, "certificates revoked");
    let at = shared.machine.unix_time();
    let changes = serials.into_iter().map(|serial| Change::Revoked { serial, at });
    enrolments.change(shared, changes.collect()).await?;
    drop(turn);
    Ok((renewed, keeper::keep_out(shared).await?))
}

fn check_reason(reason: &str) -> Result<(), Refusal> {
    if reason.trim().is_empty() || reason.len() > REASON_BYTES_MAX {
        let detail = format!("a reason of at most {REASON_BYTES_MAX} bytes is needed");
        return Err(Refusal::of(Code::Unsupported, detail));
    }
    Ok(())
}

/// What an entry of the audit log calls a token.
const fn token_document(digest: Digest) -> (&'static str, Digest) {
    ("token", digest)
}
