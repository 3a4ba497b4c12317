//! Reading documents that hosts keep, part by part over their streams.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use muster_model::{Blocker, Code, Digest, FleetName, HostName, Leadership};
use muster_proto::v1;
use muster_proto::v1::coordinator_frame::Body;
use tokio::sync::mpsc;

use crate::fleet::{Outbox, stamp};

/// How long a host may take for a part.
const PART_TIMEOUT: Duration = Duration::from_secs(15);
/// How long it may take for all of a document: the largest manifest has 64 MiB.
const DOCUMENT_TIMEOUT: Duration = Duration::from_secs(120);
/// Parts that wait to be taken; each is asked for when the one before has come.
const PARTS_AHEAD: usize = 2;

/// Who waits for parts of which document, from which host.
#[derive(Debug, Default)]
pub(crate) struct Parts(Mutex<BTreeMap<(HostName, Digest), mpsc::Sender<v1::DocumentPart>>>);

impl Parts {
    /// Passes a part on. One that nobody waits for is dropped.
    pub(crate) fn arrived(&self, host: &HostName, part: v1::DocumentPart) {
        let Ok(digest) = muster_proto::convert::digest("digest", &part.digest) else { return };
        let waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(waiter) = waiting.get(&(host.clone(), digest)) {
            // A host that sends what was not asked for finds no room.
            let _ = waiter.try_send(part);
        }
    }

    /// Reads a whole document of at most `bytes_max` bytes, and verifies it by its digest.
    pub(crate) async fn read(
        &self,
        fleet: &FleetName,
        (host, outbox): (&HostName, &Outbox),
        digest: Digest,
        bytes_max: u64,
    ) -> Result<Vec<u8>, Blocker> {
        let (sender, mut parts) = mpsc::channel(PARTS_AHEAD);
        let place = (host.clone(), digest);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(place.clone(), sender);
        let read = read_all(fleet, (host, outbox), digest, bytes_max, &mut parts);
        let read = tokio::time::timeout(DOCUMENT_TIMEOUT, read).await.unwrap_or_else(|_| {
            let detail = format!("it did not send {digest} within {} s", DOCUMENT_TIMEOUT.as_secs());
            Err(Blocker::host(Code::HostSilent, host, detail))
        });
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&place);
        read
    }
}

async fn read_all(
    fleet: &FleetName,
    (host, outbox): (&HostName, &Outbox),
    digest: Digest,
    bytes_max: u64,
    parts: &mut mpsc::Receiver<v1::DocumentPart>,
) -> Result<Vec<u8>, Blocker> {
    let failed = |code, detail: String| Blocker::host(code, host, detail);
    let mut bytes: Vec<u8> = Vec::new();
    loop {
        let offset = bytes.len() as u64;
        let asked = v1::ReadDocument { digest: digest.as_bytes().to_vec(), offset };
        let frame = stamp(fleet, Leadership::default(), Body::ReadDocument(asked));
        let gone = || failed(Code::SessionLost, format!("its stream ended before it had sent {digest}"));
        outbox.frames.try_send(frame).map_err(|_| gone())?;
        let part = tokio::time::timeout(PART_TIMEOUT, parts.recv());
        let part = part.await.ok().flatten().ok_or_else(gone)?;
        let missing =
            || failed(Code::BlobMissing, format!("it does not have the document {digest} any more"));
        let size = part.size.ok_or_else(missing)?;
        if part.offset != offset || size > bytes_max || offset + part.part.len() as u64 > size {
            return Err(failed(
                Code::BlobDamaged,
                format!("what it sends of {digest} does not fit together"),
            ));
        }
        bytes.extend_from_slice(&part.part);
        if bytes.len() as u64 == size {
            break;
        }
        if part.part.is_empty() {
            return Err(missing());
        }
    }
    if Digest::of(&bytes) == digest {
        return Ok(bytes);
    }
    Err(failed(Code::BlobDamaged, format!("what it sent for {digest} is something else")))
}
