//! `muster host`: the identities of hosts.

mod driver;
mod issue;
mod list;
mod readmit;

use std::path::PathBuf;

use clap::Subcommand;

pub(crate) use driver::DriverArgs;

use super::Env;
use crate::error::CliError;
use crate::exit::Exit;

/// Issue, list and settle the identities of hosts.
#[derive(Debug, Subcommand)]
pub(crate) enum Host {
    Issue(issue::Issue),
    List(list::List),
    Readmit(readmit::Readmit),
}

impl Host {
    pub(super) async fn run(self, env: &Env) -> Result<Exit, CliError> {
        match self {
            Self::Issue(issue) => issue.run(env),
            Self::List(list) => list.run(env),
            Self::Readmit(readmit) => readmit.run(env).await,
        }
    }
}

/// The folder that `muster init` made: the one named, else the one that holds the context.
pub(super) fn fleet_folder(named: Option<PathBuf>, env: &Env) -> Result<PathBuf, CliError> {
    if let Some(dir) = named {
        return Ok(dir);
    }
    env.context()?.fleet_folder().ok_or_else(|| CliError::Usage {
        what: "the context is not in a folder that `muster init` made".to_owned(),
        next: "name that folder with --dir".to_owned(),
    })
}
