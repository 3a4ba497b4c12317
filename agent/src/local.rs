//! What an operator does on the host itself, with the coordinator and the agent dead: only the guard is asked.

use std::io::{self, Write as _};
use std::path::PathBuf;

use muster_daemon::{boot_time, unix_time};
use muster_guard::{FleetState, Guard as _, GuardClient, LeaseState, LinkState, ServiceState};
use muster_model::FleetName;

use crate::{AgentConfig, AgentError, witness};

/// Has the guard stop what the fleet serves here and open nothing more, and tells what is left.
pub(crate) fn halt(config: &AgentConfig, fleet: &FleetName, reason: &str) -> Result<(), AgentError> {
    let guard = guard(config, fleet)?;
    let begun = boot_time();
    let state = guard.halt(fleet, reason).map_err(|source| failed(fleet, source))?;
    let took = boot_time().since(begun);
    say(&format!(
        "{fleet} is halted on this host ({} ms): it serves nothing until an order resumes it\n{}",
        took.as_millis(),
        told(&state)
    ));
    Ok(())
}

/// Tells what the fleet serves here, as its guard sees it.
pub(crate) fn status(config: &AgentConfig, fleet: &FleetName) -> Result<(), AgentError> {
    let state = guard(config, fleet)?.status(fleet).map_err(|source| failed(fleet, source))?;
    say(&told(&state));
    Ok(())
}

/// Tells what this host has seen of the coordinator's audit log.
pub(crate) fn show_audit(config: &AgentConfig, fleet: &FleetName) -> Result<(), AgentError> {
    known(config, fleet)?;
    say(&witness::told(&fleet_folder(config, fleet))?);
    Ok(())
}

/// Settles that the host begins anew with the audit log that it is shown next.
pub(crate) fn accept_audit(config: &AgentConfig, fleet: &FleetName, reason: &str) -> Result<(), AgentError> {
    known(config, fleet)?;
    witness::accept(&fleet_folder(config, fleet), reason, unix_time())?;
    say(&format!(
        "{fleet}: this host remembers nothing of the audit log any more, and keeps to what it is shown at its next join; \
         restart the agent to have it join now"
    ));
    Ok(())
}

fn fleet_folder(config: &AgentConfig, fleet: &FleetName) -> PathBuf {
    config.state.join("fleets").join(fleet.as_str())
}

fn guard(config: &AgentConfig, fleet: &FleetName) -> Result<GuardClient, AgentError> {
    known(config, fleet)?;
    Ok(GuardClient::new(&config.guard_socket))
}

fn known(config: &AgentConfig, fleet: &FleetName) -> Result<(), AgentError> {
    if config.fleets.iter().any(|it| it.name == *fleet) {
        Ok(())
    } else {
        let known = config.fleets.iter().map(|it| it.name.to_string()).collect();
        Err(AgentError::FleetUnknown { fleet: fleet.clone(), known })
    }
}

fn failed(fleet: &FleetName, source: muster_guard::GuardError) -> AgentError {
    AgentError::Guard { fleet: fleet.clone(), source }
}

fn told(state: &FleetState) -> String {
    let now = boot_time();
    let mut lines = vec![match state.open {
        Some(open) => format!("permit   epoch {} of {}", open.epoch, open.digest),
        None => "permit   none".to_owned(),
    }];
    lines.push(match &state.link {
        LinkState::Absent => "link     absent".to_owned(),
        LinkState::Release(digest) => format!("link     {digest}"),
        LinkState::Foreign { target } => format!("link     {target}, which the guard did not make"),
        LinkState::Obstructed => "link     something else is in its place".to_owned(),
    });
    lines.extend(state.service.map(|service| match service {
        ServiceState::Stopped => "service  stopped".to_owned(),
        ServiceState::Starting => "service  starting".to_owned(),
        ServiceState::Running { pid, .. } => format!("service  running, process {pid}"),
        ServiceState::Restarting { status, .. } => format!("service  ended ({status}), is started again"),
        ServiceState::Exited { status, .. } => format!("service  ended ({status})"),
    }));
    lines.push(match &state.lease {
        LeaseState::Free => "lease    none: it serves without one".to_owned(),
        LeaseState::Armed(armed) => format!(
            "lease    armed for rollout {}, {} ms left",
            armed.k,
            armed.deadline_boot_ms.since(now).as_millis()
        ),
        LeaseState::Decided(decided) => format!(
            "lease    rollout {} is decided, flips in {} ms",
            decided.armed.k,
            decided.at_boot_ms.since(now).as_millis()
        ),
        LeaseState::Fenced(fence) => format!("lease    fenced: {}", fence.cause),
    });
    lines.extend(state.halted.as_ref().map(|halt| format!("halted   {}", halt.reason)));
    lines.join("\n")
}

/// A closed standard output must not hide the exit code.
fn say(text: &str) {
    let _ = writeln!(io::stdout(), "{text}");
}
