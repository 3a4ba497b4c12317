//! `muster host`: the identities of hosts.

mod driver;
mod evict;
mod issue;
mod list;
mod park;
mod place;
mod readmit;
mod retire;
mod token;
mod unpark;

use std::path::PathBuf;

use clap::Subcommand;

pub(crate) use driver::DriverArgs;

use super::Env;
use crate::error::CliError;
use crate::exit::Exit;

/// Enrol, issue and list hosts, park them and take them back, and settle their identities.
#[derive(Debug, Subcommand)]
pub(crate) enum Host {
    Issue(issue::Issue),
    Token(token::Token),
    List(list::List),
    Park(park::Park),
    Unpark(unpark::Unpark),
    Retire(retire::Retire),
    Readmit(readmit::Readmit),
    Evict(evict::Evict),
}

impl Host {
    pub(super) async fn run(self, env: &Env) -> Result<Exit, CliError> {
        match self {
            Self::Issue(issue) => issue.run(env),
            Self::Token(token) => Box::pin(token.run(env)).await,
            Self::List(list) => Box::pin(list.run(env)).await,
            Self::Park(park) => Box::pin(park.run(env)).await,
            Self::Unpark(unpark) => Box::pin(unpark.run(env)).await,
            Self::Retire(retire) => Box::pin(retire.run(env)).await,
            Self::Evict(evict) => Box::pin(evict.run(env)).await,
            Self::Readmit(readmit) => readmit.run(env).await,
        }
    }
}

/// The folder that `muster init` made: the one named, else the one that holds the context.
pub(crate) fn fleet_folder(named: Option<PathBuf>, env: &Env) -> Result<PathBuf, CliError> {
    if let Some(dir) = named {
        return Ok(dir);
    }
    env.context()?.fleet_folder().ok_or_else(|| CliError::Usage {
        what: "the context is not in a folder that `muster init` made".to_owned(),
        next: "name that folder with --dir".to_owned(),
    })
}
