use std::path::{Path, PathBuf};

use clap::Args;
use muster_model::{PublicKey, Root, SigningRole};
use muster_trust::{Envelope, KeySource, RootProposal, Signer, TrustRoot, add_signature, sign};
use serde::Serialize;

use super::difference::RootDifference;
use super::file::RootFile;
use super::{FILE_BYTES_MAX, RootArg, is_envelope};
use crate::commands::Env;
use crate::error::CliError;
use crate::exit::Exit;
use crate::files::{Existing, read_bounded, write};
use crate::output::{Page, Report, Tone};
use crate::view::KeyView;

/// Sign the next root document, after showing what it changes, and say who still must sign it.
///
/// It needs no coordinator. As many root keys of the present root must sign as that one demands, and as many of the next root as
/// that one demands; a key of both counts for both.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  muster root sign next.toml --key keys/root.key
  muster root sign next.json --key ssh-agent:alice.pub --root root.json")]
pub(crate) struct Sign {
    /// The next root: the TOML of `root edit` for the first signature, then the JSON that this makes
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The key: a key file, or `ssh-agent:` and its fingerprint or public key file; may be repeated
    #[arg(long, value_name = "KEY", required = true)]
    key: Vec<KeySource>,
    #[command(flatten)]
    root: RootArg,
    /// Write to this file [default: the FILE with the ending `.json`]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

impl Sign {
    pub(super) fn run(self, env: &Env) -> Result<Exit, CliError> {
        let present = self.root.read(env)?;
        let bytes = read_bounded(&self.file, FILE_BYTES_MAX)?;
        let doing = format!("sign {}", self.file.display());
        let trust = || CliError::trust(doing.as_str());
        let keys: Vec<Box<dyn Signer>> =
            self.key.iter().map(KeySource::open).collect::<Result<_, _>>().map_err(trust())?;
        let (envelope, existing) = if is_envelope(&bytes) {
            let envelope = Envelope::parse(&bytes).map_err(|source| CliError::Content {
                path: self.file.clone(),
                reason: source.to_string(),
            })?;
            let next = present.review(&envelope).map_err(trust())?.root;
            refuse_strangers(&present, &next, &keys)?;
            let signed =
                keys.iter().try_fold(envelope, |envelope, key| add_signature::<Root>(&envelope, &**key));
            (signed.map_err(trust())?, Existing::Replace)
        } else {
            let next = draft(&self.file, bytes)?;
            refuse_strangers(&present, &next, &keys)?;
            let signers: Vec<&dyn Signer> = keys.iter().map(|key| &**key).collect();
            (sign(&next, &signers).map_err(trust())?, Existing::Keep)
        };
        let proposal = present.review(&envelope).map_err(trust())?;
        let out = self.out.unwrap_or_else(|| self.file.with_extension("json"));
        // What others have signed before is in it as well, so the file may be replaced.
        let existing = if out == self.file { existing } else { Existing::Keep };
        write(&out, envelope.raw(), 0o644, existing)?;
        env.ui.report(&Signed::of(&present, &proposal, out))?;
        Ok(Exit::Proven)
    }
}

fn draft(path: &Path, bytes: Vec<u8>) -> Result<Root, CliError> {
    let wrong = |reason: String| CliError::Content { path: path.to_owned(), reason };
    let text = String::from_utf8(bytes).map_err(|_| wrong("it is not text".to_owned()))?;
    let file: RootFile = toml::from_str(&text).map_err(|error| wrong(error.to_string()))?;
    let doing = format!("sign {}", path.display());
    file.to_root().map_err(|source| CliError::Document { doing, source })
}

/// A signature that nobody counts is a mistake about which key is which.
fn refuse_strangers(present: &TrustRoot, next: &Root, keys: &[Box<dyn Signer>]) -> Result<(), CliError> {
    let of = |root: &Root, key| root.role(SigningRole::Root).keys.contains(key);
    let stranger = keys.iter().find(|key| !of(present.root(), key.public()) && !of(next, key.public()));
    match stranger {
        None => Ok(()),
        Some(key) => Err(CliError::Usage {
            what: format!("{} is a root key of neither the present nor the next root", key.public()),
            next: "sign with a key of the role root; look at `muster root show`".to_owned(),
        }),
    }
}

#[derive(Debug, Serialize)]
struct Signed {
    #[serde(flatten)]
    difference: RootDifference,
    file: PathBuf,
    present_root: Progress,
    next_root: Progress,
    complete: bool,
}

/// How far one of the two thresholds is reached.
#[derive(Debug, Serialize)]
struct Progress {
    threshold: u32,
    signed: Vec<KeyView>,
    /// Those who have not signed; as many of them as are missing must.
    unsigned: Vec<KeyView>,
    missing: usize,
}

impl Progress {
    fn of(root: &Root, signed: &[PublicKey]) -> Self {
        let role = root.role(SigningRole::Root);
        let view = |key| KeyView::of(root, key);
        Self {
            threshold: role.threshold,
            signed: signed.iter().map(view).collect(),
            unsigned: role.keys.iter().filter(|key| !signed.contains(key)).map(view).collect(),
            missing: (role.threshold as usize).saturating_sub(signed.len()),
        }
    }

    fn print(&self, page: &mut Page, which: &str) {
        let tone = if self.missing == 0 { Tone::Good } else { Tone::Warning };
        page.toned(
            tone,
            format_args!("{which} root: {} of {} signatures", self.signed.len(), self.threshold),
        );
        for key in &self.signed {
            page.line(format_args!("  signed   {key}"));
        }
        if self.missing > 0 {
            page.line(format_args!("  {} of these must still sign:", self.missing));
            for key in &self.unsigned {
                page.line(format_args!("           {key}"));
            }
        }
    }
}

impl Signed {
    fn of(present: &TrustRoot, proposal: &RootProposal, file: PathBuf) -> Self {
        let present_root = Progress::of(present.root(), &proposal.by_present);
        let next_root = Progress::of(&proposal.root, &proposal.by_next);
        Self {
            difference: RootDifference::of(present.root(), &proposal.root),
            file,
            complete: present_root.missing == 0 && next_root.missing == 0,
            present_root,
            next_root,
        }
    }
}

impl Report for Signed {
    const SCHEMA: &'static str = "muster.root-sign/1";

    fn print(&self, page: &mut Page) {
        self.difference.print(page);
        page.gap();
        self.present_root.print(page, "present");
        self.next_root.print(page, "next");
        page.gap();
        let file = self.file.display();
        if self.complete {
            page.line(format_args!("Next: muster root apply {file}"));
        } else {
            page.line(format_args!(
                "Next: give {file} to who must still sign: `muster root sign {file} --key KEY`"
            ));
        }
    }
}
