//! One run of a service, from the keeper's start to the end of its last process.

use std::io::{self, BufRead, BufReader, PipeReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use super::keeper::{PROGRAM, Report};
use super::{Intent, Launch, Phase, Shared, output};
use crate::log::log;
use crate::process::{self, RUN_ID_VARIABLE};
use crate::protocol::{Event, ExitKind};
use crate::record::{ProcessKey, RunRecord};

/// The keeper says two short lines.
const REPORT_BYTES_MAX: u64 = 4 * 1024;

/// Once no process is left the output has ended too, unless a process of another run holds it.
const OUTPUT_PATIENCE: Duration = Duration::from_secs(2);

const FALLBACK_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

static RUNS: AtomicU64 = AtomicU64::new(0);

/// Runs the command once; on return nothing of it is left, or the record of the run still stands.
pub(super) fn run(shared: &Shared, launch: &Launch, first: bool) -> ExitKind {
    let run_id =
        format!("{}-{}-{}", std::process::id(), process::boot_time().0, RUNS.fetch_add(1, Ordering::Relaxed));
    let (mut keeper, output) = match start_keeper(shared, launch, &run_id) {
        Ok(started) => started,
        Err(error) => {
            shared.lock().output_tail = format!("cannot run {}: {error}", shared.setup.exec_shim.display());
            return ExitKind::Unknown;
        }
    };
    let tail = collect_output(shared, output);
    let status = follow(shared, &mut keeper, run_id, first);
    // Its report has ended, so the keeper has ended or is about to; killing it again is harmless.
    let _ = keeper.kill();
    let _ = keeper.wait();
    if let Err(error) = shared.sweep() {
        log!("{}", error.chain());
    }
    if let Ok(tail) = tail.recv_timeout(OUTPUT_PATIENCE) {
        shared.lock().output_tail = tail;
    }
    status
}

/// Reads the keeper's reports until it has ended.
fn follow(shared: &Shared, keeper: &mut Child, run_id: String, first: bool) -> ExitKind {
    let stdout = keeper.stdout.take().expect("the keeper's stdout is piped");
    let mut record =
        RunRecord { boot_id: shared.setup.boot_id.clone(), run_id, keeper: key_of(keeper.id()), main: None };
    remember(shared, keeper, &record);
    hand_over_control(shared, keeper);
    let mut status = ExitKind::Unknown;
    for report in reports(stdout) {
        match report {
            Report::Started { main } => {
                record.main = Some(main);
                remember(shared, keeper, &record);
                let started = process::boot_time();
                shared.set_phase(Phase::Running { main, started, seen: Instant::now() });
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
fn remember(shared: &Shared, keeper: &mut Child, record: &RunRecord) {
    if let Err(error) = shared.setup.run_record.write(record) {
        log!("fleet {}: the service is not run: {}", shared.setup.fleet, error.chain());
        drop(keeper.stdin.take());
        let mut status = shared.lock();
        status.control = None;
        status.output_tail = error.chain();
    }
}

/// From here on `stop` reaches the keeper. A stop that came too early to reach it is passed on now.
fn hand_over_control(shared: &Shared, keeper: &mut Child) {
    let mut status = shared.lock();
    status.control = keeper.stdin.take();
    if status.intent == Intent::Stop {
        status.ask_to_stop();
    }
}

fn start_keeper(shared: &Shared, launch: &Launch, run_id: &str) -> io::Result<(Child, PipeReader)> {
    let setup = &shared.setup;
    let (output, write_end) = io::pipe()?;
    let mut command = Command::new(&setup.exec_shim);
    command
        .arg0(PROGRAM)
        .arg("keep-service")
        .arg(format!("--stop-signal={}", setup.config.stop_signal.as_str()))
        .arg(format!("--stop-timeout-ms={}", setup.config.stop_timeout_ms))
        .arg("--")
        .args(&setup.config.command)
        .current_dir(&launch.folder)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_else(|| FALLBACK_PATH.into()))
        .envs(&setup.config.env)
        .env("MUSTER_HOST", setup.host.as_str())
        .env("MUSTER_FLEET", setup.fleet.as_str())
        .env("MUSTER_EPOCH", launch.opened.epoch.to_string())
        .env("MUSTER_DIGEST", launch.opened.digest.to_string())
        .env(RUN_ID_VARIABLE, run_id)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(write_end);
    // The command holds the pipe's write end: it must go, or the output would never end.
    let keeper = command.spawn();
    drop(command);
    Ok((keeper?, output))
}

/// Reads the output on a thread of its own, so that a service is never held up by a full pipe.
fn collect_output(shared: &Shared, output: PipeReader) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::sync_channel(1);
    let path = shared.setup.output.clone();
    let collect = move || {
        // Nobody waits for the tail of a run whose output outlived it.
        let _ = sender.send(output::collect(output, &path));
    };
    let name = format!("output {}", shared.setup.fleet);
    if let Err(error) = thread::Builder::new().name(name).spawn(collect) {
        log!("fleet {}: the service's output is lost: {error}", shared.setup.fleet);
    }
    receiver
}

fn reports(stdout: ChildStdout) -> impl Iterator<Item = Report> {
    BufReader::new(stdout.take(REPORT_BYTES_MAX))
        .lines()
        .map_while(Result::ok)
        .filter_map(|line| serde_json::from_str(&line).ok())
}

fn key_of(pid: u32) -> ProcessKey {
    let pid = i32::try_from(pid).expect("Linux process numbers are below 2^22");
    process::find(pid).map_or(ProcessKey { pid, start_ticks: 0 }, |found| found.key)
}
