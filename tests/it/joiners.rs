//! Hosts that a joiner's key adds: real processes, from a machine that nobody knows to a flip of all of them; and a thief of the key,
//! with and without the coordinator.

mod handing_in;
mod stolen;

use std::fs;
use std::path::{Path, PathBuf};

use muster_model::{
    Addition, Code, Digest, Document as _, FleetName, HostName, Member, Policy, Roster, RosterRef,
    RosterRevision, Timing, UnixTime,
};
use muster_mtls::Role;
use muster_trust::{Authentic, KeyAlgorithm, SigningKey, operators_roster};

use crate::harness::forgery::order;
use crate::harness::{
    Caller, FLEET, Fleet, Host, Output, now, program, refusal_of, run, signed, until, versioned,
};

/// A fleet whose root lets one key add hosts, up to five.
pub(super) struct Scaled {
    pub(super) fleet: Fleet,
    /// Where the key is.
    pub(super) path: PathBuf,
    pub(super) joiner: SigningKey,
}

impl Scaled {
    #[track_caller]
    pub(super) fn up(hosts: usize) -> Self {
        let fleet = Fleet::up(hosts);
        fleet.release(&versioned("1"), "1");
        let joiner = SigningKey::generate(KeyAlgorithm::Ed25519).unwrap();
        let path = fleet.scratch().join("joiner.key");
        joiner.write_new(&path).unwrap();
        let public = path.with_extension("pub");
        fs::write(&public, joiner.public().to_string()).unwrap();
        let scaled = Self { fleet, path, joiner };
        scaled.edit_root(2, &["--joiner", text(&public), "--joiner-fleet", FLEET, "--joiner-hosts-max", "5"]);
        // From now on operators' rosters say when they were signed.
        scaled.apply(scaled.present().document().hosts().to_vec(), Some(now())).unwrap();
        scaled
    }

    /// Puts the next root into force on all hosts.
    #[track_caller]
    fn edit_root(&self, version: u64, edits: &[&str]) -> Output {
        let draft = self.fleet.scratch().join(format!("root-{version}.toml"));
        let edited = self.fleet.json(&[&["root", "edit", "--out", text(&draft)], edits].concat());
        let key = self.fleet.dir().join("keys/root.key");
        self.fleet.json(&["root", "sign", text(&draft), "--key", text(&key)]).expect_code(0);
        self.fleet.json(&["root", "apply", text(&draft.with_extension("json"))]).expect_code(0);
        for host in self.fleet.hosts() {
            let kept = host.folder().join(format!("roots/{version}.json"));
            until("the host follows the root", || kept.exists());
        }
        edited.expect_code(0)
    }

    /// The roster in force.
    #[track_caller]
    pub(super) fn present(&self) -> Authentic<Roster> {
        let raw = Caller::operator(&self.fleet).roster();
        self.fleet.trust_root().verify_held_roster(&raw, now()).unwrap()
    }

    /// Has the operator sign the next roster.
    fn apply(&self, hosts: Vec<Member>, issued: Option<UnixTime>) -> Result<(), tonic::Status> {
        let present = self.present();
        let (revision, policy) = (present.document().revision().next(), present.document().policy());
        let next = Roster::new(fleet_name(), revision, policy, hosts).unwrap();
        let next = issued.map_or_else(|| next.clone(), |issued| next.clone().issued(issued));
        Caller::operator(&self.fleet).apply_roster(signed(&next, &self.fleet.operator_key()))
    }

    /// The addition of these hosts to what is in force, signed by the joiner's key.
    pub(super) fn adding(&self, hosts: Vec<Member>) -> Vec<u8> {
        let present = self.present();
        let base = operators_roster(&present).unwrap();
        let addition = Addition::after(present.document(), present.payload_digest(), &base, hosts).unwrap();
        signed(&addition, &self.joiner)
    }

    /// Runs `muster roster add` as somebody with a pipeline's certificate.
    fn add(&self, pipeline: &Path, hosts: &[&str]) -> Output {
        let arguments =
            [&["roster", "add"], hosts, &["--key", text(&self.path), "--output", "json"]].concat();
        run(&arguments, &[("MUSTER_CONTEXT", text(pipeline))])
    }

    /// A context with a pipeline's certificate.
    #[track_caller]
    fn pipeline(&self) -> PathBuf {
        self.fleet.json(&["operator", "add", "autoscaler", "--role", "pipeline"]).expect_code(0);
        self.fleet.dir().join("people/autoscaler/context.toml")
    }

    /// Enrols a machine and starts it.
    #[track_caller]
    fn enrol(&self, name: &str) -> Host {
        self.fleet.enrol(name)
    }
}

pub(super) fn fleet_name() -> FleetName {
    FleetName::new(FLEET).unwrap()
}

pub(super) fn roster_ref(roster: &Authentic<Roster>) -> RosterRef {
    let hosts = u32::try_from(roster.document().hosts().len()).unwrap();
    RosterRef { digest: roster.payload_digest(), revision: roster.document().revision(), hosts }
}

/// A host of which there is a key and no machine.
pub(super) fn made_up(number: u8) -> (Member, SigningKey) {
    let key = SigningKey::generate(KeyAlgorithm::Ed25519).unwrap();
    let name = HostName::new(&format!("host-{number}")).unwrap();
    (Member { name, attestation_key: key.public().clone() }, key)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_host_that_a_pipeline_adds_comes_up_dark_is_let_in_and_flips_with_the_others() {
    let scaled = Scaled::up(3);
    let (fleet, pipeline) = (&scaled.fleet, scaled.pipeline());
    let host = scaled.enrol("host-4");
    until("it has enrolled and waits", || fleet.coordinator().log().contains("host-not-in-roster"));
    let added = scaled.add(&pipeline, &["host-4"]).expect_code(0);
    let json = added.json();
    assert_eq!(
        (&json["revision"], &json["hosts"], &json["room"]),
        (&3.into(), &4.into(), &1.into()),
        "{added}"
    );
    fleet.wait_connected(4);
    assert_eq!(host.serves(), None, "it has nothing to serve yet");
    let again = scaled.add(&pipeline, &["host-4"]);
    assert_eq!(again.code, 11, "it waits no more, and no key was named: {again}");
    let key = SigningKey::read(&host.folder().join("attestation.key")).unwrap().public().to_string();
    let again = scaled.add(&pipeline, &[&format!("host-4={key}")]).expect_code(0).json();
    assert_eq!((&again["revision"], &again["existing"][0]), (&3.into(), &"host-4".into()), "{again}");

    let two = fleet.push(&versioned("2"), "2");
    fleet.json(&["deploy", "1"]).expect_code(0);
    until("it is let in", || host.serves().is_some() && host.serves() == fleet.host(1).serves());
    fleet.json(&["deploy", "2"]).expect_code(0);
    fleet.json(&["flip", "2"]).expect_code(0);
    fleet.assert_all_serve(&two);
    assert_eq!(host.serves().as_deref(), Some(two.as_str()));
    receipt_holds_offline(fleet);
    everybody_can_read_it(&scaled);

    // A coordinator that was restarted leads with it, and one that knows nothing has it from the hosts.
    fleet.coordinator().kill();
    fleet.coordinator().start(&[]);
    fleet.wait_connected(4);
    fleet.lose_coordinator();
    // It pins the first root, which names no joiner.
    fleet.json(&["root", "apply", text(&fleet.scratch().join("root-2.json"))]).expect_code(0);
    fleet.rebuild();
    let status = fleet.json(&["status"]).expect_code(0).json();
    assert_eq!(status["additions"]["hosts"][0], "host-4", "{status}");
    // What operators sign next takes its place.
    fleet.wait_connected(4);
    scaled.apply(scaled.present().document().hosts().to_vec(), Some(now())).unwrap();
    let status = fleet.json(&["status"]).expect_code(0).json();
    assert_eq!(status["additions"]["hosts"].as_array().map(Vec::len), Some(0), "{status}");
    assert_eq!(status["additions"]["base_revision"], 4, "{status}");
    let three = fleet.release(&versioned("3"), "3");
    fleet.assert_all_serve(&three);
    assert_eq!(host.serves().as_deref(), Some(three.as_str()));
}

/// A folder with the receipt and the root document, and nothing else.
#[track_caller]
fn receipt_holds_offline(fleet: &Fleet) {
    let folder = tempfile::tempdir().unwrap();
    let (path, root) = (folder.path().join("flip.receipt"), folder.path().join("root.json"));
    fleet.json(&["receipt", "show", "--out", text(&path)]).expect_code(0);
    fs::copy(fleet.dir().join("root.json"), &root).unwrap();
    let verify = || {
        let output = std::process::Command::new(program("muster"))
            .args(["receipt", "verify", "flip.receipt", "--root", "root.json"])
            .current_dir(folder.path())
            .env_clear()
            .output()
            .unwrap();
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        (output.status.code(), said)
    };
    let (code, said) = verify();
    assert!(code == Some(0) && said.contains("all 4 hosts of demo"), "{said}");
    assert!(said.contains("a joiner had added host-4"), "{said}");
    // The root before it named no joiner.
    fs::copy(fleet.dir().join("root.1.json"), &root).unwrap();
    let (code, said) = verify();
    assert!(code == Some(12) && said.contains("lets nobody do that"), "{said}");
}

/// Who added whom, to what, and how many more may come.
#[track_caller]
fn everybody_can_read_it(scaled: &Scaled) {
    let fleet = &scaled.fleet;
    let shown = fleet.json(&["roster", "show"]).expect_code(0);
    assert_eq!(shown.text_at("/additions/hosts/0"), "host-4");
    assert_eq!(shown.text_at("/additions/by/0/name"), "joiner");
    let status = fleet.json(&["status"]).expect_code(0).json();
    let additions = &status["additions"];
    assert_eq!((&additions["base_revision"], &additions["room"]), (&2.into(), &1.into()), "{status}");
    assert_eq!(additions["hosts"][0], "host-4", "{status}");
    let log = fleet.json(&["audit", "log"]).expect_code(0).json().to_string();
    let said = format!("the joiners {} have added host-4 to revision 2", scaled.joiner.public());
    assert!(log.contains(&said) && log.contains("they may go to 5 hosts, 1 more"), "{log}");
    let root = fleet.muster(&["root", "show"]).expect_code(0).stdout;
    assert!(root.contains("may add hosts to demo, up to 5, within 30d"), "{root}");
}

/// What the coordinator says to a document in the hands of somebody with a pipeline's certificate.
#[track_caller]
fn refused(scaled: &Scaled, envelope: Vec<u8>, code: Code, words: &str) {
    let caller = Caller::connect(&scaled.fleet, &scaled.fleet.credentials(Role::Pipeline, "ci")).unwrap();
    let refusal = refusal_of(&caller.add_hosts(envelope).unwrap_err());
    assert_eq!(refusal.code(), Some(code), "{words}: {refusal}");
    assert!(refusal.to_string().contains(words), "no `{words}`: {refusal}");
}

#[test]
fn a_thief_of_the_key_can_add_hosts_up_to_the_limit_and_nothing_else() {
    let scaled = Scaled::up(3);
    let (fleet, joiner) = (&scaled.fleet, &scaled.joiner);
    let present = scaled.present();
    let hosts = present.document().hosts().to_vec();
    let (base, digest) = (operators_roster(&present).unwrap(), present.payload_digest());
    let (fourth, _) = made_up(4);
    let adding = |fleet: &FleetName, revision, follows, base: &str, hosts: Vec<Member>| {
        let made = Addition::new(fleet.clone(), RosterRevision(revision), follows, base, hosts);
        signed(&made.unwrap(), joiner)
    };
    let next = |hosts| adding(&fleet_name(), 3, digest, &base, hosts);
    let invalid = Code::SignatureInvalid;

    refused(&scaled, next([4, 5, 6].map(|n| made_up(n).0).into()), invalid, "makes 6 hosts");
    let another_key = Member { name: hosts[1].name.clone(), ..fourth.clone() };
    refused(&scaled, next(vec![another_key]), invalid, "host-2 is in the roster of the operators already");
    refused(&scaled, next(vec![hosts[1].clone()]), invalid, "host-2 is in the roster");
    let same_key = Member { attestation_key: hosts[1].attestation_key.clone(), ..fourth.clone() };
    refused(&scaled, next(vec![same_key]), invalid, "share an attestation key");
    let forged = |policy, hosts: &[Member]| {
        let forged = Roster::new(fleet_name(), RosterRevision(2), policy, hosts.to_vec()).unwrap();
        let envelope = String::from_utf8(signed(&forged.clone().issued(now()), joiner)).unwrap();
        adding(&fleet_name(), 3, Digest::of(&forged.to_bytes()), &envelope, vec![fourth.clone()])
    };
    let other_policy = Policy { timing: Timing::default(), ..present.document().policy() };
    let by_nobody = "signed by 0 of 1 operator keys";
    refused(&scaled, forged(other_policy, &hosts), invalid, by_nobody);
    refused(&scaled, forged(present.document().policy(), &hosts[..2]), invalid, by_nobody);
    let other = FleetName::new("other").unwrap();
    let of_other = Roster::new(other.clone(), RosterRevision(2), Policy::default(), hosts.clone()).unwrap();
    let of_other = String::from_utf8(signed(&of_other.issued(now()), &fleet.operator_key())).unwrap();
    let elsewhere = adding(&other, 3, Digest::of(b""), &of_other, vec![fourth.clone()]);
    refused(&scaled, elsewhere, invalid, "lets joiners add no hosts to other");
    let leap = adding(&fleet_name(), 40, digest, &base, vec![fourth.clone()]);
    refused(&scaled, leap, invalid, "leads to 3 at most");
    let by_stranger = SigningKey::generate(KeyAlgorithm::Ed25519).unwrap();
    let addition = Addition::after(present.document(), digest, &base, vec![fourth.clone()]).unwrap();
    refused(&scaled, signed(&addition, &by_stranger), invalid, "signed by 0 of 1 joiner keys");

    signs_nothing_else(&scaled, &present);
    let status = fleet.json(&["status"]).expect_code(0).json();
    assert_eq!(
        (&status["roster_revision"], &status["additions"]["room"]),
        (&2.into(), &2.into()),
        "{status}"
    );
    let one = fleet.host(1).serves().unwrap();
    fleet.assert_all_serve(&one);
}

/// No order, no roster, and nothing of the operators by way of the call for additions.
fn signs_nothing_else(scaled: &Scaled, present: &Authentic<Roster>) {
    let (fleet, operator) = (&scaled.fleet, Caller::operator(&scaled.fleet));
    let (policy, hosts) = (present.document().policy(), present.document().hosts().to_vec());
    let shorter = Roster::new(fleet_name(), RosterRevision(3), policy, hosts[..2].to_vec()).unwrap();
    let refusal = refusal_of(&operator.apply_roster(signed(&shorter, &scaled.joiner)).unwrap_err());
    assert_eq!(refusal.code(), Some(Code::SignatureInvalid), "{refusal}");
    let one: Digest = fleet.host(1).serves().unwrap().parse().unwrap();
    let order = order(2, roster_ref(present), Some(one), one);
    let refusal = refusal_of(&operator.flip(signed(&order, &scaled.joiner)).unwrap_err());
    assert!(matches!(refusal.code(), Some(Code::SignatureInvalid | Code::ApprovalMissing)), "{refusal}");
    let of_operators = Roster::new(fleet_name(), RosterRevision(3), policy, hosts).unwrap();
    let of_operators = signed(&of_operators.issued(now()), &fleet.operator_key());
    refused(scaled, of_operators, Code::NotAllowed, "operators apply what they sign");
}

#[test]
fn what_was_added_is_not_taken_back_and_goes_on_only_from_what_is_in_force() {
    let scaled = Scaled::up(1);
    let fleet = &scaled.fleet;
    let base = scaled.present();
    let text_of_base = operators_roster(&base).unwrap();
    let [second, third, fourth] = [2, 3, 4].map(|number| made_up(number).0);
    let caller = Caller::connect(fleet, &fleet.credentials(Role::Pipeline, "ci")).unwrap();
    let stale = scaled.adding(vec![third.clone()]);
    caller.add_hosts(scaled.adding(vec![second.clone()])).unwrap();
    refused(&scaled, stale, Code::RosterChanged, "the next one is 4");
    let follows = scaled.present().payload_digest();
    let next = |follows, hosts: &[&Member]| {
        let hosts = hosts.iter().map(|host| (*host).clone()).collect();
        let next = Addition::new(fleet_name(), RosterRevision(4), follows, &text_of_base, hosts);
        signed(&next.unwrap(), &scaled.joiner)
    };
    let changed = Code::RosterChanged;
    refused(&scaled, next(follows, &[&third, &fourth]), changed, "host-2 was added in revision 3");
    let other_key = Member { name: second.name.clone(), ..made_up(9).0 };
    refused(&scaled, next(follows, &[&other_key, &third]), changed, "host-2 was added in revision 3");
    refused(&scaled, next(base.payload_digest(), &[&second, &third]), changed, "another roster than the one");
    caller.add_hosts(next(follows, &[&second, &third])).unwrap();
    assert_eq!(scaled.present().document().hosts().len(), 3);

    // What operators signed long ago, or without a date, is not added to; what was added stays.
    let hosts = scaled.present().document().hosts().to_vec();
    let month_ms = 31 * 24 * 3600 * 1000;
    scaled.apply(hosts.clone(), Some(UnixTime(now().0 - month_ms))).unwrap();
    refused(&scaled, scaled.adding(vec![fourth.clone()]), Code::SignatureInvalid, "744 hours ago");
    scaled.apply(hosts.clone(), None).unwrap();
    refused(&scaled, scaled.adding(vec![fourth.clone()]), Code::SignatureInvalid, "does not say when");
    scaled.apply(hosts, Some(now())).unwrap();
    caller.add_hosts(scaled.adding(vec![fourth])).unwrap();

    // A key that the root names no more adds nothing more, and nothing is flipped with what it has added.
    scaled.edit_root(3, &["--no-joiners"]);
    let (fifth, _) = made_up(5);
    refused(&scaled, adding_by(&scaled, &text_of_base, fifth), Code::SignatureInvalid, "lets nobody do that");
    fleet.coordinator().kill();
    fleet.coordinator().start(&[]);
    fleet.wait_connected(1);
    assert_eq!(fleet.json(&["roster", "show"]).code, 12);
}

fn adding_by(scaled: &Scaled, base: &str, host: Member) -> Vec<u8> {
    let made = Addition::new(fleet_name(), RosterRevision(9), Digest::of(b""), base, vec![host]);
    signed(&made.unwrap(), &scaled.joiner)
}
