//! The word of hosts that they have closed: N shrinks for a flip only once each host that is set aside has given its own.
//!
//! Hosts verify all of them by themselves in PREPARE. What is refused here would be refused there, later and without a hint.

use std::sync::Arc;

use muster_model::{
    Blocker, Code, HostName, Membership, PublicKey, Refusal, Roster, RosterRevision, SessionId, Withdrawal,
    Withdrawn,
};

use super::record::{RECORD_FORMAT, Record, WithdrawalRecord};
use super::{Fleet, Host, Out, PROTOCOL_OF_WITHDRAWALS};

impl Fleet {
    /// P14: a host has closed, and has signed that it has. Its word is kept before anything follows from it.
    pub(super) fn withdrew(
        &mut self,
        host: &HostName,
        session: SessionId,
        withdrawal: &Withdrawal,
        attestation_key: PublicKey,
        envelope: &Arc<str>,
        out: &mut Out,
    ) {
        let roster_revision = withdrawal.roster_revision;
        if let Err(blocker) = self.check_word(host, withdrawal, &attestation_key) {
            self.word_refused(host, session, blocker);
            return;
        }
        let is_known = self.withdrawals.get(host).is_some_and(|known| {
            known.attestation_key == attestation_key && known.roster_revision >= roster_revision
        });
        if !is_known {
            let (format, envelope) = (RECORD_FORMAT, envelope.as_ref().to_owned());
            let host = host.clone();
            let word = WithdrawalRecord { format, host, attestation_key, roster_revision, envelope };
            out.sessions.push(Record::Withdrawal(word.clone()));
            self.withdrawals.insert(word.host.clone(), word);
        }
        if let Some(index) = self.current(host, session) {
            self.withdrawn(index, roster_revision, out);
        } else if let Some(index) = self.current_parked(host, session) {
            self.parked[index].has_withdrawn(roster_revision);
        }
    }

    /// Whether a word may count: it is of a machine of a roster that is known, and of no later one. A later one would take the place of a
    /// word that does count.
    fn check_word(&self, host: &HostName, withdrawal: &Withdrawal, key: &PublicKey) -> Result<(), Blocker> {
        let refuse = |detail: String| Err(Blocker::host(Code::NotWithdrawn, host, detail));
        let rosters = || [Some(&self.roster), self.coming.as_ref()].into_iter().flatten();
        if withdrawal.host != *host || withdrawal.fleet != self.record.fleet {
            return refuse("its word that it has closed is of another host or fleet".to_owned());
        }
        if !rosters().any(|roster| roster.key_of(host) == Some(key)) {
            return refuse("its word that it has closed is not signed by its key in the roster".to_owned());
        }
        let newest = rosters().map(|roster| roster.revision()).max().unwrap_or_default();
        if withdrawal.roster_revision > newest {
            let (found, known) = (withdrawal.roster_revision, newest);
            return refuse(format!(
                "it withdrew at revision {found}, and the newest that is known here is {known}"
            ));
        }
        Ok(())
    }

    fn word_refused(&mut self, host: &HostName, session: SessionId, blocker: Blocker) {
        if let Some(index) = self.current(host, session) {
            self.hosts[index].trouble = vec![blocker];
        } else if let Some(index) = self.current_parked(host, session) {
            self.parked[index].trouble = vec![blocker];
        }
    }

    /// The word of a host that `roster` sets aside, if it stands for this entry.
    fn word_for(
        &self,
        roster: &Roster,
        entry: &Withdrawn,
        since: RosterRevision,
    ) -> Option<&WithdrawalRecord> {
        let word = self.withdrawals.get(&entry.name)?;
        let is_of_then = since <= word.roster_revision && word.roster_revision <= roster.revision();
        (is_of_then && word.attestation_key == entry.attestation_key).then_some(word)
    }

    /// Whether `roster` sets this host aside and needs its word, which has not come.
    pub(super) fn owes_word(&self, roster: &Roster, host: &HostName) -> bool {
        let owes = |(entry, since): (&Withdrawn, _)| {
            entry.name == *host && self.word_for(roster, entry, since).is_none()
        };
        roster.must_have_withdrawn().any(owes)
    }

    /// The envelopes that a flip under the roster in force needs, in order; the hosts of which there is none, otherwise.
    pub(super) fn words(&self) -> Result<Vec<&str>, Vec<Blocker>> {
        let (mut words, mut missing) = (Vec::new(), Vec::new());
        for (entry, since) in self.roster.must_have_withdrawn() {
            match self.word_for(&self.roster, entry, since) {
                Some(word) => words.push(word.envelope.as_str()),
                None => missing.push(unproven(&entry.name, since)),
            }
        }
        if missing.is_empty() { Ok(words) } else { Err(missing) }
    }

    /// Why nothing is flipped: hosts that are set aside and have not proven that they have closed, and agents that could not tell.
    #[must_use]
    pub fn unproven(&self) -> Vec<Blocker> {
        let mut blockers = self.words().err().unwrap_or_default();
        blockers.extend(self.too_old_for(&self.roster));
        blockers
    }

    /// A roster that says since when hosts are set aside is none to agents that do not know withdrawals.
    pub(super) fn check_agents(&self, next: &Roster) -> Result<(), Refusal> {
        let blockers = self.too_old_for(next);
        if blockers.is_empty() { Ok(()) } else { Err(Refusal { blockers }) }
    }

    fn too_old_for(&self, roster: &Roster) -> Vec<Blocker> {
        let mut aside = roster.parked().iter().chain(roster.retired());
        if !aside.any(|entry| entry.since.is_some()) {
            return Vec::new();
        }
        let too_old = |host: &Host| {
            let known = host.known.as_ref().filter(|_| host.session.is_some())?;
            let detail = format!(
                "its agent {} does not know the word of hosts that are set aside; update it",
                known.agent_version
            );
            let is_too_old = known.protocol < PROTOCOL_OF_WITHDRAWALS;
            is_too_old.then(|| Blocker::host(Code::AgentTooOld, &host.name, detail))
        };
        self.hosts.iter().chain(&self.parked).filter_map(too_old).collect()
    }
}

impl Host {
    /// It serves nothing, as it says.
    pub(super) fn has_withdrawn(&mut self, roster: RosterRevision) {
        self.serves(None);
        self.has_membership(Membership::Excluded(roster));
        self.trouble.clear();
    }
}

fn unproven(host: &HostName, since: RosterRevision) -> Blocker {
    let detail = format!(
        "revision {since} of the roster set it aside, and it has not said by its own signature that it has closed; state that it \
         is off if it cannot"
    );
    Blocker::host(Code::NotWithdrawn, host, detail)
}
