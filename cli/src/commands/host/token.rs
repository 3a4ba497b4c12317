use std::time::Duration;

use clap::Args;
use muster_model::{FleetName, HostName, UnixTime};
use muster_mtls::Credentials;
use muster_proto::v1;
use serde::Serialize;

use crate::args::duration;
use crate::clock::{date_text, millis};
use crate::commands::Env;
use crate::connect::answer;
use crate::error::CliError;
use crate::exit::Exit;
use crate::output::{Page, Report, Tone};

/// Make a token with which one host enrols: it makes its own keys and is given a certificate.
///
/// The token is shown once. It is for the host of this name and for nobody else, and belongs to the first machine that shows
/// it; another one is refused and raises an alarm. With it goes the digest of the authority's public key, by which the host
/// knows the coordinator, and the root document, which you take there yourself.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  muster host token host-1 --fleet demo
  muster host token host-1 --fleet demo --valid-for 5m --output json")]
pub(crate) struct Token {
    /// The host
    #[arg(value_name = "NAME")]
    name: HostName,
    /// A fleet that the host belongs to; may be repeated [default: the context's]
    #[arg(long, short, value_name = "FLEET")]
    fleet: Vec<FleetName>,
    /// How long the token can be used; at most 15 minutes
    #[arg(long, value_name = "DURATION", value_parser = token_life, default_value = "15m")]
    valid_for: Duration,
}

/// As the coordinator keeps it.
const LIFE_MAX: Duration = Duration::from_secs(15 * 60);

fn token_life(text: &str) -> Result<Duration, String> {
    let life = duration(text)?;
    if life > LIFE_MAX {
        return Err("a token lives for at most 15 minutes".to_owned());
    }
    Ok(life)
}

impl Token {
    pub(super) async fn run(self, env: &Env) -> Result<Exit, CliError> {
        let session = env.session().await?;
        let context = session.context();
        let fleets =
            if self.fleet.is_empty() { context.fleet().cloned().into_iter().collect() } else { self.fleet };
        if fleets.is_empty() {
            return Err(CliError::Usage {
                what: "a host belongs to at least one fleet".to_owned(),
                next: "name it with --fleet".to_owned(),
            });
        }
        // Of our own file, not of what the coordinator says.
        let pins = Credentials::load(&context.credential_paths())
            .and_then(|credentials| credentials.anchor_pins())
            .map_err(CliError::tls("read the authorities of the context"))?;
        let request = v1::IssueTokenRequest {
            host: self.name.to_string(),
            fleets: fleets.iter().map(FleetName::to_string).collect(),
            valid_for_ms: millis(self.valid_for),
        };
        let mut client = session.operations();
        let made = answer(&format!("make a token for {}", self.name), client.issue_token(request)).await?;
        let host = context.coordinator().host();
        let host = if host.contains(':') { format!("[{host}]") } else { host };
        env.ui.report(&Made {
            host: self.name,
            fleets,
            token: made.token,
            expires: date_text(UnixTime(made.expires_unix_ms)),
            coordinator: format!("{host}:{}", made.port),
            ca_pin: pins.first().map(ToString::to_string).unwrap_or_default(),
        })?;
        Ok(Exit::Proven)
    }
}

#[derive(Debug, Serialize)]
struct Made {
    host: HostName,
    fleets: Vec<FleetName>,
    token: String,
    expires: String,
    coordinator: String,
    ca_pin: String,
}

impl Report for Made {
    const SCHEMA: &'static str = "muster.host-token/1";

    fn print(&self, page: &mut Page) {
        page.line(&self.token);
        page.gap();
        page.labelled(
            Tone::Warning,
            "secret",
            "it is shown once; take it to the host where nobody else sees it",
        );
        page.line(format_args!(
            "It lets {} enrol until {}. There, with root.json beside it:",
            self.host, self.expires
        ));
        page.line(format_args!(
            "  muster-agent enrol --system --coordinator {} --ca-pin {} --root root.json",
            self.coordinator, self.ca_pin
        ));
        page.line("and paste the token, or give it a file: --token-file FILE");
        page.line("Where the agent is not from a package, `--config DIR` in the place of `--system` keeps everything in one folder.");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_is_for_hosts_that_have_the_package() {
        let mut page = Page::new(false);
        let made = Made {
            host: HostName::new("host-1").unwrap(),
            fleets: vec![FleetName::new("web").unwrap()],
            token: "a-token".to_owned(),
            expires: "2026-01-01T00:00:00Z".to_owned(),
            coordinator: "muster.example:7401".to_owned(),
            ca_pin: "sha256:07".to_owned(),
        };
        made.print(&mut page);
        insta::assert_snapshot!(page.into_text(), @"
        a-token

        secret: it is shown once; take it to the host where nobody else sees it
        It lets host-1 enrol until 2026-01-01T00:00:00Z. There, with root.json beside it:
          muster-agent enrol --system --coordinator muster.example:7401 --ca-pin sha256:07 --root root.json
        and paste the token, or give it a file: --token-file FILE
        Where the agent is not from a package, `--config DIR` in the place of `--system` keeps everything in one folder.
        ");
    }
}
