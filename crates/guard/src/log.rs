//! The guard's own log: plain lines on stderr, which systemd and `muster dev` collect.

use std::fmt::Arguments;
use std::io::Write;

/// Writes one line. A log that cannot be written must never stop the guard, so a failure is dropped.
pub(crate) fn line(text: Arguments<'_>) {
    let one_line = text.to_string().replace('\n', " | ");
    let _ = writeln!(std::io::stderr(), "muster-guard: {one_line}");
}

/// The log is called like `format!`.
macro_rules! log {
    ($($arg:tt)*) => { $crate::log::line(format_args!($($arg)*)) };
}
pub(crate) use log;
