//! Which files a configuration is read from.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{OFlags, makedev};
use rustix::process::{getegid, geteuid};

use crate::error::{Error, Problem};
use crate::merge::place_in;

/// Where configuration is looked for, the weakest first: the distributor's, this boot's, the administrator's.
pub const SYSTEM_FOLDERS: [&str; 3] = ["/usr/lib/muster", "/run/muster", "/etc/muster"];

/// The folders that hold the same paths, the weakest first.
const SYSTEM_ROOTS: [&str; 3] = ["/usr/lib", "/run", "/etc"];

const FRAGMENTS_MAX: usize = 64;
const TOTAL_BYTES_MAX: usize = 1 << 20;

/// Whoever may write to a configuration decides what is run; these are all users.
const OTHERS_WRITE: u32 = 0o002;
const GROUP_WRITES: u32 = 0o020;

/// One file of configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fragment {
    /// Where it is from.
    pub path: PathBuf,
    /// TOML.
    pub text: String,
}

/// Files of configuration, the weakest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fragments(pub(crate) Vec<Fragment>);

impl Fragments {
    /// Reads `name` (such as `agent.toml`) and `name.d/*.toml` in the [`SYSTEM_FOLDERS`].
    pub fn from_system(name: &str) -> Result<Self, Error> {
        Self::from_folders(&SYSTEM_FOLDERS.map(PathBuf::from), name)
    }

    /// Reads `name` and `name.d/*.toml` in each of `folders`, the weakest first; whatever is missing is left out.
    ///
    /// The rules are systemd's. Of the main files only the strongest is read. Drop-ins follow it by file name, whichever
    /// folder they are in; of two of the same name only the stronger is read, so that an empty file or a link to
    /// `/dev/null` turns one off.
    pub fn from_folders(folders: &[PathBuf], name: &str) -> Result<Self, Error> {
        let mut main = None;
        let mut drop_ins = BTreeMap::new();
        for folder in folders {
            let path = folder.join(name);
            // Looked at by its name: a link that leads nowhere is an error and no missing file.
            match fs::symlink_metadata(&path) {
                Ok(_) => main = Some(path),
                Err(error) if is_missing(&error) => {}
                Err(source) => return Err(Error::Read { path, source }),
            }
            drop_ins.extend(drop_in_paths(&folder.join(format!("{name}.d")))?);
        }
        Self::read_all(main, drop_ins)
    }

    /// Reads one file, which must be there, and `FILE.d/*.toml`. A file below `/etc` may have its drop-ins, and be itself, in the
    /// same place below `/run` and `/usr/lib` as well.
    pub fn from_file(path: &Path) -> Result<Self, Error> {
        let below_etc = path
            .strip_prefix("/etc")
            .ok()
            .and_then(|below| Some((below.parent()?, path.file_name()?.to_str()?)));
        let Some((folder, name)) = below_etc else {
            let mut folder = path.as_os_str().to_owned();
            folder.push(".d");
            return Self::read_all(Some(path.to_owned()), drop_in_paths(Path::new(&folder))?);
        };
        let folders = SYSTEM_ROOTS.map(|root| Path::new(root).join(folder));
        if folders
            .iter()
            .all(|folder| fs::symlink_metadata(folder.join(name)).is_err_and(|error| is_missing(&error)))
        {
            return Err(Error::Read { path: path.to_owned(), source: io::ErrorKind::NotFound.into() });
        }
        Self::from_folders(&folders, name)
    }

    /// Takes fragments that were read elsewhere.
    pub fn new(fragments: Vec<Fragment>) -> Result<Self, Error> {
        let mut total = 0;
        for (index, Fragment { path, text }) in fragments.iter().enumerate() {
            total += text.len();
            if index >= FRAGMENTS_MAX {
                return Err(Error::TooMuch { path: path.clone(), max: FRAGMENTS_MAX, unit: "files" });
            }
            if total > TOTAL_BYTES_MAX {
                return Err(Error::TooMuch { path: path.clone(), max: TOTAL_BYTES_MAX, unit: "bytes" });
            }
        }
        Ok(Self(fragments))
    }

    /// The files, the weakest first, for the log.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.0.iter().map(|fragment| fragment.path.as_path())
    }

    /// Refuses files, and folders of drop-ins, that anybody but root and this process's own user and group may change: for a
    /// configuration that says what is run as this user.
    pub fn refuse_foreign(&self) -> Result<(), Error> {
        let own = (geteuid().as_raw(), getegid().as_raw());
        let folders = self.paths().filter_map(Path::parent);
        let folders = folders.filter(|folder| folder.extension().is_some_and(|extension| extension == "d"));
        for path in self.paths().chain(folders) {
            let failed = |source| Error::Read { path: path.to_owned(), source };
            let found = fs::metadata(path).map_err(failed)?;
            if is_null(&found) {
                continue;
            }
            if let Some(reason) = foreign((found.uid(), found.gid(), found.mode()), own) {
                return Err(Error::Unfit { path: path.to_owned(), reason });
            }
        }
        Ok(())
    }

    fn read_all(main: Option<PathBuf>, drop_ins: BTreeMap<OsString, PathBuf>) -> Result<Self, Error> {
        let paths: Vec<PathBuf> = main.into_iter().chain(drop_ins.into_values()).collect();
        // Checked before they are read, as a folder may hold anything.
        if let Some(path) = paths.get(FRAGMENTS_MAX) {
            return Err(Error::TooMuch { path: path.clone(), max: FRAGMENTS_MAX, unit: "files" });
        }
        Self::new(paths.into_iter().map(read).collect::<Result<_, _>>()?)
    }
}

fn read(path: PathBuf) -> Result<Fragment, Error> {
    let failed = |source| Error::Read { path: path.clone(), source };
    // A pipe would wait for a writer: it is opened without waiting, and refused.
    let nonblocking = OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(nonblocking).open(&path).map_err(failed)?;
    let found = file.metadata().map_err(failed)?;
    if is_null(&found) {
        return Ok(Fragment { path, text: String::new() });
    }
    if !found.is_file() {
        let what = if found.is_dir() { "it is a folder" } else { "it is no regular file" };
        return Err(Error::Unfit { path, reason: format!("{what}, and no file of configuration") });
    }
    refuse_open_to_all(&path, &found)?;
    let bytes = read_bounded(file, &path)?;
    String::from_utf8(bytes).map(|text| Fragment { path: path.clone(), text }).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let text = String::from_utf8_lossy(&error.as_bytes()[..valid]);
        Error::Invalid {
            problems: vec![Problem {
                place: place_in(&path, &text, valid),
                reason: "this is not UTF-8".to_owned(),
            }],
        }
    })
}

fn read_bounded(file: File, path: &Path) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    let failed = |source| Error::Read { path: path.to_owned(), source };
    file.take(TOTAL_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() > TOTAL_BYTES_MAX {
        return Err(Error::TooMuch { path: path.to_owned(), max: TOTAL_BYTES_MAX, unit: "bytes" });
    }
    Ok(bytes)
}

fn is_null(found: &Metadata) -> bool {
    found.file_type().is_char_device() && found.rdev() == makedev(1, 3)
}

fn refuse_open_to_all(path: &Path, found: &Metadata) -> Result<(), Error> {
    if found.mode() & OTHERS_WRITE == 0 {
        return Ok(());
    }
    let mode = found.mode() & 0o7777;
    let reason =
        format!("everybody may write to it (mode {mode:04o}); take that away: chmod o-w {}", path.display());
    Err(Error::Unfit { path: path.to_owned(), reason })
}

/// Who else may change what has this owner, group and mode.
fn foreign((uid, gid, mode): (u32, u32, u32), (own_uid, own_gid): (u32, u32)) -> Option<String> {
    if uid != 0 && uid != own_uid {
        return Some(format!(
            "it belongs to user {uid}, who could have anything run as another; it must be root's"
        ));
    }
    let is_theirs = mode & GROUP_WRITES != 0 && gid != 0 && gid != own_gid;
    is_theirs.then(|| {
        let mode = mode & 0o7777;
        format!("group {gid} may write to it (mode {mode:04o}); take that away: chmod g-w")
    })
}

fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound)
}

/// The `*.toml` of a folder that may be missing, by file name. Hidden files are those that an editor left behind.
fn drop_in_paths(folder: &Path) -> Result<BTreeMap<OsString, PathBuf>, Error> {
    let failed = |source| Error::Read { path: folder.to_owned(), source };
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if is_missing(&error) => return Ok(BTreeMap::new()),
        Err(error) => return Err(failed(error)),
    };
    refuse_open_to_all(folder, &fs::metadata(folder).map_err(failed)?)?;
    let mut paths = BTreeMap::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        let Some(name) = path.file_name() else { continue };
        if path.extension().is_some_and(|extension| extension == "toml")
            && !name.as_encoded_bytes().starts_with(b".")
        {
            if paths.len() == FRAGMENTS_MAX {
                return Err(Error::TooMuch { path, max: FRAGMENTS_MAX, unit: "files" });
            }
            paths.insert(name.to_owned(), path);
        }
    }
    Ok(paths)
}

#[cfg(test)]
mod tests;
