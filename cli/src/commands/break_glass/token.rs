//! Tokens as they are read, signed and looked at. No coordinator is asked: there may be none.

use std::path::{Path, PathBuf};

use muster_model::{Code, Digest, FleetName, GlassToken, HostName, Refusal, SigningRole};
use muster_trust::{GlassTokenProposal, Signer, TrustRoot};
use serde::Serialize;

use crate::clock::{date_text, unix_time};
use crate::commands::Env;
use crate::commands::order::Approvals;
use crate::context::Context;
use crate::error::CliError;
use crate::files::read_bounded;
use crate::output::{Page, Report, Tone, printable};

/// The largest token that is read, in bytes.
pub(super) const TOKEN_BYTES_MAX: u64 = muster_trust::ENVELOPE_BYTES_MAX as u64;

/// Reads a token that some operator has signed, and maybe not enough of them.
pub(super) fn read(root: &TrustRoot, file: &Path) -> Result<GlassTokenProposal, CliError> {
    review(root, file, &read_bounded(file, TOKEN_BYTES_MAX)?)
}

/// The same for bytes that were read.
pub(super) fn review(root: &TrustRoot, file: &Path, bytes: &[u8]) -> Result<GlassTokenProposal, CliError> {
    let doing = format!("read the token {}", file.display());
    root.review_glass_token(bytes, unix_time()).map_err(CliError::trust(doing))
}

/// The operator's key, if it may sign.
pub(super) fn operator_key(
    context: &Context,
    root: &TrustRoot,
    doing: &str,
) -> Result<Box<dyn Signer>, CliError> {
    let key = context.operator_key()?;
    if root.root().role(SigningRole::Operator).keys.contains(key.public()) {
        return Ok(key);
    }
    let refusal = Refusal::of(Code::NotAllowed, format!("{} is no operator's key", key.public()));
    Err(CliError::refused(doing, refusal))
}

/// What somebody is about to sign.
pub(super) fn announce(env: &Env, token: &GlassToken) {
    let GlassToken { fleet, hosts, release, epoch, expires_unix_ms, .. } = token;
    env.ui.say(format_args!(
        "until {}, {} may start {release} of {fleet}, in epoch {epoch}, with no coordinator",
        date_text(*expires_unix_ms),
        names(hosts)
    ));
    env.ui.warn(
        "nothing proves then that no other host serves another release; whoever has the token can use it",
    );
}

/// A token with the signatures so far.
#[derive(Debug, Serialize)]
pub(super) struct TokenView {
    id: Digest,
    fleet: FleetName,
    hosts: Vec<HostName>,
    release: Digest,
    epoch: u64,
    roster_revision: u64,
    roster_digest: Digest,
    end_halt: bool,
    reason: String,
    not_before: String,
    expires: String,
    expired: bool,
    approvals: Approvals,
    complete: bool,
    file: PathBuf,
}

impl TokenView {
    pub(super) fn new(root: &TrustRoot, proposal: &GlassTokenProposal, file: PathBuf) -> Self {
        let token = proposal.document.clone();
        Self {
            id: proposal.payload_digest,
            fleet: token.fleet,
            hosts: token.hosts,
            release: token.release,
            epoch: token.epoch.0,
            roster_revision: token.roster.revision.0,
            roster_digest: token.roster.digest,
            end_halt: token.end_halt,
            reason: token.reason,
            not_before: date_text(token.not_before_unix_ms),
            expires: date_text(token.expires_unix_ms),
            expired: unix_time() >= token.expires_unix_ms,
            approvals: Approvals::by_root(root.root(), &proposal.signers),
            complete: proposal.missing(root) == 0,
            file,
        }
    }
}

impl Report for TokenView {
    const SCHEMA: &'static str = "muster.break-glass-token/1";

    fn print(&self, page: &mut Page) {
        let Self { fleet, release, epoch, .. } = self;
        page.line(format_args!("token    {}", self.id));
        page.line(format_args!("for      {} of {fleet}", names(&self.hosts)));
        page.line(format_args!("starts   {release}, in epoch {epoch}, once on each host"));
        page.line(format_args!("roster   revision {} ({})", self.roster_revision, self.roster_digest));
        page.line(format_args!("holds    from {} until {}", self.not_before, self.expires));
        page.line(format_args!("because  {}", printable(&self.reason)));
        if self.end_halt {
            page.labelled(Tone::Warning, "halt", "it ends a halt of the host as well");
        }
        self.approvals.print(page);
        let file = self.file.display();
        if self.expired {
            page.toned(Tone::Bad, "it has expired: issue another one");
        } else if self.complete {
            page.line(format_args!(
                "Next: keep {file} where who is called at night finds it, and nobody else; on a dark host: \
                 `muster-agent break-glass {fleet} --token FILE`"
            ));
        } else {
            page.line(format_args!(
                "Next: give {file} to who must still sign: `muster break-glass sign {file}`"
            ));
        }
    }
}

fn names(hosts: &[HostName]) -> String {
    hosts.iter().map(HostName::as_str).collect::<Vec<_>>().join(", ")
}
