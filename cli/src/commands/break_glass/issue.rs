use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use muster_model::{Code, Epoch, GlassLeave, GlassToken, HostName, Refusal};
use muster_trust::{Signer, sign};

use super::token::{TokenView, announce, operator_key};
use crate::args::{FleetArg, duration};
use crate::clock::unix_time;
use crate::commands::Env;
use crate::connect::roster_ref;
use crate::error::CliError;
use crate::exit::Exit;
use crate::files::{Existing, write};
use crate::resolve::ReleaseName;

/// Make a token that lets hosts start what the fleet serves with no coordinator, once each.
///
/// Make it ahead, while there is a coordinator: it names the release, the epoch and the roster of now, and fits no other. Whoever
/// has it can start the release on these hosts while it holds, so make it short, and keep it as you keep a key.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  muster break-glass issue --host host-5 --release 1.0 --valid 12h --reason night --out glass.json
  muster break-glass issue --host host-5 --host host-6 --release 1.0 --reason night --end-halt")]
pub(crate) struct Issue {
    #[command(flatten)]
    fleet: FleetArg,
    /// A host that may use it, of the roster in force. May be repeated
    #[arg(long, value_name = "HOST", required = true)]
    host: Vec<HostName>,
    /// The release: a version, `sha256:…`, or a prefix of its digest
    #[arg(long, value_name = "RELEASE")]
    release: ReleaseName,
    /// The epoch in which the fleet will serve it, for a release that it does not serve yet [default: the present one]
    #[arg(long, value_name = "N")]
    epoch: Option<u64>,
    /// How long it holds, at most 7 days
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "12h")]
    valid: Duration,
    /// Let it end a halt of the host as well
    #[arg(long)]
    end_halt: bool,
    /// Why it is made, for those who find it used
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// The file for the token with your signature
    #[arg(long, value_name = "FILE", default_value = "glass.json")]
    out: PathBuf,
}

impl Issue {
    pub(super) async fn run(self, env: &Env) -> Result<Exit, CliError> {
        let session = env.session().await?;
        let fleet = session.fleet(self.fleet.fleet.clone()).await?;
        let doing = format!("issue a break-glass token for {fleet}");
        let root = session.root();
        let key = operator_key(session.context(), root, &doing)?;
        let roster = session.roster(&fleet).await?;
        if let Some(host) = self.host.iter().find(|host| roster.document().member(host).is_none()) {
            let detail =
                format!("revision {} of the roster does not have {host} serve", roster.document().revision());
            return Err(CliError::refused(doing, Refusal::of(Code::HostNotInRoster, detail)));
        }
        let release = session.release(&fleet, &self.release).await?;
        let epoch = match (self.epoch, release.serving) {
            (Some(epoch), _) => epoch,
            (None, true) => session.status(&fleet).await?.epoch,
            (None, false) => {
                let detail = format!(
                    "{fleet} does not serve {} at present, and a host starts only what it has served last: name what is \
                     served, or with --epoch the epoch in which it will be",
                    release.release.version
                );
                return Err(CliError::refused(doing, Refusal::of(Code::StaleEpoch, detail)));
            }
        };
        let leave = GlassLeave {
            fleet,
            hosts: self.host,
            release: release.release.manifest,
            epoch: Epoch(epoch),
            roster: roster_ref(&roster),
            end_halt: self.end_halt,
        };
        let now = unix_time();
        let token = GlassToken::new(leave, self.reason, now..now.after(self.valid))
            .map_err(|source| CliError::Document { doing: doing.clone(), source })?;
        announce(env, &token);
        let signers: [&dyn Signer; 1] = [&*key];
        let signed = sign(&token, &signers).map_err(CliError::trust(doing.as_str()))?;
        let proposal = root.review_glass_token(signed.raw(), now).map_err(CliError::trust(doing))?;
        write(&self.out, proposal.envelope.raw(), 0o600, Existing::Keep)?;
        env.ui.report(&TokenView::new(root, &proposal, self.out))?;
        Ok(Exit::Proven)
    }
}
