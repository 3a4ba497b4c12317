use clap::Args;
use muster_mtls::Serial;
use muster_proto::v1;
use serde::Serialize;

use crate::commands::Env;
use crate::connect::answer;
use crate::error::CliError;
use crate::exit::Exit;
use crate::output::{Page, Report, Tone, counted};

/// Revoke a certificate, and those that were renewed from it, and cut the connections that rest on them. Of a host, rather `muster
/// host evict`.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  muster certificate revoke 5f1c09ab --reason lost")]
pub(crate) struct Revoke {
    /// Its serial number in hex, as `muster certificate show` and the audit log tell it
    #[arg(value_name = "SERIAL")]
    serial: Serial,
    /// Why, for whoever looks
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// Leave those good that were renewed from it: they are known to be in good hands
    #[arg(long)]
    alone: bool,
}

impl Revoke {
    pub(super) async fn run(self, env: &Env) -> Result<Exit, CliError> {
        let session = env.session().await?;
        let serial = self.serial.to_string();
        let (reason, alone) = (self.reason, self.alone);
        let request = v1::RevokeCertificateRequest { serial: serial.clone(), reason, alone };
        let mut client = session.operations();
        let doing = format!("revoke the certificate {serial}");
        let revoked = answer(&doing, client.revoke_certificate(request)).await?;
        env.ui.report(&Revoked { serial, renewed: revoked.renewed, connections: revoked.connections })?;
        Ok(Exit::Proven)
    }
}

#[derive(Debug, Serialize)]
struct Revoked {
    serial: String,
    renewed: u32,
    connections: u32,
}

impl Report for Revoked {
    const SCHEMA: &'static str = "muster.certificate-revoke/1";

    fn print(&self, page: &mut Page) {
        let Self { serial, renewed, connections } = self;
        page.toned(Tone::Good, format_args!("revoked {serial}; {} cut", counted(*connections, "connection")));
        if *renewed > 0 {
            let also = counted(*renewed, "certificate");
            page.line(format_args!(
                "{also} renewed from it went with it; whoever should have one is issued another."
            ));
        }
    }
}
