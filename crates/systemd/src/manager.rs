//! The connection to systemd.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use tokio::runtime::Runtime;
use zbus::{Connection, ObjectPath, OwnedObjectPath, OwnedVariant};

use crate::error::SystemdError;
use crate::unit::{JobResult, Properties, Unit, UnitName};

/// How long a call that waits for no job may take.
const CALL_PATIENCE: Duration = Duration::from_secs(5);

/// What a job is asked for is asked for, however short the time is in which it has to end.
const ASK_PATIENCE: Duration = Duration::from_millis(500);

/// Reading all units' files again takes longer on a host with many of them.
const RELOAD_PATIENCE: Duration = Duration::from_secs(30);

/// Units are stopped and started in the place of whatever is queued for them.
const MODE: &str = "replace";

#[zbus::proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1"
)]
trait Manager {
    fn subscribe(&self) -> zbus::Result<()>;
    fn load_unit(&self, name: &str) -> zbus::Result<OwnedObjectPath>;
    fn start_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    fn stop_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    fn reset_failed_unit(&self, name: &str) -> zbus::Result<()>;
    fn reload(&self) -> zbus::Result<()>;
    #[zbus(signal)]
    fn job_removed(&self, id: u32, job: ObjectPath<'_>, unit: &str, result: &str) -> zbus::Result<()>;
}

#[zbus::proxy(interface = "org.freedesktop.DBus.Properties", default_service = "org.freedesktop.systemd1")]
trait Properties {
    fn get_all(&self, interface: &str) -> zbus::Result<HashMap<String, OwnedVariant>>;
}

/// systemd's manager on the system bus. The connection is made when it is first needed, and again after it was lost.
pub struct Systemd {
    runtime: Runtime,
    connection: Mutex<Option<Connection>>,
}

#[derive(Debug, Clone, Copy)]
enum Job {
    Start,
    Stop,
}

impl Systemd {
    /// Nothing is connected by this.
    pub fn new() -> Result<Self, SystemdError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("system bus")
            .enable_all()
            .build()
            .map_err(SystemdError::Threads)?;
        Ok(Self { runtime, connection: Mutex::new(None) })
    }

    /// What systemd says of the unit now.
    pub fn inspect(&self, unit: &UnitName) -> Result<Unit, SystemdError> {
        self.inspect_within(unit, CALL_PATIENCE)
    }

    /// The same, if it is said within `patience`.
    pub fn inspect_within(&self, unit: &UnitName, patience: Duration) -> Result<Unit, SystemdError> {
        self.ask(&format!("inspect {unit}"), patience, async |bus| properties(bus, unit).await)?.read(unit)
    }

    /// Starts the unit, and waits for at most `patience` until the job has ended.
    pub fn start(&self, unit: &UnitName, patience: Duration) -> Result<JobResult, SystemdError> {
        self.job(unit, Job::Start, patience)
    }

    /// Stops the unit as its file says, and waits for at most `patience` until the job has ended.
    pub fn stop(&self, unit: &UnitName, patience: Duration) -> Result<JobResult, SystemdError> {
        self.job(unit, Job::Stop, patience)
    }

    /// Forgets that the unit has failed, and how often it was started.
    pub fn reset_failed(&self, unit: &UnitName) -> Result<(), SystemdError> {
        self.ask(&format!("forget the failures of {unit}"), CALL_PATIENCE, async |bus| {
            let reset = ManagerProxy::new(bus).await?.reset_failed_unit(unit.as_str()).await;
            // One that is not in its memory has not failed.
            reset.or_else(unless("org.freedesktop.systemd1.NoSuchUnit"))
        })
    }

    /// Reads all units' files again.
    pub fn reload(&self) -> Result<(), SystemdError> {
        self.ask("read the units again", RELOAD_PATIENCE, async |bus| {
            ManagerProxy::new(bus).await?.reload().await
        })
    }

    fn job(&self, unit: &UnitName, job: Job, patience: Duration) -> Result<JobResult, SystemdError> {
        let begun = Instant::now();
        let what = format!("{} {unit}", job.verb());
        let ended = self.ask(
            &what,
            patience.saturating_add(patience.clamp(ASK_PATIENCE, CALL_PATIENCE)),
            async |bus| {
                let manager = ManagerProxy::new(bus).await?;
                // Before the job is asked for: it may have ended by the time its name is known.
                let mut removed = manager.receive_job_removed().await?;
                // A connection subscribes once, and a second time is no mistake.
                manager.subscribe().await.or_else(unless("org.freedesktop.systemd1.AlreadySubscribed"))?;
                let path = match job {
                    Job::Start => manager.start_unit(unit.as_str(), MODE).await?,
                    Job::Stop => manager.stop_unit(unit.as_str(), MODE).await?,
                };
                let ended = async {
                    while let Some(signal) = removed.next().await {
                        let args = signal.args()?;
                        if *args.job() == *path {
                            return Ok(Some(JobResult::parse(args.result())));
                        }
                    }
                    Ok(None)
                };
                let left = patience.saturating_sub(begun.elapsed());
                tokio::time::timeout(left, ended).await.unwrap_or(Ok(None))
            },
        )?;
        ended.ok_or_else(|| SystemdError::JobUnfinished {
            unit: unit.clone(),
            job: job.verb(),
            waited: begun.elapsed(),
        })
    }

    /// One conversation of at most `patience`. After a failure of the bus itself the next one is over a new connection.
    fn ask<T>(
        &self,
        what: &str,
        patience: Duration,
        conversation: impl AsyncFnOnce(&Connection) -> zbus::Result<T>,
    ) -> Result<T, SystemdError> {
        let kept = self.kept().clone();
        let answer = self.runtime.block_on(async {
            tokio::time::timeout(patience, async {
                let connection = match kept {
                    Some(connection) => connection,
                    None => {
                        let connection = Connection::system().await?;
                        *self.kept() = Some(connection.clone());
                        connection
                    }
                };
                conversation(&connection).await
            })
            .await
        });
        match answer {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(source)) => {
                if !matches!(source, zbus::Error::MethodError(..)) {
                    *self.kept() = None;
                }
                Err(SystemdError::Bus { what: what.to_owned(), source: Box::new(source) })
            }
            Err(_) => {
                *self.kept() = None;
                Err(SystemdError::Silent { what: what.to_owned(), waited: patience })
            }
        }
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Option<Connection>> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Job {
    const fn verb(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop => "stop",
        }
    }
}

async fn properties(bus: &Connection, unit: &UnitName) -> zbus::Result<Properties> {
    let path = ManagerProxy::new(bus).await?.load_unit(unit.as_str()).await?;
    let proxy = PropertiesProxy::builder(bus).path(path).build().await?;
    Ok(Properties {
        unit: proxy.get_all("org.freedesktop.systemd1.Unit").await?,
        service: proxy.get_all("org.freedesktop.systemd1.Service").await?,
    })
}

/// Passes over one error that systemd may answer with.
fn unless(name: &'static str) -> impl FnOnce(zbus::Error) -> zbus::Result<()> {
    move |error| {
        let is_it = matches!(&error, zbus::Error::MethodError(found, ..) if found.as_str() == name);
        if is_it { Ok(()) } else { Err(error) }
    }
}
