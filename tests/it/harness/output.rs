//! What a command wrote and how it ended.

use std::fmt;
use std::process::{Command, Stdio};
use std::str::FromStr as _;

use muster_model::{Blocker, Code};
use serde_json::Value;

use super::{Host, program};

/// What a command wrote and how it ended.
pub(crate) struct Output {
    line: String,
    /// The exit code; -1 if a signal ended it.
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs `muster` with these arguments and nothing of the caller's context.
pub(crate) fn run(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    run_program("muster", arguments, environment)
}

/// The same for another program.
pub(crate) fn run_program(name: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let output = Command::new(program(name))
        .args(arguments)
        .env_remove("MUSTER_CONTEXT")
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    Output::of(format!("{name} {}", arguments.join(" ")), output)
}

impl Output {
    /// What became of a command that was started elsewhere.
    pub(crate) fn of(line: String, output: std::process::Output) -> Self {
        Self {
            line,
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Panics with everything there is to see unless the command ended with this code.
    #[track_caller]
    pub(crate) fn expect_code(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self}");
        self
    }

    /// The JSON document that was written to stdout.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("no JSON ({error}): {self}"))
    }

    /// A text at a path of the JSON document, such as `/release/digest`.
    #[track_caller]
    pub(crate) fn text_at(&self, pointer: &str) -> String {
        let found = self.json().pointer(pointer).and_then(Value::as_str).map(str::to_owned);
        found.unwrap_or_else(|| panic!("no text at {pointer}: {self}"))
    }

    /// The blockers of the JSON document.
    #[track_caller]
    pub(crate) fn blockers(&self) -> Vec<Blocker> {
        let listed = self.json().get("blockers").cloned();
        let listed = listed.unwrap_or_else(|| panic!("no blockers: {self}"));
        serde_json::from_value(listed).unwrap_or_else(|error| panic!("no blockers ({error}): {self}"))
    }

    /// Whether some blocker has this code and names this host.
    #[track_caller]
    pub(crate) fn names(&self, host: &Host, code: Code) -> bool {
        let at = |blocker: &Blocker| blocker.host.as_ref().is_some_and(|named| named.as_str() == host.name());
        self.blockers().iter().any(|blocker| blocker.code == code && at(blocker))
    }

    /// Panics unless some blocker has this code, host and path; an empty text stands for none.
    #[track_caller]
    pub(crate) fn expect_blocker(&self, code: &str, host: &str, path: &str) -> Blocker {
        let code = Code::from_str(code).unwrap();
        let found = self.blockers().into_iter().find(|blocker| {
            blocker.code == code
                && blocker.host.as_ref().map_or("", |host| host.as_str()) == host
                && blocker.path.as_deref().unwrap_or_default() == path
        });
        found.unwrap_or_else(|| panic!("no blocker {code} of `{host}` at `{path}`: {self}"))
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { line, code, stdout, stderr } = self;
        write!(f, "`{line}` ended with {code}\n--- stdout\n{stdout}\n--- stderr\n{stderr}")
    }
}
