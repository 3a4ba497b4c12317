//! The releases of the replay, and the copy by hand.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use crate::error::CliError;

/// What the servers run before that day.
pub(super) const OLD: &str = "2012.07.01";

/// The release with the Retail Liquidity Program.
pub(super) const NEW: &str = "2012.08.01-rlp";

/// The one after it.
pub(super) const NEXT: &str = "2012.08.02-rlp";

/// The file that is forgotten when the release is copied by hand.
pub(super) const FORGOTTEN: &str = "lib/rlp.sh";

const EXECUTABLE: u32 = 0o755;
const PLAIN: u32 = 0o644;

struct Source {
    path: &'static str,
    mode: u32,
    text: &'static str,
}

const OLD_FILES: &[Source] = &[
    Source {
        path: "bin/smars",
        mode: EXECUTABLE,
        text: "#!/bin/sh\n# Routes a parent order. With the flag on, it is Power Peg's.\n\
               . ./lib/router.sh\n. ./lib/power-peg.sh\n\
               if [ \"$FLAG\" = on ]; then power_peg \"$@\"; else route \"$@\"; fi\n",
    },
    Source {
        path: "conf/routing.toml",
        mode: PLAIN,
        text: "venues = [\"nyse\", \"arca\", \"bats\"]\nflag_reads = \"power-peg\"\n",
    },
    Source { path: "lib/router.sh", mode: PLAIN, text: "route() { echo \"child order of $1\"; }\n" },
    Source {
        path: "lib/power-peg.sh",
        mode: PLAIN,
        text: "# Unused since 2003.\npower_peg() { while :; do echo \"child order of $1\"; done; }\n",
    },
];

const NEW_FILES: &[Source] = &[
    Source {
        path: "bin/smars",
        mode: EXECUTABLE,
        text: "#!/bin/sh\n# Routes a parent order. With the flag on, it may go to the Retail Liquidity Program.\n\
               . ./lib/router.sh\n. ./lib/rlp.sh\n\
               if [ \"$FLAG\" = on ]; then rlp \"$@\"; else route \"$@\"; fi\n",
    },
    Source {
        path: "conf/routing.toml",
        mode: PLAIN,
        text: "venues = [\"nyse\", \"nyse-rlp\", \"arca\", \"bats\"]\nflag_reads = \"rlp\"\n",
    },
    Source { path: "lib/router.sh", mode: PLAIN, text: "route() { echo \"child order of $1\"; }\n" },
    Source { path: FORGOTTEN, mode: PLAIN, text: "rlp() { echo \"retail child order of $1\"; }\n" },
];

/// What the next release has beside the files of the new one.
const ADDED_FILES: &[Source] =
    &[Source { path: "conf/limits.toml", mode: PLAIN, text: "child_orders_max = 1000\n" }];

/// Writes the trees of the releases into `dir`, each under its version.
pub(super) fn write(dir: &Path) -> Result<(), CliError> {
    for (version, files, added) in
        [(OLD, OLD_FILES, &[][..]), (NEW, NEW_FILES, &[]), (NEXT, NEW_FILES, ADDED_FILES)]
    {
        for file in files.iter().chain(added) {
            let path = dir.join(version).join(file.path);
            let folder = path.parent().unwrap_or(dir);
            fs::create_dir_all(folder).map_err(CliError::file("create", folder))?;
            fs::write(&path, file.text).map_err(CliError::file("write", path.as_path()))?;
            set_mode(&path, file.mode)?;
        }
        // What the creating user's umask took away or left would be part of the release.
        for folder in ["bin", "conf", "lib"] {
            set_mode(&dir.join(version).join(folder), EXECUTABLE)?;
        }
    }
    Ok(())
}

/// Copies the new release's files, all but one, with their modes: what a person does with a terminal in a hurry.
pub(super) fn copy_by_hand(from: &Path, to: &Path) -> Result<usize, CliError> {
    let mut copied = 0;
    for file in NEW_FILES.iter().filter(|file| file.path != FORGOTTEN) {
        let (source, target) = (from.join(file.path), to.join(file.path));
        let folder = target.parent().unwrap_or(to);
        fs::create_dir_all(folder).map_err(CliError::file("create", folder))?;
        set_mode(folder, EXECUTABLE)?;
        fs::copy(&source, &target).map_err(CliError::file("copy", source))?;
        copied += 1;
    }
    set_mode(to, EXECUTABLE)?;
    Ok(copied)
}

fn set_mode(path: &Path, mode: u32) -> Result<(), CliError> {
    fs::set_permissions(path, Permissions::from_mode(mode)).map_err(CliError::file("set the mode of", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_copy_lacks_one_file_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path()).unwrap();
        let (from, to) = (dir.path().join(NEW), dir.path().join("copy"));
        assert_eq!(copy_by_hand(&from, &to).unwrap(), NEW_FILES.len() - 1);
        for file in NEW_FILES {
            let copied = to.join(file.path);
            assert_eq!(copied.exists(), file.path != FORGOTTEN, "{}", file.path);
            if copied.exists() {
                assert_eq!(fs::read(&copied).unwrap(), file.text.as_bytes());
                assert_eq!(fs::metadata(&copied).unwrap().permissions().mode() & 0o7777, file.mode);
            }
        }
    }
}
