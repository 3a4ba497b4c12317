use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use muster_model::{IdentityName, UnixTime};
use muster_mtls::Role;
use serde::Serialize;

use crate::args::duration;
use crate::clock::{date_text, unix_time};
use crate::commands::Env;
use crate::commands::host::fleet_folder;
use crate::error::CliError;
use crate::exit::Exit;
use crate::output::{Page, Report, Tone};
use crate::provision::issue_certificate;

/// Issue a certificate with its key by hand: for the coordinator, another operator, a pipeline, or whoever only looks.
///
/// The key is made here; take both where they belong by a way that you trust. Hosts enrol with `muster host token`, or are issued
/// whole with `muster host issue`. A coordinator picks up files that have changed without a restart.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  muster certificate issue bob --role operator --out bob
  muster certificate issue coordinator --role coordinator --san muster.example --san 10.0.0.5 --out next")]
pub(crate) struct Issue {
    /// For whom
    #[arg(value_name = "NAME")]
    name: IdentityName,
    /// In which role
    #[arg(long, value_enum)]
    role: IssuedRole,
    /// A DNS name or IP address under which a coordinator is reached; may be repeated
    #[arg(long, value_name = "NAME")]
    san: Vec<String>,
    /// The folder to make, with certificate.pem, key.pem and ca.pem
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    /// The folder that `muster init` made [default: the one that holds the context]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// How long the certificate holds
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "365d")]
    valid_for: Duration,
}

/// The roles that are issued by hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum IssuedRole {
    /// Coordinates fleets; needs at least one --san
    Coordinator,
    /// Runs fleets
    Operator,
    /// Submits releases and checks
    Pipeline,
    /// Only looks
    Viewer,
}

impl Issue {
    pub(super) fn run(self, env: &Env) -> Result<Exit, CliError> {
        let role = match self.role {
            IssuedRole::Coordinator => Role::Coordinator,
            IssuedRole::Operator => Role::Operator,
            IssuedRole::Pipeline => Role::Pipeline,
            IssuedRole::Viewer => Role::Viewer,
        };
        if (role == Role::Coordinator) == self.san.is_empty() {
            return Err(CliError::Usage {
                what: "a coordinator has names under which it is reached, and nobody else has".to_owned(),
                next: "give --san for a coordinator, and only there".to_owned(),
            });
        }
        let dir = fleet_folder(self.dir, env)?;
        let who = (role, self.name.clone(), self.san);
        let not_after = issue_certificate(&dir, &self.out, who, unix_time(), self.valid_for)?;
        env.ui.report(&Issued::new(role, self.name, self.out, not_after))?;
        Ok(Exit::Proven)
    }
}

#[derive(Debug, Serialize)]
struct Issued {
    role: String,
    name: IdentityName,
    folder: PathBuf,
    expires: String,
}

impl Issued {
    fn new(role: Role, name: IdentityName, folder: PathBuf, not_after: UnixTime) -> Self {
        Self { role: role.to_string(), name, folder, expires: date_text(not_after) }
    }
}

impl Report for Issued {
    const SCHEMA: &'static str = "muster.certificate-issue/1";

    fn print(&self, page: &mut Page) {
        let Self { role, name, folder, expires } = self;
        page.toned(Tone::Good, format_args!("issued {role} {name} in {}, until {expires}", folder.display()));
        page.line("The folder holds a private key: take it where it belongs, and leave no copy here.");
    }
}
