//! The commands, one file for each verb.

pub(crate) mod abort;
pub(crate) mod adopt;
pub(crate) mod approve;
pub(crate) mod audit;
pub(crate) mod backup;
pub(crate) mod break_glass;
pub(crate) mod certificate;
pub(crate) mod check;
pub(crate) mod completions;
pub(crate) mod coordinator;
pub(crate) mod deploy;
pub(crate) mod dev;
pub(crate) mod explain;
pub(crate) mod find;
pub(crate) mod flip;
pub(crate) mod halt;
pub(crate) mod host;
pub(crate) mod init;
pub(crate) mod man;
pub(crate) mod operator;
pub(crate) mod order;
pub(crate) mod receipt;
pub(crate) mod rehearse;
pub(crate) mod release;
pub(crate) mod restore;
pub(crate) mod resume;
pub(crate) mod rollback;
pub(crate) mod root;
pub(crate) mod roster;
pub(crate) mod status;

use std::path::PathBuf;

use crate::args::{Cli, Command};
use crate::clock::{date_text, unix_time};
use crate::connect::Session;
use crate::context::Context;
use crate::error::CliError;
use crate::exit::Exit;
use crate::output::{Format, Ui};

/// Names the context where the command line does not.
const CONTEXT_VARIABLE: &str = "MUSTER_CONTEXT";

/// What every command is given beside its arguments.
pub(crate) struct Env {
    /// Where its words go.
    pub(crate) ui: Ui,
    /// The context that was named, if any.
    context: Option<PathBuf>,
}

impl Env {
    /// Reads the context.
    pub(crate) fn context(&self) -> Result<Context, CliError> {
        Context::find(self.context.as_deref())
    }

    /// Connects to the coordinator.
    pub(crate) async fn session(&self) -> Result<Session, CliError> {
        let session = Session::open(self.context.as_deref()).await?;
        if session.certificate().is_ending(unix_time()) {
            let until = date_text(session.certificate().not_after);
            self.ui.warn(format_args!(
                "your certificate ends on {until}: renew it with `muster certificate renew`"
            ));
        }
        Ok(session)
    }
}

/// Does what was asked.
pub(crate) async fn run(cli: Cli, ui: Ui) -> Result<Exit, CliError> {
    if cli.global.output == Format::Junit && !matches!(cli.command, Command::Check(_)) {
        return Err(CliError::Usage {
            what: "only `muster check` can write JUnit".to_owned(),
            next: "use --output text or --output json".to_owned(),
        });
    }
    let of_environment = || std::env::var_os(CONTEXT_VARIABLE).filter(|value| !value.is_empty());
    let context = cli.global.context.or_else(|| of_environment().map(PathBuf::from));
    let env = Env { ui, context };
    match cli.command {
        Command::Init(init) => init.run(&env),
        Command::Host(host) => Box::pin(host.run(&env)).await,
        Command::Certificate(certificate) => Box::pin(certificate.run(&env)).await,
        Command::Operator(operator) => operator.run(&env),
        Command::Root(root) => Box::pin(root.run(&env)).await,
        Command::Roster(roster) => Box::pin(roster.run(&env)).await,
        Command::Release(release) => Box::pin(release.run(&env)).await,
        Command::Deploy(deploy) => Box::pin(deploy.run(&env)).await,
        Command::Status(status) => Box::pin(status.run(&env)).await,
        Command::Adopt(adopt) => Box::pin(adopt.run(&env)).await,
        Command::Check(check) => Box::pin(check.run(&env)).await,
        Command::Rehearse(rehearse) => Box::pin(rehearse.run(&env)).await,
        Command::Order(order) => Box::pin(order.run(&env)).await,
        Command::Approve(approve) => Box::pin(approve.run(&env)).await,
        Command::Flip(flip) => Box::pin(flip.run(&env)).await,
        Command::Rollback(rollback) => Box::pin(rollback.run(&env)).await,
        Command::Abort(abort) => Box::pin(abort.run(&env)).await,
        Command::Halt(halt) => Box::pin(halt.run(&env)).await,
        Command::Resume(resume) => Box::pin(resume.run(&env)).await,
        Command::Find(find) => Box::pin(find.run(&env)).await,
        Command::Receipt(receipt) => Box::pin(receipt.run(&env)).await,
        Command::Audit(audit) => Box::pin(audit.run(&env)).await,
        Command::BreakGlass(glass) => Box::pin(glass.run(&env)).await,
        Command::Coordinator(coordinator) => Box::pin(coordinator.run(&env)).await,
        Command::Backup(backup) => Box::pin(backup.run(&env)).await,
        Command::Restore(restore) => restore.run(&env),
        Command::Explain(explain) => explain.run(&env),
        Command::Completions(completions) => completions.run(&env),
        Command::Man(man) => man.run(&env),
        Command::Dev(dev) => Box::pin(dev.run(&env)).await,
    }
}
