use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};

use clap::Args;
use muster_audit::{EXPORT_LINE_BYTES_MAX, ExportVerifier, VerifiedLog};
use muster_model::PublicKey;
use serde::Serialize;

use super::LogView;
use super::fetch::Fetch;
use crate::commands::Env;
use crate::error::CliError;
use crate::exit::Exit;
use crate::output::{Page, Report, Tone, counted};

/// Verify an exported audit log offline, or that of the coordinator. What fails is named: the signature, an entry, the proof.
///
/// It proves that the entries are those that the coordinator has signed. That it has signed no others before is what the
/// hosts see to: each remembers the last checkpoint it was shown.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  muster audit verify 2026-11.audit
  muster audit verify --live")]
pub(crate) struct Verify {
    /// The export
    #[arg(value_name = "FILE", required_unless_present = "live", conflicts_with = "live")]
    file: Option<PathBuf>,
    /// Verify what the coordinator has now
    #[arg(long)]
    live: bool,
    /// The log's public key, from somewhere you trust [default: the context's]
    #[arg(long, value_name = "KEY")]
    key: Option<PublicKey>,
}

impl Verify {
    pub(super) async fn run(self, env: &Env) -> Result<Exit, CliError> {
        let (log, known) = match &self.file {
            Some(file) => (verify(file, &self.known_key(env)?)?, true),
            None => {
                let session = env.session().await?;
                let known = self.key.or_else(|| session.context().audit_key().cloned());
                let fetch = Fetch::begin(&session, known.as_ref(), "verify the audit log").await?;
                fetch.all(|_, _| Ok(())).await?
            }
        };
        env.ui.report(&Verified { log: LogView::new(log, known), verified: true })?;
        Ok(Exit::Proven)
    }

    fn known_key(&self, env: &Env) -> Result<PublicKey, CliError> {
        if let Some(key) = &self.key {
            return Ok(key.clone());
        }
        let context = env.context()?;
        context.audit_key().cloned().ok_or_else(|| CliError::Usage {
            what: "the context names no key of the audit log".to_owned(),
            next: "give it with --key: it is in audit.pub, which `muster init` has made".to_owned(),
        })
    }
}

fn verify(path: &Path, key: &PublicKey) -> Result<VerifiedLog, CliError> {
    let doing = || format!("verify the audit log {}", path.display());
    let mut reader = BufReader::new(File::open(path).map_err(CliError::file("read", path))?);
    let mut line = Vec::new();
    let mut next = |line: &mut Vec<u8>| {
        line.clear();
        let read = reader.by_ref().take(EXPORT_LINE_BYTES_MAX as u64 + 1).read_until(b'\n', line);
        read.map_err(CliError::file("read", path))?;
        let is_last = line.pop_if(|byte| *byte == b'\n').is_none();
        Ok::<bool, CliError>(!(is_last && line.is_empty()))
    };
    next(&mut line)?;
    let mut verifier = ExportVerifier::begin(&line, key).map_err(CliError::audit(doing()))?;
    while next(&mut line)? {
        verifier.line(&line).map_err(CliError::audit(doing()))?;
    }
    verifier.finish().map_err(CliError::audit(doing()))
}

#[derive(Debug, Serialize)]
struct Verified {
    #[serde(flatten)]
    log: LogView,
    verified: bool,
}

impl Report for Verified {
    const SCHEMA: &'static str = "muster.audit-verified/1";

    fn print(&self, page: &mut Page) {
        let LogView { origin, entries, root, key, key_was_known } = &self.log;
        page.toned(Tone::Good, format_args!("proven: {} of {origin}", counted(*entries, "entry")));
        page.line(format_args!("root {root}, signed by {key}"));
        if !key_was_known {
            let text = "nobody told us the key but the coordinator; give it with --key or in the context";
            page.labelled(Tone::Warning, "key", text);
        }
    }
}
