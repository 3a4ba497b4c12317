use std::path::PathBuf;

use clap::Args;
use muster_model::{Digest, FleetName, Version};
use serde::Serialize;

use super::tree::TreeArgs;
use crate::commands::Env;
use crate::error::CliError;
use crate::exit::Exit;
use crate::files::{Existing, write};
use crate::output::{Page, Report, bytes_text, counted};

/// Compute the digest of a tree. The same tree gives the same digest on any machine; nothing is signed or sent.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  muster release pack ./build --version 1.4.0
  muster release pack ./build --fleet demo --version 1.4.0 --out 1.4.0.manifest --output json")]
pub(crate) struct Pack {
    #[command(flatten)]
    tree: TreeArgs,
    /// The fleet that the release is for; the digest does not depend on it [default: the context's, if there is one]
    #[arg(long, short, value_name = "FLEET")]
    fleet: Option<FleetName>,
    /// The version, for people; the digest is what counts
    #[arg(long, value_name = "VERSION")]
    version: Version,
    /// Write the manifest, the exact bytes that the digest is of, to this file
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

impl Pack {
    pub(super) fn run(self, env: &Env) -> Result<Exit, CliError> {
        let packed = self.tree.pack(&env.ui)?.packed;
        if let Some(path) = &self.out {
            write(path, &packed.manifest.to_bytes(), 0o644, Existing::Replace)?;
        }
        env.ui.report(&PackedReport {
            fleet: self.fleet.or_else(|| env.context().ok()?.fleet().cloned()),
            version: self.version,
            digest: packed.manifest.digest(),
            entries: packed.manifest.entries().len(),
            files: packed.manifest.files().count(),
            bytes: packed.manifest.total_bytes(),
            warnings: packed.warnings.iter().map(ToString::to_string).collect(),
            manifest: self.out,
        })?;
        Ok(Exit::Proven)
    }
}

#[derive(Debug, Serialize)]
struct PackedReport {
    fleet: Option<FleetName>,
    version: Version,
    digest: Digest,
    entries: usize,
    files: usize,
    bytes: u64,
    warnings: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    manifest: Option<PathBuf>,
}

impl Report for PackedReport {
    const SCHEMA: &'static str = "muster.pack/1";

    fn print(&self, page: &mut Page) {
        let fleet = self.fleet.as_ref().map_or_else(String::new, |fleet| format!("{fleet} "));
        page.line(format_args!("{fleet}{} is {}", self.version, self.digest));
        page.line(format_args!("{}, {}", counted(self.files, "file"), bytes_text(self.bytes)));
        if let Some(path) = &self.manifest {
            page.line(format_args!("its manifest is in {}", path.display()));
        }
    }
}
