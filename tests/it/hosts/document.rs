//! docs/install.md, followed to the letter: its commands are taken from the page, run as they are there, and must show what it says.

use std::fs;
use std::path::Path;

use crate::harness::{Output, PATIENCE, wait_until};

use super::server::Server;

/// Stands in the document for what differs from time to time.
const ANYTHING: char = '…';

/// Begins a line of what a command shows.
const SHOWN: &str = "# → ";

/// Where the packages and the root document are on a machine, and what is typed.
const FOLDER: &str = "/root";

/// The document.
pub(super) struct Document(String);

/// Where commands are given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// On the coordinator's machine, where the operator is as well.
    Coordinator,
    Host,
}

/// How often they are given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Repeat {
    Once,
    /// Until they show what they should.
    Until,
}

/// Some commands that are given one after the other.
#[derive(Debug)]
pub(super) struct Block {
    pub(super) place: Place,
    repeat: Repeat,
    script: String,
    shown: Vec<String>,
    pub(super) commands: usize,
}

/// What a reader puts in the place of something in the document.
pub(super) type Names<'a> = [(&'a str, &'a str)];

impl Document {
    /// Its sections.
    pub(super) const COORDINATOR: &str = "1. The coordinator";
    pub(super) const HOST: &str = "2. A host";
    pub(super) const ROSTER: &str = "3. The roster";
    pub(super) const RELEASE: &str = "4. The first release";
    pub(super) const ONE_MORE: &str = "5. One more host";
    pub(super) const UPGRADE: &str = "6. Upgrade";
    pub(super) const REMOVAL: &str = "7. Removal";

    pub(super) fn read() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/install.md");
        Self(fs::read_to_string(path).unwrap())
    }

    /// The commands of one section, in their order.
    #[track_caller]
    pub(super) fn section(&self, title: &str) -> Vec<Block> {
        let (_, section) =
            self.0.split_once(&format!("\n## {title}\n")).unwrap_or_else(|| panic!("no section {title}"));
        let section = section.split("\n## ").next().unwrap();
        let blocks: Vec<Block> = section.split("\n```sh ").skip(1).map(Block::parse).collect();
        assert!(!blocks.is_empty(), "{title} has no commands");
        blocks
    }

    /// How many commands a host takes that joins a fleet.
    pub(super) fn commands_of_one_more(&self) -> usize {
        self.commands(&[Self::HOST, Self::ROSTER, Self::ONE_MORE])
    }

    fn commands(&self, sections: &[&str]) -> usize {
        sections.iter().flat_map(|title| self.section(title)).map(|block| block.commands).sum()
    }
}

impl Block {
    fn parse(text: &str) -> Self {
        let (marks, rest) = text.split_once('\n').unwrap();
        let (script, _) = rest.split_once("\n```").expect("a block has an end");
        let (place, repeat) = match marks {
            "coordinator" | "operator" => (Place::Coordinator, Repeat::Once),
            "operator until" => (Place::Coordinator, Repeat::Until),
            "host" => (Place::Host, Repeat::Once),
            _ => panic!("docs/install.md: where are commands `{marks}` given?"),
        };
        let shown = script.lines().filter_map(|line| line.strip_prefix(SHOWN)).map(str::to_owned).collect();
        Self { place, repeat, script: script.to_owned(), shown, commands: count(script) }
    }

    /// Gives the commands on a machine, and answers what they wrote once it is what the document says.
    #[track_caller]
    pub(super) fn run(&self, on: &Server, names: &Names<'_>, typed: &str) -> String {
        let named =
            |text: &str| names.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to));
        on.write(&format!("{FOLDER}/typed"), typed);
        on.write(&format!("{FOLDER}/commands"), &format!("set -e\ncd {FOLDER}\n{}\n", named(&self.script)));
        let run = || on.run(&format!("sh {FOLDER}/commands < {FOLDER}/typed")).expect_code(0);
        let missing = |output: &Output| {
            let is_shown = |wanted: &String| output.stdout.lines().any(|line| shows(line, wanted));
            self.shown.iter().map(|wanted| named(wanted)).find(|wanted| !is_shown(wanted))
        };
        if self.repeat == Repeat::Until {
            let what = format!("`{}` shows what docs/install.md says", self.script);
            return wait_until(&what, PATIENCE, || Some(run()).filter(|output| missing(output).is_none()))
                .stdout;
        }
        let output = run();
        if let Some(wanted) = missing(&output) {
            panic!("not shown: {wanted}\n{output}");
        }
        output.stdout
    }
}

/// Whether a line has all pieces of this, in their order.
fn shows(line: &str, wanted: &str) -> bool {
    let mut rest = Some(line);
    for piece in wanted.split(ANYTHING).map(str::trim).filter(|piece| !piece.is_empty()) {
        rest = rest.and_then(|rest| rest.split_once(piece)).map(|(_, after)| after);
    }
    rest.is_some()
}

/// How many commands a script has: comments are none, and what one is given in the lines below it belongs to it.
fn count(script: &str) -> usize {
    let mut end = None;
    let mut commands = 0;
    for line in script.lines() {
        match end {
            Some(word) if line == word => end = None,
            None if !line.is_empty() && !line.starts_with('#') => {
                commands += 1;
                end = line.split_once("<<'").and_then(|(_, word)| word.strip_suffix('\''));
            }
            Some(_) | None => {}
        }
    }
    commands
}

#[test]
fn what_is_shown_is_compared() {
    assert!(shows("host-1  for 2s  serve 3", "host-1 … serve"));
    assert!(shows("it is so", "… is …"));
    assert!(!shows("host-2  for 2s  serve 3", "host-1 … serve"));
    assert!(!shows("serve host-1", "host-1 … serve"), "in their order");
}

#[test]
fn the_document_says_how_many_commands_it_has() {
    let document = Document::read();
    let first =
        document.commands(&[Document::COORDINATOR, Document::HOST, Document::ROSTER, Document::RELEASE]);
    let further = document.commands_of_one_more();
    for said in [
        format!("[{first} commands]"),
        format!("Sections 1 to 4 are {first} commands."),
        format!("{further} for each one after it"),
        format!("A further host is {further} commands "),
    ] {
        assert!(document.0.contains(&said), "docs/install.md does not say: {said}");
    }
}

#[test]
fn commands_are_counted() {
    assert_eq!(count("# why\na\ncat > f <<'END'\nb\nc\nEND\n\nd"), 3);
}
