//! What an operator does on the host itself, with the coordinator and the agent dead: only the guard is asked.

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use muster_daemon::{boot_time, unix_time};
use muster_guard::{DriverKind, FleetState, Guard as _, GuardClient, LeaseState, LinkState, ServiceState};
use muster_model::FleetName;

use crate::{AgentConfig, AgentError, FleetSettings, witness};

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

/// What a restart of the guard would do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Idleness {
    /// Nothing.
    Idle,
    /// It would end services.
    Supervises,
    /// It would fence.
    Armed,
}

impl From<Idleness> for ExitCode {
    fn from(idleness: Idleness) -> Self {
        Self::from(match idleness {
            Idleness::Idle => 0,
            Idleness::Armed => 3,
            Idleness::Supervises => 4,
        })
    }
}

/// Tells whether the guard can be restarted without a change to what is served, and if not, why.
pub(crate) fn guard_idle(config: &AgentConfig) -> Result<Idleness, AgentError> {
    let guard = GuardClient::new(&config.guard_socket);
    let mut idleness = Idleness::Idle;
    for FleetSettings { name: fleet, .. } in &config.fleets {
        let state = guard.status(fleet).map_err(|source| failed(fleet, source))?;
        let found = idleness_of(&state);
        match found {
            Idleness::Idle => {}
            Idleness::Armed => say(&format!("{fleet} is armed, and would be fenced")),
            Idleness::Supervises => say(&format!("{fleet} has a service that would end with the guard")),
        }
        idleness = idleness.max(found);
    }
    Ok(idleness)
}

fn idleness_of(state: &FleetState) -> Idleness {
    match state.lease {
        LeaseState::Armed(_) | LeaseState::Decided(_) => return Idleness::Armed,
        LeaseState::Free | LeaseState::Fenced(_) => {}
    }
    if !state.ends_with_guard {
        return Idleness::Idle;
    }
    match state.driver {
        DriverKind::Supervise => Idleness::Supervises,
        // It was armed a moment ago, and its units are about to be untied from the guard.
        DriverKind::Systemd => Idleness::Armed,
        DriverKind::Link => Idleness::Idle,
    }
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

pub(crate) fn fleet_folder(config: &AgentConfig, fleet: &FleetName) -> PathBuf {
    config.state.join("fleets").join(fleet.as_str())
}

fn guard(config: &AgentConfig, fleet: &FleetName) -> Result<GuardClient, AgentError> {
    known(config, fleet)?;
    Ok(GuardClient::new(&config.guard_socket))
}

pub(crate) fn known(config: &AgentConfig, fleet: &FleetName) -> Result<(), AgentError> {
    if config.fleets.iter().any(|it| it.name == *fleet) {
        Ok(())
    } else {
        let known = config.fleets.iter().map(|it| it.name.to_string()).collect();
        Err(AgentError::FleetUnknown { fleet: fleet.clone(), known })
    }
}

pub(crate) fn failed(fleet: &FleetName, source: muster_guard::GuardError) -> AgentError {
    AgentError::Guard { fleet: fleet.clone(), source }
}

pub(crate) fn told(state: &FleetState) -> String {
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
pub(crate) fn say(text: &str) {
    let _ = writeln!(io::stdout(), "{text}");
}

#[cfg(test)]
mod tests {
    use muster_guard::Armed;
    use muster_model::{BootTime, Epoch, RolloutId};

    use super::*;

    fn state(driver: DriverKind, ends_with_guard: bool, lease: LeaseState) -> FleetState {
        FleetState {
            fleet: FleetName::new("smars").unwrap(),
            driver,
            open: None,
            link: LinkState::Absent,
            service: None,
            doubt: None,
            ends_with_guard,
            lease,
            halted: None,
            flipped: None,
            generation: 1,
        }
    }

    #[test]
    fn a_guard_is_restarted_only_where_that_changes_nothing() {
        let free = |driver, ends| idleness_of(&state(driver, ends, LeaseState::Free));
        assert_eq!(free(DriverKind::Link, false), Idleness::Idle);
        assert_eq!(free(DriverKind::Supervise, true), Idleness::Supervises);
        assert_eq!(free(DriverKind::Supervise, false), Idleness::Idle);
        assert_eq!(free(DriverKind::Systemd, false), Idleness::Idle);
        assert_eq!(free(DriverKind::Systemd, true), Idleness::Armed, "its units are about to be untied");
        let armed = Armed { k: RolloutId(1), epoch: Epoch(1), deadline_boot_ms: BootTime(1), flip: None };
        for driver in [DriverKind::Link, DriverKind::Supervise, DriverKind::Systemd] {
            assert_eq!(idleness_of(&state(driver, true, LeaseState::Armed(armed))), Idleness::Armed);
        }
        assert_eq!(
            Idleness::Armed.max(Idleness::Supervises),
            Idleness::Armed,
            "what passes by itself is waited for"
        );
    }
}
