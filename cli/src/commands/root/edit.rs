use std::convert::Infallible;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use muster_model::{PublicKey, Root, SigningRole};
use muster_trust::{KeyText, public_key};
use serde::Serialize;

use super::difference::RootDifference;
use super::file::RootFile;
use super::joiner::JoinerArgs;
use super::{RootArg, role_name};
use crate::args::duration;
use crate::clock::unix_time;
use crate::commands::Env;
use crate::error::CliError;
use crate::exit::Exit;
use crate::files::{Existing, write};
use crate::output::{Page, Report};
use crate::provision::ROOT_LIFETIME;

/// Write the next root document, to read over and have signed. Nothing is signed or changed.
///
/// A key is a public key file (our own text or OpenSSH's), or the text of a key. Without any change the next root says the same for
/// longer.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  muster root edit --add operator=alice.pub --threshold operator=2 --out next.toml
  muster root edit --add release=new.pub --remove release=old.pub --out next.toml
  muster root edit --joiner autoscaler.pub --joiner-fleet demo --joiner-hosts-max 40 --out next.toml
  muster root edit --expires 365d --out next.toml")]
pub(crate) struct Edit {
    #[command(flatten)]
    root: RootArg,
    /// Let this key sign for this role; may be repeated
    #[arg(long, value_name = "ROLE=KEY", value_parser = role_key)]
    add: Vec<(SigningRole, KeyArg)>,
    /// Let this key sign for this role no more; may be repeated. What it has signed means nothing from then on
    #[arg(long, value_name = "ROLE=KEY", value_parser = role_key)]
    remove: Vec<(SigningRole, KeyArg)>,
    /// How many keys of this role must sign; may be repeated
    #[arg(long, value_name = "ROLE=N", value_parser = role_threshold)]
    threshold: Vec<(SigningRole, u32)>,
    #[command(flatten)]
    joiner: JoinerArgs,
    /// How long the next root holds from now on [default: two years]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    expires: Option<Duration>,
    /// Write to this file
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// A key as the command line names it; a name of a present key, a file, or the key itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct KeyArg(String);

impl Edit {
    pub(super) fn run(self, env: &Env) -> Result<Exit, CliError> {
        let present = self.root.read(env)?;
        let root = present.root();
        let version = root.version.checked_add(1).ok_or_else(|| CliError::Usage {
            what: "there is no version after this one".to_owned(),
            next: "provision all machines with a new root".to_owned(),
        })?;
        let expires = unix_time().after(self.expires.unwrap_or(ROOT_LIFETIME));
        let mut file = RootFile::of(root, version, expires);
        for (role, key) in &self.add {
            let (public, name) = key.read(root)?;
            if !file.add(*role, &public, name.as_deref()) {
                return Err(unchanged(*role, key, "has that role already"));
            }
        }
        for (role, key) in &self.remove {
            let (public, _) = key.read(root)?;
            if !file.remove(*role, &public) {
                return Err(unchanged(*role, key, "does not have that role"));
            }
        }
        file.threshold.extend(self.threshold.iter().copied());
        file.joiner = self.joiner.edit(root, file.joiner.take())?;
        let doing = "make the next root".to_owned();
        let next = file.to_root().map_err(|source| CliError::Document { doing, source })?;
        let text = toml::to_string(&file).expect("a root has string keys and no failing serialisers");
        write(&self.out, format!("{NOTE}{text}").as_bytes(), 0o644, Existing::Keep)?;
        env.ui.report(&Edited { difference: RootDifference::of(root, &next), draft: self.out })?;
        Ok(Exit::Proven)
    }
}

const NOTE: &str = "\
# The next root document, to be signed with `muster root sign`. Every key of a role may sign for it, and as many
# different keys as the threshold says must.
";

impl KeyArg {
    pub(super) fn read(&self, root: &Root) -> Result<(PublicKey, Option<String>), CliError> {
        let Self(text) = self;
        if let Some((key, name)) = root.names.iter().find(|(_, name)| *name == text) {
            return Ok((key.clone(), Some(name.clone())));
        }
        if let Ok(key) = text.parse() {
            return Ok((key, None));
        }
        let path = Path::new(text);
        let KeyText { key, comment } =
            public_key(path).map_err(CliError::trust(format!("read the public key {text}")))?;
        let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
        Ok((key, comment.or(stem)))
    }
}

impl FromStr for KeyArg {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for KeyArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn unchanged(role: SigningRole, key: &KeyArg, why: &str) -> CliError {
    CliError::Usage {
        what: format!("{} {why}: {}", key.0, role_name(role)),
        next: "look at `muster root show`".to_owned(),
    }
}

fn role_of(text: &str) -> Result<(SigningRole, &str), String> {
    let form = || "write ROLE=…, where ROLE is root, release or operator".to_owned();
    let (role, rest) = text.split_once('=').filter(|(_, rest)| !rest.is_empty()).ok_or_else(form)?;
    let role = super::ROLES.into_iter().find(|known| role_name(*known) == role).ok_or_else(form)?;
    Ok((role, rest))
}

fn role_key(text: &str) -> Result<(SigningRole, KeyArg), String> {
    role_of(text).map(|(role, key)| (role, KeyArg(key.to_owned())))
}

fn role_threshold(text: &str) -> Result<(SigningRole, u32), String> {
    let (role, count) = role_of(text)?;
    match count.parse() {
        Ok(count) if count > 0 => Ok((role, count)),
        Ok(_) | Err(_) => Err("a threshold is a number from 1 on".to_owned()),
    }
}

#[derive(Debug, Serialize)]
struct Edited {
    #[serde(flatten)]
    difference: RootDifference,
    draft: PathBuf,
}

impl Report for Edited {
    const SCHEMA: &'static str = "muster.root-edit/1";

    fn print(&self, page: &mut Page) {
        self.difference.print(page);
        page.gap();
        let draft = self.draft.display();
        page.line(format_args!("Next: read {draft}, then `muster root sign {draft} --key KEY`"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_keys_and_thresholds_are_read_from_the_command_line() {
        let key = || KeyArg("a=b.pub".to_owned());
        assert_eq!(role_key("operator=a=b.pub"), Ok((SigningRole::Operator, key())));
        assert_eq!(role_threshold("root=2"), Ok((SigningRole::Root, 2)));
        for wrong in ["operator", "operator=", "admin=a.pub", "=a.pub"] {
            assert!(role_key(wrong).is_err(), "{wrong}");
        }
        for wrong in ["root=0", "root=-1", "root=two"] {
            assert!(role_threshold(wrong).is_err(), "{wrong}");
        }
    }
}
