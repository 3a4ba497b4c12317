use std::path::PathBuf;

use clap::Args;
use muster_model::{Code, FleetName, Policy, Refusal, Roster, RosterRevision, SigningRole};
use muster_trust::{Envelope, Signer, add_signature, sign};
use serde::Serialize;

use super::apply::{Change, ROSTER_BYTES_MAX, Statement, draft, present};
use crate::clock::unix_time;
use crate::commands::Env;
use crate::commands::order::Approvals;
use crate::error::CliError;
use crate::exit::Exit;
use crate::files::{Existing, read_bounded, write};
use crate::output::{Format, Page, Report, counted};

/// Sign the next roster, after showing what it changes, and say who still must sign it.
///
/// Where several operators must sign, the first makes a file of it that the others add their signatures to.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  muster roster sign roster.toml
  muster roster sign roster.json")]
pub(crate) struct Sign {
    /// The roster: TOML for the first signature, then the JSON that this makes
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Write to this file [default: the FILE with the ending `.json`]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    statement: Statement,
}

impl Sign {
    pub(super) async fn run(self, env: &Env) -> Result<Exit, CliError> {
        let bytes = read_bounded(&self.file, ROSTER_BYTES_MAX)?;
        let session = env.session().await?;
        let doing = format!("sign {}", self.file.display());
        let trust = || CliError::trust(doing.as_str());
        let key = session.context().operator_key()?;
        if !session.root().root().role(SigningRole::Operator).keys.contains(key.public()) {
            let refusal = Refusal::of(Code::NotAllowed, format!("{} is no operator's key", key.public()));
            return Err(CliError::refused(doing, refusal));
        }
        let is_envelope = bytes.trim_ascii_start().starts_with(b"{");
        let (current, next, held): (_, Roster, Option<Envelope>) = if is_envelope {
            self.statement.refuse_late()?;
            let proposal = session.root().review_roster(&bytes, unix_time()).map_err(trust())?;
            let current = present(&session, proposal.document.fleet()).await?;
            (current, proposal.document, Some(proposal.envelope))
        } else {
            let (current, next) = draft(&session, &self.file, &bytes).await?;
            let before = current.as_ref().map(|roster| &**roster.document());
            let next = self.statement.made_in(next, before, session.root().root())?;
            (current, next, None)
        };
        let before = current.as_ref().map(|roster| &**roster.document());
        refuse_out_of_turn(before, &next).map_err(|refusal| CliError::refused(doing.as_str(), refusal))?;
        let change = Change::of(before, &next);
        if env.ui.format() == Format::Text {
            change.say(env);
        }
        let signers: [&dyn Signer; 1] = [&*key];
        let signed = match &held {
            Some(held) => add_signature::<Roster>(held, &*key),
            None => sign(&next, &signers),
        };
        let proposal =
            session.root().review_roster(signed.map_err(trust())?.raw(), unix_time()).map_err(trust())?;
        let out = self.out.unwrap_or_else(|| self.file.with_extension("json"));
        // What others have signed before is in it as well, so the file may be replaced.
        let existing = if held.is_some() && out == self.file { Existing::Replace } else { Existing::Keep };
        write(&out, proposal.envelope.raw(), 0o644, existing)?;
        env.ui.report(&Signed {
            fleet: next.fleet().clone(),
            revision: next.revision().0,
            hosts: next.hosts().len(),
            policy_before: before.map(Roster::policy).filter(|before| *before != next.policy()),
            policy: next.policy(),
            change,
            approvals: Approvals::of(&session, &proposal.signers),
            complete: proposal.missing(session.root()) == 0,
            file: out,
        })?;
        Ok(Exit::Proven)
    }
}

/// One that could never be applied is not signed.
fn refuse_out_of_turn(before: Option<&Roster>, next: &Roster) -> Result<(), Refusal> {
    let expected = before.map_or(RosterRevision(1), |before| before.revision().next());
    if next.revision() == expected {
        return Ok(());
    }
    let detail = format!("it is revision {}, and the next one is {expected}", next.revision());
    Err(Refusal::of(Code::RosterChanged, detail))
}

#[derive(Debug, Serialize)]
struct Signed {
    fleet: FleetName,
    revision: u64,
    hosts: usize,
    #[serde(flatten)]
    change: Change,
    policy: Policy,
    /// Only if it is another one.
    #[serde(skip_serializing_if = "Option::is_none")]
    policy_before: Option<Policy>,
    approvals: Approvals,
    complete: bool,
    file: PathBuf,
}

impl Report for Signed {
    const SCHEMA: &'static str = "muster.roster-sign/1";

    fn print(&self, page: &mut Page) {
        let hosts = counted(self.hosts, "host");
        page.line(format_args!("roster of {}, revision {} with {hosts}", self.fleet, self.revision));
        self.approvals.print(page);
        let file = self.file.display();
        if self.complete {
            page.line(format_args!("Next: muster roster apply {file}"));
        } else {
            page.line(format_args!("Next: give {file} to who must still sign: `muster roster sign {file}`"));
        }
    }
}
