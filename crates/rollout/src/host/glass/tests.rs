use std::slice;

use muster_model::{
    BootTime, Document as _, Epoch, FleetName, FlipMode, GlassLeave, HostName, Incarnation, Leadership,
    Member, Policy, RolloutId, RosterRef, RosterRevision, Secret, Term,
};

use super::super::record::{Halted, Next};
use super::*;

const KEY: PublicKey = PublicKey::Ed25519([1; 32]);
const NOW: UnixTime = UnixTime(1_000_000);

/// What is shown on the host, to be spoiled.
#[derive(Clone)]
struct Scene {
    record: HostRecord,
    leave: GlassLeave,
    roster: Roster,
    key: PublicKey,
    guard: GuardState,
    halted: Option<HaltId>,
    now: UnixTime,
    id: Digest,
}

impl Scene {
    fn new() -> Self {
        let (fleet, host) = (FleetName::new("smars").unwrap(), HostName::new("host-1").unwrap());
        let member = Member { name: host.clone(), attestation_key: KEY };
        let roster = Roster::new(fleet.clone(), RosterRevision(3), Policy::default(), vec![member]).unwrap();
        let release = Digest::of(b"release");
        let mut record = HostRecord::first(fleet.clone(), host.clone());
        record.mode = Mode::Serve(Serving { epoch: Epoch(4), release: Some(release) });
        record.last_k = RolloutId(4);
        record.roster_revision = RosterRevision(3);
        record.leadership = Leadership { incarnation: Incarnation(1), term: Term(2) };
        let reference =
            RosterRef { digest: Digest::of(&roster.to_bytes()), revision: RosterRevision(3), hosts: 1 };
        let leave = GlassLeave {
            fleet,
            hosts: vec![host],
            release,
            epoch: Epoch(4),
            roster: reference,
            end_halt: false,
        };
        let (guard, id) = (GuardState::Dark, Digest::of(b"token"));
        Self { record, leave, roster, key: KEY, guard, halted: None, now: NOW, id }
    }

    #[expect(clippy::disallowed_methods, reason = "what is verified is the business of others")]
    fn judge(&self) -> Result<Unsealed, Refusal> {
        let validity = NOW..UnixTime(NOW.0 + 1_000);
        let token = GlassToken::new(self.leave.clone(), "night".to_owned(), validity).unwrap();
        let (token, roster) = (Verified::assert(token), Verified::assert(self.roster.clone()));
        self.record.break_glass(&GlassCase {
            token: &token,
            id: self.id,
            signers: slice::from_ref(&KEY),
            roster: &roster,
            roster_digest: Digest::of(&self.roster.to_bytes()),
            key: &self.key,
            guard: self.guard,
            halted: self.halted,
            now: self.now,
        })
    }
}

/// The code that a spoiled scene is refused with.
fn refused(spoil: impl FnOnce(&mut Scene)) -> (Code, String) {
    let mut scene = Scene::new();
    spoil(&mut scene);
    let refusal = scene.judge().expect_err("it is spoiled");
    (refusal.code().unwrap(), refusal.to_string())
}

#[test]
fn a_dark_host_starts_what_it_served_last_and_keeps_the_mark() {
    let scene = Scene::new();
    let unsealed = scene.judge().unwrap();
    assert_eq!((unsealed.epoch, unsealed.release), (Epoch(4), Digest::of(b"release")));
    assert_eq!(unsealed.resume, Resume::No);
    let used = &unsealed.record.glass[0];
    assert_eq!((used.id, used.at_unix_ms, used.settled), (scene.id, NOW, false));
    assert_eq!((used.reason.as_str(), used.signers.as_slice()), ("night", slice::from_ref(&KEY)));
    assert!(unsealed.record.is_glass_broken() && unsealed.record.standing().is_glass_broken());
    assert_eq!(
        HostRecord { glass: Vec::new(), ..unsealed.record.clone() },
        scene.record,
        "nothing else changes"
    );
    let text = serde_json::to_string(&scene.record).unwrap();
    assert!(!text.contains("glass"), "an older agent reads what has no mark");
    let read: HostRecord = serde_json::from_str(&serde_json::to_string(&unsealed.record).unwrap()).unwrap();
    assert_eq!(read, unsealed.record);
}

#[test]
fn a_token_for_anything_else_is_refused_by_name() {
    let token = Code::GlassTokenRefused;
    let is = |(code, text): (Code, String), expected, says: &str| {
        assert!(code == expected && text.contains(says), "{code:?}: {text}");
    };
    is(refused(|it| it.leave.fleet = FleetName::new("other").unwrap()), token, "for the fleet other");
    is(refused(|it| it.leave.hosts = vec![HostName::new("host-2").unwrap()]), token, "not for this host");
    is(refused(|it| it.now = UnixTime(NOW.0 - 1)), token, "does not hold yet");
    is(refused(|it| it.now = UnixTime(NOW.0 + 1_000)), token, "has expired");
    is(refused(|it| it.leave.release = Digest::of(b"other")), token, "starts nothing else");
    is(refused(|it| it.leave.epoch = Epoch(5)), token, "starts nothing else");
    is(refused(|it| it.leave.roster.digest = Digest::of(b"other")), Code::RosterChanged, "another one");
    is(refused(|it| it.record.roster_revision = RosterRevision(4)), Code::RosterChanged, "seen revision 4");
    is(refused(|it| it.key = PublicKey::Ed25519([2; 32])), Code::HostNotInRoster, "this machine");
    let excluded = Membership::Excluded(RosterRevision(3));
    is(refused(|it| it.record.membership = excluded), Code::HostNotInRoster, "this machine");
    is(refused(|it| it.record.membership = Membership::Returned), Code::HostNotInRoster, "this machine");
    is(refused(|it| it.record.history = History::Lost), Code::HistoryLost, "damaged");
    is(refused(|it| it.guard = GuardState::Unknown), Code::GuardFailed, "guard");
    let open = GuardState::Open(Epoch(4), Digest::of(b"release"));
    is(refused(|it| it.guard = open), Code::AlreadyServing, "serves already");
}

#[test]
fn a_host_that_has_promised_anything_is_started_by_no_token() {
    let next = Next {
        k: RolloutId(5),
        epoch: Epoch(5),
        release: Digest::of(b"next"),
        closing: muster_model::Closing::of_commitments([&Secret::from_bytes([1; 32]).commitment()]),
        secret: Secret::from_bytes([1; 32]),
        max_lapsed: 1,
        mode: FlipMode::Strict,
    };
    let serving = Serving { epoch: Epoch(4), release: Some(Digest::of(b"release")) };
    let armed = Mode::Armed { k: RolloutId(5), serving, next, switch: None };
    let closed = Mode::Closed { k: RolloutId(5), next, fallback: None, at_boot_ms: BootTime(1).0 };
    for (mode, says) in [(armed, "armed for rollout 5"), (closed, "closed for rollout 5")] {
        let (code, text) = refused(|it| it.record.mode = mode);
        assert!(code == Code::WrongState && text.contains(says), "{text}");
    }
}

#[test]
fn a_token_counts_once_also_where_it_was_settled() {
    let mut scene = Scene::new();
    scene.record = scene.judge().unwrap().record;
    assert!(scene.judge().unwrap_err().to_string().contains("used on this host before"));
    scene.record.glass[0].settled = true;
    assert!(scene.judge().unwrap_err().to_string().contains("used on this host before"));
    scene.id = Digest::of(b"another");
    assert_eq!(scene.judge().unwrap().record.glass.len(), 2);
}

#[test]
fn what_is_kept_of_tokens_is_bounded_and_never_forgotten_too_soon() {
    let mut scene = Scene::new();
    for number in 0..BrokenGlass::KEPT_MAX {
        scene.id = Digest::of(&number.to_be_bytes());
        scene.record = scene.judge().unwrap().record;
        scene.record.glass[number].settled = true;
    }
    scene.id = Digest::of(b"one more");
    assert!(scene.judge().unwrap_err().to_string().contains("not more are"));
    // Once they must have expired, they make room.
    scene.record.glass[0].at_unix_ms = UnixTime(0);
    let shift = |used: &mut BrokenGlass| used.at_unix_ms = UnixTime(0);
    scene.record.glass.iter_mut().skip(1).for_each(shift);
    scene.now = UnixTime(NOW.0 + 1);
    assert!(scene.judge().is_err(), "a quarter of an hour is no week");
    assert!(!is_kept(&scene.record.glass[0], UnixTime(GlassToken::VALIDITY_MS_MAX)));
    assert!(is_kept(&scene.record.glass[0], UnixTime(GlassToken::VALIDITY_MS_MAX - 1)));
    scene.record.glass[0].settled = false;
    assert!(is_kept(&scene.record.glass[0], UnixTime(u64::MAX)), "what is not settled stays");
}

#[test]
fn a_halt_ends_only_where_the_token_says_so() {
    for (by_guard, by_record) in [(true, false), (false, true), (true, true)] {
        let halt = |scene: &mut Scene| {
            scene.halted = by_guard.then_some(HaltId(7));
            scene.record.halted = by_record.then_some(Halted { after: RolloutId(4), halt: None });
        };
        assert_eq!(refused(halt).0, Code::Halted);
        let mut scene = Scene::new();
        halt(&mut scene);
        scene.leave.end_halt = true;
        let unsealed = scene.judge().unwrap();
        assert_eq!(unsealed.record.halted, None);
        assert_eq!(unsealed.resume, Resume::Yes(by_guard.then_some(HaltId(7))));
    }
}
