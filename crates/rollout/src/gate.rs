//! The gate: whether N hosts attest one and the same release, now.

use muster_model::{
    Attestation, Blocker, BootGate, BootGatePolicy, ClockPolicy, ClockState, Code, Comparable, Digest,
    FlipMode, HostFacts, HostName, Policy, Purpose, RolloutId, Roster,
};

/// What the hosts were asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Question {
    /// The manifest to measure against.
    pub manifest: Digest,
    /// In a rollout the root over all hosts' nonces; nothing where recent answers with older challenges count too.
    pub challenge: Option<Digest>,
    /// The rollout the answers are for, unless it is a check.
    pub rollout: Option<RolloutId>,
    /// How the fleet is to flip.
    pub mode: FlipMode,
}

/// What is known of one host's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer<'a> {
    /// The host is not connected.
    Missing,
    /// The host is connected and has not answered.
    Silent,
    /// The host answered with the reasons why it cannot attest.
    Refused(&'a [Blocker]),
    /// The host's attestation, verified with its key in the roster.
    Attested(&'a Attestation),
}

/// Every reason why the release may not flip. Empty means open.
///
/// P3: the gate opens only if all N hosts of the roster gave fresh, identical attestations. There is no way to override
/// a reason; the roster can be changed by its own signed procedure.
pub fn evaluate<'a>(
    roster: &Roster,
    question: &Question,
    mut answer_of: impl FnMut(usize, &HostName) -> Answer<'a>,
) -> Vec<Blocker> {
    let mut blockers = Vec::new();
    let mut reference: Option<(&HostName, &Comparable)> = None;
    for (index, member) in roster.hosts().iter().enumerate() {
        let host = &member.name;
        match answer_of(index, host) {
            Answer::Missing => blockers.push(missing(host)),
            Answer::Silent => blockers.push(Blocker::host(
                Code::HostSilent,
                host,
                "it is connected but did not answer in time",
            )),
            Answer::Refused([]) => {
                blockers.push(Blocker::host(
                    Code::Unmeasurable,
                    host,
                    "it gave no measurement and no reason",
                ));
            }
            Answer::Refused(reasons) => blockers.extend(reasons.iter().map(|reason| at_host(reason, host))),
            Answer::Attested(attestation) => {
                judge(roster, question, host, attestation, &mut blockers);
                match reference {
                    None => reference = Some((host, &attestation.compared)),
                    Some((first, compared)) => {
                        compare(first, compared, host, &attestation.compared, &mut blockers);
                    }
                }
            }
        }
    }
    blockers
}

/// The blocker of a host that has no connection.
#[must_use]
pub fn missing(host: &HostName) -> Blocker {
    Blocker::host(Code::HostMissing, host, "it is not connected, so nothing is known of it")
}

/// The same reason, named as `host`'s whatever the host itself wrote there.
#[must_use]
pub fn at_host(reason: &Blocker, host: &HostName) -> Blocker {
    Blocker { host: Some(host.clone()), ..reason.clone() }
}

fn judge(
    roster: &Roster,
    question: &Question,
    host: &HostName,
    it: &Attestation,
    blockers: &mut Vec<Blocker>,
) {
    let rollout = match it.purpose {
        Purpose::Rollout { k, .. } => Some(k),
        Purpose::Check | Purpose::Adoption | Purpose::Rehearsal { .. } => None,
    };
    let stale =
        rollout != question.rollout || question.challenge.is_some_and(|challenge| challenge != it.challenge);
    if it.host != *host || it.fleet != *roster.fleet() || stale || it.compared.manifest != question.manifest {
        blockers.push(Blocker::host(
            Code::StaleAttestation,
            host,
            "its attestation answers another question than the one that was asked",
        ));
    } else if !it.matches() {
        blockers.push(Blocker {
            expected: Some(it.compared.manifest.to_string()),
            measured: Some(it.compared.measured.to_string()),
            ..Blocker::host(Code::Mismatch, host, "it measured another tree than the release's")
        });
    }
    blockers.extend(unfit(host, &it.facts, roster.policy(), question.mode));
}

/// Why a host cannot take part in a flip whatever its bytes are: what it says of itself does not meet the fleet's policy.
#[must_use]
pub fn unfit(host: &HostName, facts: &HostFacts, policy: Policy, mode: FlipMode) -> Vec<Blocker> {
    let mut blockers = Vec::new();
    let timing = policy.timing;
    let ms = |value: Option<u64>| Some(value.map_or("unknown".to_owned(), |ms| format!("{ms} ms")));
    let mut limit = |code, expected: u64, measured: Option<u64>, detail: &str| {
        blockers.push(Blocker {
            expected: Some(format!("at most {expected} ms")),
            measured: ms(measured),
            ..Blocker::host(code, host, detail)
        });
    };
    if facts.fence_ms.is_none_or(|fence_ms| fence_ms > timing.fence_ms) {
        let detail = match facts.fence_ms {
            Some(_) => "it may not stop its service in the time that the fleet's policy allows for a fence",
            None => "its guard has not tried yet how long a fence takes; the agent's log says why",
        };
        limit(Code::FenceTooSlow, timing.fence_ms, facts.fence_ms, detail);
    }
    if facts.drain_ms > timing.drain_ms_max() {
        let detail = "its service may take longer to stop than its lease would last";
        limit(Code::DrainTooLong, timing.drain_ms_max(), Some(facts.drain_ms), detail);
    }
    match mode {
        FlipMode::Fast if facts.clock_error_ms.is_none_or(|error| error > timing.clock_error_ms) => {
            let detail = "its time of day may be off by more than a flip in fast mode allows";
            limit(Code::ClockUncertain, timing.clock_error_ms, facts.clock_error_ms, detail);
        }
        FlipMode::Fast | FlipMode::Strict => {}
    }
    match (policy.boot_gate, facts.boot_gate) {
        (BootGatePolicy::Required, BootGate::None) => blockers.push(Blocker::host(
            Code::BootGate,
            host,
            "its link outlives a reboot, so that it could serve before it is admitted",
        )),
        (BootGatePolicy::Optional, _) | (BootGatePolicy::Required, BootGate::Volatile) => {}
    }
    match (policy.clock, facts.clock) {
        (ClockPolicy::Steady, ClockState::Pausable) => blockers.push(Blocker::host(
            Code::ClockMayPause,
            host,
            "its clock stands still while it is paused, so that it could serve beyond its lease",
        )),
        (ClockPolicy::Any, _) | (ClockPolicy::Steady, ClockState::Steady) => {}
    }
    blockers
}

fn compare(
    first: &HostName,
    expected: &Comparable,
    host: &HostName,
    measured: &Comparable,
    blockers: &mut Vec<Blocker>,
) {
    if measured.uniform != expected.uniform {
        let text =
            |digest: Option<Digest>| Some(digest.map_or("nothing".to_owned(), |digest| digest.to_string()));
        blockers.push(Blocker {
            expected: text(expected.uniform),
            measured: text(measured.uniform),
            ..Blocker::host(
                Code::NotUniform,
                host,
                format!("its external paths differ from those of {first}"),
            )
        });
    } else if measured != expected && measured.measured == expected.measured {
        blockers.push(Blocker::host(
            Code::Mismatch,
            host,
            format!("it counted other files or bytes than {first} in the same tree"),
        ));
    }
}

#[cfg(test)]
mod tests {
    use muster_model::{
        Assurance, BootId, Epoch, FleetName, Member, PublicKey, RosterRevision, Scope, Timing, UnixTime,
    };

    use super::*;

    fn roster(policy: Policy) -> Roster {
        let hosts = (1..=3)
            .map(|n| Member {
                name: HostName::new(&format!("host-{n}")).expect("a name"),
                attestation_key: PublicKey::Ed25519([n; 32]),
            })
            .collect();
        let fleet = FleetName::new("smars").expect("a name");
        Roster::new(fleet, RosterRevision(1), policy, hosts).expect("a roster")
    }

    fn attestations(roster: &Roster) -> Vec<Attestation> {
        let release = Digest::of(b"release");
        let compared = Comparable { manifest: release, measured: release, files: 2, bytes: 9, uniform: None };
        let facts = HostFacts {
            epoch: Epoch(1),
            serving: None,
            boot_id: BootId::new("01234567-89ab-cdef-0123-456789abcdef").expect("a boot id"),
            scope: Scope::Link,
            boot_gate: BootGate::Volatile,
            clock: ClockState::Steady,
            clock_error_ms: Some(1),
            fence_ms: Some(40),
            drain_ms: 0,
            assurance: Assurance::Sha256,
            agent_version: "0.1.0".to_owned(),
            agent_config: Digest::of(b"config"),
            measured_unix_ms: UnixTime(1),
            elapsed_ms: 1,
        };
        let of_host = |member: &Member| {
            Attestation::new(
                roster.fleet().clone(),
                member.name.clone(),
                Purpose::Check,
                Digest::of(b"challenge"),
                compared.clone(),
                facts.clone(),
            )
        };
        roster.hosts().iter().map(of_host).collect()
    }

    fn codes(roster: &Roster, mode: FlipMode, answers: &[Option<Attestation>]) -> Vec<(Code, String)> {
        let question = Question {
            manifest: Digest::of(b"release"),
            challenge: Some(Digest::of(b"challenge")),
            rollout: None,
            mode,
        };
        let answer_of =
            |index: usize, _: &HostName| answers[index].as_ref().map_or(Answer::Missing, Answer::Attested);
        evaluate(roster, &question, answer_of)
            .into_iter()
            .map(|blocker| (blocker.code, blocker.host.expect("every blocker here has a host").to_string()))
            .collect()
    }

    fn with(change: impl FnOnce(&mut Vec<Option<Attestation>>)) -> Vec<(Code, String)> {
        with_mode(FlipMode::Strict, change)
    }

    fn with_mode(mode: FlipMode, change: impl FnOnce(&mut Vec<Option<Attestation>>)) -> Vec<(Code, String)> {
        let roster = roster(Policy::default());
        let mut answers: Vec<_> = attestations(&roster).into_iter().map(Some).collect();
        change(&mut answers);
        codes(&roster, mode, &answers)
    }

    #[test]
    fn n_identical_fresh_attestations_open_it() {
        assert_eq!(with(|_| {}), []);
    }

    #[test]
    fn each_reason_names_its_host() {
        let at = |code, host: &str| vec![(code, host.to_owned())];
        assert_eq!(with(|it| it[1] = None), at(Code::HostMissing, "host-2"));
        let edit = |change: fn(&mut Attestation)| with(|it| change(it[2].as_mut().expect("present")));
        assert_eq!(edit(|a| a.compared.measured = Digest::of(b"else")), at(Code::Mismatch, "host-3"));
        assert_eq!(edit(|a| a.compared.files += 1), at(Code::Mismatch, "host-3"));
        assert_eq!(edit(|a| a.compared.uniform = Some(Digest::of(b"x"))), at(Code::NotUniform, "host-3"));
        assert_eq!(edit(|a| a.challenge = Digest::of(b"old")), at(Code::StaleAttestation, "host-3"));
        assert_eq!(
            edit(|a| a.host = HostName::new("host-1").expect("a name")),
            at(Code::StaleAttestation, "host-3")
        );
        assert_eq!(edit(|a| a.facts.boot_gate = BootGate::None), at(Code::BootGate, "host-3"));
    }

    #[test]
    fn a_host_that_could_serve_beyond_its_lease_is_a_reason() {
        let timing = Timing::default();
        let facts =
            |change: fn(&mut HostFacts)| with(|it| change(&mut it[0].as_mut().expect("present").facts));
        let first = |code| vec![(code, "host-1".to_owned())];
        assert_eq!(facts(|it| it.fence_ms = None), first(Code::FenceTooSlow));
        assert_eq!(facts(|it| it.fence_ms = Some(Timing::default().fence_ms + 1)), first(Code::FenceTooSlow));
        assert_eq!(facts(|it| it.fence_ms = Some(Timing::default().fence_ms)), []);
        assert_eq!(facts(|it| it.drain_ms = Timing::default().drain_ms_max() + 1), first(Code::DrainTooLong));
        assert_eq!(facts(|it| it.clock = ClockState::Pausable), first(Code::ClockMayPause));
        for (mode, error, expected) in [
            (FlipMode::Strict, None, vec![]),
            (FlipMode::Fast, Some(timing.clock_error_ms), vec![]),
            (FlipMode::Fast, Some(timing.clock_error_ms + 1), first(Code::ClockUncertain)),
            (FlipMode::Fast, None, first(Code::ClockUncertain)),
        ] {
            let found = with_mode(mode, |it| it[0].as_mut().expect("present").facts.clock_error_ms = error);
            assert_eq!(found, expected, "{mode:?} {error:?}");
        }
    }

    #[test]
    fn a_policy_may_accept_a_link_that_outlives_a_reboot_and_a_clock_that_may_pause() {
        let policy =
            Policy { boot_gate: BootGatePolicy::Optional, clock: ClockPolicy::Any, ..Policy::default() };
        let roster = roster(policy);
        let mut answers: Vec<_> = attestations(&roster).into_iter().map(Some).collect();
        let facts = &mut answers[0].as_mut().expect("present").facts;
        (facts.boot_gate, facts.clock) = (BootGate::None, ClockState::Pausable);
        assert_eq!(codes(&roster, FlipMode::Strict, &answers), []);
    }
}
