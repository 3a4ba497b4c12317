use clap::Args;
use muster_model::{Code, HostName, Refusal};
use muster_proto::v1;
use serde::Serialize;

use crate::commands::Env;
use crate::confirm::{Question, confirm};
use crate::connect::answer;
use crate::error::CliError;
use crate::exit::Exit;
use crate::output::{Page, Report, Tone, counted};

/// Revoke every certificate of a host, cut its connections, and give it no other certificate until a new token is made for it.
///
/// For a machine that was stolen or taken over. What it serves it goes on serving: take it out of the roster as well. It stays
/// in `muster status` until somebody has looked at it (`muster audit reconcile`).
///
/// A new token takes the eviction back (`muster host token`), where the coordinator has an issuing authority. Where certificates come
/// from a PKI of your own NOTHING takes it back: the name stays out for good, and the machine needs another one. You are asked first.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  muster host evict host-5 --reason stolen
  muster host evict host-5 --reason stolen --yes   # with a PKI of your own, for good")]
pub(crate) struct Evict {
    /// The host
    #[arg(value_name = "NAME")]
    name: HostName,
    /// Why, for whoever looks
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// Do not ask, where it is for good
    #[arg(long)]
    yes: bool,
}

impl Evict {
    pub(super) async fn run(self, env: &Env) -> Result<Exit, CliError> {
        let session = env.session().await?;
        let doing = format!("evict {}", self.name);
        let mut client = session.operations();
        let (host, reason) = (self.name.to_string(), self.reason);
        let request =
            |for_good| v1::EvictHostRequest { host: host.clone(), reason: reason.clone(), for_good };
        let evicted = match answer(&doing, client.evict_host(request(self.yes))).await {
            Err(CliError::Refused { refusal, .. }) if is_for_good(&refusal) && !self.yes => {
                ask(env, &self.name)?;
                answer(&doing, client.evict_host(request(true))).await?
            }
            answered => answered?,
        };
        let v1::EvictHostResponse { certificates, connections } = evicted;
        env.ui.report(&Evicted { host: self.name, certificates, connections })?;
        Ok(Exit::Proven)
    }
}

/// The coordinator has no authority that could give the host another certificate.
fn is_for_good(refusal: &Refusal) -> bool {
    refusal.code() == Some(Code::NoIssuer)
}

fn ask(env: &Env, host: &HostName) -> Result<(), CliError> {
    let question = Question {
        text: format!(
            "{host} will stay out for good: this coordinator issues no certificates, and nothing takes it back. Type the \
             host's name to evict it:"
        ),
        expected: host.as_str(),
        otherwise: "nothing was evicted, and nothing would take it back: this coordinator issues no certificates",
        next: "add --yes to evict it for good without being asked",
    };
    confirm(env, &question)
}

#[derive(Debug, Serialize)]
struct Evicted {
    host: HostName,
    certificates: u32,
    connections: u32,
}

impl Report for Evicted {
    const SCHEMA: &'static str = "muster.host-evict/1";

    fn print(&self, page: &mut Page) {
        let (certificates, connections) =
            (counted(self.certificates, "certificate"), counted(self.connections, "connection"));
        let host = &self.host;
        page.toned(Tone::Good, format_args!("evicted {host}: {certificates} revoked, {connections} cut"));
        page.line(
            "It may still serve what it has: take it out of the roster, and its machine off the network.",
        );
    }
}
