//! Putting one fleet together from its configuration.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use muster_model::BootId;

use super::Events;
use crate::config::{Driver, FleetConfig, Settings};
use crate::error::GuardError;
use crate::fleet::Fleet;
use crate::hooks::Hooks;
use crate::kept::Environment;
use crate::lease::Lease;
use crate::ledger::Ledger;
use crate::link::Link;
use crate::manager::Watchdog;
use crate::record::{Permit, RecordFile};
use crate::service::Service;
use crate::state_folder::StateFolder;
use crate::supervised::{Supervised, SupervisedSetup};
use crate::timer::{Clock, Timer};
use crate::units::gate::Gate;
use crate::units::{Units, UnitsSetup};

/// How long units may drain where the configuration does not say; systemd's own bound counts as well.
const UNITS_STOP_TIMEOUT_MS: u64 = 5_000;

/// What all fleets of a host have in common.
pub(super) struct Host<'a> {
    pub(super) settings: &'a Settings,
    pub(super) state: &'a StateFolder,
    pub(super) boot_id: &'a BootId,
    pub(super) clock: &'a Clock,
    pub(super) events: &'a Events,
    pub(super) watchdog: Arc<Watchdog>,
}

impl Host<'_> {
    /// A fleet that has not looked at its disk and its processes yet.
    pub(super) fn fleet(&self, config: &FleetConfig) -> Result<Fleet, GuardError> {
        let folder = self.state.fleet(&config.name)?;
        make_link_folder(&config.link)?;
        let permit = RecordFile::new(folder.join("permit.json"));
        let generation = Arc::new(AtomicU64::new(0));
        let (env, stop_timeout_ms) = match &config.driver {
            Driver::Link => (Environment::default(), 0),
            Driver::Supervise(service) => (Environment::of(&service.env), service.stop_timeout_ms),
            Driver::Systemd(units) => {
                (Environment::default(), units.stop_timeout_ms.unwrap_or(UNITS_STOP_TIMEOUT_MS))
            }
        };
        let timer = Timer::new(self.clock.clone()).map_err(GuardError::io("make", Path::new("a timer")))?;
        let service = self.service(config, &folder, &permit, &generation)?;
        Ok(Fleet {
            name: config.name.clone(),
            boot_id: self.boot_id.clone(),
            link: Link::new(config.link.clone(), config.releases.clone()),
            permit,
            service,
            stop_timeout: Duration::from_millis(stop_timeout_ms),
            generation,
            hooks: Hooks {
                host: self.settings.host.clone(),
                fleet: config.name.clone(),
                boot_id: self.boot_id.clone(),
                exec_shim: self.settings.exec_shim.clone(),
                config: config.hooks.clone(),
                env,
                log: folder.join("hooks.log"),
            },
            ledger: Ledger::new(&folder),
            timer,
            events: Arc::clone(self.events),
            change: Mutex::new(()),
            tying: Mutex::new(()),
            lease: Mutex::new(Lease::new()),
            fencing: Mutex::new(()),
            drilling: Mutex::new(()),
            known: Mutex::default(),
            rehearsing: Mutex::new(()),
            opened: Mutex::new(None),
            since: Mutex::new(None),
            warden: Mutex::new(None),
            leaving: AtomicBool::new(false),
        })
    }

    fn service(
        &self,
        config: &FleetConfig,
        folder: &Path,
        permit: &RecordFile<Permit>,
        generation: &Arc<AtomicU64>,
    ) -> Result<Option<Box<dyn Service>>, GuardError> {
        Ok(match &config.driver {
            Driver::Link => None,
            Driver::Supervise(service) => Some(Box::new(Supervised::new(SupervisedSetup {
                host: self.settings.host.clone(),
                fleet: config.name.clone(),
                config: service.clone(),
                boot_id: self.boot_id.clone(),
                exec_shim: self.settings.exec_shim.clone(),
                permit: permit.clone(),
                run_record: RecordFile::new(folder.join("run.json")),
                output: folder.join("service.log"),
                generation: Arc::clone(generation),
                events: Arc::clone(self.events),
            }))),
            Driver::Systemd(units) => Some(Box::new(Units::new(UnitsSetup {
                fleet: config.name.clone(),
                config: units.clone(),
                gate: Gate::of(self.settings, config)?,
                boot_id: self.boot_id.clone(),
                groups: RecordFile::new(folder.join("units.json")),
                generation: Arc::clone(generation),
                events: Arc::clone(self.events),
                watchdog: Arc::clone(&self.watchdog),
            })?)),
        })
    }
}

/// Services of other users follow the link, so a folder made for it can be entered by all and written by none of them.
fn make_link_folder(link: &Path) -> Result<(), GuardError> {
    let folder = link.parent().expect("the configuration's paths are absolute and have a name");
    DirBuilder::new().recursive(true).mode(0o755).create(folder).map_err(GuardError::io("make", folder))
}
