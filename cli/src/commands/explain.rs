use clap::Args;
use muster_model::Code;
use serde::Serialize;

use crate::commands::Env;
use crate::error::CliError;
use crate::exit::Exit;
use crate::explain::explanation;
use crate::output::{Page, Report};
use crate::suggest::closest;

/// Explain a code that a blocker carries: what it means and what to do. Without a code, list all.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  muster explain mismatch
  muster explain")]
pub(crate) struct Explain {
    /// The code
    #[arg(value_name = "CODE", value_parser = known_code)]
    code: Option<Code>,
}

impl Explain {
    pub(super) fn run(self, env: &Env) -> Result<Exit, CliError> {
        match self.code {
            Some(code) => env.ui.report(&Explained::of(code))?,
            None => env.ui.report(&All { codes: Code::ALL.iter().copied().map(Explained::of).collect() })?,
        }
        Ok(Exit::Proven)
    }
}

fn known_code(text: &str) -> Result<Code, String> {
    text.parse().map_err(|error| {
        let meant = closest(text, Code::ALL.iter().map(|code| code.as_str()));
        let meant = meant.map_or_else(String::new, |code| format!("; did you mean `{code}`?"));
        format!("{error}{meant} (`muster explain` lists all)")
    })
}

#[derive(Debug, Serialize)]
struct Explained {
    code: Code,
    title: &'static str,
    meaning: &'static str,
    next: &'static str,
    exit_code: Exit,
}

#[derive(Debug, Serialize)]
struct All {
    codes: Vec<Explained>,
}

impl Explained {
    fn of(code: Code) -> Self {
        let text = explanation(code);
        Self {
            code,
            title: text.title,
            meaning: text.meaning,
            next: text.action,
            exit_code: Exit::of_code(code),
        }
    }
}

impl Report for Explained {
    const SCHEMA: &'static str = "muster.explain/1";

    fn print(&self, page: &mut Page) {
        page.line(format_args!("{}: {}", self.code, self.title));
        page.line(self.meaning);
        page.line(format_args!("What to do: {}.", self.next));
        page.line(format_args!("Exit code: {}", self.exit_code.number()));
    }
}

impl Report for All {
    const SCHEMA: &'static str = "muster.explain-all/1";

    fn print(&self, page: &mut Page) {
        let rows = self
            .codes
            .iter()
            .map(|code| [code.code.to_string(), code.exit_code.number().to_string(), code.title.to_owned()]);
        page.table(["CODE", "EXIT", "MEANING"], rows.collect());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_explained_with_what_to_do() {
        let mut page = Page::new(false);
        Explained::of(Code::NotDeployed).print(&mut page);
        insta::assert_snapshot!(page.into_text(), @"
        not-deployed: A host does not have the release's bytes.
        The release's tree is not on the host's disk, so it could not be opened there.
        What to do: run `muster deploy RELEASE` and wait until it says N of N.
        Exit code: 10
        ");
    }

    #[test]
    fn a_slip_is_answered_with_what_was_probably_meant() {
        assert_eq!(known_code("mismatch"), Ok(Code::Mismatch));
        assert!(known_code("mismach").unwrap_err().contains("did you mean `mismatch`?"));
        assert!(known_code("foo").unwrap_err().ends_with("(`muster explain` lists all)"));
    }

    #[test]
    fn the_list_has_every_code() {
        let all = All { codes: Code::ALL.iter().copied().map(Explained::of).collect() };
        let mut page = Page::new(false);
        all.print(&mut page);
        let text = page.into_text();
        assert_eq!(text.lines().count(), Code::ALL.len() + 1);
        assert!(Code::ALL.iter().all(|code| text.contains(code.as_str())));
    }
}
