//! A report as text. Whatever comes from elsewhere passes through here, and loses what could trick a terminal.

use std::borrow::Cow;
use std::fmt::{Display, Write as _};

use comfy_table::{Cell, ContentArrangement, Table, presets};
use muster_model::{Blocker, Code};

use crate::explain::explanation;

/// How many blockers are written out; the rest is counted.
const BLOCKERS_SHOWN_MAX: usize = 64;

/// What a line means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    /// All is well.
    Good,
    /// Something deserves a look.
    Warning,
    /// Something is wrong.
    Bad,
}

impl Tone {
    const fn escape(self) -> &'static str {
        match self {
            Self::Good => "\x1b[32m",
            Self::Warning => "\x1b[33m",
            Self::Bad => "\x1b[31m",
        }
    }
}

/// Text that grows line by line.
#[derive(Debug)]
pub(crate) struct Page {
    text: String,
    colour: bool,
}

impl Page {
    /// An empty page.
    pub(crate) const fn new(colour: bool) -> Self {
        Self { text: String::new(), colour }
    }

    /// The text.
    pub(crate) fn into_text(self) -> String {
        self.text
    }

    /// A line.
    pub(crate) fn line(&mut self, text: impl Display) {
        self.push(&text.to_string());
        self.text.push('\n');
    }

    /// An empty line, unless the page is empty.
    pub(crate) fn gap(&mut self) {
        if !self.text.is_empty() {
            self.text.push('\n');
        }
    }

    /// A line in a tone.
    pub(crate) fn toned(&mut self, tone: Tone, text: impl Display) {
        self.paint(tone, &text.to_string());
        self.text.push('\n');
    }

    /// A line with a label in a tone before it.
    pub(crate) fn labelled(&mut self, tone: Tone, label: &str, text: impl Display) {
        self.paint(tone, label);
        self.push(": ");
        self.line(text);
    }

    /// A table. Without rows there is none, not even its header.
    pub(crate) fn table<const N: usize>(&mut self, header: [&str; N], rows: Vec<[String; N]>) {
        if rows.is_empty() {
            return;
        }
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(header);
        for row in rows {
            table.add_row(row.map(|text| Cell::new(printable(&text))));
        }
        for (index, column) in table.column_iter_mut().enumerate() {
            column.set_padding((u16::from(index > 0), 1));
        }
        for line in table.lines() {
            self.text.push_str(line.trim_end());
            self.text.push('\n');
        }
    }

    /// All reasons, and for each code once what to do.
    pub(crate) fn blockers(&mut self, blockers: &[Blocker]) {
        for blocker in blockers.iter().take(BLOCKERS_SHOWN_MAX) {
            self.toned(Tone::Bad, format_args!("  {blocker}"));
        }
        if blockers.len() > BLOCKERS_SHOWN_MAX {
            let rest = blockers.len() - BLOCKERS_SHOWN_MAX;
            self.toned(Tone::Bad, format_args!("  … and {rest} more (all of them with --output json)"));
        }
        let mut codes: Vec<Code> = blockers.iter().map(|blocker| blocker.code).collect();
        codes.sort_unstable();
        codes.dedup();
        for code in codes {
            self.line(format_args!("  next ({code}): {}", explanation(code).action));
        }
    }

    fn paint(&mut self, tone: Tone, text: &str) {
        if self.colour {
            self.text.push_str(tone.escape());
            self.push(text);
            self.text.push_str("\x1b[0m");
        } else {
            self.push(text);
        }
    }

    fn push(&mut self, text: &str) {
        self.text.push_str(&printable(text));
    }
}

/// The text with everything escaped that does not print as itself: a host or a coordinator that was taken over shall
/// not move the cursor, recolour or reorder what the operator reads. Line breaks stay.
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    let is_harmless = |c: char| c == '\n' || !(c.is_control() || is_reordering(c));
    if text.chars().all(is_harmless) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_harmless(c) {
            escaped.push(c);
        } else {
            write!(escaped, "{}", c.escape_unicode()).expect("writing to a string does not fail");
        }
    }
    Cow::Owned(escaped)
}

/// Bidirectional controls and invisible characters.
const fn is_reordering(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use muster_model::HostName;

    use super::*;

    #[test]
    fn what_tricks_terminals_is_escaped() {
        assert_eq!(printable("plain ünïcode\n"), "plain ünïcode\n");
        assert_eq!(printable("\x1b[2Jall is well"), "\\u{1b}[2Jall is well");
        assert_eq!(printable("a\u{202e}b\rc"), "a\\u{202e}b\\u{d}c");
        let mut page = Page::new(true);
        page.toned(Tone::Bad, "x\x1b[32m");
        assert_eq!(page.into_text(), "\x1b[31mx\\u{1b}[32m\x1b[0m\n");
    }

    #[test]
    fn blockers_name_host_and_file_and_say_what_to_do_once() {
        let at = |name: &str, path: &str| Blocker {
            path: Some(path.to_owned()),
            expected: Some("120 bytes".to_owned()),
            measured: Some("121 bytes".to_owned()),
            ..Blocker::host(Code::Mismatch, &HostName::new(name).unwrap(), "the size differs")
        };
        let mut page = Page::new(false);
        page.blockers(&[
            at("host-5", "bin/server"),
            at("host-7", "lib/a.so"),
            Blocker::fleet(Code::Busy, "rollout 3"),
        ]);
        insta::assert_snapshot!(page.into_text(), @"
          mismatch at host-5, bin/server: the size differs (expected 120 bytes, measured 121 bytes)
          mismatch at host-7, lib/a.so: the size differs (expected 120 bytes, measured 121 bytes)
          busy: rollout 3
          next (mismatch): find out who changed the named file on the host, then run `muster deploy RELEASE`, which repairs the tree
          next (busy): watch it with `muster status`, and try again when it has ended, or give it up with `muster abort`
        ");
    }

    #[test]
    fn a_table_is_aligned_and_has_no_trailing_blanks() {
        let mut page = Page::new(false);
        let row = |a: &str, b: &str| [a.to_owned(), b.to_owned()];
        page.table(["HOST", "STATE"], vec![row("host-1", "ok"), row("a", "d\x07rk")]);
        page.table(["HOST", "STATE"], vec![]);
        insta::assert_snapshot!(page.into_text(), @r#"
        HOST    STATE
        host-1  ok
        a       d\u{7}rk
        "#);
    }
}
