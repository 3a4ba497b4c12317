//! What the answers of all hosts prove. Pure: it is given the roster, the question, and what the coordinator relayed.
//!
//! The coordinator's opinion can only shut the gate, never open it: a host counts when its own attestation verifies
//! with the roster's key, is about the release that was asked for, says that it measured exactly that, and agrees with
//! all others. The one thing that is the coordinator's is the challenge by which an answer is known to be young; so
//! the time that the host signed is compared with ours as well.

use std::collections::BTreeMap;

use muster_model::{
    Attestation, Blocker, Code, Comparable, Digest, HostName, Purpose, Roster, UnixTime, Verified,
};
use muster_proto::convert::{self, ConvertError};
use muster_proto::v1;
use muster_trust::{TrustError, verify_attestation};
use serde::Serialize;

use crate::clock::date_text;
use crate::exit::Exit;

/// How far the clocks of a host and of this machine may be apart, in milliseconds.
const CLOCK_SKEW_MS_MAX: u64 = 5 * 60 * 1000;

/// What was asked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Question<'a> {
    /// Of whom.
    pub(super) roster: &'a Verified<Roster>,
    /// About which release.
    pub(super) manifest: Digest,
    /// When, by our clock.
    pub(super) asked: UnixTime,
    /// How old a measurement may be, in milliseconds.
    pub(super) max_age_ms: u64,
    /// For what.
    pub(super) wanted: Wanted,
}

/// What a host is to attest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::commands) enum Wanted {
    /// That it has the release.
    Measurement,
    /// That, and that the release's self-test has passed on it.
    Rehearsal,
}

/// What is known of one host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(in crate::commands) struct HostVerdict {
    /// The host.
    pub(in crate::commands) host: HostName,
    /// Whether it proved that it has the release, alike with the others.
    pub(in crate::commands) identical: bool,
    /// What it measured, if its attestation verifies.
    pub(in crate::commands) measured: Option<Digest>,
    /// Files that it read; 0, as the next two, where nothing is proven.
    pub(in crate::commands) files: u64,
    /// Bytes that it read.
    pub(in crate::commands) bytes: u64,
    /// How old its measurement is, as the coordinator says, in milliseconds.
    pub(in crate::commands) age_ms: u64,
    /// How long its self-test took, if it attests one that has passed, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::commands) rehearsal_ms: Option<u64>,
    /// Why it does not count.
    pub(in crate::commands) blockers: Vec<Blocker>,
}

/// What is known of the fleet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::commands) struct Verdict {
    /// All hosts of the roster, in its order.
    pub(in crate::commands) hosts: Vec<HostVerdict>,
    /// Reasons that belong to no host of the roster.
    pub(in crate::commands) fleet: Vec<Blocker>,
}

/// Collects what hosts answer.
pub(super) struct Judge<'a> {
    question: Question<'a>,
    answers: BTreeMap<HostName, Answer>,
    fleet: Vec<Blocker>,
}

#[derive(Default)]
struct Answer {
    attestation: Option<Verified<Attestation>>,
    age_ms: u64,
    blockers: Vec<Blocker>,
}

impl<'a> Judge<'a> {
    /// Begins.
    pub(super) const fn new(question: Question<'a>) -> Self {
        Self { question, answers: BTreeMap::new(), fleet: Vec::new() }
    }

    /// Hears what the coordinator relays of one host. What is heard last of a host counts.
    pub(super) fn hear(&mut self, wire: v1::CheckHost) -> Result<HostName, ConvertError> {
        let host = convert::host(&wire.host)?;
        let mut answer =
            Answer { attestation: None, age_ms: wire.age_ms, blockers: convert::blockers(wire.blockers)? };
        if let Some(raw) = &wire.envelope {
            match self.believe(&host, raw) {
                Ok(attestation) => answer.attestation = Some(attestation),
                Err(blocker) => answer.blockers.push(*blocker),
            }
        }
        if self.question.roster.member(&host).is_some() {
            self.answers.insert(host.clone(), answer);
        } else {
            self.fleet.push(Blocker::host(
                Code::HostNotInRoster,
                &host,
                "it answered, but the roster does not list it",
            ));
        }
        Ok(host)
    }

    /// Closes the case with what the coordinator says at the end.
    pub(super) fn close(mut self, finished: v1::CheckFinished) -> Result<Verdict, ConvertError> {
        let roster = self.question.roster;
        if finished.roster_revision != roster.revision().0 {
            let detail = format!(
                "the coordinator asked revision {}, and the roster that was verified here is revision {}",
                finished.roster_revision,
                roster.revision()
            );
            self.fleet.push(Blocker::fleet(Code::RosterChanged, detail));
        }
        for blocker in convert::blockers(finished.blockers)? {
            let host = blocker.host.as_ref().filter(|host| roster.member(host).is_some());
            match host.cloned() {
                Some(host) => self.answers.entry(host).or_default().blockers.push(blocker),
                None => self.fleet.push(blocker),
            }
        }
        self.fleet.sort();
        self.fleet.dedup();
        let reference = self.reference();
        let members = roster.hosts().iter();
        let hosts = members.map(|member| {
            let answer = self.answers.remove(&member.name).unwrap_or_default();
            judge(&member.name, answer, reference.as_ref())
        });
        let hosts = hosts.collect();
        Ok(Verdict { hosts, fleet: self.fleet })
    }

    /// Verifies an attestation, and that it answers this question.
    fn believe(&self, host: &HostName, raw: &[u8]) -> Result<Verified<Attestation>, Box<Blocker>> {
        let no = |code, detail: String| Err(Box::new(Blocker::host(code, host, detail)));
        let Question { roster, manifest, asked, max_age_ms, wanted } = self.question;
        let attestation = match verify_attestation(raw, roster) {
            Ok(authentic) => authentic.into_document(),
            Err(error) => return no(Code::BadAttestation, chain_text(&error)),
        };
        if attestation.host != *host {
            return no(Code::BadAttestation, format!("its attestation is that of {}", attestation.host));
        }
        match (wanted, attestation.purpose) {
            (Wanted::Measurement, Purpose::Check) | (Wanted::Rehearsal, Purpose::Rehearsal { .. }) => {}
            (
                Wanted::Measurement,
                Purpose::Rollout { .. } | Purpose::Adoption | Purpose::Rehearsal { .. },
            ) => {
                let detail = "its attestation was made for something else than a check";
                return no(Code::StaleAttestation, detail.to_owned());
            }
            (Wanted::Rehearsal, Purpose::Rollout { .. } | Purpose::Check | Purpose::Adoption) => {
                let detail = "its attestation does not say that the self-test has passed";
                return no(Code::StaleAttestation, detail.to_owned());
            }
        }
        if attestation.compared.manifest != manifest {
            let about = attestation.compared.manifest;
            return no(Code::StaleAttestation, format!("its attestation is about another release, {about}"));
        }
        let measured = attestation.facts.measured_unix_ms;
        if measured.0 < asked.0.saturating_sub(max_age_ms).saturating_sub(CLOCK_SKEW_MS_MAX) {
            let when = date_text(measured);
            return no(
                Code::StaleAttestation,
                format!("by its own clock it measured at {when}, before it was asked"),
            );
        }
        Ok(attestation)
    }

    /// What most hosts that match agree on; of several as many, what the first of them says.
    fn reference(&self) -> Option<Comparable> {
        let matching = || {
            self.answers.values().filter_map(|answer| answer.attestation.as_ref()).filter(|it| it.matches())
        };
        let mut best: Option<(&Comparable, usize)> = None;
        for candidate in matching().map(|attestation| &attestation.compared) {
            if best.is_some_and(|(held, _)| held == candidate) {
                continue;
            }
            let count = matching().filter(|attestation| attestation.compared == *candidate).count();
            if best.is_none_or(|(_, most)| count > most) {
                best = Some((candidate, count));
            }
        }
        best.map(|(compared, _)| compared.clone())
    }
}

impl Verdict {
    /// How many hosts proved the same.
    pub(in crate::commands) fn identical(&self) -> usize {
        self.hosts.iter().filter(|host| host.identical).count()
    }

    /// Every reason, sorted.
    pub(in crate::commands) fn blockers(&self) -> Vec<Blocker> {
        let of_hosts = self.hosts.iter().flat_map(|host| host.blockers.iter());
        let mut all: Vec<Blocker> = of_hosts.chain(&self.fleet).cloned().collect();
        all.sort();
        all.dedup();
        all
    }

    /// Zero only if all N hosts proved the same and nothing speaks against it. Nothing compared is never zero.
    pub(in crate::commands) fn exit(&self) -> Exit {
        let blockers = self.blockers();
        let is_proven = !self.hosts.is_empty() && self.identical() == self.hosts.len();
        if is_proven && blockers.is_empty() { Exit::Proven } else { Exit::of_blockers(&blockers) }
    }
}

fn judge(host: &HostName, answer: Answer, reference: Option<&Comparable>) -> HostVerdict {
    let Answer { attestation, age_ms, mut blockers } = answer;
    match &attestation {
        None if blockers.is_empty() => {
            blockers.push(Blocker::host(Code::HostSilent, host, "the coordinator relayed no answer of it"));
        }
        None => {}
        // The coordinator names the files; that they differ is what the host itself has signed.
        Some(attestation) if !attestation.matches() => {
            blockers.extend(unnamed_mismatch(attestation, &blockers))
        }
        Some(attestation) if Some(&attestation.compared) != reference => {
            blockers.push(Blocker::host(
                Code::NotUniform,
                host,
                "it measured something else than most other hosts",
            ));
        }
        Some(_) => {}
    }
    blockers.sort();
    blockers.dedup();
    let compared = attestation.as_ref().map(|attestation| &attestation.compared);
    HostVerdict {
        host: host.clone(),
        identical: compared.is_some() && blockers.is_empty(),
        measured: compared.map(|compared| compared.measured),
        files: compared.map_or(0, |compared| compared.files),
        bytes: compared.map_or(0, |compared| compared.bytes),
        age_ms: compared.map_or(0, |_| age_ms),
        rehearsal_ms: attestation.as_ref().and_then(|attestation| match attestation.purpose {
            Purpose::Rehearsal { took_ms } => Some(took_ms),
            Purpose::Rollout { .. } | Purpose::Check | Purpose::Adoption => None,
        }),
        blockers,
    }
}

/// The mismatch that an attestation states, unless the files have been named already.
fn unnamed_mismatch(attestation: &Attestation, named: &[Blocker]) -> Option<Blocker> {
    let is_named = named.iter().any(|blocker| blocker.code == Code::Mismatch);
    (!is_named).then(|| Blocker {
        expected: Some(attestation.compared.manifest.to_string()),
        measured: Some(attestation.compared.measured.to_string()),
        ..Blocker::host(Code::Mismatch, &attestation.host, "its tree is not the release")
    })
}

/// An error with its causes in one line.
fn chain_text(error: &TrustError) -> String {
    let error: &dyn std::error::Error = error;
    let texts: Vec<String> =
        std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string).collect();
    texts.join(": ")
}

#[cfg(test)]
mod tests;
