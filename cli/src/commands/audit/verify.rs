use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};

use clap::Args;
use muster_audit::{
    Authority, AuthorityFault, EXPORT_LINE_BYTES_MAX, EXPORT_ROOT_LINE_BYTES_MAX, ExportFault,
    ExportVerifier, RootHistory, VerifiedLog, follow_roots,
};
use muster_model::PublicKey;
use muster_trust::TrustRoot;
use serde::Serialize;

use super::LogView;
use super::fetch::Fetch;
use crate::commands::Env;
use crate::commands::root::apply::Followed;
use crate::context::read_root;
use crate::error::CliError;
use crate::exit::Exit;
use crate::output::{Page, Report, Tone, counted};

/// Verify an exported audit log offline, or that of the coordinator. What fails is named: the signature, an entry, the proof.
///
/// It proves that the entries are those that the coordinator has signed, that whoever approved orders and roots were keys that the
/// root document of that time lets approve, and that as many had approved each order as it demands. An export carries the root
/// documents: what follows from one that you trust is trusted, so that the first root alone is enough. That the coordinator has signed no other entries before is what the hosts
/// see to: each remembers the last checkpoint it was shown.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  muster audit verify 2026-11.audit
  muster audit verify 2026-11.audit --root root.1.json
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
    /// A root document from somewhere you trust; may be repeated. Those after it are in the export [default: the context's, and
    /// those that are kept beside it]
    #[arg(long, value_name = "FILE")]
    root: Vec<PathBuf>,
}

impl Verify {
    pub(super) async fn run(self, env: &Env) -> Result<Exit, CliError> {
        let (log, known, authority) = match &self.file {
            Some(file) => {
                let roots = self.known_roots(env)?;
                let (log, authority) = verify(file, &self.known_key(env)?, roots)?;
                (log, true, authority)
            }
            None => self.live(env).await?,
        };
        env.ui.report(&Verified {
            log: LogView::new(log, known),
            authority: authority.into(),
            verified: true,
        })?;
        Ok(Exit::Proven)
    }

    async fn live(&self, env: &Env) -> Result<(VerifiedLog, bool, Authority), CliError> {
        const DOING: &str = "verify the audit log";
        let session = env.session().await?;
        let mut roots = self.known_roots(env)?;
        if self.root.is_empty() {
            // Another operator may have changed the root: its successors verify themselves.
            roots.extend(Followed::from_context(&session).await?.all().cloned());
        }
        let mut history = RootHistory::new(&roots);
        let known = self.key.clone().or_else(|| session.context().audit_key().cloned());
        let fetch = Fetch::begin(&session, known.as_ref(), DOING).await?;
        let wrong = |fault: AuthorityFault| CliError::audit(DOING)(fault.into());
        let (log, known) = fetch.all(|_, entry| history.take(&entry).map_err(wrong)).await?;
        Ok((log, known, history.finish().map_err(wrong)?))
    }

    /// The roots that are trusted. Without a context there are none but those that are named.
    fn known_roots(&self, env: &Env) -> Result<Vec<TrustRoot>, CliError> {
        if !self.root.is_empty() {
            return self.root.iter().map(|path| read_root(path)).collect();
        }
        let context = match env.context() {
            Err(CliError::NoContext { .. }) if self.key.is_some() => return Ok(Vec::new()),
            context => context?,
        };
        let root = context.trust_root()?;
        let earlier = context.earlier_roots(root.root().version);
        Ok(earlier.into_iter().chain([root]).collect())
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

fn verify(
    path: &Path,
    key: &PublicKey,
    trusted: Vec<TrustRoot>,
) -> Result<(VerifiedLog, Authority), CliError> {
    let doing = || format!("verify the audit log {}", path.display());
    let mut lines = Lines::open(path)?;
    lines.next(EXPORT_LINE_BYTES_MAX)?;
    let mut verifier = ExportVerifier::begin(&lines.line, key).map_err(CliError::audit(doing()))?;
    let mut offered = Vec::new();
    for place in 1..=verifier.roots() {
        lines.next(EXPORT_ROOT_LINE_BYTES_MAX)?;
        offered.push(ExportVerifier::root(place, &lines.line).map_err(CliError::audit(doing()))?);
    }
    let roots = follow_roots(trusted, &offered).map_err(CliError::audit(doing()))?;
    let mut history = RootHistory::new(&roots);
    while lines.next(EXPORT_LINE_BYTES_MAX)? {
        let entry = verifier.line(&lines.line).map_err(CliError::audit(doing()))?;
        history.take(&entry).map_err(ExportFault::from).map_err(CliError::audit(doing()))?;
    }
    let log = verifier.finish().map_err(CliError::audit(doing()))?;
    let authority = history.finish().map_err(ExportFault::from).map_err(CliError::audit(doing()))?;
    Ok((log, authority))
}

/// A file, line by line.
struct Lines<'a> {
    path: &'a Path,
    reader: BufReader<File>,
    /// The present one, without its newline.
    line: Vec<u8>,
}

impl<'a> Lines<'a> {
    fn open(path: &'a Path) -> Result<Self, CliError> {
        let file = File::open(path).map_err(CliError::file("read", path))?;
        Ok(Self { path, reader: BufReader::new(file), line: Vec::new() })
    }

    /// Goes on to the next one, of which not more than one byte too many is read. Whether there is one.
    fn next(&mut self, bytes_max: usize) -> Result<bool, CliError> {
        self.line.clear();
        let read = self.reader.by_ref().take(bytes_max as u64 + 1).read_until(b'\n', &mut self.line);
        read.map_err(CliError::file("read", self.path))?;
        let is_last = self.line.pop_if(|byte| *byte == b'\n').is_none();
        Ok(!(is_last && self.line.is_empty()))
    }
}

/// What the roots bear out.
#[derive(Debug, Serialize)]
struct AuthorityView {
    root_version_first: Option<u64>,
    root_version_last: Option<u64>,
    approvals_verified: u64,
    approvals_unverified: u64,
    orders_verified: u64,
    orders_unverified: u64,
}

impl From<Authority> for AuthorityView {
    fn from(found: Authority) -> Self {
        let (root_version_first, root_version_last) = found.root_versions.unzip();
        Self {
            root_version_first,
            root_version_last,
            approvals_verified: found.approvals_verified,
            approvals_unverified: found.approvals_unverified,
            orders_verified: found.orders_verified,
            orders_unverified: found.orders_unverified,
        }
    }
}

impl AuthorityView {
    fn print(&self, page: &mut Page) {
        let versions = match (self.root_version_first, self.root_version_last) {
            (Some(first), Some(last)) if first != last => format!("root versions {first} to {last}"),
            (Some(only), _) => format!("root version {only}"),
            (None, _) => "no root".to_owned(),
        };
        let (approvals, orders) =
            (counted(self.approvals_verified, "approval"), counted(self.orders_verified, "order"));
        page.line(format_args!(
            "{versions}; {approvals} by keys of the root of their time, {orders} with as many as it demands"
        ));
        if self.approvals_unverified + self.orders_unverified > 0 {
            let approvals = counted(self.approvals_unverified, "approval");
            let orders = counted(self.orders_unverified, "order");
            let text = format_args!(
                "{approvals} and {orders} of a time whose root is not known here; name an earlier one with --root"
            );
            page.labelled(Tone::Warning, "roots", text);
        }
    }
}

#[derive(Debug, Serialize)]
struct Verified {
    #[serde(flatten)]
    log: LogView,
    #[serde(flatten)]
    authority: AuthorityView,
    verified: bool,
}

impl Report for Verified {
    const SCHEMA: &'static str = "muster.audit-verified/1";

    fn print(&self, page: &mut Page) {
        let LogView { origin, entries, root, key, key_was_known } = &self.log;
        page.toned(Tone::Good, format_args!("proven: {} of {origin}", counted(*entries, "entry")));
        page.line(format_args!("tree {root}, signed by {key}"));
        self.authority.print(page);
        if !key_was_known {
            let text = "nobody told us the key but the coordinator; give it with --key or in the context";
            page.labelled(Tone::Warning, "key", text);
        }
    }
}
