//! The frames of the control stream.
//!
//! Only the messages of the flip are converted here. Frames about deployment, checks and inventory have no state in the
//! rollout core; the edges read them as they are.

use std::sync::Arc;

use muster_model::{
    BootId, BootTime, Documents, Epoch, FromHost, HostMode, Incarnation, JoinReport, JournalHead, Leadership,
    Membership, MerkleProof, RolloutId, RosterRevision, Secrets, ServingReport, Standing, Term, ToHost,
    UnixTime,
};

use super::glass;

use prost::bytes::Bytes;

use super::{ConvertError, digest, nonce, refusal, secret, token};
use crate::v1;
use crate::v1::agent_frame::Body as FromAgent;
use crate::v1::coordinator_frame::Body as FromCoordinator;

/// The longest audit path that is read.
const PROOF_LEN_MAX: usize = 32;

/// The wire form of a message from an agent.
#[must_use]
pub fn to_coordinator(message: FromHost) -> FromAgent {
    match message {
        FromHost::Join(report) => FromAgent::Join(join_to_wire(report)),
        FromHost::Confirmed => FromAgent::Confirmed(v1::Confirmed {}),
        FromHost::Fresh { k, nonce } => {
            FromAgent::Fresh(v1::Fresh { k: k.0, nonce: nonce.as_bytes().to_vec() })
        }
        FromHost::CannotAttest { k, refusal } => {
            FromAgent::CannotAttest(v1::CannotAttest { k: k.0, refusal: Some(refusal.into()) })
        }
        FromHost::Prepared { k } => FromAgent::Prepared(v1::Prepared { k: k.0 }),
        FromHost::Probed { k } => FromAgent::Probed(v1::Probed { k: k.0 }),
        FromHost::Armed { k } => FromAgent::Armed(v1::Armed { k: k.0 }),
        FromHost::Renew { k, n } => FromAgent::Renew(v1::Renew { k: k.0, n }),
        FromHost::Set { k } => FromAgent::SwitchSet(v1::SwitchSet { k: k.0 }),
        FromHost::Closed { k, secret, at } => {
            FromAgent::Closed(v1::Closed { k: k.0, secret: secret.as_bytes().to_vec(), at_boot_ms: at.0 })
        }
        FromHost::Disarmed { k } => FromAgent::Disarmed(v1::Disarmed { k: k.0 }),
        FromHost::Serving { epoch, at } => {
            FromAgent::Serving(v1::Serving { epoch: epoch.0, at_boot_ms: at.0 })
        }
        FromHost::Measured { epoch } => FromAgent::Measured(v1::Measured { epoch: epoch.0 }),
        FromHost::Dark { refusal, nonce, returned } => FromAgent::Dark(v1::Dark {
            refusal: Some(refusal.into()),
            nonce: nonce.map(|nonce| nonce.as_bytes().to_vec()),
            returned,
        }),
        FromHost::Withdrawn { roster, at } => FromAgent::Withdrawn(v1::Withdrawn {
            roster_revision: roster.0,
            at_boot_ms: at.0,
            envelope: None,
        }),
        FromHost::Refused { k, refusal } => {
            FromAgent::Refused(v1::Refused { k: k.map(|k| k.0), refusal: Some(refusal.into()) })
        }
    }
}

/// The message of a frame from an agent; nothing for the frames that are not of the flip or that carry an envelope.
pub fn from_host(body: FromAgent) -> Result<Option<FromHost>, ConvertError> {
    Ok(Some(match body {
        FromAgent::Join(join) => FromHost::Join(join_from_wire(join)?),
        FromAgent::Confirmed(v1::Confirmed {}) => FromHost::Confirmed,
        FromAgent::Fresh(fresh) => {
            FromHost::Fresh { k: RolloutId(fresh.k), nonce: nonce("nonce", &fresh.nonce)? }
        }
        FromAgent::CannotAttest(it) => {
            FromHost::CannotAttest { k: RolloutId(it.k), refusal: refusal(it.refusal)? }
        }
        FromAgent::Prepared(prepared) => FromHost::Prepared { k: RolloutId(prepared.k) },
        FromAgent::Probed(probed) => FromHost::Probed { k: RolloutId(probed.k) },
        FromAgent::Armed(armed) => FromHost::Armed { k: RolloutId(armed.k) },
        FromAgent::Renew(renew) => FromHost::Renew { k: RolloutId(renew.k), n: renew.n },
        FromAgent::SwitchSet(set) => FromHost::Set { k: RolloutId(set.k) },
        FromAgent::Closed(closed) => FromHost::Closed {
            k: RolloutId(closed.k),
            secret: secret("secret", &closed.secret)?,
            at: BootTime(closed.at_boot_ms),
        },
        FromAgent::Disarmed(disarmed) => FromHost::Disarmed { k: RolloutId(disarmed.k) },
        FromAgent::Serving(serving) => {
            FromHost::Serving { epoch: Epoch(serving.epoch), at: BootTime(serving.at_boot_ms) }
        }
        FromAgent::Measured(measured) => FromHost::Measured { epoch: Epoch(measured.epoch) },
        FromAgent::Dark(dark) => FromHost::Dark {
            refusal: refusal(dark.refusal)?,
            nonce: dark.nonce.map(|bytes| nonce("nonce", &bytes)).transpose()?,
            returned: dark.returned,
        },
        FromAgent::Withdrawn(it) => {
            FromHost::Withdrawn { roster: RosterRevision(it.roster_revision), at: BootTime(it.at_boot_ms) }
        }
        FromAgent::Refused(refused) => {
            FromHost::Refused { k: refused.k.map(RolloutId), refusal: refusal(refused.refusal)? }
        }
        FromAgent::Attested(_)
        | FromAgent::Inventory(_)
        | FromAgent::DeployProgress(_)
        | FromAgent::DeployEnded(_)
        | FromAgent::CheckEnded(_)
        | FromAgent::Testimony(_)
        | FromAgent::DocumentPart(_) => return Ok(None),
    }))
}

/// The wire form of a message to an agent.
#[must_use]
pub fn to_agent(message: ToHost) -> FromCoordinator {
    match message {
        ToHost::Joined { next } => {
            FromCoordinator::Joined(v1::Joined { next_token: next.as_bytes().to_vec() })
        }
        ToHost::Propose { k, to } => {
            FromCoordinator::Propose(v1::Propose { k: k.0, to: to.as_bytes().to_vec() })
        }
        ToHost::Attest { k, to, nonce_root, proof } => FromCoordinator::Attest(v1::Attest {
            k: k.0,
            to: to.as_bytes().to_vec(),
            nonce_root: nonce_root.as_bytes().to_vec(),
            proof_index: proof.index,
            proof_size: proof.size,
            proof_path: proof.path.iter().map(|digest| digest.as_bytes().to_vec()).collect(),
        }),
        ToHost::Prepare { k, epoch, documents } => FromCoordinator::Prepare(v1::Prepare {
            k: k.0,
            epoch: epoch.0,
            order: documents.order.as_bytes().to_vec(),
            release: documents.release.as_bytes().to_vec(),
            roster: documents.roster.as_bytes().to_vec(),
            evidence: documents.evidence.as_bytes().to_vec(),
        }),
        ToHost::Probe { k } => FromCoordinator::Probe(v1::Probe { k: k.0 }),
        ToHost::Arm { k, instant } => {
            FromCoordinator::Arm(v1::Arm { k: k.0, instant_unix_ms: instant.map(|instant| instant.0) })
        }
        ToHost::Grant { k, n } => FromCoordinator::Grant(v1::Grant { k: k.0, n }),
        ToHost::Set { k } => FromCoordinator::SetSwitch(v1::SetSwitch { k: k.0 }),
        ToHost::Halt { k } => FromCoordinator::Halt(v1::Halt { k: k.0 }),
        ToHost::Close { k } => FromCoordinator::Close(v1::Close { k: k.0 }),
        ToHost::Open { k, epoch, release, secrets } => FromCoordinator::Open(v1::Open {
            k: k.0,
            epoch: epoch.0,
            release: release.as_bytes().to_vec(),
            // One allocation for all hosts, however many they are.
            secrets: Bytes::from_owner(Arc::clone(secrets.as_bytes())),
        }),
        ToHost::Disarm { k } => FromCoordinator::Disarm(v1::Disarm { k: k.0 }),
        ToHost::Admit { epoch, release, nonce } => FromCoordinator::Admit(v1::Admit {
            epoch: epoch.0,
            release: release.as_bytes().to_vec(),
            nonce: nonce.as_bytes().to_vec(),
        }),
        ToHost::Refuse { refusal } => FromCoordinator::Refuse(v1::Refuse { refusal: Some(refusal.into()) }),
    }
}

/// The message of a frame from the coordinator; nothing for the frames that are not of the flip.
pub fn from_coordinator(body: FromCoordinator) -> Result<Option<ToHost>, ConvertError> {
    Ok(Some(match body {
        FromCoordinator::Joined(joined) => ToHost::Joined { next: token("next_token", &joined.next_token)? },
        FromCoordinator::Propose(it) => ToHost::Propose { k: RolloutId(it.k), to: digest("to", &it.to)? },
        FromCoordinator::Attest(it) => ToHost::Attest {
            k: RolloutId(it.k),
            to: digest("to", &it.to)?,
            nonce_root: digest("nonce_root", &it.nonce_root)?,
            proof: proof(it.proof_index, it.proof_size, &it.proof_path)?,
        },
        FromCoordinator::Prepare(it) => ToHost::Prepare {
            k: RolloutId(it.k),
            epoch: Epoch(it.epoch),
            documents: Documents {
                order: digest("order", &it.order)?,
                release: digest("release", &it.release)?,
                roster: digest("roster", &it.roster)?,
                evidence: digest("evidence", &it.evidence)?,
            },
        },
        FromCoordinator::Probe(probe) => ToHost::Probe { k: RolloutId(probe.k) },
        FromCoordinator::Arm(arm) => {
            ToHost::Arm { k: RolloutId(arm.k), instant: arm.instant_unix_ms.map(UnixTime) }
        }
        FromCoordinator::Grant(grant) => ToHost::Grant { k: RolloutId(grant.k), n: grant.n },
        FromCoordinator::SetSwitch(set) => ToHost::Set { k: RolloutId(set.k) },
        FromCoordinator::Halt(halt) => ToHost::Halt { k: RolloutId(halt.k) },
        FromCoordinator::Close(close) => ToHost::Close { k: RolloutId(close.k) },
        FromCoordinator::Open(open) => ToHost::Open {
            k: RolloutId(open.k),
            epoch: Epoch(open.epoch),
            release: digest("release", &open.release)?,
            secrets: Secrets::from_bytes(&open.secrets).ok_or_else(|| {
                ConvertError::invalid("secrets", "not 33 bytes for each host, with 0 or 1 first")
            })?,
        },
        FromCoordinator::Disarm(disarm) => ToHost::Disarm { k: RolloutId(disarm.k) },
        FromCoordinator::Admit(admit) => ToHost::Admit {
            epoch: Epoch(admit.epoch),
            release: digest("release", &admit.release)?,
            nonce: nonce("nonce", &admit.nonce)?,
        },
        FromCoordinator::Refuse(refuse) => ToHost::Refuse { refusal: refusal(refuse.refusal)? },
        FromCoordinator::AuditShown(_)
        | FromCoordinator::Deploy(_)
        | FromCoordinator::Check(_)
        | FromCoordinator::Roots(_)
        | FromCoordinator::Mandate(_)
        | FromCoordinator::Recall(_)
        | FromCoordinator::ReadDocument(_)
        | FromCoordinator::RosterShown(_)
        | FromCoordinator::GlassSettled(_) => return Ok(None),
    }))
}

/// The wire form of a mode.
#[must_use]
pub fn mode_to_wire(mode: HostMode) -> v1::HostMode {
    use v1::host_mode::Kind;
    let (kind, epoch, k) = match mode {
        HostMode::Serve(epoch) => (Kind::Serve, epoch.0, 0),
        HostMode::Armed(k, epoch) => (Kind::Armed, epoch.0, k.0),
        HostMode::Closed(k) => (Kind::Closed, 0, k.0),
    };
    v1::HostMode { kind: kind.into(), epoch, k }
}

/// The mode of a frame.
pub fn mode_from_wire(wire: &v1::HostMode) -> Result<HostMode, ConvertError> {
    use v1::host_mode::Kind;
    match wire.kind() {
        Kind::Serve => Ok(HostMode::Serve(Epoch(wire.epoch))),
        Kind::Armed => Ok(HostMode::Armed(RolloutId(wire.k), Epoch(wire.epoch))),
        Kind::Closed => Ok(HostMode::Closed(RolloutId(wire.k))),
        Kind::Unspecified => Err(ConvertError::Missing("mode.kind")),
    }
}

fn join_to_wire(report: JoinReport) -> v1::Join {
    v1::Join {
        token: report.token.map(|token| token.as_bytes().to_vec()),
        boot_id: report.boot_id.into(),
        agent_version: report.agent_version,
        protocol: report.protocol,
        nonce: report.nonce.as_bytes().to_vec(),
        journal_seq: report.journal.seq,
        journal_hash: report.journal.hash.as_bytes().to_vec(),
        mode: Some(mode_to_wire(report.standing.mode)),
        last_k: report.standing.last_k.0,
        incarnation: report.standing.leadership.incarnation.0,
        term: report.standing.leadership.term.0,
        roster_revision: report.standing.roster_revision.0,
        history_lost: report.standing.history_lost,
        halted_k: report.standing.halted.map(|k| k.0),
        serving_epoch: match report.serving {
            ServingReport::Dark => None,
            ServingReport::Open(epoch) => Some(epoch.0),
        },
        // What a host has seen of the audit log is no part of its state in the protocol: its edge fills it in.
        audit: None,
        excluded_by: match report.standing.membership {
            Membership::Excluded(by) => Some(by.0),
            Membership::Member | Membership::Returned => None,
        },
        returned: report.standing.membership == Membership::Returned,
        glass: report.standing.glass.into_iter().map(v1::BrokenGlass::from).collect(),
    }
}

fn join_from_wire(join: v1::Join) -> Result<JoinReport, ConvertError> {
    if join.agent_version.len() > 64 {
        return Err(ConvertError::invalid("agent_version", "longer than 64 bytes"));
    }
    Ok(JoinReport {
        token: join.token.map(|bytes| token("token", &bytes)).transpose()?,
        boot_id: BootId::new(&join.boot_id).map_err(|error| ConvertError::invalid("boot_id", error))?,
        agent_version: join.agent_version,
        protocol: join.protocol,
        nonce: nonce("nonce", &join.nonce)?,
        journal: JournalHead { seq: join.journal_seq, hash: digest("journal_hash", &join.journal_hash)? },
        standing: Standing {
            mode: mode_from_wire(&join.mode.ok_or(ConvertError::Missing("mode"))?)?,
            last_k: RolloutId(join.last_k),
            leadership: Leadership { incarnation: Incarnation(join.incarnation), term: Term(join.term) },
            roster_revision: RosterRevision(join.roster_revision),
            history_lost: join.history_lost,
            halted: join.halted_k.map(RolloutId),
            membership: match (join.excluded_by, join.returned) {
                (Some(by), _) => Membership::Excluded(RosterRevision(by)),
                (None, true) => Membership::Returned,
                (None, false) => Membership::Member,
            },
            glass: glass::all(join.glass)?,
        },
        serving: join.serving_epoch.map_or(ServingReport::Dark, |epoch| ServingReport::Open(Epoch(epoch))),
    })
}

fn proof(index: u64, size: u64, path: &[Vec<u8>]) -> Result<MerkleProof, ConvertError> {
    if path.len() > PROOF_LEN_MAX {
        return Err(ConvertError::invalid("proof_path", format!("more than {PROOF_LEN_MAX} digests")));
    }
    let path = path.iter().map(|bytes| digest("proof_path", bytes)).collect::<Result<_, _>>()?;
    Ok(MerkleProof { index, size, path })
}

#[cfg(test)]
mod tests {
    use muster_model::{Closure, Code, Digest, Nonce, Refusal, Secret, Token};

    use super::*;

    fn digest_of(byte: u8) -> Digest {
        Digest::from_bytes([byte; 32])
    }

    fn glass_used() -> muster_model::BrokenGlass {
        muster_model::BrokenGlass {
            id: digest_of(7),
            at_unix_ms: UnixTime(8),
            release: digest_of(9),
            epoch: Epoch(2),
            reason: "night".to_owned(),
            signers: vec![muster_model::PublicKey::Ed25519([4; 32])],
            settled: true,
        }
    }

    fn refusal() -> Refusal {
        Refusal::of(Code::Mismatch, "differs")
    }

    #[test]
    fn every_message_from_a_host_survives_the_wire() {
        let k = RolloutId(7);
        let report = |token, mode, serving, membership| {
            FromHost::Join(JoinReport {
                token,
                boot_id: BootId::new("01234567-89ab-cdef-0123-456789abcdef").expect("a boot id"),
                agent_version: "0.1.0".to_owned(),
                protocol: 1,
                nonce: Nonce::from_bytes([1; 32]),
                journal: JournalHead { seq: 5, hash: digest_of(2) },
                standing: Standing {
                    mode,
                    last_k: k,
                    leadership: Leadership { incarnation: Incarnation(3), term: Term(4) },
                    roster_revision: RosterRevision(2),
                    history_lost: true,
                    halted: Some(RolloutId(6)),
                    membership,
                    glass: vec![glass_used()],
                },
                serving,
            })
        };
        let messages = [
            report(None, HostMode::Serve(Epoch(0)), ServingReport::Dark, Membership::Returned),
            report(
                Some(Token::from_bytes([3; 32])),
                HostMode::Armed(k, Epoch(2)),
                ServingReport::Open(Epoch(2)),
                Membership::Member,
            ),
            report(None, HostMode::Closed(k), ServingReport::Dark, Membership::Excluded(RosterRevision(2))),
            FromHost::Withdrawn { roster: RosterRevision(2), at: BootTime(98) },
            FromHost::Confirmed,
            FromHost::Fresh { k, nonce: Nonce::from_bytes([4; 32]) },
            FromHost::CannotAttest { k, refusal: refusal() },
            FromHost::Prepared { k },
            FromHost::Probed { k },
            FromHost::Armed { k },
            FromHost::Renew { k, n: 3 },
            FromHost::Set { k },
            FromHost::Closed { k, secret: Secret::from_bytes([5; 32]), at: BootTime(99) },
            FromHost::Disarmed { k },
            FromHost::Serving { epoch: Epoch(3), at: BootTime(100) },
            FromHost::Measured { epoch: Epoch(3) },
            FromHost::Dark { refusal: refusal(), nonce: Some(Nonce::from_bytes([6; 32])), returned: true },
            FromHost::dark(refusal()),
            FromHost::Refused { k: Some(k), refusal: refusal() },
            FromHost::Refused { k: None, refusal: refusal() },
        ];
        for message in messages {
            assert_eq!(from_host(to_coordinator(message.clone())), Ok(Some(message)));
        }
    }

    #[test]
    fn every_message_to_a_host_survives_the_wire() {
        let (k, epoch, release) = (RolloutId(7), Epoch(3), digest_of(8));
        let documents =
            Documents { order: digest_of(1), release, roster: digest_of(2), evidence: digest_of(3) };
        let proof = MerkleProof { index: 1, size: 2, path: vec![digest_of(4)] };
        let messages = [
            ToHost::Joined { next: Token::from_bytes([1; 32]) },
            ToHost::Propose { k, to: release },
            ToHost::Attest { k, to: release, nonce_root: digest_of(5), proof },
            ToHost::Prepare { k, epoch, documents },
            ToHost::Probe { k },
            ToHost::Arm { k, instant: None },
            ToHost::Arm { k, instant: Some(UnixTime(1_700_000_000_000)) },
            ToHost::Grant { k, n: 3 },
            ToHost::Set { k },
            ToHost::Halt { k },
            ToHost::Close { k },
            ToHost::Open {
                k,
                epoch,
                release,
                secrets: [
                    Closure::Revealed(Secret::from_bytes([1; 32])),
                    Closure::Lapsed(Secret::from_bytes([2; 32]).commitment()),
                ]
                .into_iter()
                .collect(),
            },
            ToHost::Disarm { k },
            ToHost::Admit { epoch, release, nonce: Nonce::from_bytes([9; 32]) },
            ToHost::Refuse { refusal: refusal() },
        ];
        for message in messages {
            assert_eq!(from_coordinator(to_agent(message.clone())), Ok(Some(message)));
        }
    }

    #[test]
    fn what_the_model_does_not_have_is_refused_with_the_field() {
        let fresh = FromAgent::Fresh(v1::Fresh { k: 1, nonce: vec![0; 31] });
        assert_eq!(
            from_host(fresh),
            Err(ConvertError::Invalid { field: "nonce", reason: "31 bytes instead of 32".to_owned() })
        );
        let open = FromCoordinator::Open(v1::Open {
            release: vec![0; 32],
            secrets: vec![0; 32].into(),
            ..v1::Open::default()
        });
        assert!(matches!(from_coordinator(open), Err(ConvertError::Invalid { field: "secrets", .. })));
        let silent =
            FromAgent::Refused(v1::Refused { k: None, refusal: Some(v1::Refusal { blockers: vec![] }) });
        assert_eq!(from_host(silent), Err(ConvertError::Missing("blockers")));
        let join = FromAgent::Join(v1::Join::default());
        assert!(matches!(from_host(join), Err(ConvertError::Invalid { field: "boot_id", .. })));
    }
}
