//! `muster root`: the document that says which keys sign what, and its successors.

pub(super) mod apply;
mod difference;
mod edit;
mod file;
mod joiner;
mod show;
mod sign;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use muster_model::SigningRole;
use muster_trust::TrustRoot;

use super::Env;
use crate::context::read_root;
use crate::error::CliError;
use crate::exit::Exit;

/// All roles, in the order in which they are told.
const ROLES: [SigningRole; 3] = [SigningRole::Root, SigningRole::Release, SigningRole::Operator];

/// The largest file that is read, in bytes.
const FILE_BYTES_MAX: u64 = muster_trust::ROOT_BYTES_MAX as u64;

/// Show and change which keys may sign what: each root leads to the next one.
#[derive(Debug, Subcommand)]
pub(crate) enum RootCommand {
    Show(show::Show),
    Edit(edit::Edit),
    Sign(sign::Sign),
    Apply(apply::Apply),
}

impl RootCommand {
    pub(super) async fn run(self, env: &Env) -> Result<Exit, CliError> {
        match self {
            Self::Show(show) => show.run(env),
            Self::Edit(edit) => edit.run(env),
            Self::Sign(sign) => sign.run(env),
            Self::Apply(apply) => Box::pin(apply.run(env)).await,
        }
    }
}

/// Which root is the present one.
#[derive(Debug, Clone, Args)]
struct RootArg {
    /// The present root document [default: the context's]
    #[arg(long, value_name = "FILE")]
    root: Option<PathBuf>,
}

impl RootArg {
    fn read(&self, env: &Env) -> Result<TrustRoot, CliError> {
        match &self.root {
            Some(path) => read_root(path),
            None => env.context()?.trust_root(),
        }
    }
}

/// The word for a role.
const fn role_name(role: SigningRole) -> &'static str {
    match role {
        SigningRole::Root => "root",
        SigningRole::Release => "release",
        SigningRole::Operator => "operator",
    }
}

/// Whether a file holds JSON rather than TOML.
fn is_envelope(bytes: &[u8]) -> bool {
    bytes.trim_ascii_start().starts_with(b"{")
}
