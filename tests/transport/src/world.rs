//! One simulation: a coordinator, hosts, an operator, and one kind of trouble.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs;
use std::num::NonZeroUsize;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use muster_agent::{Agent, BootGate, ClockError, Coordinator, FleetParts, OnDrift, Parts, Verity};
use muster_artifact::BlobStore;
use muster_coordinator::CoordinatorConfig;
use muster_daemon::Shutdown;
use muster_guard::Guard;
use muster_model::Digest;
use muster_mtls::{ClientTls, Role};
use muster_trust::TrustRoot;
use tempfile::TempDir;
use turmoil::Sim;

use crate::guard::{Fencing, SimulatedGuard};
use crate::machine::Simulated;
use crate::network::{self, PORT, dialer};
use crate::operator::{self, Outcomes, Progress, Stage};
use crate::papers::{self, Release, fleet, host};
use crate::trace::Trace;

/// The coordinator's name in the network.
pub(crate) const COORDINATOR: &str = "coordinator";

/// The operator's.
const OPERATOR: &str = "operator";

/// The longest that a simulation may take, in its own time.
const PATIENCE: Duration = Duration::from_secs(180);

/// The shortest and the longest time that a segment takes.
const LATENCY: std::ops::Range<Duration> = Duration::from_millis(1)..Duration::from_millis(8);

/// Segments of a connection that are on their way at the same time.
const SEGMENTS: usize = 4096;

/// Makes trouble between two steps.
pub(crate) trait Trouble {
    /// Called before each step.
    fn before_step(&mut self, world: &mut World<'_>);

    /// Whether there is any at this moment.
    fn is_present(&self) -> bool;
}

/// What one run has shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) outcomes: Outcomes,
    /// What was decided, in order.
    pub(crate) trace: Vec<String>,
    /// The hosts that were ever fenced.
    pub(crate) fenced: BTreeSet<usize>,
    /// The releases' digests in hex.
    pub(crate) releases: [String; 2],
    /// In simulated time.
    pub(crate) took: Duration,
}

/// What trouble is made in.
pub(crate) struct World<'a> {
    pub(crate) sim: Sim<'a>,
    pub(crate) guards: Vec<Arc<SimulatedGuard>>,
    pub(crate) progress: Progress,
    /// What each host serves, and after how many acts of its guard it was read.
    served: Vec<(u64, Option<String>)>,
    fenced: BTreeSet<usize>,
    folder: TempDir,
}

/// What a simulation begins with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Start {
    pub(crate) seed: u64,
    pub(crate) hosts: usize,
    pub(crate) fencing: Fencing,
}

/// Runs a simulation to its end, and checks after each step that no two hosts serve different releases.
pub(crate) fn run(start: Start, trouble: &mut dyn Trouble) -> Run {
    let Start { seed, hosts, .. } = start;
    let trace = Trace::default();
    let (outcomes, fenced, releases, took) = trace.of(|| {
        let releases = ["1.0.0", "2.0.0"].map(Release::new);
        let mut world = World::new(start, &releases);
        let digests = releases.each_ref().map(|release| release.manifest.digest().hex());
        let outcomes = world.start_operator(hosts, releases);
        loop {
            trouble.before_step(&mut world);
            world.calm_down(trouble);
            let finished = world.sim.step().unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            world.check_served(seed);
            // The coordinator may take a host for serving that was fenced since it heard of it last.
            if finished && world.all_serve(outcomes.borrow().as_ref()) {
                break;
            }
            assert!(world.sim.elapsed() < PATIENCE, "seed {seed}: a host serves something else in the end");
        }
        let outcomes = outcomes.borrow().clone().expect("the operator has ended");
        (outcomes, world.fenced.clone(), digests, world.sim.elapsed())
    });
    Run { outcomes, trace: trace.lines(), fenced, releases, took }
}

impl World<'_> {
    fn new(Start { seed, hosts, fencing }: Start, releases: &[Release; 2]) -> Self {
        let mut builder = turmoil::Builder::new();
        builder
            .rng_seed(seed)
            .simulation_duration(PATIENCE)
            .tick_duration(Duration::from_millis(1))
            .min_message_latency(LATENCY.start)
            .max_message_latency(LATENCY.end)
            .tcp_capacity(SEGMENTS);
        let folder = in_memory();
        let mut world = World {
            sim: builder.build(),
            guards: Vec::new(),
            progress: Progress::new(),
            served: Vec::new(),
            fenced: BTreeSet::new(),
            folder,
        };
        world.add_coordinator(seed, releases);
        for number in 1..=hosts {
            world.add_host(seed, number, fencing);
        }
        world
    }

    fn add_coordinator(&mut self, seed: u64, releases: &[Release; 2]) {
        let folder = self.private_folder(COORDINATOR);
        papers::write_credentials(&folder, Role::Coordinator, COORDINATOR);
        fs::write(folder.join("root.json"), papers::root()).unwrap();
        let text = format!(
            "listen = '0.0.0.0:{PORT}'\nstate = 'state'\ncertificate = 'certificate.pem'\nkey = 'key.pem'\n\
             ca = 'ca.pem'\nroot = 'root.json'\nattest_timeout_ms = 5000\nprepare_timeout_ms = 5000\n"
        );
        let file = folder.join("coordinator.toml");
        fs::write(&file, text).unwrap();
        let config = CoordinatorConfig::load(Some(&file)).unwrap();
        fs::create_dir(folder.join("state")).unwrap();
        let blobs = BlobStore::open(&folder.join("state/blobs")).unwrap();
        releases.iter().for_each(|release| release.store(&blobs));
        let machine = Simulated::new(seed ^ u64::MAX).machine();
        self.sim.host(COORDINATOR, move || {
            let (config, machine) = (config.clone(), machine.clone());
            async move {
                let (_trigger, shutdown) = Shutdown::new();
                muster_coordinator::serve(config, machine, network::listen(), shutdown, |_| ()).await?;
                Ok(())
            }
        });
    }

    fn add_host(&mut self, seed: u64, number: usize, fencing: Fencing) {
        let name = host(number);
        let folder = self.private_folder(name.as_str());
        let surroundings = Simulated::new(seed.wrapping_mul(1_000).wrapping_add(number as u64));
        fs::create_dir(folder.join("guard")).unwrap();
        fs::set_permissions(folder.join("guard"), fs::Permissions::from_mode(0o700)).unwrap();
        let guard = SimulatedGuard::new(&name, &folder, Arc::clone(&surroundings), fencing);
        self.guards.push(Arc::clone(&guard));
        self.served.push((0, None));
        let tls = ClientTls::new(&papers::credentials(Role::Agent, name.as_str())).unwrap();
        self.sim.host(name.as_str(), move || {
            let parts = Parts {
                coordinator: Coordinator {
                    address: format!("{COORDINATOR}:{PORT}").parse().unwrap(),
                    tls: tls.clone(),
                    dialer: dialer(),
                },
                certificate_files: None,
                enrolment: None,
                state: folder.clone(),
                root: TrustRoot::pin(&papers::root()).unwrap(),
                attestation_key: papers::attestation_key(number),
                guard: Arc::clone(&guard) as Arc<dyn Guard>,
                guard_events: None,
                jobs: NonZeroUsize::MIN,
                verity: Verity::Auto,
                clock_error: ClockError::Unknown,
                audit_key: None,
                drill_again: Duration::from_secs(30),
                drift: None,
                config: Digest::of(b"configuration"),
                machine: surroundings.machine(),
                fleets: vec![FleetParts {
                    name: fleet(),
                    boot_gate: BootGate::None,
                    on_drift: OnDrift::Alarm,
                    enforce: muster_agent::Enforce::Full,
                    adopted: None,
                    store: None,
                }],
            };
            let guard = Arc::clone(&guard);
            async move {
                tokio::spawn(guard.hold_deadlines());
                let (_trigger, shutdown) = Shutdown::new();
                Agent::new(parts)?.run(shutdown).await?;
                Ok(())
            }
        });
    }

    fn start_operator(&mut self, hosts: usize, releases: [Release; 2]) -> Rc<RefCell<Option<Outcomes>>> {
        let outcomes = Rc::new(RefCell::new(None));
        let (told, progress) = (Rc::clone(&outcomes), self.progress.clone());
        self.sim.client(OPERATOR, async move {
            *told.borrow_mut() = Some(operator::run(hosts, &releases, progress).await?);
            Ok(())
        });
        outcomes
    }

    /// The coordinator ends without a word to anybody: with the runtime gone, nothing says in which order its connections
    /// would end.
    pub(crate) fn power_off_coordinator(&mut self) {
        self.everybody().iter().for_each(|name| self.sim.partition(name.as_str(), COORDINATOR));
        self.sim.crash(COORDINATOR);
    }

    /// It begins again, with what it has on disk.
    pub(crate) fn power_on_coordinator(&mut self) {
        self.sim.bounce(COORDINATOR);
        self.everybody().iter().for_each(|name| self.sim.repair(name.as_str(), COORDINATOR));
    }

    /// Everybody who talks to the coordinator.
    fn everybody(&self) -> Vec<String> {
        let hosts = (1..=self.guards.len()).map(|number| host(number).to_string());
        hosts.chain([OPERATOR.to_owned()]).collect()
    }

    /// Tells the operator that nothing more will happen.
    fn calm_down(&self, trouble: &dyn Trouble) {
        if self.progress.now().0 == Stage::Watching && !trouble.is_present() {
            self.progress.reach(Stage::Calm, self.sim.elapsed());
        }
    }

    /// Whether a host serves nothing.
    pub(crate) fn is_dark(&self, number: usize) -> bool {
        self.served[number - 1].1.is_none()
    }

    fn all_serve(&self, outcomes: Option<&Outcomes>) -> bool {
        let serving = outcomes.and_then(Outcomes::serving_hex);
        self.guards.iter().all(|guard| guard.serves() == serving)
    }

    /// P1, on what the links of all hosts lead to at this moment.
    fn check_served(&mut self, seed: u64) {
        for (index, (guard, served)) in self.guards.iter().zip(&mut self.served).enumerate() {
            // Nobody but the guard moves the link.
            if served.0 != guard.acts() {
                *served = (guard.acts(), guard.serves());
                if guard.is_fenced() {
                    self.fenced.insert(index + 1);
                }
            }
        }
        let served: BTreeSet<&String> =
            self.served.iter().filter_map(|(_, served)| served.as_ref()).collect();
        assert!(served.len() <= 1, "seed {seed}: {served:?} are served at once at {:?}", self.sim.elapsed());
    }

    fn private_folder(&self, name: &str) -> std::path::PathBuf {
        let folder = self.folder.path().join(name);
        fs::create_dir(&folder).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).unwrap();
        folder
    }
}

/// A folder that is gone with its value. In memory where there is such a place: what a disk takes is not simulated.
fn in_memory() -> TempDir {
    let mut builder = tempfile::Builder::new();
    builder.prefix("muster-").permissions(fs::Permissions::from_mode(0o700));
    let shared = Path::new("/dev/shm");
    if shared.is_dir() { builder.tempdir_in(shared).unwrap() } else { builder.tempdir().unwrap() }
}
