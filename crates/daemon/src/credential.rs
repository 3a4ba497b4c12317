//! Files that a configuration names, and credentials that systemd passes.

use std::env;
use std::path::{Path, PathBuf};

use crate::Error;

const PREFIX: &str = "credential:";

/// Set by systemd for units with `LoadCredential=` and its like.
const FOLDER_VARIABLE: &str = "CREDENTIALS_DIRECTORY";

/// Where a path of a configuration leads: `credential:NAME` to the credential of this name that systemd passes to this
/// process, anything else to the path itself, taken from `folder` if it is relative.
pub fn resolve_path(path: &Path, folder: &Path) -> Result<PathBuf, Error> {
    resolve(path, folder, env::var_os(FOLDER_VARIABLE).map(PathBuf::from).as_deref())
}

fn resolve(path: &Path, folder: &Path, credentials: Option<&Path>) -> Result<PathBuf, Error> {
    let Some(name) = path.to_str().and_then(|text| text.strip_prefix(PREFIX)) else {
        return Ok(folder.join(path));
    };
    // systemd's own rule; with it the name cannot lead out of the folder.
    if name.is_empty() || name == "." || name == ".." || name.contains('/') {
        return Err(Error::CredentialName { name: name.to_owned() });
    }
    let credentials = credentials.filter(|credentials| credentials.is_absolute());
    let credentials = credentials.ok_or_else(|| Error::NoCredentials { name: name.to_owned() })?;
    Ok(credentials.join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credential_is_found_in_its_folder_and_nowhere_else() {
        let (folder, credentials) = (Path::new("/etc/muster"), Path::new("/run/credentials/muster.service"));
        let found = |path: &str| resolve(Path::new(path), folder, Some(credentials));
        assert_eq!(found("credential:agent.key").unwrap(), credentials.join("agent.key"));
        assert_eq!(found("agent.key").unwrap(), folder.join("agent.key"));
        assert_eq!(found("./credential:agent.key").unwrap(), folder.join("./credential:agent.key"));
        assert_eq!(found("/run/agent.key").unwrap(), Path::new("/run/agent.key"));
        for name in ["", ".", "..", "../shadow", "/etc/shadow", "a/b"] {
            let refused = found(&format!("{PREFIX}{name}"));
            assert!(matches!(refused, Err(Error::CredentialName { .. })), "{name}: {refused:?}");
        }
        for nowhere in [None, Some(Path::new("")), Some(Path::new("run"))] {
            let refused = resolve(Path::new("credential:agent.key"), folder, nowhere);
            assert!(matches!(refused, Err(Error::NoCredentials { name }) if name == "agent.key"));
        }
    }
}
