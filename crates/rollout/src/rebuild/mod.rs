//! What a lost coordinator is rebuilt from: the records of all N hosts, and the documents that they keep.
//!
//! "New incarnation by a signed order, read-only until all N have joined, state rebuilt from the agents' records and
//! evidence, then leads with τ, k, e above every agent's." A host tells its [`Testimony`] only after it has durably obeyed
//! the new incarnation, so that nobody can change it any more in the name of the coordinator that was lost. [`judge()`] works
//! out where the fleet stands, and [`Verdict::record`] makes the record that a leader takes over. Both are pure; asking the
//! hosts and verifying documents is the coordinator's edge.

mod judge;
mod record;
mod testimony;

pub use judge::{Before, Verdict, judge};
pub use record::{Dossier, Mandated};
pub use testimony::{Kept, Promise, Revealed, Stopped, TESTIMONY_FORMAT, Testimony, Told};
