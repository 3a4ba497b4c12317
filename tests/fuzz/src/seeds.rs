//! What the fuzzers begin with: one good input of each kind, for them to spoil.

use std::fs;
use std::path::Path;

use muster_audit::{SignedCheckpoint, export_header, export_line, export_root_line};
use muster_model::{
    Addition, BootId, BootTime, Digest, Document, Epoch, FromHost, GlassLeave, GlassToken, Manifest, Member,
    PublicKey, RolloutId, Roster, RosterRef, RosterRevision, ToHost, UnixTime, Withdrawal, Withdrawn,
};
use muster_proto::convert::{to_agent, to_coordinator};
use muster_proto::v1;
use muster_signed::SignedFlip;
use muster_trust::{Receipt, sign};
use prost::Message as _;

use crate::fixture::{
    FLIP, KEY, NOW, PLAN, ROOT, checkpoint, entries, fleet, host, order, release, root, secret,
};
use crate::{Verdict, audit, run};

/// Names a folder to which the seeds are written, each into the folder of its target.
const OUT_VARIABLE: &str = "MUSTER_FUZZ_SEEDS";

const MANIFEST: &str = concat!(
    r#"{"format":"muster.manifest/1","entries":3,"bytes":9,"absent":["/opt/old"],"external":"#,
    r#"[{"path":"/etc/x","check":"uniform"}],"mutable":["bin/log"],"variants":[]}"#,
    "\n",
    r#"{"path":"bin","type":"dir","mode":"0755"}"#,
    "\n",
    r#"{"path":"bin/run","type":"symlink","target":"server"}"#,
    "\n",
    r#"{"path":"bin/server","type":"file","mode":"0755","size":9,"digest":"#,
    r#""sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}"#,
    "\n",
);

fn agent_frames() -> Vec<Vec<u8>> {
    let join = v1::Join {
        token: Some(vec![1; 32]),
        boot_id: "00000000-0000-4000-8000-000000000000".to_owned(),
        agent_version: "0.1.0".to_owned(),
        protocol: 1,
        nonce: vec![1; 32],
        journal_seq: 1000,
        journal_hash: vec![2; 32],
        mode: Some(v1::HostMode { kind: v1::host_mode::Kind::Serve.into(), epoch: 1, k: 0 }),
        last_k: 1,
        serving_epoch: Some(1),
        ..v1::Join::default()
    };
    let blocker = v1::Blocker { code: "mismatch".to_owned(), ..v1::Blocker::default() };
    let refusal = Some(v1::Refusal { blockers: vec![blocker] });
    let bodies = [
        v1::agent_frame::Body::Join(join),
        v1::agent_frame::Body::Refused(v1::Refused { k: Some(2), refusal }),
        to_coordinator(FromHost::Armed { k: RolloutId(2) }),
        to_coordinator(FromHost::Withdrawn { roster: RosterRevision(2), at: BootTime(7) }),
    ];
    bodies.map(|body| v1::AgentFrame { body: Some(body), ..v1::AgentFrame::default() }.encode_to_vec()).into()
}

fn coordinator_frames() -> Vec<Vec<u8>> {
    let attest = v1::Attest {
        k: 2,
        to: vec![1; 32],
        nonce_root: vec![2; 32],
        proof_index: 0,
        proof_size: 2,
        proof_path: vec![vec![3; 32]],
    };
    let open = v1::Open { k: 2, epoch: 2, release: vec![1; 32], secrets: vec![1; 66].into() };
    let bodies = [
        v1::coordinator_frame::Body::Attest(attest),
        v1::coordinator_frame::Body::Open(open),
        to_agent(ToHost::Grant { k: RolloutId(2), n: 3 }),
    ];
    let frame = |body| v1::CoordinatorFrame { body: Some(body), ..v1::CoordinatorFrame::default() };
    bodies.map(|body| frame(body).encode_to_vec()).into()
}

fn signed<T: Document>(document: &T) -> Vec<u8> {
    sign(document, &[&*KEY]).unwrap().raw().to_vec()
}

/// The roster with a host that is parked and one that has retired.
fn set_aside() -> Roster {
    let aside = |number: u8, reason: &str| Withdrawn {
        name: host(number),
        attestation_key: PublicKey::Ed25519([number + 1; 32]),
        reason: reason.to_owned(),
        since_unix_ms: NOW,
        since: Some(RosterRevision(u64::from(number) - 5)),
        fenced: number == 8,
    };
    let (parked, retired) = (aside(7, "a fan rattles"), aside(8, "sold"));
    PLAN.roster().setting_aside(vec![parked], vec![retired]).unwrap()
}

fn withdrawal() -> Withdrawal {
    let boot_id = BootId::new("0a1b2c3d-0a1b-0a1b-0a1b-0a1b2c3d4e5f").unwrap();
    Withdrawal::new(fleet(), host(0), RosterRevision(4), RolloutId(6), boot_id, NOW)
}

/// What adds host-3 to a roster.
fn addition(base: Roster) -> Addition {
    let base = base.issued(NOW);
    let envelope = String::from_utf8(signed(&base)).unwrap();
    let added = vec![Member { name: host(2), attestation_key: PublicKey::Ed25519([3; 32]) }];
    Addition::new(fleet(), RosterRevision(5), Digest::of(&base.to_bytes()), &envelope, added).unwrap()
}

/// What lets both hosts start the release alone.
fn glass_token() -> GlassToken {
    let roster = PLAN.roster();
    let leave = GlassLeave {
        fleet: fleet(),
        hosts: vec![host(1), host(0)],
        release: release().manifest,
        epoch: Epoch(6),
        roster: RosterRef { digest: Digest::of(&roster.to_bytes()), revision: roster.revision(), hosts: 2 },
        end_halt: true,
    };
    GlassToken::new(leave, "the night of the audit".to_owned(), NOW..UnixTime(NOW.0 + 1_000)).unwrap()
}

fn export() -> Vec<u8> {
    let checkpoint = SignedCheckpoint::sign(checkpoint(), &*KEY).unwrap();
    let header = export_header(KEY.public(), &checkpoint, 1).into_bytes();
    let root = export_root_line(ROOT.authentic().raw());
    let lines = entries().iter().map(|entry| export_line(&entry.to_bytes())).collect::<Vec<_>>().concat();
    [header, root, lines].concat()
}

fn seeds() -> Vec<(&'static str, Vec<Vec<u8>>)> {
    let marked = |mark: u8, bytes: &[u8]| [&[mark], bytes].concat();
    let signed_checkpoint = SignedCheckpoint::sign(checkpoint(), &*KEY).unwrap().to_bytes();
    let upload = v1::UploadRequest {
        part: Some(v1::upload_request::Part::Header(v1::BlobHeader { digest: vec![1; 32], size: 3 })),
    };
    vec![
        ("addition", vec![addition(PLAN.roster()).to_bytes(), addition(set_aside()).to_bytes()]),
        ("agent_frame", agent_frames()),
        ("attestation", vec![PLAN.attestation(&PLAN.hosts[0]).to_bytes()]),
        (
            "audit",
            vec![
                marked(audit::ENTRY, &entries()[0].to_bytes()),
                marked(audit::CHECKPOINT, &signed_checkpoint),
                marked(audit::EXPORT, &export()),
            ],
        ),
        ("break_glass", vec![glass_token().to_bytes()]),
        ("coordinator_frame", coordinator_frames()),
        ("csr", vec![include_bytes!("../seeds/csr.der").to_vec()]),
        ("envelope", vec![signed(&order()), signed(&release())]),
        (
            "key_file",
            vec![
                include_bytes!("../../../crates/trust/vectors/openssh/ed25519").to_vec(),
                include_bytes!("../../../crates/trust/vectors/openssh/ecdsa").to_vec(),
                include_bytes!("../../../crates/trust/vectors/openssh/ecdsa.pub").to_vec(),
                include_bytes!("../seeds/pkcs8.pem").to_vec(),
                KEY.public().to_string().into_bytes(),
            ],
        ),
        ("manifest", vec![MANIFEST.as_bytes().to_vec()]),
        ("order", vec![order().to_bytes()]),
        ("receipt", vec![whole_receipt()]),
        ("release", vec![release().to_bytes()]),
        ("request", vec![marked(24, &upload.encode_to_vec())]),
        ("root", vec![root().to_bytes()]),
        ("roster", vec![PLAN.roster().to_bytes(), set_aside().to_bytes()]),
        ("withdrawal", vec![withdrawal().to_bytes()]),
    ]
}

#[test]
fn every_seed_is_taken() {
    Manifest::parse(MANIFEST.as_bytes()).unwrap();
    for (target, seeds) in seeds() {
        for (index, seed) in seeds.iter().enumerate() {
            // An envelope of something else than an order is refused as an order, and read as an envelope.
            assert_eq!(run(target, seed), Verdict::Taken, "{target} {index}");
            if let Some(folder) = std::env::var_os(OUT_VARIABLE) {
                let folder = Path::new(&folder).join(target);
                fs::create_dir_all(&folder).unwrap();
                fs::write(folder.join(format!("seed-{index}")), seed).unwrap();
            }
        }
    }
}

fn whole_receipt() -> Vec<u8> {
    let SignedFlip { order, roster, release, attestations } = &*FLIP;
    let secrets = &[0, 1].map(|index| Some(secret(index)));
    Receipt { order, roster, release, attestations, withdrawals: &[], secrets }.to_bytes()
}
