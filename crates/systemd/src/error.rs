//! The errors of this crate.

use std::io;
use std::time::Duration;

use crate::unit::UnitName;

/// Why systemd could not be asked, or did not do it.
#[derive(Debug, thiserror::Error)]
pub enum SystemdError {
    /// The threads that the bus needs cannot be made.
    #[error("cannot start a thread for the system bus")]
    Threads(#[source] io::Error),
    /// The bus or systemd said no.
    #[error("systemd refused to {what}")]
    Bus {
        /// What was asked.
        what: String,
        /// What it said.
        #[source]
        source: Box<zbus::Error>,
    },
    /// The bus does not answer.
    #[error("systemd does not answer within {} ms: {what}", waited.as_millis())]
    Silent {
        /// What was asked.
        what: String,
        /// For how long.
        waited: Duration,
    },
    /// The job did not end in time. It may go on.
    #[error("unit {unit}: the job to {job} it has not ended after {} ms", waited.as_millis())]
    JobUnfinished {
        /// The unit.
        unit: UnitName,
        /// `start` or `stop`.
        job: &'static str,
        /// For how long it was waited.
        waited: Duration,
    },
    /// The answer is not of the form that is documented.
    #[error("systemd's answer to {what} cannot be used: {detail}")]
    Answer {
        /// What was asked.
        what: String,
        /// What is wrong with it.
        detail: String,
    },
}
