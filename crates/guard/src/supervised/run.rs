//! One run of a service, from the keeper's start to the end of its last process.

use std::time::{Duration, Instant};

use super::{Intent, Launch, Phase, Run, Shared};
use crate::cgroup::Cgroup;
use crate::keeper::Report;
use crate::kept::{self, Environment, Kept, Plan};
use crate::log::log;
use crate::protocol::{Event, ExitKind};
use crate::record::RunRecord;
use crate::timer::boot_time;

/// Once no process is left the output has ended too, unless a process of another run holds it.
const OUTPUT_PATIENCE: Duration = Duration::from_secs(2);

/// Runs the command once; on return nothing of it is left, or the record of the run still stands.
pub(super) fn run(shared: &Shared, launch: &Launch, first: bool) -> ExitKind {
    let mut kept = match start(shared, launch) {
        Ok(Some(kept)) => kept,
        Ok(None) => return ExitKind::Unknown,
        Err(error) => {
            shared.lock().output_tail = format!("cannot run {}: {error}", shared.setup.exec_shim.display());
            return ExitKind::Unknown;
        }
    };
    let name = format!("fleet {}", shared.setup.fleet);
    let output = kept.read_output(&name, &shared.setup.output);
    let status = follow(shared, &mut kept, first);
    kept.bury();
    if let Err(error) = shared.sweep() {
        log!("{}", error.chain());
    }
    if let Some(output) = output {
        let tail = output.last_lines(OUTPUT_PATIENCE);
        shared.lock().output_tail = tail;
    }
    status
}

/// Starts the keeper, unless the service is not wanted any more.
///
/// Whoever wants the service gone says so under the lock: it finds the run announced or known, or this finds that the run is
/// not wanted. The lock is not held while the process is made, for that may have to read a disk.
fn start(shared: &Shared, launch: &Launch) -> std::io::Result<Option<Kept>> {
    let run_id = kept::run_id();
    {
        let mut status = shared.lock();
        if status.intent == Intent::Stop {
            return Ok(None);
        }
        status.run = Run::Beginning;
    }
    let setup = &shared.setup;
    let opened = launch.opened;
    let env = Environment::of(&setup.config.env)
        .with("MUSTER_HOST", setup.host.as_str())
        .with("MUSTER_FLEET", setup.fleet.as_str())
        .with("MUSTER_EPOCH", opened.epoch.to_string())
        .with("MUSTER_DIGEST", opened.digest.to_string())
        .with("MUSTER_RELEASE", launch.folder.as_os_str());
    let plan = Plan {
        exec_shim: &setup.exec_shim,
        boot_id: &setup.boot_id,
        stop_signal: setup.config.stop_signal,
        command: &setup.config.command,
        folder: &launch.folder,
        env,
    };
    let cgroup = Cgroup::make(&run_id);
    let started = Kept::start(&plan, run_id, cgroup.as_ref().map(Cgroup::path));
    let mut status = shared.lock();
    let started = match started {
        Ok(mut kept) => {
            status.run = Run::Known(kept.record.clone());
            let control = kept.take_control();
            // What is not wanted any more finds its stdin at an end.
            status.control = control.filter(|_| status.intent != Intent::Stop);
            Ok(Some(kept))
        }
        Err(error) => {
            status.run = Run::None;
            if let Some(cgroup) = cgroup {
                cgroup.remove();
            }
            Err(error)
        }
    };
    drop(status);
    shared.changed.notify_all();
    started
}

/// Reads the keeper's reports until it has ended.
fn follow(shared: &Shared, kept: &mut Kept, first: bool) -> ExitKind {
    let mut record = kept.record.clone();
    remember(shared, &record);
    let mut status = ExitKind::Unknown;
    for report in kept.reports() {
        match report {
            Report::Started { main } => {
                record.main = Some(main);
                shared.lock().run = Run::Known(record.clone());
                remember(shared, &record);
                shared.set_phase(Phase::Running { main, started: boot_time(), seen: Instant::now() });
                if !first {
                    let pid = main.pid.unsigned_abs();
                    shared.emit(Event::ServiceRestarted { fleet: shared.setup.fleet.clone(), pid });
                }
            }
            Report::Ended { status: seen } => status = seen,
        }
    }
    status
}

/// Without its record a later guard could not find the run: rather no service, so the keeper is made to end it.
fn remember(shared: &Shared, record: &RunRecord) {
    if let Err(error) = shared.setup.run_record.write(record) {
        log!("fleet {}: the service is not run: {}", shared.setup.fleet, error.chain());
        let mut status = shared.lock();
        status.control = None;
        status.output_tail = error.chain();
    }
}
