//! One host of a status: what it is known to serve, and by what right.

use muster_model::{Blocker, Code, HostName};
use muster_proto::convert::{self, ConvertError};
use muster_proto::v1;
use serde::Serialize;

use super::certificate::HostCertificate;
use super::glass::GlassView;
use crate::clock::{date_text, span_text};
use crate::view::ReleaseView;

/// How many releases on a host's disk are named; the newest are.
const DEPLOYED_NAMED_MAX: usize = 3;

#[derive(Debug, Serialize)]
pub(super) struct HostView {
    pub(super) host: String,
    /// What it is to the fleet.
    state: &'static str,
    pub(super) connected: bool,
    age_ms: Option<u64>,
    mode: Option<String>,
    serving_epoch: Option<u64>,
    serving: Option<ReleaseView>,
    /// While it is armed: for how long it may still serve without being heard.
    pub(super) lease_left_ms: Option<u64>,
    /// It was armed, was not heard in time, and has stopped serving by itself.
    pub(super) fenced: bool,
    /// It was armed and was not heard in time. It must have stopped serving; its own word for it is missing.
    pub(super) overdue: bool,
    /// The others opened without its word that it had closed. It is dark, and is opened once it is heard again.
    pub(super) lapsed: bool,
    /// The last rollout when it was halted.
    pub(super) halted_since_rollout: Option<u64>,
    deployed: Vec<ReleaseView>,
    pub(super) agent_version: Option<String>,
    /// How much Muster may do to its service, by its own configuration, if that is not all.
    #[serde(skip_serializing_if = "Option::is_none")]
    enforce: Option<String>,
    /// What its measurements are worth, as it says.
    #[serde(skip_serializing_if = "Option::is_none")]
    assurance: Option<HostAssurance>,
    /// The root document that it goes by, as it said last.
    root_version: Option<u64>,
    /// That, where the coordinator goes by another.
    #[serde(skip)]
    pub(super) other_root: Option<u64>,
    pub(super) certificate_expires: Option<String>,
    /// As the host says.
    certificate: Option<HostCertificate>,
    /// What was started on it without a coordinator, as it said last.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) broken_glass: Vec<GlassView>,
    pub(super) blockers: Vec<Blocker>,
}

/// What a host's measurements are worth.
#[derive(Debug, Serialize)]
struct HostAssurance {
    /// `sha256` or `verity`.
    level: String,
    /// Why it is not more.
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
}

impl HostAssurance {
    fn new(wire: v1::Assurance) -> Self {
        let v1::Assurance { level, reason } = wire;
        Self { level, reason }
    }

    fn text(&self) -> String {
        let Self { level, reason } = self;
        if reason.is_empty() { level.clone() } else { format!("{level} ({reason})") }
    }
}

/// What the fleet serves.
pub(super) struct Served {
    pub(super) epoch: u64,
    pub(super) release: Option<ReleaseView>,
    /// The root document that the coordinator goes by.
    pub(super) root_version: Option<u64>,
}

impl HostView {
    pub(super) fn new(wire: v1::HostStatus, served: &Served) -> Result<Self, ConvertError> {
        let host = convert::host(&wire.host)?;
        let standing = Standing::of(&wire, served);
        let mut blockers = convert::blockers(wire.blockers.clone())?;
        blockers.extend(standing.blocker(&host).filter(|own| !blockers.iter().any(|it| it.code == own.code)));
        // What such a host said last is of an epoch that its lease for has run out since.
        let serving_epoch = match standing {
            Standing::Lapsed | Standing::Overdue => None,
            Standing::Free | Standing::Armed | Standing::Fenced | Standing::Halted => wire.serving_epoch,
        };
        Ok(Self {
            host: host.to_string(),
            state: state_text(wire.state()),
            connected: wire.connected,
            age_ms: wire.age_ms,
            mode: wire.mode.as_ref().map(|mode| mode_text(mode, standing)),
            serving_epoch,
            // The epoch is the host's word, what it stands for the coordinator's.
            serving: served.release.clone().filter(|_| serving_epoch == Some(served.epoch)),
            lease_left_ms: wire.lease_left_ms,
            fenced: standing == Standing::Fenced,
            overdue: standing == Standing::Overdue,
            lapsed: standing == Standing::Lapsed,
            halted_since_rollout: wire.halted_k,
            deployed: wire.deployed.iter().map(ReleaseView::try_from).collect::<Result<_, _>>()?,
            agent_version: wire.agent_version,
            enforce: wire.enforce,
            assurance: wire.assurance.map(HostAssurance::new),
            root_version: wire.root_version,
            other_root: wire.root_version.filter(|it| served.root_version.is_some_and(|root| root != *it)),
            certificate_expires: wire
                .certificate_expires_unix_ms
                .map(|unix_ms| date_text(muster_model::UnixTime(unix_ms))),
            certificate: wire.certificate.map(HostCertificate::new),
            broken_glass: convert::broken_glass(wire.glass)?.into_iter().map(GlassView::new).collect(),
            blockers,
        })
    }

    /// How old its certificate is, and when the next one is due.
    pub(super) fn certificate_text(&self) -> String {
        self.certificate.as_ref().map_or_else(|| "unknown".to_owned(), HostCertificate::text)
    }

    /// What its measurements are worth, and why they are not worth more.
    pub(super) fn assurance_text(&self) -> String {
        self.assurance.as_ref().map_or_else(|| "unknown".to_owned(), HostAssurance::text)
    }

    /// Unknown is never shown as good, nor as dark.
    fn serving_text(&self, width: Width) -> String {
        match ((self.connected && !self.overdue) || self.lapsed, self.serving_epoch, &self.serving, width) {
            (false, _, _, _) => "unknown".to_owned(),
            (true, None, _, _) => "nothing".to_owned(),
            (true, Some(epoch), Some(release), Width::Wide) => format!("epoch {epoch}, {}", release.short()),
            (true, Some(epoch), Some(_), Width::Narrow) | (true, Some(epoch), None, _) => {
                format!("epoch {epoch}")
            }
        }
    }

    pub(super) fn connection_text(&self) -> String {
        match (self.connected, self.age_ms) {
            (true, Some(age_ms)) => format!("for {}", span_text(age_ms)),
            (true, None) => "yes".to_owned(),
            (false, Some(age_ms)) => format!("lost {} ago", span_text(age_ms)),
            (false, None) => "never seen".to_owned(),
        }
    }

    /// For how long it may still serve, where that is limited.
    pub(super) fn lease_ms(&self) -> Option<u64> {
        self.lease_left_ms.filter(|_| !self.fenced && !self.overdue && !self.lapsed)
    }

    /// Nothing about it needs a look.
    pub(super) fn is_ordinary(&self, epoch: u64) -> bool {
        let serves_as_all = epoch == 0 || self.serving_epoch == Some(epoch);
        self.connected && self.blockers.is_empty() && serves_as_all && self.other_root.is_none()
    }

    pub(super) fn row(&self, width: Width) -> [String; 5] {
        let named = match width {
            Width::Wide => DEPLOYED_NAMED_MAX,
            Width::Narrow => 1,
        };
        [
            self.host.clone(),
            self.connection_text(),
            self.mode_text(),
            self.serving_text(width),
            self.deployed_text(named),
        ]
    }

    /// Its mode, for how long an armed host may still serve, and the root that it goes by where that is another.
    fn mode_text(&self) -> String {
        let mut text = self.mode.clone().unwrap_or_else(|| "unknown".to_owned());
        if let (Some(_), Some(left_ms)) = (&self.mode, self.lease_ms()) {
            text.push_str(&format!(", {} left", span_text(left_ms)));
        }
        if matches!(self.state, "joining" | "leaving") {
            text = format!("{}, {text}", self.state);
        }
        if let Some(version) = self.other_root {
            text.push_str(&format!(", root {version}"));
        }
        text
    }

    /// The releases on its disk; of many the last ones.
    fn deployed_text(&self, named: usize) -> String {
        let versions: Vec<&str> = self.deployed.iter().map(|release| release.version.as_str()).collect();
        match versions.len().checked_sub(named) {
            Some(more @ 1..) => format!("{more} more, {}", versions[more..].join(", ")),
            Some(0) | None => versions.join(", "),
        }
    }
}

/// How much room the terminal has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Width {
    /// Enough.
    Wide,
    /// Little, so that what stands above the table is not repeated in it.
    Narrow,
}

/// By what right a host serves, or why it does not, as far as the fleet's phase and its own word tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// Nothing holds it.
    Free,
    /// Under a lease.
    Armed,
    /// Its lease ran out.
    Fenced,
    /// Its lease must have run out, and it was not heard since.
    Overdue,
    /// Its lease must have run out, and the others have opened since.
    Lapsed,
    /// It was halted.
    Halted,
}

impl Standing {
    fn of(wire: &v1::HostStatus, served: &Served) -> Self {
        use v1::host_mode::Kind;
        if wire.halted_k.is_some() {
            return Self::Halted;
        }
        let Some(mode) = wire.mode.as_ref().filter(|mode| mode.kind() == Kind::Armed) else {
            return Self::Free;
        };
        // Armed over what the fleet has left behind: OPENED is durable only once its lease must have run out.
        if mode.epoch < served.epoch {
            Self::Lapsed
        } else if wire.connected && wire.serving_epoch.is_none() {
            Self::Fenced
        } else if wire.lease_left_ms == Some(0) {
            Self::Overdue
        } else {
            Self::Armed
        }
    }

    fn blocker(self, host: &HostName) -> Option<Blocker> {
        let (code, detail) = match self {
            Self::Free | Self::Armed => return None,
            Self::Fenced => (Code::LeaseExpired, "its lease ran out, and it has stopped serving by itself"),
            Self::Overdue => {
                let detail =
                    "its lease must have run out, and it has not been heard since: it should be dark";
                (Code::HostSilent, detail)
            }
            Self::Lapsed => {
                let detail =
                    "it was not heard while the fleet closed; it is dark, and opens once it is heard";
                (Code::HostDark, detail)
            }
            Self::Halted => (Code::Halted, "it was halted, and serves nothing until an order resumes it"),
        };
        Some(Blocker::host(code, host, detail))
    }
}

/// A coordinator from before hosts could be parked says nothing, and has none.
const fn state_text(state: v1::HostState) -> &'static str {
    match state {
        v1::HostState::Joining => "joining",
        v1::HostState::Serving | v1::HostState::Unspecified => "serving",
        v1::HostState::Leaving => "leaving",
        v1::HostState::Parked => "parked",
    }
}

fn mode_text(mode: &v1::HostMode, standing: Standing) -> String {
    use v1::host_mode::Kind;
    match (mode.kind(), standing) {
        (_, Standing::Halted) => "HALTED".to_owned(),
        (Kind::Unspecified, _) => "unknown".to_owned(),
        (Kind::Serve, _) => format!("serve {}", mode.epoch),
        (Kind::Closed, _) => format!("closed {}", mode.k),
        (Kind::Armed, Standing::Lapsed) => format!("lapsed {}", mode.k),
        (Kind::Armed, Standing::Fenced) => format!("FENCED {}", mode.k),
        (Kind::Armed, Standing::Overdue) => format!("OVERDUE {}", mode.k),
        (Kind::Armed, Standing::Free | Standing::Armed) => format!("ARMED {} over {}", mode.k, mode.epoch),
    }
}
