//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use muster_model::FleetName;

use crate::commands;
use crate::output::Format;

const EXIT_CODES: &str = "\
Exit codes:
  0   done, or proven for N of N hosts
  1   internal or transport error
  2   wrong usage
  10  mismatch: a host measured something else
  11  a host is missing, unreachable or unknown
  12  a signature, an approval or a policy does not hold
  13  stale or expired
  14  superseded by another rollout
  15  the roster is empty or has changed
  16  timed out while waiting
  17  aborted or rolled back
  18  halted or fenced: some host serves nothing

Begin with `muster dev up --dir DIR` on this machine, or with `muster init DIR` for a fleet of machines.
`muster explain CODE` says what a code means.";

/// Deploy a release to all hosts of a fleet, and make it live only when every one of them proves that it has it.
#[derive(Debug, Parser)]
#[command(name = "muster", version, after_help = EXIT_CODES)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What every command takes.
#[derive(Debug, Args)]
#[command(next_help_heading = "Options of every command")]
pub(crate) struct Global {
    /// Use this context: which coordinator, as whom, with which keys [env: MUSTER_CONTEXT] [default:
    /// ~/.config/muster/config.toml]
    // Read from the environment by `commands`: clap would show an option that the environment sets as one that is required.
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) context: Option<PathBuf>,
    /// Write reports in this format; messages and progress go to stderr
    #[arg(long, short, global = true, value_enum, value_name = "FORMAT", default_value_t)]
    pub(crate) output: Format,
    /// Tell everything: all causes of a failure, all hosts and counters of a status
    #[arg(long, short, global = true)]
    pub(crate) verbose: bool,
    /// Draw no progress bars, as where stderr is no terminal
    #[arg(long, global = true)]
    pub(crate) no_progress: bool,
}

/// Which fleet is meant.
#[derive(Debug, Clone, Args)]
pub(crate) struct FleetArg {
    /// The fleet [default: the context's, or the only one there is]
    #[arg(long, short, value_name = "FLEET")]
    pub(crate) fleet: Option<FleetName>,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Init(commands::init::Init),
    #[command(subcommand)]
    Host(commands::host::Host),
    #[command(subcommand)]
    Certificate(commands::certificate::CertificateCommand),
    #[command(subcommand)]
    Operator(commands::operator::OperatorCommand),
    #[command(subcommand)]
    Root(commands::root::RootCommand),
    #[command(subcommand)]
    Roster(commands::roster::RosterCommand),
    #[command(subcommand)]
    Release(commands::release::ReleaseCommand),
    Deploy(commands::deploy::Deploy),
    Status(commands::status::Status),
    Adopt(commands::adopt::Adopt),
    Check(commands::check::Check),
    Rehearse(commands::rehearse::Rehearse),
    #[command(subcommand)]
    Order(commands::order::OrderCommand),
    Approve(commands::approve::Approve),
    Flip(commands::flip::Flip),
    Rollback(commands::rollback::Rollback),
    Abort(commands::abort::Abort),
    Halt(commands::halt::Halt),
    Resume(commands::resume::Resume),
    Find(commands::find::Find),
    #[command(subcommand)]
    Receipt(commands::receipt::ReceiptCommand),
    #[command(subcommand)]
    Audit(commands::audit::AuditCommand),
    #[command(subcommand)]
    BreakGlass(commands::break_glass::BreakGlass),
    #[command(subcommand)]
    Coordinator(commands::coordinator::CoordinatorCommand),
    Backup(commands::backup::Backup),
    Restore(commands::restore::Restore),
    Explain(commands::explain::Explain),
    Completions(commands::completions::Completions),
    Man(commands::man::Man),
    #[command(subcommand)]
    Dev(commands::dev::Dev),
}

/// Parses a duration such as `90s`, `10m` or `1h 30m`; more than nothing, at most a year.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    const DURATION_MAX: Duration = Duration::from_secs(366 * 24 * 3600);
    let duration =
        humantime::parse_duration(text).map_err(|_| "write a duration such as 90s, 10m or 1h".to_owned())?;
    if duration.is_zero() || duration > DURATION_MAX {
        return Err("a duration is more than nothing and at most a year".to_owned());
    }
    Ok(duration)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_says_what_it_does() {
        fn walk(command: &clap::Command) {
            assert!(command.get_about().is_some(), "{} has no help", command.get_name());
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{} {}", command.get_name(), argument.get_id());
            }
            command.get_subcommands().for_each(walk);
        }
        walk(&Cli::command());
    }

    #[test]
    fn every_verb_shows_an_example() {
        fn walk(command: &clap::Command, path: &str) {
            let path = format!("{path}{}", command.get_name());
            let example = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            if !command.has_subcommands() {
                assert!(example.starts_with("Example"), "{path} has no example");
                assert!(example.contains(&format!("  {path}")), "{path} has an example of something else");
            }
            command.get_subcommands().for_each(|inner| walk(inner, &format!("{path} ")));
        }
        walk(&Cli::command(), "");
    }

    #[test]
    fn every_example_is_a_command_line() {
        fn examples(command: &clap::Command, found: &mut Vec<String>) {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            found.extend(help.lines().filter_map(|line| line.strip_prefix("  muster ")).map(str::to_owned));
            command.get_subcommands().for_each(|inner| examples(inner, found));
        }
        let mut found = Vec::new();
        examples(&Cli::command(), &mut found);
        assert!(found.len() > 30, "{}", found.len());
        for example in found {
            // What a shell would make of it: no comment, no redirection, the first command only, an ellipsis for a digest.
            let line = example.replace("sha256:…", &format!("sha256:{}", "ab".repeat(32)));
            let line =
                ["#", ">", "&&"].iter().fold(line.as_str(), |line, end| line.split(end).next().unwrap());
            let words = line.split_whitespace().map(|word| word.trim_matches('\''));
            let parsed = Cli::try_parse_from(std::iter::once("muster").chain(words));
            assert!(parsed.is_ok(), "`muster {example}`: {}", parsed.unwrap_err());
        }
    }

    #[test]
    fn global_options_may_stand_after_the_command() {
        let cli =
            Cli::try_parse_from(["muster", "status", "--output", "json", "--context", "c.toml"]).unwrap();
        assert_eq!(cli.global.output, Format::Json);
        assert_eq!(cli.global.context, Some(PathBuf::from("c.toml")));
    }

    #[test]
    fn durations_are_bounded() {
        assert_eq!(duration("1h 30m"), Ok(Duration::from_secs(5400)));
        for bad in ["", "0s", "ten", "2y", "-1s"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
