//! A connection to the coordinator, and what is believed of what comes over it.
//!
//! Releases and rosters are believed because they verify with the root document that the context pins, never because
//! the coordinator says so. What it says beyond that (who is connected, what is served) is shown as its view.

use std::future::Future;
use std::path::Path;
use std::time::Duration;

use muster_model::{Digest, FleetName, Refusal, Release, Roster, RosterRef, UnixTime, Verified, Version};
use muster_mtls::{ClientTls, ConnectOptions, Credentials, Validity};
use muster_proto::convert;
use muster_proto::v1;
use muster_proto::v1::blobs_client::BlobsClient;
use muster_proto::v1::certificates_client::CertificatesClient;
use muster_proto::v1::operations_client::OperationsClient;
use muster_trust::{Authentic, TrustError, TrustRoot};
use prost::Message as _;
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Response, Status, Streaming};

use crate::clock::unix_time;
use crate::context::{Context, finish_exchange};
use crate::error::CliError;
use crate::resolve::{Named, ReleaseName};
use crate::seen::{SeenRoster, take_note};

/// How long a call may take that the coordinator answers from what it knows.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// How much longer than the coordinator we wait for a stream's end.
const STREAM_GRACE: Duration = Duration::from_secs(15);

/// The largest message that is read, in bytes: the receipt of the largest fleet.
const MESSAGE_BYTES_MAX: usize = muster_trust::RECEIPT_BYTES_MAX + (1 << 20);

/// The most fleets that are looked at.
const FLEETS_MAX: usize = 10_000;

/// A connection to the coordinator with everything that is needed to verify what it says.
pub(crate) struct Session {
    context: Context,
    root: TrustRoot,
    certificate: Validity,
    channel: Channel,
}

/// A release whose signature holds, with what the coordinator knows of it.
#[derive(Debug, Clone)]
pub(crate) struct KnownRelease {
    /// The release.
    pub(crate) release: Verified<Release>,
    /// The size of its manifest in bytes.
    pub(crate) manifest_size: u64,
    /// Files in its tree.
    pub(crate) files: u64,
    /// Bytes in its tree.
    pub(crate) bytes: u64,
    /// Connected hosts that have it on disk, as they say.
    pub(crate) deployed: Vec<String>,
    /// Whether the fleet serves it.
    pub(crate) serving: bool,
}

/// The releases of a fleet.
struct Listed {
    releases: Vec<KnownRelease>,
    /// Why the last one was left out, if any was.
    unsigned: Option<TrustError>,
}

impl Named for KnownRelease {
    fn version(&self) -> &Version {
        &self.release.version
    }

    fn digest(&self) -> Digest {
        self.release.manifest
    }
}

impl Session {
    /// Reads the context and connects at once.
    pub(crate) async fn open(context: Option<&Path>) -> Result<Self, CliError> {
        let context = Context::find(context)?;
        let root = context.trust_root()?;
        finish_exchange(&context.credential_paths())?;
        let unusable = || CliError::tls("use the credentials of the context");
        let credentials = Credentials::load(&context.credential_paths()).map_err(unusable())?;
        let certificate = credentials.validity();
        let tls = ClientTls::new(&credentials).map_err(unusable())?;
        let connecting = muster_mtls::connect(context.coordinator(), &tls, ConnectOptions::default());
        let channel = Box::pin(connecting)
            .await
            .map_err(CliError::tls(format!("connect to the coordinator at {}", context.coordinator())))?;
        Ok(Self { context, root, certificate, channel })
    }

    /// The context.
    pub(crate) const fn context(&self) -> &Context {
        &self.context
    }

    /// From when until when our own certificate is valid.
    pub(crate) const fn certificate(&self) -> Validity {
        self.certificate
    }

    /// The pinned root.
    pub(crate) const fn root(&self) -> &TrustRoot {
        &self.root
    }

    /// The operators' calls.
    pub(crate) fn operations(&self) -> OperationsClient<Channel> {
        OperationsClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// The calls about our own certificate.
    pub(crate) fn certificates(&self) -> CertificatesClient<Channel> {
        CertificatesClient::new(self.channel.clone())
    }

    /// The calls about bytes.
    pub(crate) fn blobs(&self) -> BlobsClient<Channel> {
        BlobsClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// The fleet that is meant: the one named, else the context's, else the only one there is.
    pub(crate) async fn fleet(&self, named: Option<FleetName>) -> Result<FleetName, CliError> {
        if let Some(fleet) = named.or_else(|| self.context.fleet().cloned()) {
            return Ok(fleet);
        }
        const DOING: &str = "list the fleets";
        let mut client = self.operations();
        let answer = answer(DOING, client.list_fleets(v1::ListFleetsRequest {})).await?;
        let names = answer.fleets.iter().take(FLEETS_MAX).map(|fleet| convert::fleet(&fleet.fleet));
        let mut candidates = names.collect::<Result<Vec<_>, _>>().map_err(CliError::answer(DOING))?;
        if candidates.len() == 1
            && let Some(only) = candidates.pop()
        {
            return Ok(only);
        }
        Err(CliError::FleetUnclear { candidates })
    }

    /// The fleet's state, as the coordinator sees it.
    pub(crate) async fn status(&self, fleet: &FleetName) -> Result<v1::FleetStatus, CliError> {
        let request = v1::StatusRequest { fleet: fleet.to_string() };
        let mut client = self.operations();
        Box::pin(answer(&format!("see the status of {fleet}"), client.status(request))).await
    }

    /// The fleet's roster in force, verified.
    pub(crate) async fn roster(&self, fleet: &FleetName) -> Result<Authentic<Roster>, CliError> {
        self.roster_by(fleet, &[], |shown| shown.envelope).await
    }

    /// The roster that the next one follows: the last that was handed in, whether or not it holds yet. If the root has changed
    /// since it was signed, the root of its time verifies it as well. Nothing can be flipped with such a roster.
    pub(crate) async fn last_roster(&self, fleet: &FleetName) -> Result<Authentic<Roster>, CliError> {
        let earlier = self.context.earlier_roots(self.root.root().version);
        let roster =
            self.roster_by(fleet, &earlier, |shown| shown.coming_envelope.unwrap_or(shown.envelope)).await?;
        self.take_note(&roster)?;
        Ok(roster)
    }

    /// Takes note of a roster that the coordinator has taken: no earlier one is gone on from any more.
    pub(crate) fn has_handed_in(&self, envelope: &[u8]) -> Result<(), CliError> {
        let doing = "take note of the roster that was handed in";
        let roster = self.root.verify_held_roster(envelope, unix_time()).map_err(CliError::trust(doing))?;
        self.take_note(&roster)
    }

    fn take_note(&self, roster: &Authentic<Roster>) -> Result<(), CliError> {
        let (document, digest) = (roster.document(), roster.payload_digest());
        let shown = SeenRoster { revision: document.revision(), digest };
        take_note(self.context.folder(), document.fleet(), shown)
    }

    async fn roster_by(
        &self,
        fleet: &FleetName,
        earlier: &[TrustRoot],
        which: impl FnOnce(v1::ShowRosterResponse) -> Vec<u8>,
    ) -> Result<Authentic<Roster>, CliError> {
        let doing = format!("read the roster of {fleet}");
        let request = v1::ShowRosterRequest { fleet: fleet.to_string() };
        let mut client = self.operations();
        let envelope = which(answer(&doing, client.show_roster(request)).await?);
        let roster = self.root.verify_held_roster(&envelope, unix_time()).or_else(|error| {
            let of_its_time = |root: &TrustRoot| root.verify_past_roster(&envelope).ok();
            earlier.iter().find_map(of_its_time).ok_or(error)
        });
        let roster = roster.map_err(CliError::trust(doing.as_str()))?;
        let found = roster.document().fleet();
        if found != fleet {
            let what = format!("the coordinator answered with the roster of the fleet {found}");
            return Err(CliError::Contradiction { doing, what });
        }
        Ok(roster)
    }

    /// All releases of the fleet that the keys in force have signed.
    pub(crate) async fn releases(&self, fleet: &FleetName) -> Result<Vec<KnownRelease>, CliError> {
        self.listed(fleet).await.map(|listed| listed.releases)
    }

    /// Reads and verifies the releases of the fleet. Those that are signed by keys that may not sign, because the root
    /// has changed since, are left out: they cannot be flipped to until they are signed anew.
    async fn listed(&self, fleet: &FleetName) -> Result<Listed, CliError> {
        let doing = format!("list the releases of {fleet}");
        let request = v1::ListReleasesRequest { fleet: fleet.to_string() };
        let mut client = self.operations();
        let listed = answer(&doing, client.list_releases(request)).await?;
        let now = unix_time();
        let (mut releases, mut unsigned) = (Vec::new(), None);
        for summary in listed.releases {
            match self.verify_release(summary, fleet, now) {
                Ok(release) => releases.push(release),
                Err(error @ TrustError::Threshold { .. }) => unsigned = Some(error),
                Err(error) => return Err(CliError::trust(doing.as_str())(error)),
            }
        }
        Ok(Listed { releases, unsigned })
    }

    /// The release that is meant.
    pub(crate) async fn release(
        &self,
        fleet: &FleetName,
        name: &ReleaseName,
    ) -> Result<KnownRelease, CliError> {
        let Listed { releases, unsigned } = self.listed(fleet).await?;
        let found = name.resolve(fleet, &releases).cloned().map_err(CliError::from);
        match (found, unsigned) {
            (Err(_), Some(unsigned)) => {
                let doing = format!("find the release among those of {fleet} whose signatures hold");
                Err(CliError::trust(doing)(unsigned))
            }
            (found, _) => found,
        }
    }

    fn verify_release(
        &self,
        summary: v1::ReleaseSummary,
        fleet: &FleetName,
        now: UnixTime,
    ) -> Result<KnownRelease, TrustError> {
        let release = self.root.verify_release(&summary.envelope, fleet, now)?.into_document();
        Ok(KnownRelease {
            release,
            manifest_size: summary.manifest_size,
            files: summary.files,
            bytes: summary.bytes,
            deployed: summary.deployed,
            serving: summary.serving,
        })
    }
}

/// How orders refer to a roster.
pub(crate) fn roster_ref(roster: &Authentic<Roster>) -> RosterRef {
    let hosts = roster.document().hosts().len();
    RosterRef {
        digest: roster.payload_digest(),
        revision: roster.document().revision(),
        hosts: u32::try_from(hosts).expect("a roster has at most 20,000 hosts"),
    }
}

/// Waits for the answer of a call, for a bounded time. `doing` completes "cannot …".
pub(crate) async fn answer<T>(
    doing: &str,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, CliError> {
    match tokio::time::timeout(ANSWER_TIMEOUT, call).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(failed(doing, status)),
        Err(_) => Err(CliError::TimedOut { doing: doing.to_owned(), after: ANSWER_TIMEOUT }),
    }
}

/// The events of a call that takes its time. It ends by itself: a coordinator that hangs is not waited for longer than
/// the time that it was given and a little more.
pub(crate) struct Events<T> {
    doing: String,
    stream: Streaming<T>,
    allowed: Duration,
    deadline: Instant,
}

impl<T> Events<T> {
    /// Starts the call, which the coordinator was asked to end within `timeout`.
    pub(crate) async fn open(
        doing: &str,
        timeout: Duration,
        call: impl Future<Output = Result<Response<Streaming<T>>, Status>>,
    ) -> Result<Self, CliError> {
        let allowed = timeout.saturating_add(STREAM_GRACE);
        let deadline = Instant::now() + allowed;
        let stream = answer(doing, call).await?;
        Ok(Self { doing: doing.to_owned(), stream, allowed, deadline })
    }

    /// The next event. A stream that ends is an error: the last event says that it is the last.
    pub(crate) async fn next(&mut self) -> Result<T, CliError> {
        match tokio::time::timeout_at(self.deadline, self.stream.message()).await {
            Ok(Ok(Some(event))) => Ok(event),
            Ok(Ok(None)) => Err(CliError::Lost { doing: self.doing.clone(), status: None }),
            Ok(Err(status)) => Err(match refusal_of(&status) {
                Some(refusal) => CliError::refused(self.doing.as_str(), refusal),
                None => CliError::Lost { doing: self.doing.clone(), status: Some(Box::new(status)) },
            }),
            Err(_) => Err(CliError::TimedOut { doing: self.doing.clone(), after: self.allowed }),
        }
    }

    /// What the call is for, as the completion of "cannot …".
    pub(crate) fn doing(&self) -> &str {
        &self.doing
    }
}

/// The error of a call that failed.
pub(crate) fn failed(doing: &str, status: Status) -> CliError {
    match refusal_of(&status) {
        Some(refusal) => CliError::refused(doing, refusal),
        None => CliError::Call { doing: doing.to_owned(), status: Box::new(status) },
    }
}

/// The refusal that a status carries in its details, if it is one and every code of it is known.
fn refusal_of(status: &Status) -> Option<Refusal> {
    if status.details().is_empty() {
        return None;
    }
    let wire = v1::Refusal::decode(status.details()).ok()?;
    convert::refusal(Some(wire)).ok()
}

#[cfg(test)]
mod tests {
    use muster_model::Code;

    use super::*;
    use crate::exit::Exit;

    #[test]
    fn a_status_with_a_refusal_becomes_its_blockers() {
        let wire: v1::Refusal = Refusal::of(Code::Busy, "rollout 3").into();
        let status =
            Status::with_details(tonic::Code::FailedPrecondition, "busy", wire.encode_to_vec().into());
        let error = failed("flip", status);
        assert_eq!(error.exit(), Exit::Superseded);
        assert_eq!(error.blockers()[0].detail, "rollout 3");
    }

    #[test]
    fn a_status_without_one_is_a_transport_error() {
        for details in [Vec::new(), b"\xff\xff nonsense".to_vec(), v1::Refusal::default().encode_to_vec()] {
            let status = Status::with_details(tonic::Code::Unavailable, "gone", details.into());
            let error = failed("flip", status);
            assert_eq!(error.exit(), Exit::Internal);
            assert!(error.next().is_some());
        }
        let newer = v1::Refusal {
            blockers: vec![v1::Blocker { code: "from-the-future".to_owned(), ..v1::Blocker::default() }],
        };
        let status =
            Status::with_details(tonic::Code::FailedPrecondition, "no", newer.encode_to_vec().into());
        assert_eq!(failed("flip", status).exit(), Exit::Internal);
    }
}
