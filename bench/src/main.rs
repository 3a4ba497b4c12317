//! What of the benchmarks has to be Rust: one measurement in one process, and many hosts in one process.
//!
//! `measure` calls what an agent calls, [`muster_artifact::measure`], and nothing else, so that the time of the whole
//! process can be taken from outside and compared with that of other programs. `make-receipt` makes what `muster receipt verify`
//! is given. `hosts` runs agents and guards as their
//! programs do. Its other half are the scripts beside it, which run it and its peers.

mod receipt;
mod swarm;

use std::collections::BTreeSet;
use std::fs;
use std::io::{Write as _, stdout};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::thread::available_parallelism;

use anyhow::{Context as _, ensure};
use clap::{Parser, Subcommand};
use muster_artifact::{
    ArtifactError, MeasureOptions, OutsideLinks, PackOptions, Packed, Progress, VerityUse, measure, pack,
};
use muster_model::{EntryPath, Manifest, TreeRules};
use serde_json::json;

/// Each round of [`pack_all_but_refused`] learns at least one more path, as an error names some of those refused.
const ROUNDS_MAX: usize = 64;

#[derive(Debug, Parser)]
#[command(about = "Pack or measure a tree once, for the benchmarks.")]
struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Write the manifest of a tree, and say which paths packing refused and were left out
    Prepare {
        /// The tree
        tree: PathBuf,
        /// Where the manifest goes
        manifest: PathBuf,
    },
    /// Measure a tree against a manifest; fail unless it is exactly as the manifest says
    Measure {
        /// The tree
        tree: PathBuf,
        /// The manifest that `prepare` wrote
        manifest: PathBuf,
        /// Threads; by default one for each core
        #[arg(long)]
        jobs: Option<NonZeroUsize>,
    },
    /// Write a root document and the receipt of a flip of many hosts
    MakeReceipt {
        /// The folder they go to
        folder: PathBuf,
        /// How many hosts
        #[arg(long)]
        hosts: u32,
    },
    /// Run the agents and guards of many hosts until SIGTERM
    Hosts {
        /// The folder of their bundles, as `muster host issue` wrote them
        folder: PathBuf,
        /// Where the times of all renewals go: a line for each, when the guard was told and until when it then held, in
        /// milliseconds since boot
        #[arg(long)]
        renewals: PathBuf,
    },
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().action {
        Action::Prepare { tree, manifest } => prepare(&tree, &manifest),
        Action::Measure { tree, manifest, jobs } => measure_once(&tree, &manifest, jobs),
        Action::MakeReceipt { folder, hosts } => receipt::make(&folder, hosts),
        Action::Hosts { folder, renewals } => swarm::run(&folder, &renewals),
    }
}

fn prepare(tree: &Path, path: &Path) -> anyhow::Result<()> {
    let (packed, refused) = pack_all_but_refused(tree)?;
    fs::write(path, packed.manifest.to_bytes()).with_context(|| format!("write {}", path.display()))?;
    say(&json!({
        "digest": packed.manifest.digest(),
        "entries": packed.manifest.entries().len(),
        "files": packed.manifest.files().count(),
        "bytes": packed.manifest.total_bytes(),
        "refused": refused,
    }))
}

fn measure_once(tree: &Path, path: &Path, jobs: Option<NonZeroUsize>) -> anyhow::Result<()> {
    let bytes = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    let manifest = Manifest::parse(&bytes).with_context(|| format!("parse {}", path.display()))?;
    let options = MeasureOptions {
        jobs: jobs.map_or_else(all_cores, Ok)?,
        bytes_per_second_max: None,
        verity: VerityUse::WherePossible,
    };
    let measured = measure(tree, &manifest, &options, &Progress::default())?;
    ensure!(measured.matches(), "{} differs: {:?}", tree.display(), measured.differences.first());
    say(&json!({ "digest": measured.digest, "files": measured.files, "bytes": measured.bytes }))
}

/// Packs a tree of the system, in which there are entries that no release may have, such as set-group-id
/// folders. These become mutable paths: noted, but neither entered nor read.
fn pack_all_but_refused(tree: &Path) -> anyhow::Result<(Packed, BTreeSet<String>)> {
    let mut refused: BTreeSet<String> = BTreeSet::new();
    for _ in 0..ROUNDS_MAX {
        let mutable = refused.iter().map(|path| EntryPath::from_text(path)).collect::<Result<_, _>>()?;
        let options = PackOptions {
            rules: TreeRules { mutable, ..TreeRules::default() },
            outside_links: OutsideLinks::Warn,
            jobs: all_cores()?,
        };
        match pack(tree, &options, &Progress::default()) {
            Ok(packed) => return Ok((packed, refused)),
            Err(ArtifactError::Unpackable { found, .. }) => {
                refused.extend(found.into_iter().map(|entry| entry.path));
            }
            Err(error) => return Err(error).with_context(|| format!("pack {}", tree.display())),
        }
    }
    anyhow::bail!("{} has too many entries that no release may have", tree.display())
}

fn all_cores() -> anyhow::Result<NonZeroUsize> {
    available_parallelism().context("count the cores")
}

fn say(value: &serde_json::Value) -> anyhow::Result<()> {
    writeln!(stdout().lock(), "{value}").context("write the result")
}
