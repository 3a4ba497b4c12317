use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use muster_model::{Blocker, BrokenGlass, Code, Digest, FleetName, GlassSettlement, HostName, Refusal};
use muster_proto::{convert, v1};
use muster_trust::{Signer, sign};
use serde::Serialize;
use tokio::time::Instant;

use super::settlement::{SettlementView, announce, review};
use super::token::{TOKEN_BYTES_MAX, operator_key};
use crate::args::{FleetArg, duration};
use crate::clock::unix_time;
use crate::commands::Env;
use crate::connect::{Session, answer};
use crate::error::CliError;
use crate::exit::Exit;
use crate::files::{Existing, read_bounded, write};
use crate::output::{Page, Report, Tone};

/// How often it is looked whether the host has taken note.
const INTERVAL: Duration = Duration::from_millis(100);

/// State that you have looked at what a host started without a coordinator, so that it takes part in rollouts again.
///
/// The host has to be connected. If it serves what the fleet serves, it goes on; if it had to stop, it is admitted again. Where several
/// operators must sign, the file with your signature is written, and nothing changes before all have signed.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  muster break-glass settle host-5 --reason checked
  muster break-glass settle --settlement settlement.json   # signed by all who must")]
pub(crate) struct Settle {
    /// The host
    #[arg(value_name = "HOST", required_unless_present = "settlement", requires = "reason")]
    host: Option<HostName>,
    #[command(flatten)]
    fleet: FleetArg,
    /// What you have found
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// A settlement that enough operators have signed with `muster break-glass sign`
    #[arg(long, value_name = "FILE", conflicts_with_all = ["host", "reason"])]
    settlement: Option<PathBuf>,
    /// Where several operators must sign: the file for the settlement with your signature
    #[arg(long, value_name = "FILE", default_value = "settlement.json")]
    out: PathBuf,
    /// How long to wait until the host has taken note
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "15s")]
    timeout: Duration,
}

impl Settle {
    pub(super) async fn run(self, env: &Env) -> Result<Exit, CliError> {
        let session = env.session().await?;
        let (settlement, envelope) = match (&self.settlement, &self.host) {
            (Some(file), _) => {
                let bytes = read_bounded(file, TOKEN_BYTES_MAX)?;
                (review(session.root(), file, &bytes)?.document, bytes)
            }
            (None, Some(host)) => match self.make(env, &session, host).await? {
                Made::Complete(settlement, envelope) => (*settlement, envelope),
                Made::Incomplete => return Ok(Exit::Proven),
            },
            (None, None) => {
                return Err(CliError::Usage {
                    what: "no host was named".to_owned(),
                    next: "name the host whose start is settled, or a file with --settlement".to_owned(),
                });
            }
        };
        let doing = format!("settle what {} started", settlement.host);
        let mut client = session.operations();
        Box::pin(answer(&doing, client.settle_glass(v1::SettleGlassRequest { envelope }))).await?;
        taken_note(&session, &settlement, self.timeout).await?;
        let GlassSettlement { fleet, host, tokens, .. } = settlement;
        env.ui.report(&Settled { fleet, host, tokens })?;
        Ok(Exit::Proven)
    }

    /// Makes a settlement of all that the host tells of, and signs it.
    async fn make(&self, env: &Env, session: &Session, host: &HostName) -> Result<Made, CliError> {
        let doing = format!("settle what {host} started");
        let fleet = session.fleet(self.fleet.fleet.clone()).await?;
        let root = session.root();
        let key = operator_key(session.context(), root, &doing)?;
        let used = unsettled(session, &fleet, host).await?;
        if used.is_empty() {
            let detail = "it tells of nothing that it started without a coordinator and that is not settled";
            let refusal = Refusal::because(Blocker::host(Code::NothingToReconcile, host, detail));
            return Err(CliError::refused(doing, refusal));
        }
        let tokens = used.iter().map(|used| used.id).collect();
        let reason = self.reason.clone().unwrap_or_default();
        let settlement = GlassSettlement::new(fleet, host.clone(), tokens, reason)
            .map_err(|source| CliError::Document { doing: doing.clone(), source })?;
        announce(env, &settlement);
        let signers: [&dyn Signer; 1] = [&*key];
        let signed = sign(&settlement, &signers).map_err(CliError::trust(doing.as_str()))?;
        let proposal =
            root.review_glass_settlement(signed.raw(), unix_time()).map_err(CliError::trust(doing))?;
        if proposal.missing(root) == 0 {
            return Ok(Made::Complete(Box::new(settlement), proposal.envelope.raw().to_vec()));
        }
        write(&self.out, proposal.envelope.raw(), 0o644, Existing::Keep)?;
        env.ui.report(&SettlementView::new(root, &proposal, self.out.clone()))?;
        Ok(Made::Incomplete)
    }
}

/// A settlement that this operator has signed.
enum Made {
    /// Nobody else has to.
    Complete(Box<GlassSettlement>, Vec<u8>),
    /// Others still have to.
    Incomplete,
}

/// What a host tells of that is not settled.
async fn unsettled(
    session: &Session,
    fleet: &FleetName,
    host: &HostName,
) -> Result<Vec<BrokenGlass>, CliError> {
    let status = session.status(fleet).await?;
    let doing = format!("see what {host} of {fleet} has started");
    let Some(told) = status.hosts.into_iter().chain(status.parked).find(|it| it.host == host.as_str()) else {
        let refusal = Refusal::because(Blocker::host(Code::HostNotInRoster, host, "it is not in the roster"));
        return Err(CliError::refused(doing, refusal));
    };
    let mut used = convert::broken_glass(told.glass).map_err(CliError::answer(doing))?;
    used.retain(|used| !used.settled);
    Ok(used)
}

async fn taken_note(
    session: &Session,
    settlement: &GlassSettlement,
    timeout: Duration,
) -> Result<(), CliError> {
    let deadline = Instant::now() + timeout;
    loop {
        let left = unsettled(session, &settlement.fleet, &settlement.host).await?;
        if !left.iter().any(|used| settlement.tokens.contains(&used.id)) {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let detail =
                "it was told, and has not said yet that it has taken note; settle it again if it does not";
            let refusal = Refusal::because(Blocker::host(Code::HostSilent, &settlement.host, detail));
            return Err(CliError::refused(format!("settle what {} started", settlement.host), refusal));
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

#[derive(Debug, Serialize)]
struct Settled {
    fleet: FleetName,
    host: HostName,
    tokens: Vec<Digest>,
}

impl Report for Settled {
    const SCHEMA: &'static str = "muster.break-glass-settle/1";

    fn print(&self, page: &mut Page) {
        let Self { fleet, host, .. } = self;
        page.toned(Tone::Good, format_args!("{host} takes part in rollouts of {fleet} again"));
        page.line("Next: `muster audit` shows the override, and `muster audit reconcile ENTRY` ends the warning of it");
    }
}
