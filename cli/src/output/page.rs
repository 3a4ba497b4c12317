//! A report as text. Whatever comes from elsewhere passes through here, and loses what could trick a terminal.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::{Display, Write as _};

use comfy_table::{Cell, ContentArrangement, Table, presets};
use muster_model::{Blocker, Code, HostName};

use crate::explain::explanation;

/// How many reasons are written out; the rest is counted.
const REASONS_SHOWN_MAX: usize = 64;

/// How many hosts are named where one reason holds for many; the rest is counted.
const HOSTS_NAMED_MAX: usize = 8;

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
    /// The columns of the terminal; none where lines may have any length.
    width: Option<usize>,
}

impl Page {
    /// An empty page whose lines may have any length.
    pub(crate) const fn new(colour: bool) -> Self {
        Self { text: String::new(), colour, width: None }
    }

    /// An empty page for a terminal with so many columns, if that is known.
    pub(crate) const fn with_width(colour: bool, width: Option<usize>) -> Self {
        Self { text: String::new(), colour, width }
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
        self.push_lines(&table_lines(header, rows));
    }

    /// The same, in a narrower form where the first does not fit the terminal. Where nobody's terminal is known, as in a
    /// pipe, it is never narrowed.
    pub(crate) fn fitting_table<const N: usize>(
        &mut self,
        header: [&str; N],
        rows: Vec<[String; N]>,
        narrow: impl FnOnce() -> Vec<[String; N]>,
    ) {
        let lines = table_lines(header, rows);
        let fits = |width| lines.iter().all(|line| line.chars().count() <= width);
        if self.width.is_none_or(fits) {
            self.push_lines(&lines);
        } else {
            self.push_lines(&table_lines(header, narrow()));
        }
    }

    /// All reasons, and for each code once what to do.
    pub(crate) fn blockers(&mut self, blockers: &[Blocker]) {
        self.reasons(blockers);
        let mut codes: Vec<Code> = blockers.iter().map(|blocker| blocker.code).collect();
        codes.sort_unstable();
        codes.dedup();
        for code in codes {
            self.line(format_args!("  next ({code}): {}", explanation(code).action));
        }
    }

    /// All reasons. One that holds for many hosts is one line.
    pub(crate) fn reasons(&mut self, blockers: &[Blocker]) {
        let reasons = reason_lines(blockers);
        for reason in reasons.iter().take(REASONS_SHOWN_MAX) {
            self.toned(Tone::Bad, format_args!("  {reason}"));
        }
        if reasons.len() > REASONS_SHOWN_MAX {
            let rest = reasons.len() - REASONS_SHOWN_MAX;
            self.toned(Tone::Bad, format_args!("  … and {rest} more (all of them with --output json)"));
        }
    }

    fn push_lines(&mut self, lines: &[String]) {
        for line in lines {
            self.text.push_str(line);
            self.text.push('\n');
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

/// Reasons in words, in their order. Those that differ in nothing but the host are one.
pub(crate) fn reason_lines(blockers: &[Blocker]) -> Vec<String> {
    let mut places: BTreeMap<Blocker, usize> = BTreeMap::new();
    let mut reasons: Vec<(&Blocker, Vec<&HostName>)> = Vec::new();
    for blocker in blockers {
        let of_any_host = Blocker { host: None, ..blocker.clone() };
        let place = *places.entry(of_any_host).or_insert(reasons.len());
        if place == reasons.len() {
            reasons.push((blocker, Vec::new()));
        }
        reasons[place].1.extend(&blocker.host);
    }
    reasons.into_iter().map(|(blocker, hosts)| reason_line(blocker, &hosts)).collect()
}

fn reason_line(blocker: &Blocker, hosts: &[&HostName]) -> String {
    let [first, _, ..] = hosts else { return blocker.to_string() };
    let names: Vec<&str> = hosts.iter().take(HOSTS_NAMED_MAX).map(|host| host.as_str()).collect();
    let names = match hosts.len().checked_sub(HOSTS_NAMED_MAX) {
        Some(rest @ 1..) => format!("{} and {rest} more hosts", names.join(", ")),
        Some(0) | None => names.join(", "),
    };
    // The blocker's own words, with all hosts where it names one.
    blocker.to_string().replacen(&format!(" at {first}"), &format!(" at {names}"), 1)
}

/// The lines of a table, aligned and without trailing blanks.
fn table_lines<const N: usize>(header: [&str; N], rows: Vec<[String; N]>) -> Vec<String> {
    if rows.is_empty() {
        return Vec::new();
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
    table.lines().map(|line| line.trim_end().to_owned()).collect()
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

    #[test]
    fn what_holds_for_many_hosts_is_said_once() {
        let hosts = |count: usize| -> Vec<Blocker> {
            let host = |number| HostName::new(&format!("host-{number}")).unwrap();
            (1..=count).map(|number| Blocker::host(Code::NotDeployed, &host(number), "never came")).collect()
        };
        assert_eq!(reason_lines(&hosts(1)), ["not-deployed at host-1: never came"]);
        assert_eq!(reason_lines(&hosts(2)), ["not-deployed at host-1, host-2: never came"]);
        assert!(reason_lines(&hosts(100))[0].contains("host-8 and 92 more hosts: never came"));
        let mut mixed = hosts(3);
        mixed[1].detail = "was removed".to_owned();
        let lines = ["not-deployed at host-1, host-3: never came", "not-deployed at host-2: was removed"];
        assert_eq!(reason_lines(&mixed), lines);
        let of_fleet = vec![Blocker::fleet(Code::Busy, "rollout 3"); 2];
        assert_eq!(reason_lines(&of_fleet), ["busy: rollout 3"]);
    }

    #[test]
    fn a_table_is_narrowed_only_for_a_terminal_that_it_does_not_fit() {
        let written = |width| {
            let mut page = Page::with_width(false, width);
            page.fitting_table(["A"], vec![["0123456789".to_owned()]], || vec![["01".to_owned()]]);
            page.into_text()
        };
        assert_eq!(written(None), "A\n0123456789\n");
        assert_eq!(written(Some(10)), "A\n0123456789\n");
        assert_eq!(written(Some(9)), "A\n01\n");
    }
}
