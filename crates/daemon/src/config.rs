//! Configuration from fragments: files that are laid over each other, the later one winning, and read as one.
//!
//! Tables are merged key by key; every other value, arrays included, is replaced as a whole. The result is
//! deserialised once, with `deny_unknown_fields` on the daemon's side, and an error names the file and line that
//! it comes from although the fragments were merged before.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeTable, DeValue, Deserializer};

use crate::Error;

/// Where configuration is looked for, the weakest first: the distributor's, this boot's, the administrator's.
pub const SYSTEM_FOLDERS: [&str; 3] = ["/usr/lib/muster", "/run/muster", "/etc/muster"];

const FRAGMENTS_MAX: usize = 64;
const TOTAL_BYTES_MAX: usize = 1 << 20;

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
pub struct Fragments(Vec<Fragment>);

impl Fragments {
    /// Reads `name` (such as `agent.toml`) and `name.d/*.toml` in the [`SYSTEM_FOLDERS`].
    pub fn from_system(name: &str) -> Result<Self, Error> {
        Self::from_folders(&SYSTEM_FOLDERS.map(PathBuf::from), name)
    }

    /// Reads `name` and `name.d/*.toml` in each of `folders`, the weakest first; whatever is missing is left out.
    ///
    /// The main files come first, in the order of the folders, then all drop-ins by file name. A drop-in in a later
    /// folder takes the place of one of the same name in an earlier folder, so that an empty file turns that one off.
    pub fn from_folders(folders: &[PathBuf], name: &str) -> Result<Self, Error> {
        let mut fragments = Vec::new();
        let mut drop_ins = BTreeMap::new();
        for folder in folders {
            match read(&folder.join(name)) {
                Ok(fragment) => fragments.push(fragment),
                Err(Error::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
            drop_ins.extend(drop_in_paths(&folder.join(format!("{name}.d")))?);
        }
        Self::with_drop_ins(fragments, drop_ins)
    }

    /// Reads one file, which must be there, and `FILE.d/*.toml`.
    pub fn from_file(path: &Path) -> Result<Self, Error> {
        let mut folder = path.as_os_str().to_owned();
        folder.push(".d");
        Self::with_drop_ins(vec![read(path)?], drop_in_paths(Path::new(&folder))?)
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

    /// Lays the fragments over each other and reads the result.
    pub fn merge<T: DeserializeOwned>(&self) -> Result<T, Error> {
        let invalid = |error: &toml::de::Error| Error::Invalid {
            place: self.place(error.span()),
            reason: error.message().trim_ascii_end().to_owned(),
        };
        // Each fragment is parsed behind as many blanks as there are bytes before it, so that a position tells the
        // fragment as well, whichever table the value ends up in.
        let padded: Vec<String> =
            self.starts().zip(&self.0).map(|(start, fragment)| " ".repeat(start) + &fragment.text).collect();
        let mut merged = DeTable::new();
        for text in &padded {
            let table = DeTable::parse(text).map_err(|error| invalid(&error))?;
            lay_over(&mut merged, table.into_inner());
        }
        // What is missing from the whole is the fault of no fragment: the whole lies behind all of them.
        let end = self.end();
        let merged = Spanned::new(end..end, merged);
        T::deserialize(Deserializer::from(merged)).map_err(|error| invalid(&error))
    }

    fn with_drop_ins(
        mut fragments: Vec<Fragment>,
        drop_ins: BTreeMap<OsString, PathBuf>,
    ) -> Result<Self, Error> {
        // Checked before they are read, as a folder may hold anything.
        if let Some(path) = drop_ins.values().nth(FRAGMENTS_MAX) {
            return Err(Error::TooMuch { path: path.clone(), max: FRAGMENTS_MAX, unit: "files" });
        }
        for path in drop_ins.values() {
            fragments.push(read(path)?);
        }
        Self::new(fragments)
    }

    /// Where each fragment begins if all stand one behind the other, with a byte between them.
    fn starts(&self) -> impl Iterator<Item = usize> {
        self.0.iter().scan(0, |next, fragment| {
            let start = *next;
            *next += fragment.text.len() + 1;
            Some(start)
        })
    }

    fn end(&self) -> usize {
        self.0.iter().map(|fragment| fragment.text.len() + 1).sum()
    }

    fn place(&self, span: Option<Range<usize>>) -> Place {
        let found = span.and_then(|span| {
            let (start, fragment) =
                self.starts().zip(&self.0).take_while(|(start, _)| *start <= span.start).last()?;
            let before = fragment.text.as_bytes().get(..span.start - start)?;
            let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
            Some(Place::Line { path: fragment.path.clone(), line })
        });
        found.unwrap_or_else(|| Place::Whole { paths: self.paths().map(Path::to_owned).collect() })
    }
}

/// Where in the configuration something is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In a line of a file.
    Line {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
    },
    /// In the whole: something is missing from all files together.
    Whole {
        /// The files, if there are any.
        paths: Vec<PathBuf>,
    },
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Whole { paths } if paths.is_empty() => f.write_str("there is no configuration file"),
            Self::Whole { paths } => {
                let paths: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
                f.write_str(&paths.join(", "))
            }
        }
    }
}

/// Puts `upper` over `lower`: tables are merged, everything else is replaced.
fn lay_over<'i>(lower: &mut DeTable<'i>, upper: DeTable<'i>) {
    for (key, value) in upper {
        match (lower.remove(&key), value) {
            (Some(below), above)
                if matches!((below.get_ref(), above.get_ref()), (DeValue::Table(_), DeValue::Table(_))) =>
            {
                let span = above.span();
                if let (DeValue::Table(mut below), DeValue::Table(above)) =
                    (below.into_inner(), above.into_inner())
                {
                    lay_over(&mut below, above);
                    lower.insert(key, Spanned::new(span, DeValue::Table(below)));
                }
            }
            (_, above) => {
                lower.insert(key, above);
            }
        }
    }
}

fn read(path: &Path) -> Result<Fragment, Error> {
    let failed = |source| Error::Read { path: path.to_owned(), source };
    let mut text = String::new();
    let max = TOTAL_BYTES_MAX as u64;
    File::open(path).map_err(failed)?.take(max + 1).read_to_string(&mut text).map_err(failed)?;
    Ok(Fragment { path: path.to_owned(), text })
}

/// The `*.toml` of a folder that may be missing, by file name. Hidden files are those that an editor left behind.
fn drop_in_paths(folder: &Path) -> Result<BTreeMap<OsString, PathBuf>, Error> {
    let failed = |source| Error::Read { path: folder.to_owned(), source };
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut paths = BTreeMap::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        let Some(name) = path.file_name() else { continue };
        if path.extension().is_some_and(|extension| extension == "toml")
            && !name.as_encoded_bytes().starts_with(b".")
        {
            paths.insert(name.to_owned(), path);
        }
    }
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Settings {
        name: String,
        #[serde(default)]
        limits: Limits,
        #[serde(default)]
        hosts: Vec<String>,
    }

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Limits {
        streams: u32,
        timeout_ms: u32,
    }

    fn fragments(texts: &[&str]) -> Fragments {
        let fragment = |(index, text): (usize, &&str)| Fragment {
            path: format!("{index}").into(),
            text: (*text).to_owned(),
        };
        Fragments::new(texts.iter().enumerate().map(fragment).collect()).unwrap()
    }

    fn error(texts: &[&str]) -> String {
        fragments(texts).merge::<Settings>().unwrap_err().to_string()
    }

    #[test]
    fn later_fragments_win_key_by_key_and_arrays_are_replaced() {
        let merged: Settings = fragments(&[
            "name = 'a'\nhosts = ['x', 'y']\n[limits]\nstreams = 1\ntimeout_ms = 1\n",
            "",
            "name = 'b'\nlimits.streams = 2\n",
            "hosts = ['z']",
        ])
        .merge()
        .unwrap();
        let limits = Limits { streams: 2, timeout_ms: 1 };
        assert_eq!(merged, Settings { name: "b".to_owned(), limits, hosts: vec!["z".to_owned()] });
    }

    #[test]
    fn an_error_names_file_and_line() {
        let good = "name = 'a'\n[limits]\nstreams = 1\n";
        for (texts, place) in [
            (vec![good, "\n\nnmae = 'b'\n"], "1:3: unknown field `nmae`"),
            (vec!["# first\nlimts.streams = 1", good], "0:2: unknown field `limts`"),
            (
                vec![good, "[limits]\n\nstreams = 'many'", ""],
                "1:3: invalid type: string \"many\", expected u32",
            ),
            (vec![good, "[limits]\nstreams = -1", "limits.timeout_ms = 5"], "1:2: invalid value"),
            (vec![good, "limits = 3"], "1:1: invalid type: integer `3`"),
            (vec![good, "name = 'b"], "1:1: "),
            (vec![good, "name = 'b'\nname = 'c'"], "1:2: duplicate key"),
            (vec!["'é' = 'ü'\n", good], "0:1: unknown field"),
            (vec!["[limits]\nstreams = 1", "hosts = []"], "0, 1: missing field `name`"),
            (vec![], "there is no configuration file: missing field `name`"),
        ] {
            let error = error(&texts);
            assert!(error.starts_with(place), "{texts:?} gives {error:?}, not {place:?}");
        }
    }

    #[test]
    fn folders_are_read_from_the_weakest_to_the_strongest() {
        let dir = tempfile::tempdir().unwrap();
        let folders: Vec<_> = ["usr", "run", "etc"].map(|name| dir.path().join(name)).into();
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("usr/agent.toml", "name = 'usr'\n[limits]\nstreams = 1\n");
        write("usr/agent.toml.d/20-name.toml", "name = 'usr drop-in'");
        write("usr/agent.toml.d/30-off.toml", "name = 'turned off'");
        write("etc/agent.toml", "name = 'etc'");
        write("etc/agent.toml.d/10-hosts.toml", "hosts = ['x']\nname = 'weaker by its file name'");
        write("etc/agent.toml.d/30-off.toml", "");
        write("etc/agent.toml.d/.40-editor.toml", "not TOML");
        write("etc/agent.toml.d/README", "not TOML");
        write("etc/coordinator.toml", "not TOML");

        let found = Fragments::from_folders(&folders, "agent.toml").unwrap();
        let relative: Vec<_> =
            found.paths().map(|path| path.strip_prefix(dir.path()).unwrap().to_str().unwrap()).collect();
        assert_eq!(
            relative,
            [
                "usr/agent.toml",
                "etc/agent.toml",
                "etc/agent.toml.d/10-hosts.toml",
                "usr/agent.toml.d/20-name.toml",
                "etc/agent.toml.d/30-off.toml",
            ]
        );
        let merged: Settings = found.merge().unwrap();
        assert_eq!(merged.name, "usr drop-in");
        assert_eq!((merged.limits.streams, merged.hosts.as_slice()), (1, ["x".to_owned()].as_slice()));
    }

    #[test]
    fn a_file_that_was_asked_for_must_be_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("my.toml");
        let Err(Error::Read { path: missing, .. }) = Fragments::from_file(&path) else {
            panic!("it is missing")
        };
        assert_eq!(missing, path);
        fs::write(&path, "name = 'a'").unwrap();
        fs::create_dir(dir.path().join("my.toml.d")).unwrap();
        fs::write(dir.path().join("my.toml.d/1.toml"), "hosts = ['x']").unwrap();
        let merged: Settings = Fragments::from_file(&path).unwrap().merge().unwrap();
        assert_eq!((merged.name.as_str(), merged.hosts.len()), ("a", 1));
        assert_eq!(
            Fragments::from_folders(&[dir.path().join("none")], "my.toml").unwrap().paths().count(),
            0
        );
    }

    #[test]
    fn configuration_is_bounded() {
        let fragment = |text: &str| Fragment { path: "f".into(), text: text.to_owned() };
        let many = vec![fragment(""); FRAGMENTS_MAX + 1];
        assert!(matches!(Fragments::new(many), Err(Error::TooMuch { unit: "files", .. })));
        let long = vec![fragment(&"#".repeat(TOTAL_BYTES_MAX)), fragment("#")];
        assert!(matches!(Fragments::new(long), Err(Error::TooMuch { unit: "bytes", .. })));
    }
}
