//! All fleets of a host, under one state folder.

use std::collections::BTreeMap;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use muster_model::{BootId, Digest, Epoch, FleetName};

use crate::Guard;
use crate::config::{Driver, FleetConfig, Settings};
use crate::error::GuardError;
use crate::fleet::Fleet;
use crate::link::Link;
use crate::log::log;
use crate::process;
use crate::protocol::{Event, FleetState, Opened};
use crate::record::RecordFile;
use crate::service::{Service, ServiceSetup};
use crate::state_folder::StateFolder;

/// Where a service's events go.
pub(crate) type Events = Arc<dyn Fn(Event) + Send + Sync>;

/// The fleets of one host, ready to be asked. As long as this value lives, no other guard works on the state folder.
pub(crate) struct Fleets {
    fleets: BTreeMap<FleetName, Fleet>,
    boot_id: BootId,
    going_down: AtomicBool,
    _state: StateFolder,
}

/// The guard without a process and a socket, for fleets of driver `link`: for benchmarks and tests that hold many agents
/// in one process. Services are left to the real guard, whose death they must not survive.
pub struct InProcess(Fleets);

impl InProcess {
    /// Takes the state folder and brings it in line, as a starting guard does. The settings' socket is not used.
    pub fn new(settings: &Settings) -> Result<Self, GuardError> {
        for fleet in &settings.fleets {
            match &fleet.driver {
                Driver::Link => {}
                Driver::Supervise(_) => {
                    let detail =
                        format!("fleet {}: a guard without a process supervises nothing", fleet.name);
                    return Err(GuardError::Config { detail });
                }
            }
        }
        Fleets::open(settings, process::boot_id()?, &(Arc::new(|_| {}) as Events)).map(Self)
    }
}

impl Guard for InProcess {
    fn status(&self, fleet: &FleetName) -> Result<FleetState, GuardError> {
        self.0.status(fleet)
    }

    fn close(&self, fleet: &FleetName) -> Result<FleetState, GuardError> {
        self.0.close(fleet)
    }

    fn open(&self, fleet: &FleetName, epoch: Epoch, digest: Digest) -> Result<FleetState, GuardError> {
        self.0.open(fleet, epoch, digest)
    }
}

impl Fleets {
    /// Locks the state folder and recovers every fleet; nothing is permitted on return that was not given in this boot.
    pub(crate) fn open(settings: &Settings, boot_id: BootId, events: &Events) -> Result<Self, GuardError> {
        let state = StateFolder::open(&settings.state_dir)?;
        let mut fleets = BTreeMap::new();
        for config in &settings.fleets {
            let fleet = assemble(settings, config, &state, &boot_id, events)?;
            fleet.recover()?;
            fleets.insert(config.name.clone(), fleet);
        }
        Ok(Self { fleets, boot_id, going_down: AtomicBool::new(false), _state: state })
    }

    pub(crate) const fn boot_id(&self) -> &BootId {
        &self.boot_id
    }

    /// Opens nothing any more and stops all services, at the same time; permits and links stay as they are.
    pub(crate) fn shut_down(&self) -> Result<(), GuardError> {
        self.going_down.store(true, Ordering::SeqCst);
        thread::scope(|scope| {
            let stopping: Vec<_> =
                self.fleets.values().map(|fleet| scope.spawn(|| fleet.stop_service())).collect();
            let stopped: Vec<_> = stopping
                .into_iter()
                .map(|thread| thread.join().expect("stopping a service does not panic"))
                .inspect(|result| {
                    if let Err(error) = result {
                        log!("{}", error.chain());
                    }
                })
                .collect();
            stopped.into_iter().collect()
        })
    }

    fn find(&self, fleet: &FleetName) -> Result<&Fleet, GuardError> {
        self.fleets.get(fleet).ok_or_else(|| GuardError::UnknownFleet { fleet: fleet.clone() })
    }
}

impl Guard for Fleets {
    fn status(&self, fleet: &FleetName) -> Result<FleetState, GuardError> {
        self.find(fleet)?.state()
    }

    fn close(&self, fleet: &FleetName) -> Result<FleetState, GuardError> {
        self.find(fleet)?.close()
    }

    fn open(&self, fleet: &FleetName, epoch: Epoch, digest: Digest) -> Result<FleetState, GuardError> {
        self.find(fleet)?.open(Opened { epoch, digest }, &self.going_down)
    }
}

fn assemble(
    settings: &Settings,
    config: &FleetConfig,
    state: &StateFolder,
    boot_id: &BootId,
    events: &Events,
) -> Result<Fleet, GuardError> {
    let folder = state.fleet(&config.name)?;
    make_link_folder(&config.link)?;
    let permit = RecordFile::new(folder.join("permit.json"));
    let generation = Arc::new(AtomicU64::new(0));
    let service = match &config.driver {
        Driver::Link => None,
        Driver::Supervise(service) => Some(Service::new(ServiceSetup {
            host: settings.host.clone(),
            fleet: config.name.clone(),
            config: service.clone(),
            boot_id: boot_id.clone(),
            exec_shim: settings.exec_shim.clone(),
            permit: permit.clone(),
            run_record: RecordFile::new(folder.join("run.json")),
            output: folder.join("service.log"),
            generation: Arc::clone(&generation),
            events: Arc::clone(events),
        })),
    };
    Ok(Fleet {
        name: config.name.clone(),
        boot_id: boot_id.clone(),
        link: Link::new(config.link.clone(), config.releases.clone()),
        permit,
        service,
        generation,
        change: Mutex::new(()),
    })
}

/// Services of other users follow the link, so a folder made for it can be entered by all and written by none of them.
fn make_link_folder(link: &Path) -> Result<(), GuardError> {
    let folder = link.parent().expect("the configuration's paths are absolute and have a name");
    DirBuilder::new().recursive(true).mode(0o755).create(folder).map_err(GuardError::io("make", folder))
}

#[cfg(test)]
mod tests;
