//! The commands that the replay types: run for real, shown in a form that can be read, and held to how they must end.

use std::io;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::time::Duration;

use muster_model::Code;
use tokio::task::JoinHandle;
use tokio::time::error::Elapsed;

use super::stage::Stage;
use crate::error::CliError;
use crate::output::{Tone, counted};

/// The kernel resolves this name to the program that runs, even after a build has replaced its file: all commands of one
/// replay are of one version.
const OWN_EXECUTABLE: &str = "/proc/self/exe";

/// No command of the replay takes longer than this.
const COMMAND_PATIENCE: Duration = Duration::from_secs(60);

/// How many lines of a command's output are shown.
const LINES_SHOWN_MAX: usize = 18;

/// How many characters of a digest are shown: enough to tell it from others, few enough to read.
const DIGEST_SHOWN: usize = "sha256:".len() + 12;

/// What of a command's output the reader is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shown {
    /// What it reports at its end.
    Report,
    /// That, and how it got there.
    Progress,
}

/// Who types.
pub(super) struct Hand<'a> {
    /// What stands before what they type.
    pub(super) prompt: &'a str,
    /// Where they type it.
    pub(super) folder: PathBuf,
    /// Their context, if they have one.
    pub(super) context: Option<PathBuf>,
}

/// How a command of the story has to end.
pub(super) struct Ending<'a> {
    /// With this exit code.
    pub(super) code: i32,
    /// Having written each of these.
    pub(super) names: &'a [&'a str],
    /// What the reader sees of it.
    pub(super) shown: Shown,
}

/// What a command that was typed came to.
pub(super) struct Played {
    /// Everything it wrote.
    pub(super) text: String,
}

/// A command that was typed and has not been looked at since. It is killed with this.
pub(super) struct Typing {
    line: String,
    output: JoinHandle<Result<io::Result<Output>, Elapsed>>,
}

impl Stage {
    /// Types a command, runs it, shows what it writes, and makes sure that it ends as it has to.
    pub(super) async fn types(&self, arguments: &[&str], ending: &Ending<'_>) -> Result<Played, CliError> {
        let typing = self.begins(arguments);
        self.ends(typing, ending).await
    }

    /// The same by somebody else than the first operator.
    pub(super) async fn types_by(
        &self,
        hand: &Hand<'_>,
        arguments: &[&str],
        ending: &Ending<'_>,
    ) -> Result<Played, CliError> {
        let typing = self.begins_by(hand, arguments);
        self.ends(typing, ending).await
    }

    /// Types a command and runs it beside the story.
    pub(super) fn begins(&self, arguments: &[&str]) -> Typing {
        let fleet = self.fleet();
        let hand = Hand { prompt: "", folder: fleet.dir.clone(), context: Some(fleet.context()) };
        self.begins_by(&hand, arguments)
    }

    fn begins_by(&self, hand: &Hand<'_>, arguments: &[&str]) -> Typing {
        let line = format!("muster {}", arguments.join(" "));
        self.show(|page| page.line(format_args!("{}$ {line}", hand.prompt)));
        let mut command = tokio::process::Command::new(OWN_EXECUTABLE);
        command
            .arg0("muster")
            .args(arguments)
            .current_dir(&hand.folder)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        match &hand.context {
            Some(context) => command.env("MUSTER_CONTEXT", context),
            None => command.env_remove("MUSTER_CONTEXT"),
        };
        let output =
            tokio::spawn(async move { tokio::time::timeout(COMMAND_PATIENCE, command.output()).await });
        Typing { line, output }
    }

    /// Waits for the end of a command, shows what it wrote, and makes sure that it ended as it has to.
    pub(super) async fn ends(&self, typing: Typing, ending: &Ending<'_>) -> Result<Played, CliError> {
        let line = typing.line.clone();
        let (code, ended, text) = self.watch(typing, ending.shown).await?;
        if code != Some(ending.code) {
            return self.failed(format!("`{line}` ended with {ended} instead of {}", ending.code));
        }
        if let Some(missing) = ending.names.iter().find(|name| !text.contains(**name)) {
            return self.failed(format!("`{line}` did not say `{missing}`"));
        }
        self.pause().await;
        Ok(Played { text })
    }

    /// Waits for the end of a command that must not have succeeded, and shows what it wrote.
    pub(super) async fn fails(&self, typing: Typing) -> Result<(), CliError> {
        let line = typing.line.clone();
        match self.watch(typing, Shown::Progress).await? {
            (Some(0), _, _) => self.failed(format!("`{line}` succeeded, which it should not have")),
            _ => Ok(()),
        }
    }

    /// Waits for the end of a command and shows what it wrote: its exit code, that in words, and all that it wrote.
    async fn watch(&self, typing: Typing, wanted: Shown) -> Result<(Option<i32>, String, String), CliError> {
        let line = typing.line.clone();
        let Some(output) = typing.output().await? else {
            return self.failed(format!("`{line}` did not end within a minute"));
        };
        let code = output.status.code();
        let ended = code.map_or_else(|| output.status.to_string(), |code| format!("exit code {code}"));
        let report = String::from_utf8_lossy(&output.stdout);
        let text = format!("{}{report}", String::from_utf8_lossy(&output.stderr));
        let shown = match wanted {
            Shown::Report if !report.is_empty() => &*report,
            Shown::Report | Shown::Progress => &text,
        };
        let tone = if output.status.success() { Tone::Good } else { Tone::Bad };
        self.show(|page| {
            shortened(shown)
                .iter()
                .for_each(|line| page.line(format_args!("  │ {line}").to_string().trim_end()));
            page.toned(tone, format_args!("  └ {ended}"));
        });
        Ok((code, ended, text))
    }
}

impl Typing {
    /// Whether the command has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.output.is_finished()
    }

    /// Nothing if the command did not end in time; it is killed then.
    async fn output(mut self) -> Result<Option<Output>, CliError> {
        match (&mut self.output).await {
            Ok(Ok(output)) => output.map(Some).map_err(CliError::file("run", OWN_EXECUTABLE)),
            Ok(Err(_)) => Ok(None),
            Err(error) => Err(CliError::System {
                doing: "run a command of the replay",
                source: io::Error::other(error),
            }),
        }
    }
}

impl Drop for Typing {
    fn drop(&mut self) {
        self.output.abort();
    }
}

/// The lines of a command's output that fit, without the tails of digests. What is left out is in the middle, as a command
/// says last how it ended; and it is never a reason why a gate is shut, which is what the audience has come to see.
fn shortened(text: &str) -> Vec<String> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == ':';
    let line = |line: &str| line.split_inclusive(|c| !is_part(c)).map(short_word).collect::<String>();
    let lines: Vec<String> = text.lines().map(line).collect();
    if lines.len() <= LINES_SHOWN_MAX {
        return lines;
    }
    let tail = lines.len() - LINES_SHOWN_MAX / 2;
    let mut shown = Vec::new();
    let mut left_out = 0;
    for (number, line) in lines.into_iter().enumerate() {
        if (LINES_SHOWN_MAX / 2..tail).contains(&number) && !is_reason(&line) {
            left_out += 1;
            continue;
        }
        if left_out > 0 {
            shown.push(format!("… {} more", counted(left_out, "line")));
            left_out = 0;
        }
        shown.push(line);
    }
    shown
}

/// Whether a line states a blocker or what to do about one.
fn is_reason(line: &str) -> bool {
    let line = line.trim_start();
    let word = line.split(|c: char| !(c.is_ascii_lowercase() || c == '-')).next();
    line.starts_with("next ") || word.is_some_and(|word| word.parse::<Code>().is_ok())
}

/// A word and the character that ends it.
fn short_word(word: &str) -> String {
    let whole = word.trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
    match whole.strip_prefix("sha256:") {
        Some(hex) if hex.len() == 64 => format!("{}…{}", &whole[..DIGEST_SHOWN], &word[whole.len()..]),
        Some(_) | None => word.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_shortened_in_its_middle_and_digests_at_their_end() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        assert_eq!(shortened(&format!("1.0 ({digest}) is, x:y")), ["1.0 (sha256:abababababab…) is, x:y"]);
        assert_eq!(shortened("sha256:ab is short"), ["sha256:ab is short"]);
        let text: String = (1..=LINES_SHOWN_MAX + 5).map(|line| format!("line {line}\n")).collect();
        let lines = shortened(&text);
        assert_eq!(lines.len(), LINES_SHOWN_MAX + 1);
        assert_eq!(lines[LINES_SHOWN_MAX / 2], "… 5 lines more");
        assert_eq!(lines.last().map(String::as_str), Some("line 23"));
    }

    #[test]
    fn a_reason_is_shown_wherever_it_stands() {
        let filler = |count: usize| "host-1: has attested\n".repeat(count);
        let reason = "  mismatch at host-8, lib/rlp.sh: is missing\n  next (mismatch): deploy again\n";
        let text = format!("{}{reason}{}", filler(LINES_SHOWN_MAX), filler(LINES_SHOWN_MAX));
        let lines = shortened(&text);
        assert_eq!(
            lines[LINES_SHOWN_MAX / 2..][..4],
            [
                "… 9 lines more",
                "  mismatch at host-8, lib/rlp.sh: is missing",
                "  next (mismatch): deploy again",
                "… 9 lines more"
            ]
        );
        assert_eq!(lines.len(), LINES_SHOWN_MAX + 4);
    }
}
