//! Hosts that left while they were away and are back in the roster: each is shown the roster that left it out before the one in force.
//!
//! Only a host that knows that it was left out may forget what it was armed or closed for, and come back dark. Nobody can prove that to
//! it but the operators' own roster.

use muster_model::{Blocker, Code, Digest, HostName, Member, Membership, Roster, Standing};

use super::record::MissedRoster;
use super::{Fleet, Out};

impl Fleet {
    /// The envelope of the roster that a host which is connected is to see: the coming one if that has it leave, or it would never
    /// close; one that left it out, if it does not know; and else the one in force.
    #[must_use]
    pub fn shown_to(&self, host: &HostName) -> Digest {
        match (&self.record.coming, self.record.missed_by(host)) {
            (Some(coming), _) if self.is_leaving(host) => coming.envelope,
            (_, Some(missed)) => missed.envelope,
            (_, None) => self.record.roster_envelope,
        }
    }

    /// The same for a host that asks for a session, and stands there.
    #[must_use]
    pub fn shown_to_joining(&self, host: &HostName, standing: &Standing) -> Digest {
        let is_told = self.is_leaving(host) || self.must_be_told(host, standing).is_some();
        if is_told { self.shown_to(host) } else { self.record.roster_envelope }
    }

    /// The roster that left a host out which stands there, if it does not know.
    pub(super) fn must_be_told(&self, host: &HostName, standing: &Standing) -> Option<&MissedRoster> {
        self.record.missed_by(host).filter(|missed| missed.is_news_to(standing))
    }

    /// A host of the roster has joined.
    pub(super) fn look_for_missed(&mut self, index: usize, standing: &Standing, out: &mut Out) {
        let host = self.hosts[index].name.clone();
        if self.must_be_told(&host, standing).is_some() {
            let trouble = self.untold(&host);
            self.hosts[index].trouble.extend(trouble);
        } else {
            self.has_caught_up(&host, out);
        }
    }

    /// A host knows that it was left out, or never has to.
    pub(super) fn has_caught_up(&mut self, host: &HostName, out: &mut Out) {
        if self.record.has_missed_nothing(host) {
            out.record_changed = true;
        }
    }

    /// Why nothing is asked of a host yet, and nothing offered to it.
    pub(super) fn untold(&self, host: &HostName) -> Option<Blocker> {
        let missed = self.record.missed_by(host)?;
        let detail = format!(
            "it was away while revision {} of the roster left it out: it is shown that, closes, and is admitted again",
            missed.revision
        );
        Some(Blocker::host(Code::HostDark, host, detail))
    }

    /// Before `next` takes the place of the roster in force: whoever comes with it may have been a member before, and not know that it
    /// has left.
    pub(super) fn note_missed(&mut self, next: &Roster) {
        let stays =
            |host: &HostName| next.member(host).is_some_and(|it| self.roster.member(host) == Some(it));
        self.record.missed.iter_mut().for_each(|missed| missed.hosts.retain(stays));
        self.record.missed.retain(|missed| !missed.hosts.is_empty());
        // Nobody has a history where nothing was ever served. A name that gets another key is another machine: one that had that key
        // before may have a history, one that is new has none, and misses nothing.
        if self.record.serving.is_none() {
            return;
        }
        let knows = |host: &HostName| {
            let known = self.parked_position(host).and_then(|index| self.parked[index].known.as_ref());
            matches!(known.map(|known| known.membership), Some(Membership::Excluded(_)))
        };
        let is_back = |it: &&Member| self.roster.member(&it.name) != Some(*it) && !knows(&it.name);
        let hosts: std::collections::BTreeSet<HostName> =
            next.hosts().iter().filter(is_back).map(|member| member.name.clone()).collect();
        if !hosts.is_empty() {
            let (revision, envelope) = (self.record.roster.revision, self.record.roster_envelope);
            self.record.missed.push(MissedRoster { revision, envelope, hosts });
        }
    }
}
