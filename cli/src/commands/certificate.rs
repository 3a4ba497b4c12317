//! `muster certificate`: the certificate of the context, and the end of others.

mod issue;
mod renew;
mod revoke;
mod show;

use clap::Subcommand;

use super::Env;
use crate::error::CliError;
use crate::exit::Exit;

/// Show and renew your own certificate, issue others by hand, and revoke them.
#[derive(Debug, Subcommand)]
pub(crate) enum CertificateCommand {
    Show(show::Show),
    Issue(issue::Issue),
    Renew(renew::Renew),
    Revoke(revoke::Revoke),
}

impl CertificateCommand {
    pub(super) async fn run(self, env: &Env) -> Result<Exit, CliError> {
        match self {
            Self::Show(show) => show.run(env),
            Self::Issue(issue) => issue.run(env),
            Self::Renew(renew) => Box::pin(renew.run(env)).await,
            Self::Revoke(revoke) => Box::pin(revoke.run(env)).await,
        }
    }
}
