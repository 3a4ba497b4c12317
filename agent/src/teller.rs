//! What a coordinator shows and asks beside the protocol: mandates, settlements, rosters, and the documents that this host keeps.

use std::sync::Arc;

use muster_daemon::Machine;
use muster_model::{Digest, FleetName};
use muster_proto::convert::{self, ConvertError};
use muster_proto::v1;
use muster_proto::v1::agent_frame::Body;
use muster_trust::RootChain;
use tokio::sync::{Semaphore, mpsc};

use crate::documents::Library;
use crate::driver::Input;
use crate::measure::Trees;
use crate::papers::{PART_BYTES_MAX, Papers};
use crate::refusal;
use crate::uplink::Uplink;

/// How many questions may be under way. A coordinator asks for one part after the other.
const ASKED_MAX: usize = 8;

/// Answers for one fleet. Clones share the work.
#[derive(Clone)]
pub(crate) struct Teller {
    fleet: FleetName,
    papers: Arc<Papers>,
    trees: Arc<Trees>,
    library: Arc<Library>,
    driver: mpsc::Sender<Input>,
    room: Arc<Semaphore>,
}

impl Teller {
    pub(crate) fn new(
        fleet: FleetName,
        papers: Arc<Papers>,
        trees: Arc<Trees>,
        library: Arc<Library>,
        driver: mpsc::Sender<Input>,
    ) -> Self {
        Self { fleet, papers, trees, library, driver, room: Arc::new(Semaphore::new(ASKED_MAX)) }
    }

    /// Passes a mandate on, if the operators have signed it.
    pub(crate) async fn mandate(&self, envelope: &[u8], roots: &RootChain, machine: &Machine) {
        match roots.in_force().verify_mandate(envelope, machine.unix_time()) {
            Ok(mandate) => {
                let input = Input::Mandated(Box::new(mandate.into_document()));
                // A driver that has ended has ended the agent as well.
                let _ = self.driver.send(input).await;
            }
            Err(error) => {
                tracing::warn!(fleet = %self.fleet, error = refusal::chain(&error), "refused a mandate");
            }
        }
    }

    /// Passes on that operators have settled what was started here without a coordinator, if they have signed it.
    pub(crate) async fn glass_settled(&self, envelope: &[u8], roots: &RootChain, machine: &Machine) {
        match roots.in_force().verify_glass_settlement(envelope, machine.unix_time()) {
            Ok(settlement) => {
                let input = Input::GlassSettled(Box::new(settlement.into_document()));
                // A driver that has ended has ended the agent as well.
                let _ = self.driver.send(input).await;
            }
            Err(error) => {
                let error = refusal::chain(&error);
                tracing::warn!(fleet = %self.fleet, error, "refused a settlement of broken glass");
            }
        }
    }

    /// Pulls and keeps a roster, beside the stream.
    pub(crate) fn roster(&self, shown: &v1::RosterShown, uplink: &Uplink) -> Result<(), ConvertError> {
        let digest = convert::digest("roster", &shown.roster)?;
        let Ok(room) = Arc::clone(&self.room).try_acquire_owned() else { return Ok(()) };
        let (this, channel) = (self.clone(), uplink.channel());
        tokio::spawn(async move {
            match Arc::clone(&this.library).shown(channel, digest).await {
                Ok(roster) => {
                    // A driver that has ended has ended the agent as well.
                    let _ = this.driver.send(Input::RosterShown(Box::new(roster))).await;
                }
                Err(refusal) => tracing::warn!(fleet = %this.fleet, %refusal, "a roster is not kept"),
            }
            drop(room);
        });
        Ok(())
    }

    /// Sends a part of a document.
    pub(crate) fn read(&self, asked: &v1::ReadDocument, uplink: Uplink) -> Result<(), ConvertError> {
        let (digest, offset) = (convert::digest("digest", &asked.digest)?, asked.offset);
        let Ok(room) = Arc::clone(&self.room).try_acquire_owned() else { return Ok(()) };
        let this = self.clone();
        tokio::spawn(async move {
            let (papers, trees) = (Arc::clone(&this.papers), Arc::clone(&this.trees));
            let machine = trees.machine.clone();
            let read = machine.run_blocking(move || part_of(&papers, &trees, digest, offset)).await;
            let (size, part) =
                read.ok().flatten().map_or((None, Vec::new()), |(size, part)| (Some(size), part));
            let part = v1::DocumentPart { digest: digest.as_bytes().to_vec(), offset, size, part };
            uplink.send(&this.fleet, Body::DocumentPart(part));
            drop(room);
        });
        Ok(())
    }
}

/// A part of a kept document, or of the manifest of a release that a kept rollout led to, or of what is to be adopted.
fn part_of(papers: &Papers, trees: &Trees, digest: Digest, offset: u64) -> Option<(u64, Vec<u8>)> {
    if let Ok(found) = papers.read(digest, offset) {
        return Some(found);
    }
    let may_read = papers.led_to(digest) || trees.is_adopted(digest);
    let bytes = may_read.then(|| trees.manifest_bytes(digest).ok()).flatten()?;
    let start = usize::try_from(offset).ok()?.min(bytes.len());
    let end = bytes.len().min(start + PART_BYTES_MAX);
    Some((bytes.len() as u64, bytes[start..end].to_vec()))
}
