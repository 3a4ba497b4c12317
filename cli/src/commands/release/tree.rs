//! From a folder to its manifest, with what the command line says about it.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Args;
use muster_artifact::{PackOptions, Packed, Progress, ReleaseSpec, pack};
use muster_model::EntryPath;

use crate::error::CliError;
use crate::output::{Bars, Ui};

/// The file that describes a release, looked for in its folder.
const SPEC_FILE: &str = "muster.toml";

/// How many warnings are written out: an installed tree can have thousands of symlinks that lead out of it.
const WARNINGS_SHOWN_MAX: usize = 16;

const REDRAW: Duration = Duration::from_millis(100);

/// Which tree is packed, and how.
#[derive(Debug, Args)]
pub(super) struct TreeArgs {
    /// The folder whose content is the release
    #[arg(value_name = "DIR")]
    pub(super) dir: PathBuf,
    /// What the folder alone does not say: mutable, absent and external paths, flags [default: DIR/muster.toml if it is there]
    #[arg(long, value_name = "FILE")]
    spec: Option<PathBuf>,
    /// A path in the tree that the service writes to, so that it is not measured; may be repeated
    #[arg(long, value_name = "PATH", value_parser = EntryPath::from_text)]
    mutable: Vec<EntryPath>,
    /// How many threads read [default: one for each processor]
    #[arg(long, value_name = "N")]
    jobs: Option<NonZeroUsize>,
}

/// A packed folder.
pub(super) struct PackedTree {
    /// Manifest and warnings.
    pub(super) packed: Packed,
    /// What its description says.
    pub(super) spec: ReleaseSpec,
}

impl TreeArgs {
    /// A folder about which nothing else is said.
    pub(super) const fn of_folder(dir: PathBuf) -> Self {
        Self { dir, spec: None, mutable: Vec::new(), jobs: None }
    }

    /// Reads every byte of the folder.
    pub(super) fn pack(&self, ui: &Ui) -> Result<PackedTree, CliError> {
        let spec = self.spec()?;
        let mut rules = spec.rules.clone();
        rules.mutable.extend(self.mutable.iter().cloned());
        rules.mutable.sort_unstable();
        rules.mutable.dedup();
        let jobs =
            self.jobs.or_else(|| std::thread::available_parallelism().ok()).unwrap_or(NonZeroUsize::MIN);
        let options = PackOptions { rules, outside_links: spec.outside_links, jobs };
        let packed = self.pack_with_progress(ui, &options)?;
        for warning in packed.warnings.iter().take(WARNINGS_SHOWN_MAX) {
            ui.warn(warning);
        }
        if packed.warnings.len() > WARNINGS_SHOWN_MAX {
            let rest = packed.warnings.len() - WARNINGS_SHOWN_MAX;
            ui.warn(format_args!(
                "… and {rest} more of these; `muster release pack --output json` lists all"
            ));
        }
        Ok(PackedTree { packed, spec })
    }

    fn spec(&self) -> Result<ReleaseSpec, CliError> {
        let path = match &self.spec {
            Some(path) => path.clone(),
            None => self.dir.join(SPEC_FILE),
        };
        if self.spec.is_none() && !path.is_file() {
            return Ok(ReleaseSpec::default());
        }
        ReleaseSpec::read(&path).map_err(CliError::tree("understand the release's description"))
    }

    fn pack_with_progress(&self, ui: &Ui, options: &PackOptions) -> Result<Packed, CliError> {
        let progress = Progress::default();
        let bar = Bars::bytes(ui, "reading", 0);
        let is_done = AtomicBool::new(false);
        let packed = std::thread::scope(|scope| {
            let drawing = scope.spawn(|| {
                while !is_done.load(Ordering::Acquire) {
                    bar.set(progress.bytes());
                    std::thread::park_timeout(REDRAW);
                }
            });
            let packed = pack(&self.dir, options, &progress);
            is_done.store(true, Ordering::Release);
            drawing.thread().unpark();
            packed
        });
        packed.map_err(CliError::tree(format!("pack {}", self.dir.display())))
    }
}
