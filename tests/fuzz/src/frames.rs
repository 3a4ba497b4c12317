//! The frames of the control stream, and what callers ask of the coordinator.

use std::fmt::Debug;

use muster_proto::convert::{from_coordinator, from_host, to_agent, to_coordinator};
use muster_proto::v1;
use prost::Message;

use crate::Verdict;

/// Reads a message and writes it again, which may drop what is not known but nothing else.
fn read<M: Message + Default + PartialEq + Debug>(bytes: &[u8]) -> Option<M> {
    let message = M::decode(bytes).ok()?;
    let written = message.encode_to_vec();
    assert!(written.len() <= 2 * bytes.len(), "{} bytes from {}", written.len(), bytes.len());
    assert!(M::decode(&written[..]).is_ok_and(|again| again == message), "{message:?}");
    Some(message)
}

pub(crate) fn agent(bytes: &[u8]) -> Verdict {
    let Some(frame) = read::<v1::AgentFrame>(bytes) else { return Verdict::Refused };
    let Some(Ok(message)) = frame.body.map(from_host) else { return Verdict::Refused };
    if let Some(message) = message {
        assert_eq!(from_host(to_coordinator(message.clone())), Ok(Some(message)));
    }
    Verdict::Taken
}

pub(crate) fn coordinator(bytes: &[u8]) -> Verdict {
    let Some(frame) = read::<v1::CoordinatorFrame>(bytes) else { return Verdict::Refused };
    let Some(Ok(message)) = frame.body.map(from_coordinator) else { return Verdict::Refused };
    if let Some(message) = message {
        assert_eq!(from_coordinator(to_agent(message.clone())), Ok(Some(message)));
    }
    Verdict::Taken
}

/// A first byte says which request the others are.
pub(crate) fn request(bytes: &[u8]) -> Verdict {
    let Some((index, bytes)) = bytes.split_first() else { return Verdict::Refused };
    match REQUESTS.get(usize::from(*index)) {
        Some((_, is_read)) => is_read(bytes).into(),
        None => Verdict::Refused,
    }
}

macro_rules! requests {
    ($($name:ident),* $(,)?) => {
        &[$((stringify!($name), |bytes| read::<v1::$name>(bytes).is_some())),*]
    };
}

/// The name of a message, and whether bytes are one.
type Reading = (&'static str, fn(&[u8]) -> bool);

/// Every message that a call of ours begins with. New ones come last, so that the corpus keeps its meaning.
pub(crate) const REQUESTS: &[Reading] = requests![
    ListFleetsRequest,
    StatusRequest,
    ApplyRosterRequest,
    ShowRosterRequest,
    ReadmitHostRequest,
    ApplyRootRequest,
    ShowRootsRequest,
    SubmitReleaseRequest,
    ListReleasesRequest,
    DeployRequest,
    CheckRequest,
    FlipRequest,
    ProposeOrderRequest,
    ApproveOrderRequest,
    CancelOrderRequest,
    ListOrdersRequest,
    AbortRequest,
    HaltRequest,
    FindRequest,
    BackupRequest,
    ReadAuditRequest,
    ReconcileAuditRequest,
    ShowReceiptRequest,
    FindMissingRequest,
    UploadRequest,
    DownloadRequest,
    AgentFrame,
    EnrolRequest,
    RecoverRequest,
    RenewRequest,
    IssueTokenRequest,
    ListEnrolledRequest,
    EvictHostRequest,
    RevokeCertificateRequest,
    SurveyFleetRequest,
    RebuildFleetRequest,
    AddHostsRequest,
    RehearseRequest,
    AdoptRequest,
    SettleGlassRequest,
];
