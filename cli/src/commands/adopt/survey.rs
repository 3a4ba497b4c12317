//! What the answers of all hosts say. Pure: it is given the roster and what the coordinator relayed.
//!
//! The coordinator can hold answers back, but not make one up: a host has what it has signed, and a manifest is what its digest
//! says.

use std::collections::BTreeMap;

use muster_model::{
    Attestation, Blocker, Change, Code, Digest, HostName, MAX_MANIFEST_BYTES, Manifest, Purpose, Roster,
    UnixTime, Verified, diff,
};
use muster_proto::convert::{self, ConvertError};
use muster_proto::v1;
use muster_trust::verify_attestation;
use serde::Serialize;

use crate::clock::date_text;

/// How far the clocks of a host and of this machine may be apart, in milliseconds.
const CLOCK_SKEW_MS_MAX: u64 = 5 * 60 * 1000;

/// How many differences of one tree are kept.
const CHANGES_MAX: usize = 1000;

/// Hosts that have the same.
#[derive(Debug, Serialize)]
pub(super) struct Group {
    /// The manifest's digest.
    pub(super) digest: Digest,
    /// Who has it.
    pub(super) hosts: Vec<HostName>,
    /// Files in it.
    pub(super) files: u64,
    /// Their bytes.
    pub(super) bytes: u64,
    /// How it differs from the first group's, at most a thousand of them; nothing if that is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) changes: Option<Vec<Change>>,
    /// How many differences there are.
    pub(super) changes_total: usize,
}

/// Collects what hosts answer.
pub(super) struct Survey<'a> {
    roster: &'a Verified<Roster>,
    asked: UnixTime,
    attested: BTreeMap<HostName, Attestation>,
    manifests: BTreeMap<Digest, Vec<u8>>,
    blockers: Vec<Blocker>,
}

impl<'a> Survey<'a> {
    /// Begins.
    pub(super) const fn new(roster: &'a Verified<Roster>, asked: UnixTime) -> Self {
        Self { roster, asked, attested: BTreeMap::new(), manifests: BTreeMap::new(), blockers: Vec::new() }
    }

    /// Hears what the coordinator relays of one host.
    pub(super) fn hear(&mut self, wire: v1::CheckHost) -> Result<HostName, ConvertError> {
        let host = convert::host(&wire.host)?;
        self.blockers.extend(convert::blockers(wire.blockers)?);
        if let Some(raw) = &wire.envelope {
            match self.believe(&host, raw) {
                Ok(attestation) => {
                    self.attested.insert(host.clone(), attestation);
                }
                Err(blocker) => self.blockers.push(*blocker),
            }
        }
        Ok(host)
    }

    /// Hears a part of a manifest. More than the largest manifest is not kept.
    pub(super) fn hear_manifest(&mut self, wire: v1::AdoptManifest) -> Result<(), ConvertError> {
        let digest = convert::digest("digest", &wire.digest)?;
        if self.attested.values().any(|it| it.compared.measured == digest) {
            let bytes = self.manifests.entry(digest).or_default();
            if bytes.len() + wire.part.len() <= MAX_MANIFEST_BYTES {
                bytes.extend_from_slice(&wire.part);
            }
        }
        Ok(())
    }

    /// The groups, the largest first, and every reason why the hosts are not all the same.
    pub(super) fn close(
        mut self,
        finished: v1::AdoptFinished,
    ) -> Result<(Vec<Group>, Vec<Blocker>), ConvertError> {
        self.blockers.extend(convert::blockers(finished.blockers)?);
        if finished.roster_revision != self.roster.revision().0 {
            let detail = format!(
                "the coordinator asked revision {}, and the roster that was verified here is revision {}",
                finished.roster_revision,
                self.roster.revision()
            );
            self.blockers.push(Blocker::fleet(Code::RosterChanged, detail));
        }
        let groups = self.groups();
        for group in groups.iter().skip(1) {
            for host in &group.hosts {
                self.blockers.push(Blocker {
                    expected: Some(groups[0].digest.to_string()),
                    measured: Some(group.digest.to_string()),
                    ..Blocker::host(Code::Mismatch, host, "it runs from another tree than most hosts")
                });
            }
        }
        for member in self.roster.hosts() {
            let is_told = self.blockers.iter().any(|it| it.host.as_ref() == Some(&member.name));
            if !self.attested.contains_key(&member.name) && !is_told {
                let detail = "the coordinator relayed no answer of it";
                self.blockers.push(Blocker::host(Code::HostSilent, &member.name, detail));
            }
        }
        self.blockers.sort();
        self.blockers.dedup();
        Ok((groups, self.blockers))
    }

    fn groups(&self) -> Vec<Group> {
        let mut groups: Vec<Group> = Vec::new();
        for (host, it) in &self.attested {
            let compared = &it.compared;
            match groups.iter_mut().find(|group| group.digest == compared.measured) {
                Some(group) => group.hosts.push(host.clone()),
                None => groups.push(Group {
                    digest: compared.measured,
                    hosts: vec![host.clone()],
                    files: compared.files,
                    bytes: compared.bytes,
                    changes: None,
                    changes_total: 0,
                }),
            }
        }
        // Of as many, that of the first host by name: the order does not depend on who answered first.
        groups.sort_by_key(|group| std::cmp::Reverse(group.hosts.len()));
        let manifests: Vec<Option<Manifest>> =
            groups.iter().map(|group| self.manifest(group.digest)).collect();
        for (group, manifest) in groups.iter_mut().zip(&manifests).skip(1) {
            if let (Some(Some(first)), Some(manifest)) = (manifests.first(), manifest) {
                let mut changes = diff(first, manifest);
                group.changes_total = changes.len();
                changes.truncate(CHANGES_MAX);
                group.changes = Some(changes);
            }
        }
        groups
    }

    fn manifest(&self, digest: Digest) -> Option<Manifest> {
        let bytes = self.manifests.get(&digest).filter(|bytes| Digest::of(bytes) == digest)?;
        Manifest::parse(bytes).ok()
    }

    /// Verifies an attestation, and that it answers this question.
    fn believe(&self, host: &HostName, raw: &[u8]) -> Result<Attestation, Box<Blocker>> {
        let no = |code, detail: String| Err(Box::new(Blocker::host(code, host, detail)));
        let attestation = match verify_attestation(raw, self.roster) {
            Ok(authentic) => authentic.into_document(),
            Err(error) => return no(Code::BadAttestation, error.to_string()),
        };
        if attestation.host != *host {
            return no(Code::BadAttestation, format!("its attestation is that of {}", attestation.host));
        }
        if attestation.purpose != Purpose::Adoption || !attestation.matches() {
            return no(Code::StaleAttestation, "its attestation is not about what it runs".to_owned());
        }
        let measured = attestation.facts.measured_unix_ms;
        if measured.0 < self.asked.0.saturating_sub(CLOCK_SKEW_MS_MAX) {
            let when = date_text(measured);
            return no(
                Code::StaleAttestation,
                format!("by its own clock it measured at {when}, before it was asked"),
            );
        }
        Ok(Attestation::clone(&attestation))
    }
}

#[cfg(test)]
mod tests;
