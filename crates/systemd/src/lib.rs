//! systemd's units, over D-Bus.
//!
//! The calls block, and each ends within a bound of its own, whatever the bus does. Nothing here decides anything: a
//! [`Unit`] is what systemd says of a unit at one moment, a [`JobResult`] is how a job that was asked for ended.
//!
//! Whoever must stop a service even if the bus is silent uses the unit's control group instead ([`Unit::cgroup`]).
//!
//! The interface is described in org.freedesktop.systemd1(5).

mod error;
mod manager;
mod unit;

pub use error::SystemdError;
pub use manager::Systemd;
pub use unit::{ActiveState, JobResult, LoadState, MainEnd, Unit, UnitName};
