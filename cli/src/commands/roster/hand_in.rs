//! Rosters that a verb makes by itself: signed and handed in where one operator is enough, and left as a file elsewhere.

use std::path::{Path, PathBuf};

use muster_model::{Code, Fence, FleetName, HostName, Refusal, Roster, RosterRevision, Withdrawn};
use muster_proto::v1;
use muster_trust::{Signer, sign};

use super::aside::carry_on;
use crate::clock::unix_time;
use crate::commands::order::Approvals;
use crate::connect::{Session, answer};
use crate::error::CliError;
use crate::files::{Existing, write};

/// The roster that a verb makes of the last one.
pub(crate) struct Next {
    fleet: FleetName,
    before: Roster,
    parked: Vec<Withdrawn>,
    retired: Vec<Withdrawn>,
    members: Vec<muster_model::Member>,
    fenced: Vec<Fence>,
}

/// What became of it.
pub(crate) enum HandedIn {
    /// The coordinator has it.
    Applied { revision: RosterRevision },
    /// Others must sign it first.
    Drafted { file: PathBuf, approvals: Approvals },
}

impl Next {
    /// The same as the last roster that was handed in.
    pub(crate) async fn of(session: &Session, fleet: &FleetName) -> Result<Self, CliError> {
        let before = Roster::clone(Box::pin(session.last_roster(fleet)).await?.document());
        Ok(Self {
            fleet: fleet.clone(),
            parked: before.parked().to_vec(),
            retired: before.retired().to_vec(),
            members: before.hosts().to_vec(),
            fenced: Vec::new(),
            before,
        })
    }

    /// The last roster.
    pub(crate) const fn before(&self) -> &Roster {
        &self.before
    }

    /// Has a host serve no more, for a while.
    pub(crate) fn park(&mut self, host: &HostName, reason: &str) {
        if let Some(at) = self.members.iter().position(|it| it.name == *host) {
            let member = self.members.remove(at);
            self.parked.push(aside(member, reason));
        }
    }

    /// Has a parked host serve again.
    pub(crate) fn unpark(&mut self, host: &HostName) {
        if let Some(at) = self.parked.iter().position(|it| it.name == *host) {
            self.members.push(self.parked.remove(at).member());
        }
    }

    /// Has a host leave for good.
    pub(crate) fn retire(&mut self, host: &HostName, reason: &str) {
        let parked = self.parked.iter().position(|it| it.name == *host);
        let serving = self.members.iter().position(|it| it.name == *host);
        let member = match (parked, serving) {
            (Some(at), _) => self.parked.remove(at).member(),
            (None, Some(at)) => self.members.remove(at),
            (None, None) => return,
        };
        self.retired.push(aside(member, reason));
    }

    /// States that a host is off: nobody waits for it, or for its word.
    pub(crate) fn state_off(&mut self, host: &HostName, reason: &str) {
        let fence = Fence { host: host.clone(), reason: reason.to_owned(), stated_unix_ms: unix_time() };
        self.fenced.push(fence);
    }

    /// Signs it, and hands it in if that is enough.
    pub(crate) async fn hand_in(self, session: &Session, file: &Path) -> Result<HandedIn, CliError> {
        let doing = format!("change the roster of {}", self.fleet);
        let invalid = |source| CliError::Document { doing: doing.clone(), source };
        let (revision, policy) = (self.before.revision().next(), self.before.policy());
        if self.members.is_empty() {
            let detail = "it would leave nobody who serves, and nothing can be proven of an empty fleet";
            return Err(CliError::refused(doing, Refusal::of(Code::RosterEmpty, detail)));
        }
        let off: Vec<HostName> = self.fenced.iter().map(|fence| fence.host.clone()).collect();
        let (mut parked, mut retired) = (self.parked, self.retired);
        for list in [&mut parked, &mut retired] {
            carry_on(list, Some(&self.before), revision, &off);
        }
        let roster = Roster::new(self.fleet.clone(), revision, policy, self.members)
            .and_then(|roster| roster.setting_aside(parked, retired))
            .and_then(|roster| roster.stating(self.fenced))
            .map_err(invalid)?;
        // Joiners add only to what says when it was signed.
        let may_be_added_to = session.root().root().joiners.is_some();
        let roster = if may_be_added_to { roster.issued(unix_time()) } else { roster };
        let key = session.context().operator_key()?;
        let signers: [&dyn Signer; 1] = [&*key];
        let envelope = sign(&roster, &signers).map_err(CliError::trust(doing.as_str()))?;
        if session.operators_needed() > 1 {
            write(file, envelope.raw(), 0o644, Existing::Keep)?;
            let approvals = Approvals::of(session, &[key.public().clone()]);
            return Ok(HandedIn::Drafted { file: file.to_owned(), approvals });
        }
        let request = v1::ApplyRosterRequest { envelope: envelope.raw().to_vec(), fenced: Vec::new() };
        let mut client = session.operations();
        Box::pin(answer(&doing, client.apply_roster(request))).await?;
        session.has_handed_in(envelope.raw())?;
        Ok(HandedIn::Applied { revision })
    }
}

fn aside(member: muster_model::Member, reason: &str) -> Withdrawn {
    let muster_model::Member { name, attestation_key } = member;
    let (reason, since_unix_ms) = (reason.to_owned(), unix_time());
    Withdrawn { name, attestation_key, reason, since_unix_ms, since: None, fenced: false }
}
