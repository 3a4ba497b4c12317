//! Breaking glass: a host starts what it served last on the operators' word, and what follows once it is heard.

use muster_model::{
    BrokenGlass, Code, Digest, Epoch, GlassLeave, GlassSettlement, GlassToken, Membership, Nonce, Refusal,
    RosterRef, ToHost, UnixTime, Verified,
};

use super::super::agent::next_head;
use super::super::link::Hold;
use super::super::machine::{GuardProcess, GuardWork};
use super::super::papers::{fleet_name, host_name, key_of};
use super::super::world::World;
use super::codes;
use crate::host::{Event, GlassCase, GuardState, Unsealed};

/// Host 3, on which glass is broken.
const DARK: usize = 2;

impl World {
    /// Somebody uses a token on a host whose agent is not there, for what it has served last.
    pub(in crate::tests) fn break_glass(&mut self, index: usize) -> Result<(), Refusal> {
        self.crash_agent(index);
        let now = self.unix_now();
        let machine = &self.machines[index];
        let guard = match machine.guard_process {
            GuardProcess::Up => machine.meaning(),
            GuardProcess::Down => GuardState::Unknown,
        };
        let serving = machine.record.last_served();
        if let Some(release) = serving.release {
            machine.examine(self.position_of(release))?;
        }
        let signed = self.rosters.iter().find(|it| it.roster.revision() == machine.record.roster_revision);
        let none = || Refusal::of(Code::GlassTokenRefused, "it keeps no roster");
        let signed = signed.ok_or_else(none)?;
        let leave = GlassLeave {
            fleet: fleet_name(),
            hosts: vec![machine.name.clone()],
            release: serving.release.unwrap_or_else(|| Digest::of(b"")),
            epoch: serving.epoch,
            roster: RosterRef { digest: signed.digest, revision: signed.roster.revision(), hosts: 3 },
            end_halt: false,
        };
        let unfit = |_| Refusal::of(Code::GlassTokenRefused, "there is nothing to start");
        let token = GlassToken::new(leave, "night".to_owned(), now..UnixTime(now.0 + 1)).map_err(unfit)?;
        let unsealed = machine.record.break_glass(&GlassCase {
            token: &Verified::assert(token),
            id: Digest::of(&[machine.record.glass.len() as u8]),
            signers: &[],
            roster: &signed.roster,
            roster_digest: signed.digest,
            key: &key_of(&machine.name),
            guard,
            halted: machine.lease.halted().map(|halt| halt.id),
            now,
        })?;
        let Unsealed { record, epoch, release, resume } = unsealed;
        let head = next_head(machine.journal, &mut self.random);
        let machine = &mut self.machines[index];
        machine.append(head, &record);
        machine.sync();
        machine.remember(head, record);
        machine.permitted = true;
        let answer = self.ask_guard(index, &GuardWork::Open { epoch, release, resume });
        let gone = || Refusal::of(Code::GuardFailed, "the guard died");
        let Some(Event::Opened { outcome, .. }) = answer else { return Err(gone()) };
        outcome.map(drop)
    }

    /// The host is dark after a boot, and nobody admits it.
    fn dark() -> Self {
        let mut world = Self::settled();
        world.reboot(DARK);
        world.machines[DARK].hold = Hold::Network;
        world
    }

    pub(in crate::tests) fn settle_glass(&mut self, index: usize) {
        let host = self.machines[index].name.clone();
        let tokens = self.machines[index].record.glass.iter().map(|used| used.id).collect();
        let settlement = GlassSettlement::new(fleet_name(), host, tokens, "looked at".to_owned());
        let settlement = Verified::assert(settlement.expect("valid"));
        self.host_event(index, Event::GlassSettled(Box::new(settlement)));
    }

    fn glass_of(&self, index: usize) -> &[BrokenGlass] {
        &self.machines[index].record.glass
    }
}

#[test]
fn a_fleet_flips_to_nothing_before_what_was_broken_is_settled() {
    let mut world = World::dark();
    world.break_glass(DARK).expect("it is dark");
    world.expect_serves(&host_name(3), 0, 1);
    world.machines[DARK].hold = Hold::Nothing;
    world.start_agent(DARK);
    world.rest();
    world.expect_all_serve(0, 1);
    let refusal = world.propose(1).expect_err("nobody has settled it");
    assert_eq!(codes(&refusal.blockers), [(Code::BrokenGlass, Some("host-3"))]);

    // A reboot, another leader and another agent forget nothing; what it serves it is admitted to.
    world.reboot(DARK);
    world.start_agent(DARK);
    world.crash_coordinator();
    world.start_coordinator();
    world.rest();
    world.expect_all_serve(0, 1);
    assert!(world.propose(1).is_err());
    // Nor does it take part in what somebody else makes of it.
    let k = world.coordinator.record.last_k.next();
    world.say(DARK, ToHost::Propose { k, to: world.releases[1].manifest });
    assert_eq!(world.refusal_of(DARK), Some(Code::BrokenGlass));

    world.settle_glass(DARK);
    assert!(world.glass_of(DARK).iter().all(|used| used.settled));
    world.crash_agent(DARK);
    world.start_agent(DARK);
    world.rest();
    world.flip(1);
    world.expect_all_serve(1, 2);
}

#[test]
fn a_host_that_serves_is_armed_or_closed_is_not_started() {
    let mut world = World::settled();
    let refused = world.break_glass(DARK).expect_err("it serves");
    assert_eq!(refused.code(), Some(Code::AlreadyServing));
    for phase in [super::is_arming as fn(&_) -> bool, super::is_decided] {
        let mut world = World::settled();
        world.flip_until(1, phase);
        world.expect_until(|world| !matches!(world.machines[DARK].record.mode, crate::host::Mode::Serve(_)));
        world.reboot(DARK);
        let refused = world.break_glass(DARK).expect_err("it has promised something");
        assert_eq!(refused.code(), Some(Code::WrongState), "{refused}");
        assert_eq!((world.machines[DARK].guard, world.glass_of(DARK)), (None, &[][..]));
    }
}

#[test]
fn a_host_of_which_the_fleet_was_told_that_it_is_off_stops_once_it_is_heard() {
    let mut world = World::settled();
    world.reboot(DARK);
    world.rest();
    world.fenced.insert(host_name(3));
    world.park(3).expect("it is stated to be off");
    world.rest();
    world.flip(1);
    world.break_glass(DARK).expect("it has not heard of that");
    world.expect_serves(&host_name(1), 1, 2);
    world.expect_serves(&host_name(3), 0, 1);
    world.start_agent(DARK);
    world.rest();
    assert_eq!((world.machines[DARK].guard, &world.violation), (None, &None));
    assert!(matches!(world.machines[DARK].record.membership, Membership::Excluded(_)));
    assert!(world.machines[DARK].record.is_glass_broken(), "the mark stays");
}

#[test]
fn a_host_that_is_offered_something_else_stops_and_comes_back_once_it_is_settled() {
    let mut world = World::dark();
    world.break_glass(DARK).expect("it is dark");
    world.machines[DARK].hold = Hold::Nothing;
    world.start_agent(DARK);
    world.rest();
    let nonce = world.machines[DARK].nonce.unwrap_or(Nonce::from_bytes([0; 32]));
    let other = ToHost::Admit { epoch: Epoch(2), release: world.releases[1].manifest, nonce };
    world.say(DARK, other);
    world.rest();
    assert_eq!(world.machines[DARK].guard, None, "it serves neither");
    assert_eq!(world.machines[DARK].record.membership, Membership::Returned);
    world.settle_glass(DARK);
    world.crash_agent(DARK);
    world.start_agent(DARK);
    world.rest();
    world.expect_all_serve(0, 1);
}

#[test]
fn what_was_broken_can_be_halted_and_stays_so() {
    let mut world = World::dark();
    world.break_glass(DARK).expect("it is dark");
    world.halt_by_hand(DARK);
    world.machines[DARK].hold = Hold::Nothing;
    world.start_agent(DARK);
    world.rest();
    assert_eq!(world.machines[DARK].guard, None);
    let refused = world.break_glass(DARK).expect_err("the token does not end a halt");
    assert_eq!(refused.code(), Some(Code::Halted));
}
