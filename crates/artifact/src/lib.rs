//! Trees and bytes: packing, measuring, the blob store and installation.
//!
//! | module | what it does |
//! |---|---|
//! | `pack` | reads a folder and makes the [`Manifest`](muster_model::Manifest) of it |
//! | `spec` | reads the `muster.toml` that says what the folder alone cannot |
//! | `blobs` | keeps files by the digest of their content |
//! | `transfer` | says which blobs a host lacks |
//! | `install` | builds a release's tree from blobs, or repairs it |
//! | `measure` | reads a tree again and compares |
//! | `seal` | notices cheaply that a measured tree was touched |
//! | `verity` | has the kernel seal files, and says what a measurement is worth |
//! | `deployed` | tells whether what is about to be started is what was released |
//!
//! All of it is synchronous and uses no global state: threads belong to the call that asked for them. It
//! never opens a connection, never decides whether a release may go live, and never touches the link that
//! services use: that is the guard's. Manifests themselves live in `crates/model`.
//!
//! # What a digest covers
//! Paths, types, the permission bits of folders and files, sizes, contents and symlink targets, of every entry:
//! whatever is not listed must not be there. Group and other write bits count too, so a tree that was checked out
//! under another umask is another tree: set the modes before packing, for example with `chmod -R go-w`.
//!
//! Not covered: owner and group (the host's configuration sets them), times, extended attributes and ACLs,
//! which names are hard links of each other (they become separate files), holes in files, and the root
//! folder's own mode. Packing refuses what would be lost without a trace: set-user-id, set-group-id and
//! sticky bits, file capabilities, devices, sockets and FIFOs.
//!
//! Installed trees carry exactly the modes of their manifest. They are read-only by convention and by owner,
//! not by mode: taking the write bits away would be another tree.

mod blobs;
mod deployed;
mod durable;
mod error;
mod handle;
mod install;
mod measure;
mod pack;
mod pool;
mod progress;
mod seal;
mod spec;
#[cfg(test)]
mod testing;
mod transfer;
mod verity;
mod walk;

pub use blobs::{BlobReader, BlobStore, BlobWriter, Durability};
pub use deployed::Deployed;
pub use error::{ArtifactError, Unpackable, UnpackableKind};
pub use install::{How, InstallOptions, Installed, Owner, clean_leftovers, install, remove_release};
pub use measure::{DIFFERENCES_MAX, MeasureOptions, Measurement, measure};
pub use pack::{PackOptions, Packed, Warning, WarningKind, pack};
pub use progress::Progress;
pub use seal::{Seal, seal};
pub use spec::{OutsideLinks, ReleaseSpec};
pub use transfer::{Plan, plan};
pub use verity::{Assured, Shortfall, VerityUse, supports_verity};
