use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use muster_model::{Code, FleetName, HostName, Incarnation, Mandate, Refusal, Roster};
use muster_proto::{convert, v1};
use muster_trust::{Authentic, Signer, sign};
use serde::Serialize;
use tokio::time::Instant;

use super::mandate::{MANDATE_BYTES_MAX, Signed, operator_key, show};
use crate::args::{FleetArg, duration};
use crate::clock::unix_time;
use crate::commands::Env;
use crate::connect::{Session, answer, roster_ref};
use crate::error::CliError;
use crate::exit::Exit;
use crate::files::{Existing, read_bounded, write};
use crate::output::{Page, Report, Tone, counted};

/// How often the coordinator is asked how far it has come.
const ASK_INTERVAL: Duration = Duration::from_millis(500);

const ROSTER_BYTES_MAX: u64 = muster_trust::ENVELOPE_BYTES_MAX as u64;

/// Have a new coordinator lead a fleet, with its state rebuilt from the hosts.
///
/// For a coordinator that was lost, whether or not there is a backup of it: start a new one, or one with a restored state, and
/// sign here that it leads. Hosts obey it only with that. It changes nothing before every host of the roster has told it what it
/// promised, and says whom it waits for; meanwhile hosts serve what they serve.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  muster coordinator rebuild --reason burned
  muster coordinator rebuild --reason burned --fenced host-5
  muster coordinator rebuild --mandate mandate.json   # signed by all who must")]
pub(crate) struct Rebuild {
    #[command(flatten)]
    fleet: FleetArg,
    /// Why there is a new coordinator, and how you know that a machine is off
    #[arg(long, value_name = "TEXT", required_unless_present = "mandate")]
    reason: Option<String>,
    /// State that the machine of this host is off or wiped, so that it need not be heard. May be repeated. Be sure: nothing else
    /// keeps it from serving what the fleet has left behind
    #[arg(long, value_name = "HOST", conflicts_with = "mandate")]
    fenced: Vec<HostName>,
    /// The signed roster in force [default: the newest that a host or the backup has kept]
    #[arg(long, value_name = "FILE")]
    roster: Option<PathBuf>,
    /// A mandate that enough operators have signed with `muster coordinator sign`
    #[arg(long, value_name = "FILE", conflicts_with = "reason")]
    mandate: Option<PathBuf>,
    /// Where several operators must sign: the file for the mandate with your signature
    #[arg(long, value_name = "FILE", default_value = "mandate.json")]
    out: PathBuf,
    /// How long to wait until the coordinator leads. It goes on hearing hosts afterwards
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "60s")]
    timeout: Duration,
}

impl Rebuild {
    pub(super) async fn run(self, env: &Env) -> Result<Exit, CliError> {
        let session = env.session().await?;
        let deadline = Instant::now() + self.timeout;
        let (mandate, envelope, roster) = match &self.mandate {
            Some(file) => {
                let bytes = read_bounded(file, MANDATE_BYTES_MAX)?;
                let doing = format!("use {}", file.display());
                let mandate =
                    session.root().verify_mandate(&bytes, unix_time()).map_err(CliError::trust(doing))?;
                let mandate = mandate.into_document().into_inner();
                let roster = self.roster(&session, &mandate.fleet, deadline).await?;
                (mandate, bytes, roster)
            }
            None => {
                let fleet = session.fleet(self.fleet.fleet.clone()).await?;
                let roster = self.roster(&session, &fleet, deadline).await?;
                match self.sign(env, &session, &roster).await? {
                    Made::Complete(mandate, envelope) => (*mandate, envelope, roster),
                    Made::Incomplete => return Ok(Exit::Proven),
                }
            }
        };
        let doing = format!("rebuild the coordinator of {}", mandate.fleet);
        let request =
            v1::RebuildFleetRequest { mandate_envelope: envelope, roster_envelope: roster.raw().to_vec() };
        let mut client = session.operations();
        Box::pin(answer(&doing, client.rebuild_fleet(request))).await?;
        wait(env, &session, &mandate, deadline).await?;
        env.ui.report(&Rebuilt {
            fleet: mandate.fleet,
            incarnation: mandate.incarnation.0,
            hosts: mandate.roster.hosts,
            fenced: mandate.fenced,
            solo: session.operators_needed() < 2,
        })?;
        Ok(Exit::Proven)
    }

    /// Makes a mandate for the coordinator that answers, and signs it.
    async fn sign(&self, env: &Env, session: &Session, roster: &Authentic<Roster>) -> Result<Made, CliError> {
        let fleet = roster.document().fleet().clone();
        let doing = format!("sign a mandate for {fleet}");
        let incarnation = survey(session, &fleet).await?.incarnation;
        let reason = self.reason.clone().unwrap_or_default();
        let (reference, fenced) = (roster_ref(roster), self.fenced.clone());
        let mandate = Mandate::new(fleet, Incarnation(incarnation), reference, fenced, reason)
            .map_err(|source| CliError::Document { doing: doing.clone(), source })?;
        let key = operator_key(session, &doing)?;
        show(env, &mandate);
        let signers: [&dyn Signer; 1] = [&*key];
        let signed = sign(&mandate, &signers).map_err(CliError::trust(doing.as_str()))?;
        if session.operators_needed() < 2 {
            return Ok(Made::Complete(Box::new(mandate), signed.raw().to_vec()));
        }
        let reviewed = session.root().review_mandate(signed.raw(), unix_time());
        let proposal = reviewed.map_err(CliError::trust(doing))?;
        write(&self.out, proposal.envelope.raw(), 0o644, Existing::Keep)?;
        env.ui.report(&Signed::new(session, &proposal, self.out.clone()))?;
        Ok(Made::Incomplete)
    }

    /// The signed roster: the file that was named, or the newest that the coordinator can find. Hosts come one by one.
    async fn roster(
        &self,
        session: &Session,
        fleet: &FleetName,
        deadline: Instant,
    ) -> Result<Authentic<Roster>, CliError> {
        let doing = format!("find the roster of {fleet}");
        let bytes = match &self.roster {
            Some(file) => read_bounded(file, ROSTER_BYTES_MAX)?,
            None => loop {
                let surveyed = survey(session, fleet).await?;
                if surveyed.leads {
                    let detail = format!("this coordinator leads {fleet}: there is nothing to be rebuilt");
                    return Err(CliError::refused(doing, Refusal::of(Code::WrongState, detail)));
                }
                if let Some(envelope) = surveyed.roster_envelope {
                    break envelope;
                }
                if Instant::now() >= deadline {
                    let detail = "no host that keeps it has come yet; name it with --roster";
                    return Err(CliError::refused(doing, Refusal::of(Code::RosterEmpty, detail)));
                }
                tokio::time::sleep(ASK_INTERVAL).await;
            },
        };
        let roster = session
            .root()
            .verify_held_roster(&bytes, unix_time())
            .map_err(CliError::trust(doing.as_str()))?;
        if roster.document().fleet() == fleet {
            return Ok(roster);
        }
        let what = format!("it is the roster of the fleet {}", roster.document().fleet());
        Err(CliError::Contradiction { doing, what })
    }
}

/// A mandate that this operator has signed.
enum Made {
    /// Nobody else has to.
    Complete(Box<Mandate>, Vec<u8>),
    /// Others still have to.
    Incomplete,
}

/// Waits until the coordinator leads, saying whom it waits for.
async fn wait(env: &Env, session: &Session, mandate: &Mandate, deadline: Instant) -> Result<(), CliError> {
    let doing = format!("lead {}", mandate.fleet);
    let mut said = String::new();
    loop {
        let surveyed = survey(session, &mandate.fleet).await?;
        if surveyed.leads {
            return Ok(());
        }
        let blockers = convert::blockers(surveyed.blockers).map_err(CliError::answer(doing.as_str()))?;
        let heard = surveyed.hosts.iter().filter(|host| host.heard).count();
        let refusal = Refusal { blockers };
        let now = format!("heard {heard} of {}", counted(mandate.roster.hosts, "host"));
        let now = if refusal.blockers.is_empty() { now } else { format!("{now}; {refusal}") };
        if now != said {
            env.ui.say(&now);
            said = now;
        }
        if Instant::now() >= deadline {
            if refusal.blockers.is_empty() {
                let detail = "all that is known is in order so far, and it takes longer than --timeout";
                return Err(CliError::refused(doing, Refusal::of(Code::TimedOut, detail)));
            }
            return Err(CliError::refused(doing, refusal));
        }
        tokio::time::sleep(ASK_INTERVAL).await;
    }
}

async fn survey(session: &Session, fleet: &FleetName) -> Result<v1::SurveyFleetResponse, CliError> {
    let request = v1::SurveyFleetRequest { fleet: fleet.to_string() };
    let mut client = session.operations();
    Box::pin(answer(&format!("ask what hosts tell of {fleet}"), client.survey_fleet(request))).await
}

#[derive(Debug, Serialize)]
struct Rebuilt {
    fleet: FleetName,
    incarnation: u64,
    hosts: u32,
    fenced: Vec<HostName>,
    solo: bool,
}

impl Report for Rebuilt {
    const SCHEMA: &'static str = "muster.coordinator-rebuild/1";

    fn print(&self, page: &mut Page) {
        let Self { fleet, incarnation, .. } = self;
        page.toned(
            Tone::Good,
            format_args!("the coordinator leads {fleet} again, in the incarnation {incarnation}"),
        );
        for host in &self.fenced {
            page.labelled(Tone::Warning, "stated to be off", host);
        }
        if self.solo {
            page.labelled(Tone::Warning, "solo mode", "it was signed by one operator alone");
        }
        page.line("Next: look at `muster status`, and push releases again whose blobs are gone");
    }
}
