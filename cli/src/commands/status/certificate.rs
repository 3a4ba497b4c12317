//! How it stands with the certificates of a fleet.

use muster_model::{Blocker, UnixTime};
use muster_proto::v1;
use serde::Serialize;

use crate::clock::{date_text, span_text, unix_time};
use crate::output::{Page, Tone, reason_lines};

/// A host's certificate, as it says.
#[derive(Debug, Serialize)]
pub(super) struct HostCertificate {
    age_ms: u64,
    /// When the next attempt to renew it is due; nothing where that is somebody else's business.
    renews: Option<String>,
    renews_in_ms: Option<u64>,
    failures: u32,
    #[serde(skip_serializing_if = "String::is_empty")]
    failure: String,
}

/// The coordinator's own.
#[derive(Debug, Serialize)]
pub(super) struct CoordinatorCertificate {
    age_ms: u64,
    expires: String,
    /// When it gives itself the next one; nothing where somebody else has to.
    renews: Option<String>,
    list_expires: Option<String>,
    issuer_expires: Option<String>,
}

impl HostCertificate {
    pub(super) fn new(wire: v1::CertificateReport) -> Self {
        let now = unix_time().0;
        Self {
            age_ms: now.saturating_sub(wire.began_unix_ms),
            renews: wire.renews_unix_ms.map(|at| date_text(UnixTime(at))),
            renews_in_ms: wire.renews_unix_ms.map(|at| at.saturating_sub(now)),
            failures: wire.failures,
            failure: wire.failure,
        }
    }

    pub(super) fn text(&self) -> String {
        let age = span_text(self.age_ms);
        match (self.failures, self.renews_in_ms) {
            (1.., _) => format!("{age} ago, {} attempts failed", self.failures),
            (0, Some(ms)) => format!("{age} ago, next in {}", span_text(ms)),
            (0, None) => format!("{age} ago, by a PKI of your own"),
        }
    }
}

impl CoordinatorCertificate {
    pub(super) fn new(wire: v1::CoordinatorCertificate) -> Self {
        let date = |at: u64| date_text(UnixTime(at));
        Self {
            age_ms: unix_time().0.saturating_sub(wire.began_unix_ms),
            expires: date(wire.expires_unix_ms),
            renews: wire.renews_unix_ms.map(date),
            list_expires: wire.list_expires_unix_ms.map(date),
            issuer_expires: wire.issuer_expires_unix_ms.map(date),
        }
    }

    pub(super) fn print(&self, page: &mut Page) {
        let mut own = format!("coordinator until {}, {} old", self.expires, span_text(self.age_ms));
        if let Some(renews) = &self.renews {
            own.push_str(&format!(", renews itself {renews}"));
        }
        let others = [("list", &self.list_expires), ("issuer", &self.issuer_expires)];
        let others = others
            .into_iter()
            .filter_map(|(what, until)| Some(format!("; {what} until {}", until.as_ref()?)));
        page.line(format_args!("certs    {own}{}", others.collect::<String>()));
    }
}

/// What will be trouble unless somebody looks at it.
pub(super) fn print_warnings(warnings: &[Blocker], page: &mut Page) {
    for line in reason_lines(warnings) {
        page.labelled(Tone::Warning, "warning", line);
    }
}
