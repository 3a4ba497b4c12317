//! Breaking glass on the host itself, with the coordinator and the agent gone.
//!
//! Whether it may be is decided by [`HostRecord::break_glass`]. Here is what it needs to know, and the order of what follows: all bytes are
//! measured, the mark is durable, and only then the guard opens. The journal's lock keeps the agent out meanwhile.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use muster_artifact::BlobStore;
use muster_daemon::{Machine, crash_point};
use muster_guard::{FleetState, Guard as _, GuardClient};
use muster_model::{FleetName, GlassToken, HostName, PublicKey, Roster};
use muster_rollout::host::{GlassCase, HostRecord, Resume, Unsealed};
use muster_store::StoreError;
use muster_trust::{Authentic, ENVELOPE_BYTES_MAX, RootChain};

use crate::agent::Parts;
use crate::assurance::Assurances;
use crate::guard_queue::meaning;
use crate::journal::Journal;
use crate::local::{failed, fleet_folder, known, say, told};
use crate::measure::Trees;
use crate::papers::Papers;
use crate::{AgentConfig, AgentError, JournalError};

/// Starts what the token names, if it may, and tells what is served then.
pub(crate) fn break_glass(config: &AgentConfig, fleet: &FleetName, token: &Path) -> Result<(), AgentError> {
    known(config, fleet)?;
    let folder = fleet_folder(config, fleet);
    check_user(&folder)?;
    let desk = Desk::open(config, fleet, token)?;
    let (mut journal, record) = open_journal(&folder.join("journal"), fleet, &desk.host)?;
    // What cannot be started anyway is not measured first.
    let wanted = desk.judge(&record)?;
    say(&format!("measuring {} in full", wanted.release));
    let measured = desk.trees(config, &folder)?.measure_to_admit(wanted.release);
    measured.map_err(|refusal| AgentError::GlassRefused { refusal })?;
    // It may have taken long.
    let wanted = desk.judge(&record)?;
    crash_point("agent.glass.before-journal");
    journal.append(std::slice::from_ref(&wanted.record)).map_err(|source| desk.journal_failed(source))?;
    crash_point("agent.glass.persisted");
    let state = desk.open_guard(&wanted)?;
    say(&format!(
        "{fleet} was started on this host without a coordinator, by the token {}\n{}\nNext: systemctl start muster-agent; once there \
         is a coordinator: muster break-glass settle {}",
        desk.token.payload_digest(),
        told(&state),
        desk.host
    ));
    Ok(())
}

/// What is known here.
struct Desk {
    fleet: FleetName,
    host: HostName,
    key: PublicKey,
    token: Authentic<GlassToken>,
    roster: Authentic<Roster>,
    guard: GuardClient,
    machine: Machine,
}

impl Desk {
    fn open(config: &AgentConfig, fleet: &FleetName, token: &Path) -> Result<Self, AgentError> {
        let parts = Parts::load(config)?;
        let (machine, folder) = (parts.machine, config.state.join("roots"));
        let trust = |path: &Path| {
            let path = path.to_owned();
            move |source| AgentError::Trust { path, source }
        };
        let roots = RootChain::open(parts.root, &folder).map_err(trust(&folder))?;
        let raw = read_token(token)?;
        let verified =
            roots.in_force().verify_glass_token(&raw, machine.unix_time()).map_err(trust(token))?;
        let papers = fleet_folder(config, fleet).join("papers");
        let kept = Papers::open(&papers).roster();
        let kept = kept.ok_or_else(|| AgentError::NoRoster { fleet: fleet.clone() })?;
        Ok(Self {
            fleet: fleet.clone(),
            host: parts.coordinator.tls.credentials().identity().name.to_host(),
            key: parts.attestation_key.public().clone(),
            token: verified,
            // By the root of its time: the token, which the root in force verifies, names it.
            roster: roots.verify_roster_history(&kept).map_err(trust(&papers))?,
            guard: GuardClient::new(&config.guard_socket),
            machine,
        })
    }

    fn judge(&self, record: &HostRecord) -> Result<Unsealed, AgentError> {
        let state = self.guard.status(&self.fleet).map_err(|source| failed(&self.fleet, source))?;
        let case = GlassCase {
            token: self.token.document(),
            id: self.token.payload_digest(),
            signers: self.token.signers(),
            roster: self.roster.document(),
            roster_digest: self.roster.payload_digest(),
            key: &self.key,
            guard: meaning(&state, record.may_serve()),
            halted: state.halted.as_ref().map(|halt| halt.id),
            now: self.machine.unix_time(),
        };
        record.break_glass(&case).map_err(|refusal| AgentError::GlassRefused { refusal })
    }

    fn trees(&self, config: &AgentConfig, folder: &Path) -> Result<Trees, AgentError> {
        let blobs = BlobStore::open(&config.state.join("blobs"))
            .map_err(|source| AgentError::State { host: self.host.clone(), source })?;
        let releases = folder.join("releases");
        Ok(Trees {
            host: self.host.clone(),
            machine: self.machine.clone(),
            blobs,
            assurances: Assurances::of_folder(&releases, config.verity),
            releases,
            seals: folder.join("seals"),
            jobs: config.jobs(),
            clock_error: config.clock_error(),
            adopted: None,
        })
    }

    /// What was halted is resumed first, as by an opening that an order asks for.
    fn open_guard(&self, wanted: &Unsealed) -> Result<FleetState, AgentError> {
        let lifted = match wanted.resume {
            Resume::No | Resume::Yes(None) => Ok(()),
            Resume::Yes(Some(halt)) => self.guard.resume(&self.fleet, halt).map(drop),
        };
        let opened = lifted.and_then(|()| self.guard.open(&self.fleet, wanted.epoch, wanted.release));
        opened.map_err(|source| AgentError::GlassUnopened { fleet: self.fleet.clone(), source })
    }

    fn journal_failed(&self, source: JournalError) -> AgentError {
        let (host, fleet) = (self.host.clone(), self.fleet.clone());
        AgentError::Journal { host, fleet, source: Box::new(source) }
    }
}

/// What another user wrote here the agent could not read.
fn check_user(folder: &Path) -> Result<(), AgentError> {
    let owner = fs::metadata(folder)
        .map_err(|source| AgentError::Witness { action: "look at", path: folder.to_owned(), source })?
        .uid();
    if nix::unistd::geteuid().as_raw() == owner { Ok(()) } else { Err(AgentError::OtherUser { owner }) }
}

fn open_journal(
    folder: &Path,
    fleet: &FleetName,
    host: &HostName,
) -> Result<(Journal, HostRecord), AgentError> {
    Journal::open(folder, fleet, host).map_err(|source| {
        if matches!(source, JournalError::Store { source: StoreError::Locked { .. } }) {
            return AgentError::AgentRuns;
        }
        AgentError::Journal { host: host.clone(), fleet: fleet.clone(), source: Box::new(source) }
    })
}

fn read_token(path: &Path) -> Result<Vec<u8>, AgentError> {
    let unreadable = |source| AgentError::ReadToken { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    // One byte more than is accepted, so that too much does not look like enough.
    let file = File::open(path).map_err(unreadable)?;
    file.take(ENVELOPE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    Ok(bytes)
}
