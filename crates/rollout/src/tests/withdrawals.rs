//! The word of simulated hosts that they have closed, and coordinators that lie about it.

use muster_model::{BootId, Digest, HostName, RolloutId, RosterRevision, UnixTime, Verified, Withdrawal};

use super::papers::{fleet_name, key_of};
use super::world::{Mistake, World};
use crate::fleet::Event;

/// What the envelope of a word begins with that its host has signed; the rest is its place.
pub(super) const WITHDRAWN: char = 'w';
/// The same of one that nobody has signed.
const FORGED: char = 'f';

impl World {
    /// The words in evidence, as every host verifies them; the first line that is not signed by its host's key otherwise.
    pub(super) fn withdrawals_in(&self, evidence: &[u8]) -> Result<Vec<Verified<Withdrawal>>, String> {
        let text = std::str::from_utf8(evidence).expect("the simulator's envelopes are text");
        let words = text.lines().filter(|line| line.starts_with([WITHDRAWN, FORGED]));
        let place = |line: &str| line[1..].parse::<usize>().expect("a position");
        let verify = |line: &str| match line.strip_prefix(WITHDRAWN) {
            Some(_) => Ok(self.withdrawals[place(line)].clone()),
            None if self.mistake == Some(Mistake::WithdrawalNotSigned) => {
                Ok(self.forged[place(line)].clone())
            }
            None => Err(line.to_owned()),
        };
        words.map(verify).collect()
    }

    /// A coordinator that was taken over says that a host has closed which was shown nothing.
    pub(super) fn forge_withdrawal(&mut self, host: &HostName, revision: RosterRevision) {
        let index = self.machines.iter().position(|machine| machine.name == *host).expect("a machine");
        let Some(session) = self.machines[index].session() else { return };
        let boot_id = BootId::new("00000000-0000-0000-0000-000000000000").expect("a UUID");
        let (host, closed) = (host.clone(), UnixTime(1));
        let word = Withdrawal::new(fleet_name(), host.clone(), revision, RolloutId(0), boot_id, closed);
        let envelope = format!("{FORGED}{}", self.forged.len()).into();
        let withdrawal = Verified::assert(word);
        self.forged.push(withdrawal.clone());
        let attestation_key = key_of(&host);
        self.coordinate(Event::Withdrew { host, session, withdrawal, attestation_key, envelope });
    }

    /// Where that is the mistake, a coordinator gives its own word for all who are asked to leave.
    pub(super) fn forge_withdrawals(&mut self) {
        if !self.lies_about_withdrawals() {
            return;
        }
        let Some(fleet) = &self.coordinator.fleet else { return };
        let Some(revision) = fleet.coming().map(|coming| coming.revision()) else { return };
        for host in fleet.awaited() {
            self.forge_withdrawal(&host, revision);
        }
    }

    /// And shows them no roster that leaves them out.
    pub(super) fn is_withheld(&self, host: &HostName, envelope: Digest) -> bool {
        let leaves_out = || {
            let shown = self.rosters.iter().find(|it| it.envelope == envelope);
            shown.is_some_and(|shown| shown.roster.member(host).is_none())
        };
        self.lies_about_withdrawals() && leaves_out()
    }

    /// Whether the coordinator says of whom a roster leaves out that it has closed. That this is so at once is no finding; what follows is.
    pub(super) fn lies_about_withdrawals(&self) -> bool {
        matches!(self.mistake, Some(Mistake::WithdrawalForged | Mistake::WithdrawalNotSigned))
    }
}
