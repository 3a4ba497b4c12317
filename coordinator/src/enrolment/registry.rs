//! Tokens, and the certificates that were given to hosts: what is decided about them, and what is kept.
//!
//! Pure: time comes in, verdicts and changes go out. A change counts once it is durable.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use muster_model::{Digest, FleetName, HostName, IdentityName, PublicKey, UnixTime};
use muster_mtls::{Exclusions, Revoked, Serial};
use muster_trust::is_same_digest;
use serde::{Deserialize, Serialize};

/// No token lives longer.
pub(crate) const TOKEN_LIFE_MAX: Duration = Duration::from_secs(15 * 60);

/// Tokens that have not expired.
pub(super) const TOKENS_MAX: usize = 1024;

/// For how long it is known of a token that it has expired, so that the log can say so.
const EXPIRED_TOKENS_KEPT: Duration = Duration::from_secs(24 * 3600);

/// Certificates of one host that are kept: the newest ones that have not expired.
const CERTIFICATES_MAX: usize = 8;

/// A host that has that many must wait for this part of a life since the last one.
const CERTIFICATE_PAUSE_PART: u64 = 16;

/// Certificates that were renewed in one person's name and have not ended.
const RENEWALS_MAX: usize = 64;

/// How often a host recovers within [`RECOVERY_WINDOW`].
pub(super) const RECOVERIES_MAX: usize = 3;
const RECOVERY_WINDOW: Duration = Duration::from_secs(30 * 24 * 3600);

/// How far the clock of a host that recovers may be off.
const RECOVERY_CLOCK: Duration = Duration::from_secs(10 * 60);

/// A certificate that was revoked is on the list for so long, if nobody knows when it ends.
const REVOKED_KEPT: Duration = Duration::from_secs(400 * 24 * 3600);

/// Certificates on the list.
pub(super) const REVOKED_MAX: usize = 50_000;

/// Everything that follows from the changes so far.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Registry {
    tokens: BTreeMap<Digest, TokenRecord>,
    pub(super) hosts: BTreeMap<HostName, HostRecord>,
    revoked: BTreeMap<String, Revocation>,
    /// By its serial number, each certificate of a person that was given in place of another, until it ends.
    #[serde(default)]
    renewals: BTreeMap<String, Renewal>,
}

/// A token: never the secret itself, only its digest.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TokenRecord {
    pub(super) host: HostName,
    pub(super) fleets: BTreeSet<FleetName>,
    pub(super) made_by: String,
    pub(super) made: UnixTime,
    pub(super) expires: UnixTime,
    bound: Option<Bound>,
    /// Another key was shown: the alarm was raised.
    contested: bool,
}

/// Whose a token is from its first use on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Bound {
    pub(super) spki: Digest,
    pub(super) attestation_key: PublicKey,
    pub(super) certificate_pem: String,
}

/// A host that was given a certificate.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HostRecord {
    pub(super) fleets: BTreeSet<FleetName>,
    /// Of a host that has enrolled.
    pub(super) enrolled: Option<Enrolled>,
    pub(super) certificates: Vec<Issued>,
    recoveries: Vec<UnixTime>,
    last_recovery: Option<(Digest, String)>,
    pub(super) evicted: Option<UnixTime>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Enrolled {
    pub(super) attestation_key: PublicKey,
    pub(super) at: UnixTime,
}

/// A certificate that was issued.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Issued {
    pub(super) serial: String,
    pub(super) at: UnixTime,
    pub(super) not_after: UnixTime,
}

/// Which certificate another one was given for: whoever stole the first may have made the second.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Renewal {
    who: String,
    before: String,
    not_after: UnixTime,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Revocation {
    since: UnixTime,
    listed_until: UnixTime,
}

/// What is written down.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Change {
    Token { digest: Digest, record: TokenRecord },
    Enrolled { token: Digest, bound: Bound, issued: Issued },
    Contested { token: Digest },
    Renewed { host: HostName, issued: Issued },
    Recovered { host: HostName, issued: Issued, spki: Digest, certificate_pem: String },
    Evicted { host: HostName, at: UnixTime },
    Revoked { serial: String, at: UnixTime },
    PersonRenewed { who: String, before: String, issued: Issued },
}

/// What becomes of a wish to enrol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The token is this host's from now on.
    Bind,
    /// It is already: the same certificate again.
    Again { certificate_pem: String, fleets: BTreeSet<FleetName> },
    /// It is another machine's. `first` where nobody has been warned yet.
    Elsewhere { first: bool },
    /// It does not hold, for a reason that only the coordinator's operators learn.
    Refused(&'static str),
}

impl TokenRecord {
    pub(super) const fn new(
        host: HostName,
        fleets: BTreeSet<FleetName>,
        made_by: String,
        made: UnixTime,
        expires: UnixTime,
    ) -> Self {
        Self { host, fleets, made_by, made, expires, bound: None, contested: false }
    }
}

impl Registry {
    /// How many tokens can still be used.
    pub(super) fn live_tokens(&self, now: UnixTime) -> usize {
        self.tokens.values().filter(|token| token.expires > now).count()
    }

    /// The token of this digest. All are compared, each in constant time.
    pub(super) fn token(&self, digest: &Digest) -> Option<&TokenRecord> {
        let mut found = None;
        for (known, token) in &self.tokens {
            if is_same_digest(known, digest) {
                found = Some(token);
            }
        }
        found
    }

    /// What becomes of a host that shows this token.
    pub(super) fn enrol(
        &self,
        digest: &Digest,
        host: &HostName,
        (spki, attestation_key): (&Digest, &PublicKey),
        now: UnixTime,
    ) -> Verdict {
        let Some(token) = self.token(digest) else { return Verdict::Refused("there is no such token") };
        if token.host != *host {
            return Verdict::Refused("the token was made for another host");
        }
        if token.expires <= now {
            return Verdict::Refused("the token has expired");
        }
        match &token.bound {
            None => Verdict::Bind,
            Some(bound) if bound.spki == *spki && bound.attestation_key == *attestation_key => {
                Verdict::Again {
                    certificate_pem: bound.certificate_pem.clone(),
                    fleets: token.fleets.clone(),
                }
            }
            Some(_) => Verdict::Elsewhere { first: !token.contested },
        }
    }

    /// Whether a host may be given the next certificate.
    pub(super) fn may_renew(&self, host: &HostName, life: Duration, now: UnixTime) -> bool {
        let Some(record) = self.hosts.get(host) else { return true };
        let current = record.certificates.iter().filter(|issued| issued.not_after > now);
        let pause_ms = u64::try_from(life.as_millis()).unwrap_or(u64::MAX) / CERTIFICATE_PAUSE_PART;
        let last = record.certificates.iter().map(|issued| issued.at.0).max().unwrap_or(0);
        current.count() < CERTIFICATES_MAX || now.0.saturating_sub(last) >= pause_ms
    }

    /// Why a person is given no certificate in place of this one.
    pub(super) fn may_renew_person(
        &self,
        who: &str,
        before: &str,
        now: UnixTime,
    ) -> Result<(), PersonRefused> {
        if self.is_revoked(before) {
            return Err(PersonRefused::Revoked);
        }
        let held = self.renewals.values().filter(|it| it.who == who && it.not_after > now);
        if held.count() < RENEWALS_MAX { Ok(()) } else { Err(PersonRefused::TooMany) }
    }

    /// Whether this certificate was revoked.
    pub(super) fn is_revoked(&self, serial: &str) -> bool {
        self.revoked.contains_key(serial)
    }

    /// All certificates that were given in place of this one, directly or not.
    pub(super) fn renewed_from(&self, serial: &str) -> Vec<String> {
        let mut family = BTreeSet::from([serial]);
        loop {
            let known = family.len();
            let children = self.renewals.iter().filter(|(_, it)| family.contains(it.before.as_str()));
            let children: Vec<&str> = children.map(|(child, _)| child.as_str()).collect();
            family.extend(children);
            if family.len() == known {
                return family.into_iter().filter(|it| *it != serial).map(str::to_owned).collect();
            }
        }
    }

    /// Whether the host was evicted and has not enrolled since.
    pub(crate) fn is_evicted(&self, host: &HostName) -> bool {
        self.hosts.get(host).is_some_and(|it| it.evicted.is_some() && it.certificates.is_empty())
    }

    /// What becomes of a host that shows its attestation key in place of a certificate: how often it can still do so, or
    /// the certificate that it was given for the same request before.
    pub(super) fn recover(
        &self,
        host: &HostName,
        spki: &Digest,
        asked: UnixTime,
        now: UnixTime,
    ) -> Result<Recovery, &'static str> {
        let clock_ms = u64::try_from(RECOVERY_CLOCK.as_millis()).unwrap_or(u64::MAX);
        if asked.0.abs_diff(now.0) > clock_ms {
            return Err("its clock is more than ten minutes off");
        }
        if self.is_evicted(host) {
            return Err("it was evicted");
        }
        let none = HostRecord::default();
        let record = self.hosts.get(host).unwrap_or(&none);
        let done = record.recoveries_within(now);
        let left = RECOVERIES_MAX.saturating_sub(done);
        // The last one that the host was given, as any other since would have ended the recovery. One that has ended is of no
        // use to a host that asks again late.
        let is_good = record.certificates.last().is_some_and(|issued| issued.not_after > now);
        if let Some((known, pem)) = &record.last_recovery
            && known == spki
            && is_good
        {
            return Ok(Recovery::Again { certificate_pem: pem.clone(), left });
        }
        if record.certificates.iter().any(|issued| issued.not_after > now) {
            return Err("it was given a certificate that has not expired");
        }
        if left == 0 {
            return Err("it has recovered as often as a host may");
        }
        Ok(Recovery::Issue { left: left - 1 })
    }

    /// What the list of revoked certificates says at `now`.
    pub(super) fn revocations(&self, now: UnixTime) -> Vec<Revoked> {
        let listed = self.revoked.iter().filter(|(_, revocation)| revocation.listed_until > now);
        let entries = listed.filter_map(|(serial, revocation)| {
            Some(Revoked { serial: serial.parse().ok()?, since: revocation.since })
        });
        entries.collect()
    }

    /// How many certificates are on the list.
    pub(super) fn revoked_count(&self) -> usize {
        self.revoked.len()
    }

    /// Who is kept out.
    pub(super) fn exclusions(&self) -> Exclusions {
        let serials = self.revoked.keys().filter_map(|serial| serial.parse().ok()).collect();
        let evicted = self.hosts.iter().filter(|(_, record)| record.evicted.is_some());
        let hosts = evicted.map(|(host, record)| {
            let since: BTreeSet<Serial> =
                record.certificates.iter().filter_map(|issued| issued.serial.parse().ok()).collect();
            (IdentityName::from(host.clone()), since)
        });
        Exclusions { serials, hosts: hosts.collect() }
    }

    /// Lets a durable change count.
    pub(crate) fn apply(&mut self, change: Change) {
        match change {
            Change::Token { digest, record } => self.add_token(digest, record),
            Change::Enrolled { token, bound, issued } => self.bind(token, bound, issued),
            Change::Contested { token } => {
                if let Some(token) = self.tokens.get_mut(&token) {
                    token.contested = true;
                }
            }
            Change::Renewed { host, issued } => {
                let record = self.hosts.entry(host).or_default();
                // Whoever renews has what it was given.
                record.last_recovery = None;
                record.take(issued);
            }
            Change::Recovered { host, issued, spki, certificate_pem } => {
                let record = self.hosts.entry(host).or_default();
                let now = issued.at;
                record.recoveries.retain(|at| at.after(RECOVERY_WINDOW) > now);
                record.recoveries.push(now);
                record.last_recovery = Some((spki, certificate_pem));
                record.take(issued);
            }
            Change::Evicted { host, at } => self.evict(host, at),
            Change::Revoked { serial, at } => self.revoke(serial, at, at.after(REVOKED_KEPT)),
            Change::PersonRenewed { who, before, issued } => {
                self.renewals.retain(|_, known| known.not_after > issued.at);
                let renewal = Renewal { who, before, not_after: issued.not_after };
                self.renewals.insert(issued.serial, renewal);
            }
        }
    }

    fn add_token(&mut self, digest: Digest, record: TokenRecord) {
        let now = record.made;
        self.tokens.retain(|_, token| token.expires.after(EXPIRED_TOKENS_KEPT) > now);
        if self.tokens.len() >= 2 * TOKENS_MAX {
            self.tokens.retain(|_, token| token.expires > now);
        }
        for token in self.tokens.values_mut().filter(|token| token.expires <= now) {
            // Nobody is given it any more.
            token.bound = None;
        }
        self.revoked.retain(|_, revocation| revocation.listed_until > now);
        self.tokens.insert(digest, record);
    }

    fn bind(&mut self, digest: Digest, bound: Bound, issued: Issued) {
        let Some(token) = self.tokens.get_mut(&digest) else { return };
        let record = self.hosts.entry(token.host.clone()).or_default();
        record.fleets.clone_from(&token.fleets);
        let attestation_key = bound.attestation_key.clone();
        record.enrolled = Some(Enrolled { attestation_key, at: issued.at });
        record.recoveries.clear();
        record.last_recovery = None;
        record.take(issued);
        token.bound = Some(bound);
    }

    fn evict(&mut self, host: HostName, at: UnixTime) {
        self.tokens.retain(|_, token| token.host != host);
        let record = self.hosts.entry(host).or_default();
        record.evicted = Some(at);
        record.enrolled = None;
        record.last_recovery = None;
        for issued in std::mem::take(&mut record.certificates) {
            self.revoke(issued.serial, at, issued.not_after);
        }
    }

    fn revoke(&mut self, serial: String, since: UnixTime, listed_until: UnixTime) {
        let known = self.hosts.values().flat_map(|record| &record.certificates);
        let ends = known.filter(|issued| issued.serial == serial).map(|issued| issued.not_after).next();
        let ends = ends.or_else(|| self.renewals.get(&serial).map(|it| it.not_after));
        let revocation = Revocation { since, listed_until: ends.unwrap_or(listed_until) };
        self.revoked.entry(serial).or_insert(revocation);
    }
}

/// Why a person's certificate is not renewed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PersonRefused {
    /// It was revoked meanwhile.
    Revoked,
    /// Many were given in its name, and have not ended.
    TooMany,
}

/// What becomes of a wish to recover.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Recovery {
    /// A new certificate.
    Issue { left: usize },
    /// The one that was given for the same key.
    Again { certificate_pem: String, left: usize },
}

impl HostRecord {
    fn take(&mut self, issued: Issued) {
        self.certificates.retain(|known| known.not_after > issued.at);
        self.certificates.push(issued);
        let surplus = self.certificates.len().saturating_sub(CERTIFICATES_MAX);
        self.certificates.drain(..surplus);
    }

    fn recoveries_within(&self, now: UnixTime) -> usize {
        self.recoveries.iter().filter(|at| at.after(RECOVERY_WINDOW) > now).count()
    }
}

#[cfg(test)]
mod tests;
