use std::path::PathBuf;

use clap::Args;
use muster_mtls::Credentials;
use serde::Serialize;

use crate::clock::{date_text, span_text, unix_time};
use crate::commands::Env;
use crate::error::CliError;
use crate::exit::Exit;
use crate::output::{Page, Report, Tone};

/// Show whom your certificate speaks for and how long it lasts. Nobody is asked.
///
/// It ends with 13 if the certificate has expired.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  muster certificate show")]
pub(crate) struct Show {}

impl Show {
    pub(super) fn run(self, env: &Env) -> Result<Exit, CliError> {
        let paths = env.context()?.credential_paths();
        let credentials =
            Credentials::load(&paths).map_err(CliError::tls("read the certificate of the context"))?;
        let shown = Shown::new(&credentials, paths.certificate);
        env.ui.report(&shown)?;
        Ok(if shown.has_expired { Exit::Stale } else { Exit::Proven })
    }
}

#[derive(Debug, Serialize)]
pub(super) struct Shown {
    identity: String,
    serial: String,
    file: PathBuf,
    expires: String,
    left_ms: u64,
    has_expired: bool,
    /// Less than a third of its life is left.
    is_ending: bool,
}

impl Shown {
    pub(super) fn new(credentials: &Credentials, file: PathBuf) -> Self {
        let (validity, now) = (credentials.validity(), unix_time());
        Self {
            identity: credentials.identity().to_string(),
            serial: credentials.serial().to_string(),
            file,
            expires: date_text(validity.not_after),
            left_ms: validity.not_after.0.saturating_sub(now.0),
            has_expired: validity.not_after < now,
            is_ending: validity.is_ending(now),
        }
    }
}

impl Report for Shown {
    const SCHEMA: &'static str = "muster.certificate/1";

    fn print(&self, page: &mut Page) {
        page.line(format_args!("identity {}", self.identity));
        page.line(format_args!("serial   {}", self.serial));
        page.line(format_args!("file     {}", self.file.display()));
        if self.has_expired {
            page.labelled(Tone::Bad, "expired", format_args!("on {}", self.expires));
            return;
        }
        let left = format!("{}, in {}", self.expires, span_text(self.left_ms));
        if self.is_ending {
            page.labelled(Tone::Warning, "ends", format_args!("{left}; renew it: muster certificate renew"));
        } else {
            page.line(format_args!("ends     {left}"));
        }
    }
}
