//! Whoever is about to do what cannot be taken back is asked first, on a terminal.

use std::io::{self, BufRead as _, IsTerminal as _};

use crate::commands::Env;
use crate::error::CliError;

/// What is asked.
pub(crate) struct Question<'a> {
    /// What will happen, and what is to be typed.
    pub(crate) text: String,
    /// What is to be typed.
    pub(crate) expected: &'a str,
    /// What holds if it is not.
    pub(crate) otherwise: &'static str,
    /// What to do in place of being asked.
    pub(crate) next: &'static str,
}

/// Asks. Anything else than what is expected is no.
pub(crate) fn confirm(env: &Env, question: &Question<'_>) -> Result<(), CliError> {
    let declined = |what: String| CliError::Usage { what, next: question.next.to_owned() };
    if !io::stdin().is_terminal() {
        return Err(declined(format!("there is no terminal to ask on; {}", question.otherwise)));
    }
    env.ui.say(&question.text);
    let mut typed = String::new();
    let read = io::stdin().lock().read_line(&mut typed);
    read.map_err(|source| CliError::System { doing: "read from the terminal", source })?;
    if typed.trim() == question.expected { Ok(()) } else { Err(declined(question.otherwise.to_owned())) }
}
