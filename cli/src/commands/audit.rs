//! `muster audit`: what was ordered, approved, refused and overridden.

mod export;
mod fetch;
mod log;
mod reconcile;
mod verify;

use clap::Subcommand;
use muster_audit::VerifiedLog;
use muster_model::{Digest, PublicKey};
use serde::Serialize;

use super::Env;
use crate::error::CliError;
use crate::exit::Exit;

/// Read, export and verify the audit log, and reconcile overrides.
#[derive(Debug, Subcommand)]
pub(crate) enum AuditCommand {
    Log(log::Log),
    Export(export::Export),
    Verify(verify::Verify),
    Reconcile(reconcile::Reconcile),
}

impl AuditCommand {
    pub(super) async fn run(self, env: &Env) -> Result<Exit, CliError> {
        match self {
            Self::Log(log) => Box::pin(log.run(env)).await,
            Self::Export(export) => Box::pin(export.run(env)).await,
            Self::Verify(verify) => Box::pin(verify.run(env)).await,
            Self::Reconcile(reconcile) => Box::pin(reconcile.run(env)).await,
        }
    }
}

/// A log that was verified, in a report.
#[derive(Debug, Serialize)]
struct LogView {
    origin: String,
    entries: u64,
    root: Digest,
    key: PublicKey,
    /// Whether the key was known beforehand. One that only the coordinator names proves nothing about the coordinator.
    key_was_known: bool,
}

impl LogView {
    fn new(log: VerifiedLog, key_was_known: bool) -> Self {
        let VerifiedLog { checkpoint, key } = log;
        Self {
            origin: checkpoint.origin,
            entries: checkpoint.size,
            root: checkpoint.root,
            key,
            key_was_known,
        }
    }
}
