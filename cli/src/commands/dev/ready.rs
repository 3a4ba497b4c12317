//! Waiting until what was started does what it is for. Nothing is waited for that has ended.

use std::time::{Duration, Instant};

use muster_guard::GuardClient;
use muster_model::HostName;

use super::DevError;
use super::fleet::{LocalFleet, Program};
use super::start::{Started, log_tail};
use crate::connect::Session;
use crate::error::CliError;

const PATIENCE: Duration = Duration::from_secs(30);

/// How often it is asked.
const INTERVAL: Duration = Duration::from_millis(25);

/// Waits until the coordinator answers an operator.
pub(super) async fn coordinator(fleet: &LocalFleet, started: &mut [Started]) -> Result<Session, CliError> {
    let (context, log) = (fleet.context(), fleet.coordinator_daemon().log());
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Ok(session) = Box::pin(Session::open(Some(&context))).await {
            return Ok(session);
        }
        none_has_ended(started)?;
        if Instant::now() >= deadline {
            let what = format!("the coordinator did not answer on {}", fleet.coordinator);
            return Err(DevError::NotReady { what, patience: PATIENCE, log }.into());
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Waits until all guards answer on their sockets, each being the one that was started.
pub(super) async fn guards(fleet: &LocalFleet, started: &mut [Started]) -> Result<(), CliError> {
    let deadline = Instant::now() + PATIENCE;
    let mut waiting: Vec<(u32, GuardClient, std::path::PathBuf)> = started
        .iter()
        .filter(|started| started.daemon.program == Program::Guard)
        .filter_map(|started| {
            let socket = fleet.host_folder(started.daemon.host.as_ref()?).join("guard.sock");
            Some((started.pid(), GuardClient::new(&socket), started.daemon.log()))
        })
        .collect();
    loop {
        // The questions go over a local socket: they block no longer than a guard takes to say who it is.
        waiting.retain(|(pid, guard, _)| guard.hello().map_or(true, |hello| hello.pid != *pid));
        let Some((_, _, log)) = waiting.first() else { return Ok(()) };
        none_has_ended(started)?;
        if Instant::now() >= deadline {
            let what = format!("{} guards did not answer", waiting.len());
            return Err(DevError::NotReady { what, patience: PATIENCE, log: log.clone() }.into());
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Waits until those of these hosts that are on the roster are connected.
pub(super) async fn agents(
    fleet: &LocalFleet,
    hosts: &[HostName],
    session: &Session,
    started: &mut [Started],
) -> Result<(), CliError> {
    let deadline = Instant::now() + PATIENCE;
    let is_awaited = |name: &str| hosts.iter().any(|host| host.as_str() == name);
    loop {
        let status = Box::pin(session.status(&fleet.name)).await?;
        let missing = status.hosts.iter().find(|host| is_awaited(&host.host) && !host.connected);
        let Some(missing) = missing else { return Ok(()) };
        none_has_ended(started)?;
        if Instant::now() >= deadline {
            let what = format!("the agent of {} did not connect", missing.host);
            let log = fleet.dir.join("hosts").join(&missing.host).join("agent.log");
            return Err(DevError::NotReady { what, patience: PATIENCE, log }.into());
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

fn none_has_ended(started: &mut [Started]) -> Result<(), CliError> {
    for started in started {
        if started.ended()?.is_some() {
            let log = started.daemon.log();
            let tail = log_tail(&log);
            return Err(DevError::Ended { who: started.daemon.to_string(), log, tail }.into());
        }
    }
    Ok(())
}
