//! What people and scripts see: reports on stdout, messages and progress on stderr.

mod junit;
mod page;
mod progress;

use std::fmt::Display;
use std::io::{self, IsTerminal as _, Write};

use clap::ValueEnum;
use muster_model::Blocker;
use serde::Serialize;

use crate::error::CliError;
use crate::exit::Exit;

pub(crate) use junit::junit;
pub(crate) use page::{Page, Tone, printable, reason_lines};
pub(crate) use progress::{Bars, HostBars, StageLine, bytes_text};

/// How a report is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON document with a `schema` field.
    Json,
    /// JUnit XML with a test case for each host; for `check` only.
    Junit,
}

/// Whether progress is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// As bars that are drawn over and over.
    Bars,
    /// As lines, one for each thing that happened.
    Lines,
}

/// How much is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Detail {
    /// What most readers need.
    Brief,
    /// Everything that is known.
    Full,
}

/// What a command reports at its end.
pub(crate) trait Report: Serialize {
    /// The value of the field `schema`.
    const SCHEMA: &'static str;

    /// The report for people.
    fn print(&self, page: &mut Page);
}

/// Where a command's words go.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ui {
    format: Format,
    progress: Progress,
    detail: Detail,
    colour: Colour,
    /// The columns of the terminal that reads reports, if one does.
    width: Option<usize>,
}

/// Whether to colour each stream.
#[derive(Debug, Clone, Copy)]
struct Colour {
    stdout: bool,
    stderr: bool,
}

impl Ui {
    /// Looks at the terminal and `NO_COLOR`.
    pub(crate) fn new(format: Format, no_progress: bool, detail: Detail) -> Self {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let (stdout, stderr) = (io::stdout().is_terminal(), io::stderr().is_terminal());
        let progress = if stderr && !is_dumb && !no_progress { Progress::Bars } else { Progress::Lines };
        let wanted = wanted && !is_dumb;
        let colour = Colour { stdout: wanted && stdout, stderr: wanted && stderr };
        let columns = terminal_size::terminal_size_of(io::stdout());
        let width = columns.map(|(width, _)| usize::from(width.0));
        Self { format, progress, detail, colour, width }
    }

    /// How reports are written.
    pub(crate) const fn format(&self) -> Format {
        self.format
    }

    /// How progress is shown.
    pub(crate) const fn progress(&self) -> Progress {
        self.progress
    }

    /// How much is told.
    pub(crate) const fn detail(&self) -> Detail {
        self.detail
    }

    /// Writes a report to stdout.
    pub(crate) fn report<R: Report>(&self, report: &R) -> Result<(), CliError> {
        match self.format {
            Format::Json => self.raw(json(R::SCHEMA, report).as_bytes()),
            Format::Text | Format::Junit => {
                let mut page = self.page();
                report.print(&mut page);
                self.raw(page.into_text().as_bytes())
            }
        }
    }

    /// An empty page for stdout.
    pub(crate) const fn page(&self) -> Page {
        Page::with_width(self.colour.stdout, self.width)
    }

    /// Writes bytes to stdout as they are. Whoever has closed the pipe wants no more: that is no failure.
    #[expect(clippy::unused_self, reason = "all output goes through the one who knows where it goes")]
    pub(crate) fn raw(&self, bytes: &[u8]) -> Result<(), CliError> {
        let mut stdout = io::stdout().lock();
        match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
            Err(source) if source.kind() != io::ErrorKind::BrokenPipe => {
                Err(CliError::System { doing: "write to stdout", source })
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Shows a report on stderr, to whoever is about to decide.
    pub(crate) fn preview<R: Report>(&self, report: &R) {
        let mut page = Page::new(self.colour.stderr);
        report.print(&mut page);
        say(&page.into_text());
    }

    /// Says something on stderr.
    pub(crate) fn say(&self, text: impl Display) {
        let mut page = Page::new(self.colour.stderr);
        page.line(text);
        say(&page.into_text());
    }

    /// Warns on stderr.
    pub(crate) fn warn(&self, text: impl Display) {
        let mut page = Page::new(self.colour.stderr);
        page.labelled(Tone::Warning, "warning", text);
        say(&page.into_text());
    }

    /// Shows on stderr why the command failed, and in JSON on stdout.
    pub(crate) fn failure(&self, error: &CliError) {
        let mut page = Page::new(self.colour.stderr);
        page.labelled(Tone::Bad, "error", error);
        let causes = match self.detail {
            Detail::Brief => error.reasons(),
            Detail::Full => error.causes(),
        };
        for cause in causes {
            page.line(format_args!("  because {cause}"));
        }
        let next = error.next();
        // What is said about this very failure is better than what is said about its code.
        if next.is_some() {
            page.reasons(error.blockers());
        } else {
            page.blockers(error.blockers());
        }
        if let Some(next) = next {
            page.line(format_args!("  next: {next}"));
        }
        say(&page.into_text());
        if self.format == Format::Json {
            // If stdout fails as well, stderr has said everything already.
            let _ = self.raw(json("muster.error/1", &Failure::of(error)).as_bytes());
        }
    }
}

/// A number of things in words: `1 file`, `4 files`.
pub(crate) fn counted<N: Display + PartialEq + From<u8>>(count: N, noun: &str) -> String {
    // One key, two keys; one entry, two entries.
    let stem = noun.strip_suffix('y').filter(|stem| !stem.ends_with(['a', 'e', 'o', 'u']));
    match stem {
        _ if count == N::from(1) => format!("{count} {noun}"),
        Some(stem) => format!("{count} {stem}ies"),
        None => format!("{count} {noun}s"),
    }
}

/// The line of JSON that a report becomes.
pub(crate) fn json(schema: &'static str, report: &impl Serialize) -> String {
    let document = Document { schema, report };
    let mut text = serde_json::to_string_pretty(&document)
        .expect("reports are structs with string keys and no failing serialisers");
    text.push('\n');
    text
}

#[derive(Serialize)]
struct Document<'a, R: Serialize> {
    schema: &'static str,
    #[serde(flatten)]
    report: &'a R,
}

#[derive(Serialize)]
struct Failure<'a> {
    error: String,
    causes: Vec<String>,
    blockers: &'a [Blocker],
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
    exit_code: Exit,
}

impl<'a> Failure<'a> {
    fn of(error: &'a CliError) -> Self {
        Self {
            error: error.to_string(),
            causes: error.causes(),
            blockers: error.blockers(),
            next: error.next(),
            exit_code: error.exit(),
        }
    }
}

fn say(text: &str) {
    // There is nowhere left to say that stderr cannot be written to.
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use muster_model::{Code, Refusal};

    use super::*;

    #[test]
    fn things_are_counted_as_people_do() {
        let said =
            ["file", "entry", "key"].map(|noun| [0_u64, 1, 2].map(|count| counted(count, noun)).join(", "));
        assert_eq!(
            said,
            ["0 files, 1 file, 2 files", "0 entries, 1 entry, 2 entries", "0 keys, 1 key, 2 keys"]
        );
    }

    #[test]
    fn a_failure_is_one_json_document_with_codes() {
        let refusal = Refusal::of(Code::Busy, "rollout 3 of alice is under way");
        let error = CliError::refused("flip demo", refusal);
        insta::assert_snapshot!(json("muster.error/1", &Failure::of(&error)), @r#"
        {
          "schema": "muster.error/1",
          "error": "cannot flip demo: it was refused",
          "causes": [],
          "blockers": [
            {
              "code": "busy",
              "detail": "rollout 3 of alice is under way"
            }
          ],
          "exit_code": 14
        }
        "#);
    }
}
