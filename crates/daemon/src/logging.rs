//! Logging to standard error.

use std::env::{self, VarError};
use std::io::{self, IsTerminal as _};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::Error;

const FILTER_VARIABLE: &str = "RUST_LOG";

/// How events are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// A line for people; coloured on a terminal, unless `NO_COLOR` is set.
    #[default]
    Text,
    /// A JSON object on each line.
    Json,
}

/// Sends all events to standard error, for the rest of the process: level `info` and above, or what `RUST_LOG` says.
///
/// To be called once, by a `main`.
pub fn init_logging(format: LogFormat) -> Result<(), Error> {
    let text = match env::var(FILTER_VARIABLE) {
        Ok(text) => Some(text),
        Err(VarError::NotPresent) => None,
        Err(error @ VarError::NotUnicode(_)) => return Err(Error::LogFilter { reason: error.to_string() }),
    };
    let no_color = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    // A closed standard error must not end a daemon: errors of the log itself are not written anywhere.
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter(text.as_deref())?)
        .with_writer(io::stderr)
        .log_internal_errors(false)
        .with_ansi(!no_color && io::stderr().is_terminal());
    let installed = match format {
        LogFormat::Text => builder.finish().try_init(),
        LogFormat::Json => builder.json().flatten_event(true).finish().try_init(),
    };
    installed.map_err(|_| Error::LoggingInstalled)
}

fn filter(text: Option<&str>) -> Result<EnvFilter, Error> {
    EnvFilter::builder()
        .with_default_directive(LevelFilter::INFO.into())
        .parse(text.unwrap_or_default())
        .map_err(|error| Error::LogFilter { reason: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filter_is_info_unless_told_otherwise() {
        assert_eq!(filter(None).unwrap().to_string(), "info");
        assert_eq!(filter(Some("")).unwrap().to_string(), "info");
        assert_eq!(filter(Some("warn")).unwrap().to_string(), "warn");
        assert_eq!(filter(Some("muster=debug")).unwrap().max_level_hint(), Some(LevelFilter::DEBUG));
        assert!(matches!(filter(Some("muster=loud")), Err(Error::LogFilter { .. })));
    }
}
