use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use muster_proto::v1;
use serde::Serialize;

use crate::args::duration;
use crate::commands::Env;
use crate::connect::failed;
use crate::error::CliError;
use crate::exit::Exit;
use crate::files::{Existing, Unfinished};
use crate::output::{Bars, Page, Report, Tone, bytes_text};

/// Save a consistent copy of the coordinator's database to a file. Blobs are not in it: `muster release push` brings them back.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  muster backup --out coordinator.backup")]
pub(crate) struct Backup {
    /// The file to write; it must not exist
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// How long the copy may take
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "10m")]
    timeout: Duration,
}

impl Backup {
    pub(super) async fn run(self, env: &Env) -> Result<Exit, CliError> {
        let session = env.session().await?;
        let receiving = self.receive(env, &session);
        let bytes = tokio::time::timeout(self.timeout, Box::pin(receiving)).await.map_err(|_| {
            CliError::TimedOut { doing: "back up the coordinator".to_owned(), after: self.timeout }
        })??;
        env.ui.report(&BackedUp { file: self.out, bytes })?;
        Ok(Exit::Proven)
    }

    async fn receive(&self, env: &Env, session: &crate::connect::Session) -> Result<u64, CliError> {
        const DOING: &str = "back up the coordinator";
        // Tokens and session state are secrets between coordinator and hosts.
        let mut file = Unfinished::create(&self.out, 0o600, Existing::Keep)?;
        let bar = Bars::bytes(&env.ui, "receiving", 0);
        let mut client = session.operations();
        let request = v1::BackupRequest {};
        let mut stream = client.backup(request).await.map_err(|status| failed(DOING, status))?.into_inner();
        let mut bytes = 0;
        while let Some(part) = stream.message().await.map_err(|status| failed(DOING, status))? {
            file.append(&part.chunk)?;
            bytes += part.chunk.len() as u64;
            bar.set(bytes);
        }
        if bytes == 0 {
            let what = "the coordinator sent nothing".to_owned();
            return Err(CliError::Contradiction { doing: DOING.to_owned(), what });
        }
        file.finish()?;
        Ok(bytes)
    }
}

#[derive(Debug, Serialize)]
struct BackedUp {
    file: PathBuf,
    bytes: u64,
}

impl Report for BackedUp {
    const SCHEMA: &'static str = "muster.backup/1";

    fn print(&self, page: &mut Page) {
        let (size, path) = (bytes_text(self.bytes), self.file.display());
        page.toned(Tone::Good, format_args!("saved {size} to {path}; it holds secrets, so keep it private"));
    }
}
