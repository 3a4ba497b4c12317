//! An agent: its parts put together, and run.

use std::fs::DirBuilder;
use std::num::NonZeroUsize;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use muster_artifact::{BlobStore, clean_leftovers};
use muster_daemon::{Machine, ServiceManager, Shutdown};
use muster_guard::{Guard, GuardClient};
use muster_model::{
    Assurance, BootGate, BootId, ClockState, Digest, Epoch, FleetName, HostFacts, HostName, PublicKey, Scope,
    UnixTime,
};
use muster_mtls::{Address, CertificateFiles, ClientTls, Dialer, Role};
use muster_proto::PROTOCOL;
use muster_rollout::host::Profile;
use muster_store::{Recovery, Store};
use muster_trust::{RootChain, SigningKey, TrustRoot};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::adopted::Adopted;
use crate::assurance::Assurances;
use crate::check::Checker;
use crate::deploy::{Deployer, Slots};
use crate::documents::Library;
use crate::driver::{FleetDriver, INBOX_MAX, Input, Tools};
use crate::guard_watch::GuardWatch;
use crate::journal::Journal;
use crate::measure::{Lanes, Trees};
use crate::papers::Papers;
use crate::pulse::Pulse;
use crate::renewal::{CertificateState, Renewal};
use crate::stream::{Line, Route};
use crate::teller::Teller;
use crate::witness::Witness;
use crate::{AgentConfig, AgentError, ClockError, DriftSettings, Enforce, OnDrift, Verity};

/// A machine that was busy when its agent started may be at rest by then.
const DRILL_AGAIN: Duration = Duration::from_secs(30);

const OPEN_TO_SERVICES: u32 = 0o755;
const OWNER_ONLY: u32 = 0o700;

/// How an agent reaches its coordinator.
#[derive(Debug, Clone)]
pub struct Coordinator {
    /// Where it listens.
    pub address: Address,
    /// With what this host proves who it is, and whom it trusts.
    pub tls: ClientTls,
    /// How connections to it are made.
    pub dialer: Dialer,
}

/// One fleet of an agent.
pub struct FleetParts {
    /// The fleet.
    pub name: FleetName,
    /// Whether the link that the guard makes vanishes at a reboot.
    pub boot_gate: BootGate,
    /// What follows when what is served changes on the disk.
    pub on_drift: OnDrift,
    /// How much may be done to the service.
    pub enforce: Enforce,
    /// What runs before any release does, if it is to be adopted.
    pub adopted: Option<Adopted>,
    /// The store of its journal and what was found in it; a folder of the state if none is given.
    pub store: Option<(Box<dyn Store>, Recovery)>,
}

/// All that an agent works with.
pub struct Parts {
    /// The coordinator. The certificate's name is the host's.
    pub coordinator: Coordinator,
    /// Where the certificate is, and where the next ones go; without it nothing is renewed.
    pub certificate_files: Option<CertificateFiles>,
    /// Where the host recovers from an expired certificate.
    pub enrolment: Option<Address>,
    /// The folder of blobs, trees and journals.
    pub state: PathBuf,
    /// The pinned root, from which the successors in the state lead on.
    pub root: TrustRoot,
    /// The key that signs attestations.
    pub attestation_key: SigningKey,
    /// The public key of the coordinator's audit log; the first that is seen is kept to if none is given.
    pub audit_key: Option<PublicKey>,
    /// Who owns the links and the services.
    pub guard: Arc<dyn Guard>,
    /// Where the guard tells what happens unasked, if it is a process of its own.
    pub guard_events: Option<Arc<GuardClient>>,
    /// How many threads read a tree.
    pub jobs: NonZeroUsize,
    /// Whether files of releases are to be sealed by the kernel.
    pub verity: Verity,
    /// How far the time of day may be off: for flips in fast mode.
    pub clock_error: ClockError,
    /// After what time it is tried anew how long a fence takes; later less and less often.
    pub drill_again: Duration,
    /// How the trees that are served are watched; `None`: they are not.
    pub drift: Option<DriftSettings>,
    /// A digest of the agent's configuration, which is attested.
    pub config: Digest,
    /// Whose clocks, randomness and threads it uses.
    pub machine: Machine,
    /// The fleets.
    pub fleets: Vec<FleetParts>,
}

/// An agent that is ready to run.
pub struct Agent {
    host: HostName,
    line: Line,
    drivers: Vec<FleetDriver>,
    watch: Option<GuardWatch>,
    renewal: Option<Renewal>,
    pulse: Pulse,
}

impl Parts {
    /// Reads everything that a configuration names. Blocks.
    pub fn load(config: &AgentConfig) -> Result<Self, AgentError> {
        let credentials = |source| AgentError::Credentials { source };
        let certificate_files = CertificateFiles::new(config.credential_paths(), &config.state);
        let loaded = certificate_files.load().map_err(credentials)?;
        let tls = ClientTls::new(&loaded).map_err(credentials)?;
        let trust = |path: &Path| {
            let path = path.to_owned();
            move |source| AgentError::Trust { path, source }
        };
        let root = std::fs::read(&config.root)
            .map_err(|source| AgentError::ReadRoot { path: config.root.clone(), source })?;
        let guard = Arc::new(GuardClient::new(&config.guard_socket));
        let fleets = config.fleets.iter().map(|fleet| FleetParts {
            name: fleet.name.clone(),
            boot_gate: fleet.boot_gate,
            on_drift: fleet.on_drift,
            enforce: fleet.enforce,
            adopted: fleet.adopted(),
            store: None,
        });
        Ok(Self {
            coordinator: Coordinator { address: config.address()?, tls, dialer: Dialer::default() },
            certificate_files: Some(certificate_files),
            enrolment: config.enrolment_address()?,
            state: config.state.clone(),
            root: TrustRoot::pin(&root).map_err(trust(&config.root))?,
            attestation_key: SigningKey::read(&config.attestation_key)
                .map_err(trust(&config.attestation_key))?,
            audit_key: config.audit_key.clone(),
            guard: Arc::clone(&guard) as Arc<dyn Guard>,
            guard_events: Some(guard),
            jobs: config.jobs(),
            verity: config.verity,
            clock_error: config.clock_error(),
            drill_again: DRILL_AGAIN,
            drift: config.drift(),
            config: config.digest(),
            machine: Machine::real(),
            fleets: fleets.collect(),
        })
    }
}

impl Agent {
    /// Puts an agent together: opens its blobs and journals, and removes what was left unfinished. Blocks.
    pub fn new(parts: Parts) -> Result<Self, AgentError> {
        let Parts { coordinator, state, root, attestation_key, guard, guard_events, machine, .. } = parts;
        let identity = coordinator.tls.credentials().identity().clone();
        if identity.role != Role::Agent {
            return Err(AgentError::NotAnAgent { identity: identity.to_string() });
        }
        let host = identity.name.to_host();
        let blobs = BlobStore::open(&state.join("blobs"))
            .map_err(|source| AgentError::State { host: host.clone(), source })?;
        let roots_folder = state.join("roots");
        create_folder(&roots_folder, OWNER_ONLY)?;
        let roots = RootChain::open(root, &roots_folder)
            .map_err(|source| AgentError::Trust { path: roots_folder, source })?;
        let base = Base {
            host: host.clone(),
            machine: machine.clone(),
            state,
            roots: Arc::new(roots),
            key: Arc::new(attestation_key),
            audit_key: parts.audit_key,
            guard,
            blobs,
            jobs: parts.jobs,
            lanes: Arc::new(Lanes::new()),
            slots: Arc::new(Slots::new()),
            boot_id: machine.boot_id().map_err(|source| AgentError::Daemon { source })?,
            clock: machine.clock_state(),
            verity: parts.verity,
            clock_error: parts.clock_error,
            drill_again: parts.drill_again,
            drift: parts.drift,
            config: parts.config,
            certificate: CertificateState::default(),
        };
        let (mut routes, mut drivers) = (Vec::new(), Vec::new());
        for fleet in parts.fleets {
            let (route, driver) = base.fleet(fleet)?;
            routes.push(route);
            drivers.push(driver);
        }
        let watch = guard_events.map(|client| {
            let fleets = routes.iter().map(|route| (route.fleet.clone(), route.inbox.clone())).collect();
            GuardWatch { client, host: host.clone(), fleets }
        });
        let renewal = parts.certificate_files.map(|files| Renewal {
            coordinator: coordinator.clone(),
            host: host.clone(),
            machine: machine.clone(),
            files,
            enrolment: parts.enrolment,
            attestation_key: Arc::clone(&base.key),
            state: base.certificate.clone(),
            inboxes: routes.iter().map(|route| route.inbox.clone()).collect(),
        });
        let pulse = Pulse {
            machine: machine.clone(),
            guard: Arc::clone(&base.guard),
            fleets: routes.iter().map(|route| (route.fleet.clone(), route.inbox.clone())).collect(),
        };
        let line = Line { coordinator, host: host.clone(), machine, routes, roots: Arc::clone(&base.roots) };
        Ok(Self { host, line, drivers, watch, renewal, pulse })
    }

    /// The host that this agent speaks for.
    #[must_use]
    pub const fn host(&self) -> &HostName {
        &self.host
    }

    /// Runs until `shutdown` is asked for. What is served goes on being served.
    ///
    /// An error means that the agent can do nothing any more; [`AgentError::is_storage`] tells whether it may be
    /// started again.
    pub async fn run(self, shutdown: Shutdown) -> Result<(), AgentError> {
        self.run_under(ServiceManager::none(), shutdown).await
    }

    /// As [`Self::run`], and tells the service manager how it goes.
    pub async fn run_under(self, manager: ServiceManager, shutdown: Shutdown) -> Result<(), AgentError> {
        let mut tasks = JoinSet::new();
        for driver in self.drivers {
            tasks.spawn(driver.run(shutdown.clone()));
        }
        if let Some(watch) = self.watch {
            let shutdown = shutdown.clone();
            tasks.spawn(async move {
                watch.run(shutdown).await;
                Ok(())
            });
        }
        if let Some(renewal) = self.renewal {
            tasks.spawn(renewal.run(shutdown.clone()));
        }
        let (pulse, ends) = (self.pulse, shutdown.clone());
        tasks.spawn(async move {
            pulse.run(manager, ends).await;
            Ok(())
        });
        tasks.spawn(self.line.run(shutdown));
        // One that fails takes the others with it: the set is dropped, and with it all that is in it.
        while let Some(ended) = tasks.join_next().await {
            ended.map_err(|source| AgentError::Task { source })??;
        }
        Ok(())
    }
}

/// What the fleets of one agent share.
struct Base {
    host: HostName,
    machine: Machine,
    state: PathBuf,
    roots: Arc<RootChain>,
    key: Arc<SigningKey>,
    audit_key: Option<PublicKey>,
    guard: Arc<dyn Guard>,
    blobs: BlobStore,
    jobs: NonZeroUsize,
    lanes: Arc<Lanes>,
    slots: Arc<Slots>,
    boot_id: BootId,
    clock: ClockState,
    verity: Verity,
    clock_error: ClockError,
    drill_again: Duration,
    drift: Option<DriftSettings>,
    config: Digest,
    certificate: CertificateState,
}

impl Base {
    /// Opens one fleet's folders and journal and puts its driver together.
    fn fleet(&self, parts: FleetParts) -> Result<(Route, FleetDriver), AgentError> {
        let fleet = parts.name;
        let folder = self.state.join("fleets").join(fleet.as_str());
        let trees = self.trees(&folder, parts.adopted)?;
        let opened = match parts.store {
            Some((store, recovery)) => Journal::adopt(store, &recovery, &fleet, &self.host),
            None => Journal::open(&folder.join("journal"), &fleet, &self.host),
        };
        let opened = opened.map_err(|source| AgentError::Journal {
            host: self.host.clone(),
            fleet: fleet.clone(),
            source: Box::new(source),
        })?;
        let papers_folder = folder.join("papers");
        create_folder(&papers_folder, OWNER_ONLY)?;
        let papers = Arc::new(Papers::open(&papers_folder));
        let (post, inbox) = mpsc::channel::<Input>(INBOX_MAX);
        let (root, lanes, key) = (&self.roots, &self.lanes, &self.key);
        let shared = (Arc::clone(&self.slots), self.certificate.clone(), parts.enforce);
        let deployer = Deployer::new(fleet.clone(), Arc::clone(root), Arc::clone(&trees), shared);
        let tools_of_checks = (Arc::clone(lanes), Arc::clone(key), Arc::clone(&self.guard));
        let checker = Checker::new(fleet.clone(), Arc::clone(&trees), tools_of_checks, post.clone());
        let tools = Tools {
            fleet: fleet.clone(),
            host: self.host.clone(),
            machine: self.machine.clone(),
            trees,
            lanes: Arc::clone(lanes),
            library: Arc::new(Library::new(
                Arc::clone(root),
                self.machine.clone(),
                self.host.clone(),
                fleet.clone(),
                Arc::clone(&papers),
            )),
            papers: Arc::clone(&papers),
            key: Arc::clone(key),
            deployer: deployer.clone(),
            drill_again: self.drill_again,
            drift: self.drift.map(|settings| DriftSettings { on_drift: parts.on_drift, ..settings }),
            witness: Witness::open(&folder, &self.host, self.audit_key.clone())?,
        };
        let profile = self.profile(parts.boot_gate);
        let library = Arc::clone(&tools.library);
        let teller = Teller::new(fleet.clone(), papers, Arc::clone(&tools.trees), library, post.clone());
        let route = Route { fleet, enforce: parts.enforce, inbox: post.clone(), deployer, checker, teller };
        let driver = FleetDriver::new(tools, opened, profile, Arc::clone(&self.guard), (post, inbox));
        Ok((route, driver))
    }

    /// Makes the folders of a fleet. Services of other users follow the link into the trees; seals and journal are
    /// the agent's.
    fn trees(&self, folder: &Path, adopted: Option<Adopted>) -> Result<Arc<Trees>, AgentError> {
        let (releases, seals) = (folder.join("releases"), folder.join("seals"));
        create_folder(folder, OPEN_TO_SERVICES)?;
        create_folder(&releases, OPEN_TO_SERVICES)?;
        create_folder(&seals, OWNER_ONLY)?;
        create_folder(&folder.join("journal"), OWNER_ONLY)?;
        clean_leftovers(&releases).map_err(|source| AgentError::State { host: self.host.clone(), source })?;
        let (host, blobs) = (self.host.clone(), self.blobs.clone());
        let assurances = Assurances::of_folder(&releases, self.verity);
        Ok(Arc::new(Trees {
            host,
            machine: self.machine.clone(),
            blobs,
            releases,
            seals,
            jobs: self.jobs,
            assurances,
            clock_error: self.clock_error.clone(),
            adopted,
        }))
    }

    /// What belongs to this host. What closing proves is the weaker of both until the guard has said how it serves.
    fn profile(&self, boot_gate: BootGate) -> Profile {
        let facts = HostFacts {
            epoch: Epoch(0),
            serving: None,
            boot_id: self.boot_id.clone(),
            scope: Scope::Link,
            boot_gate,
            clock: self.clock,
            clock_error_ms: None,
            fence_ms: None,
            drain_ms: 0,
            assurance: Assurance::Sha256,
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            agent_config: self.config,
            measured_unix_ms: UnixTime(0),
            elapsed_ms: 0,
        };
        Profile { facts, protocol: PROTOCOL, attestation_key: self.key.public().clone() }
    }
}

fn create_folder(path: &Path, mode: u32) -> Result<(), AgentError> {
    DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .map_err(|source| AgentError::Folder { path: path.to_owned(), source })
}
