//! Mandates as they are made, shown and looked at.

use std::path::PathBuf;

use muster_model::{Code, FleetName, HostName, Mandate, Refusal, SigningRole};
use muster_trust::{MandateProposal, Signer};
use serde::Serialize;

use crate::commands::Env;
use crate::commands::order::Approvals;
use crate::connect::Session;
use crate::error::CliError;
use crate::output::{Page, Report, Tone, counted};

/// The largest mandate that is read, in bytes.
pub(super) const MANDATE_BYTES_MAX: u64 = muster_trust::ENVELOPE_BYTES_MAX as u64;

/// What somebody signs.
pub(super) fn show(env: &Env, mandate: &Mandate) {
    let Mandate { fleet, incarnation, roster, reason, .. } = mandate;
    let hosts = counted(roster.hosts, "host");
    env.ui.say(format_args!(
        "a coordinator of the incarnation {incarnation} leads {fleet}, with {hosts} of revision {} of the roster, because: {reason}",
        roster.revision
    ));
    for host in &mandate.fenced {
        env.ui.warn(format_args!(
            "you state that the machine of {host} is off or wiped; nothing else keeps it from serving"
        ));
    }
}

/// The operator's key, if it may sign.
pub(super) fn operator_key(session: &Session, doing: &str) -> Result<Box<dyn Signer>, CliError> {
    let key = session.context().operator_key()?;
    if session.root().root().role(SigningRole::Operator).keys.contains(key.public()) {
        return Ok(key);
    }
    let refusal = Refusal::of(Code::NotAllowed, format!("{} is no operator's key", key.public()));
    Err(CliError::refused(doing, refusal))
}

/// A mandate with the signatures so far.
#[derive(Debug, Serialize)]
pub(super) struct Signed {
    pub(super) fleet: FleetName,
    pub(super) incarnation: u64,
    pub(super) roster_revision: u64,
    pub(super) hosts: u32,
    pub(super) fenced: Vec<HostName>,
    pub(super) reason: String,
    pub(super) approvals: Approvals,
    pub(super) complete: bool,
    pub(super) file: PathBuf,
}

impl Signed {
    pub(super) fn new(session: &Session, proposal: &MandateProposal, file: PathBuf) -> Self {
        let Mandate { fleet, incarnation, roster, fenced, reason, .. } = proposal.document.clone();
        Self {
            fleet,
            incarnation: incarnation.0,
            roster_revision: roster.revision.0,
            hosts: roster.hosts,
            fenced,
            reason,
            approvals: Approvals::of(session, &proposal.signers),
            complete: proposal.missing(session.root()) == 0,
            file,
        }
    }
}

impl Report for Signed {
    const SCHEMA: &'static str = "muster.coordinator-sign/1";

    fn print(&self, page: &mut Page) {
        page.line(format_args!("mandate for {}, incarnation {}", self.fleet, self.incarnation));
        for host in &self.fenced {
            page.labelled(Tone::Warning, "stated to be off", host);
        }
        self.approvals.print(page);
        let file = self.file.display();
        if self.complete {
            page.line(format_args!("Next: muster coordinator rebuild --mandate {file}"));
        } else {
            page.line(format_args!(
                "Next: give {file} to who must still sign: `muster coordinator sign {file}`"
            ));
        }
    }
}
