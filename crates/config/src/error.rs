//! What is wrong with a configuration, and where.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// Everything that this crate's functions fail with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file or folder that no configuration is taken from.
    #[error("{}: {reason}", path.display())]
    Unfit {
        /// Which one.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// More configuration than any daemon has.
    #[error("the configuration has more than {max} {unit} with {}", path.display())]
    TooMuch {
        /// The file with which the limit was passed.
        path: PathBuf,
        /// The limit.
        max: usize,
        /// Of what.
        unit: &'static str,
    },
    /// The configuration is not TOML, has fields that are not known, or values that are not allowed.
    #[error("{}", lines(problems))]
    Invalid {
        /// What is wrong, in the order of the files; never empty.
        problems: Vec<Problem>,
    },
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where.
    pub place: Place,
    /// What.
    pub reason: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { place, reason } = self;
        write!(f, "{place}: {reason}")
    }
}

/// Where in the configuration something is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In a line of a file.
    Line {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// The character in the line, counted from 1.
        column: usize,
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
            Self::Line { path, line, column } => write!(f, "{}:{line}:{column}", path.display()),
            Self::Whole { paths } if paths.is_empty() => f.write_str("there is no configuration file"),
            Self::Whole { paths } => {
                let paths: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
                f.write_str(&paths.join(", "))
            }
        }
    }
}

fn lines(problems: &[Problem]) -> String {
    match problems {
        [problem] => problem.to_string(),
        problems => {
            let lines: String = problems.iter().map(|problem| format!("\n  {problem}")).collect();
            format!("{} things are wrong{lines}", problems.len())
        }
    }
}
