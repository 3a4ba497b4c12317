//! `muster operator`: further people, and pipelines.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use muster_model::{FleetName, IdentityName};
use muster_mtls::{Address, Role};
use muster_trust::KeySource;
use serde::Serialize;

use super::Env;
use super::host::fleet_folder;
use crate::args::duration;
use crate::clock::{date_text, unix_time};
use crate::error::CliError;
use crate::exit::Exit;
use crate::output::{Page, Report, Tone};
use crate::provision::{PersonOptions, add_person};

/// Let further people, and pipelines, reach the coordinator.
#[derive(Debug, Subcommand)]
pub(crate) enum OperatorCommand {
    Add(Add),
}

impl OperatorCommand {
    pub(super) fn run(self, env: &Env) -> Result<Exit, CliError> {
        match self {
            Self::Add(add) => add.run(env),
        }
    }
}

/// Make a context for somebody: a folder to take to them by hand.
///
/// It lets them call the coordinator in their role, and sign nothing: what they sign with is a key of their own, which counts
/// once a root document names it.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  muster operator add bob --operator-key ssh-agent:/home/bob/.ssh/muster.pub
  muster operator add ci --role pipeline
  muster operator add wallboard --role viewer --valid-for 30d")]
pub(crate) struct Add {
    /// The name, for certificates and the audit log
    #[arg(value_name = "NAME")]
    name: IdentityName,
    /// What they may call
    #[arg(long, value_enum, default_value_t)]
    role: PersonRole,
    /// Where they keep the key that signs orders and rosters, on their machine: a file or `ssh-agent:…`
    #[arg(long, value_name = "KEY")]
    operator_key: Option<KeySource>,
    /// Where they keep the key that signs releases
    #[arg(long, value_name = "KEY")]
    release_key: Option<KeySource>,
    /// Where they reach the coordinator [default: as in the first operator's context]
    #[arg(long, value_name = "HOST:PORT")]
    coordinator_address: Option<Address>,
    /// The fleet that is meant when they name none [default: as in the first operator's context]
    #[arg(long, short, value_name = "FLEET")]
    fleet: Option<FleetName>,
    /// The folder that `muster init` made [default: the one that holds the context]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// How long the certificate holds; they renew it with `muster certificate renew`
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "365d")]
    valid_for: Duration,
}

/// Who calls the coordinator, besides it and the agents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
enum PersonRole {
    /// Flips, rolls back, halts and approves, as far as their key counts
    #[default]
    Operator,
    /// Submits releases, deploys and checks
    Pipeline,
    /// Looks
    Viewer,
}

impl From<PersonRole> for Role {
    fn from(role: PersonRole) -> Self {
        match role {
            PersonRole::Operator => Self::Operator,
            PersonRole::Pipeline => Self::Pipeline,
            PersonRole::Viewer => Self::Viewer,
        }
    }
}

impl Add {
    fn run(self, env: &Env) -> Result<Exit, CliError> {
        let signs = self.operator_key.is_some() || self.release_key.is_some();
        if self.role == PersonRole::Viewer && signs {
            return Err(CliError::Usage {
                what: "a viewer signs nothing".to_owned(),
                next: "leave the keys out, or choose another --role".to_owned(),
            });
        }
        let dir = fleet_folder(self.dir, env)?;
        let options = PersonOptions {
            role: self.role.into(),
            operator_key: self.operator_key,
            release_key: self.release_key,
            coordinator: self.coordinator_address,
            fleet: self.fleet,
            valid_for: self.valid_for,
            now: unix_time(),
        };
        let person = add_person(&dir, &self.name, &options)?;
        env.ui.report(&Added {
            name: self.name.to_string(),
            role: options.role.to_string(),
            folder: person.folder,
            certificate_expires: date_text(person.certificate_expires),
        })?;
        Ok(Exit::Proven)
    }
}

#[derive(Debug, Serialize)]
struct Added {
    name: String,
    role: String,
    folder: PathBuf,
    certificate_expires: String,
}

impl Report for Added {
    const SCHEMA: &'static str = "muster.operator/1";

    fn print(&self, page: &mut Page) {
        let Self { name, role, folder, certificate_expires } = self;
        page.toned(Tone::Good, format_args!("made a context for {name} ({role}) in {}", folder.display()));
        page.line(format_args!("Its certificate holds until {certificate_expires}."));
        page.gap();
        page.line("Next:");
        page.line(format_args!(
            "  take the folder to {name}, readable by nobody else; it holds a private key"
        ));
        page.line("  there: export MUSTER_CONTEXT=FOLDER/context.toml");
        let signs = match role.as_str() {
            "operator" => Some(("operator", "orders and rosters")),
            "pipeline" => Some(("release", "releases")),
            _ => None,
        };
        if let Some((field, what)) = signs {
            page.line(format_args!(
                "  {name} makes a key of their own for {what} (ssh-keygen -t ed25519), and names it as {field}_key in context.toml"
            ));
            page.line(format_args!(
                "  it counts once a root names it: muster root edit --add {field}={name}.pub --out next.toml, then root sign and apply"
            ));
        }
    }
}
