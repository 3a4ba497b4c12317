//! What every Muster daemon shares: logging, shutdown, clocks, and points where tests let it fail.
//!
//! For the binaries and their drivers only. The pure crates (`crates/model`, `crates/rollout`) take time as an
//! argument and never call this one; what a daemon does with its settings is in `coordinator/` and `agent/`.
//! Nothing here starts by itself: signals are handled and logging begins when a `main` says so.

mod clock;
mod credential;
mod error;
mod fault;
mod limits;
mod logging;
mod machine;
mod pace;
mod service_manager;
mod shutdown;

pub use clock::{boot_id, boot_time, clock_state, unix_time};
pub use credential::resolve_path;
pub use error::Error;
pub use fault::{crash_point, fault_point};
pub use limits::{keep_out_of_dumps, raise_open_files};
pub use logging::{LogFormat, init_logging};
pub use machine::{Blocking, Machine, Surroundings};
pub use pace::{Pace, PaceFault};
pub use service_manager::ServiceManager;
pub use shutdown::{Shutdown, ShutdownTrigger, shutdown_on_signals};

/// The log target of decisions: every record that is written and every message that is sent, at level `trace`. Secrets and
/// tokens show as that, and nothing more of them.
pub const DECISIONS: &str = "muster::decisions";
