//! Configuration in fragments: files that are laid over each other, the later one winning, and read as one.
//!
//! For the daemons' edges; what their settings mean is said beside each of them. It reads files and nothing else: it writes
//! none, logs nothing and never looks at the environment. Whatever is wrong is told with the file, the line and the column
//! that it comes from although the fragments were merged before, and as much of it at once as can be told.

mod error;
mod files;
mod merge;
mod problems;
mod show;

pub use error::{Error, Place, Problem};
pub use files::{Fragment, Fragments, SYSTEM_FOLDERS};
pub use merge::Fault;
