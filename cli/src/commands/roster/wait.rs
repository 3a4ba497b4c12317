//! Waiting for a roster that was handed in, and noticing that it waits for nothing any more.

use std::time::Duration;

use muster_model::{Blocker, Code, FleetName, HostName, Refusal, RosterRevision};
use muster_proto::v1;
use tokio::time::Instant;

use crate::commands::Env;
use crate::connect::Session;
use crate::error::CliError;

/// How soon the coordinator is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(250);

/// Why what is waited for is not so.
pub(crate) enum Wait {
    /// It may be yet, for these reasons.
    For(Vec<Blocker>),
    /// Somebody has decided otherwise meanwhile.
    InVain(Blocker),
}

/// Waits until `is_done`, and says what it waits for.
pub(crate) async fn until(
    env: &Env,
    session: &Session,
    fleet: &FleetName,
    timeout: Duration,
    mut is_done: impl FnMut(&v1::FleetStatus) -> Result<(), Wait>,
) -> Result<v1::FleetStatus, CliError> {
    let deadline = Instant::now() + timeout;
    let mut said = None;
    loop {
        let status = session.status(fleet).await?;
        let blockers = match is_done(&status) {
            Ok(()) => return Ok(status),
            Err(Wait::For(blockers)) => blockers,
            Err(Wait::InVain(blocker)) => {
                return Err(CliError::refused("see it through", Refusal::because(blocker)));
            }
        };
        if Instant::now() >= deadline {
            return Err(CliError::refused(format!("finish within {timeout:?}"), Refusal { blockers }));
        }
        let waits = blockers.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        if said.as_ref() != Some(&waits) {
            env.ui.say(format_args!("waiting: {waits}"));
            said = Some(waits);
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

/// Whether the host is parked, by this revision of the roster or by a later one.
pub(crate) fn is_parked(
    status: &v1::FleetStatus,
    revision: RosterRevision,
    host: &HostName,
) -> Result<(), Wait> {
    let is_in = |list: &[v1::HostStatus]| list.iter().any(|it| it.host == host.as_str());
    if status.roster_revision >= revision.0 && is_in(&status.parked) {
        return has_given_its_word(status, host);
    }
    if status.roster_revision >= revision.0 {
        let place = if is_in(&status.hosts) { "has it serve" } else { "does not have it parked" };
        return Err(overtaken(host, status.roster_revision, place));
    }
    if let Some(coming) = status.coming.as_ref().filter(|coming| coming.revision > revision.0)
        && !is_leaving(status, host)
    {
        return Err(overtaken(host, coming.revision, "has it serve on"));
    }
    holds(status, revision)
}

/// Nobody flips without a host before it has said by its own signature that it has closed, unless it is stated to be off.
fn has_given_its_word(status: &v1::FleetStatus, host: &HostName) -> Result<(), Wait> {
    let of_host = status.parked.iter().filter(|it| it.host == host.as_str());
    let is_missing = |it: &&v1::Blocker| it.code == Code::NotWithdrawn.as_str();
    if !of_host.flat_map(|it| &it.blockers).any(|it| is_missing(&it)) {
        return Ok(());
    }
    let detail = format!(
        "it is parked, and has not said by its own signature that it has closed; nothing is flipped before. If its machine is off, \
         state it: `muster host park {host} --fenced --reason TEXT`"
    );
    Err(Wait::For(vec![Blocker::host(Code::NotWithdrawn, host, detail)]))
}

/// Whether the host serves by this revision of the roster or by a later one, as far as the roster goes.
pub(crate) fn is_listed(
    status: &v1::FleetStatus,
    revision: RosterRevision,
    host: &HostName,
) -> Result<(), Wait> {
    if status.roster_revision >= revision.0 && !status.hosts.iter().any(|it| it.host == host.as_str()) {
        return Err(overtaken(host, status.roster_revision, "does not have it serve"));
    }
    if let Some(coming) = status.coming.as_ref().filter(|coming| coming.revision > revision.0)
        && is_leaving(status, host)
    {
        return Err(overtaken(host, coming.revision, "has it leave"));
    }
    holds(status, revision)
}

/// Whether the roster holds, or which hosts it waits for.
pub(crate) fn holds(status: &v1::FleetStatus, revision: RosterRevision) -> Result<(), Wait> {
    if status.roster_revision >= revision.0 {
        return Ok(());
    }
    let Some(coming) = status.coming.as_ref().filter(|coming| coming.revision >= revision.0) else {
        let detail = format!(
            "the coordinator knows nothing of revision {revision} any more; look at `muster roster show`, and begin anew"
        );
        return Err(Wait::InVain(Blocker::fleet(Code::RosterChanged, detail)));
    };
    let awaited = coming.awaited.iter().filter_map(|host| HostName::new(host).ok());
    let mut blockers: Vec<Blocker> = awaited
        .map(|host| {
            let is_connected = status.hosts.iter().any(|it| it.host == host.as_str() && it.connected);
            let detail = if is_connected {
                "it is asked to close, and has not said yet that it has".to_owned()
            } else {
                format!(
                    "it is not connected, and may serve; if its machine is off, state it: \
                     `muster host park {host} --fenced --reason TEXT`, or take it back: `muster host unpark {host}`"
                )
            };
            Blocker::host(Code::RemovalNeedsEvidence, &host, detail)
        })
        .collect();
    if blockers.is_empty() {
        blockers.push(Blocker::fleet(Code::Busy, "it holds once the rollout under way is over"));
    }
    Err(Wait::For(blockers))
}

fn is_leaving(status: &v1::FleetStatus, host: &HostName) -> bool {
    status.hosts.iter().any(|it| it.host == host.as_str() && it.state() == v1::HostState::Leaving)
}

fn overtaken(host: &HostName, revision: u64, what: &str) -> Wait {
    let detail = format!(
        "somebody handed in another roster meanwhile: revision {revision} {what}; who did, and why, is in \
         `muster audit log --kind roster`"
    );
    Wait::InVain(Blocker::host(Code::RosterChanged, host, detail))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> HostName {
        HostName::new("host-3").unwrap()
    }

    /// Revision 5 holds, in which `serving` and `parked` are.
    fn status(serving: &[(&str, v1::HostState)], parked: &[&str], coming: Option<u64>) -> v1::FleetStatus {
        let listed = |(host, state): (&str, v1::HostState)| v1::HostStatus {
            host: host.to_owned(),
            state: state.into(),
            ..v1::HostStatus::default()
        };
        v1::FleetStatus {
            roster_revision: 5,
            hosts: serving.iter().copied().map(listed).collect(),
            parked: parked.iter().map(|host| listed((host, v1::HostState::Parked))).collect(),
            coming: coming.map(|revision| v1::ComingRoster { revision, ..v1::ComingRoster::default() }),
            ..v1::FleetStatus::default()
        }
    }

    #[track_caller]
    fn assert_in_vain(outcome: Result<(), Wait>, said: &str) {
        let Err(Wait::InVain(blocker)) = outcome else { panic!("it waits on, or is content") };
        assert!(blocker.detail.contains(said), "{blocker}");
    }

    #[test]
    fn a_host_is_parked_only_by_the_roster_that_was_handed_in_or_a_later_one_that_still_does() {
        let (serves, leaves) = (v1::HostState::Serving, v1::HostState::Leaving);
        let parked =
            |status: &v1::FleetStatus, revision| is_parked(status, RosterRevision(revision), &host());
        for revision in [4, 5] {
            assert!(parked(&status(&[], &["host-3"], None), revision).is_ok());
            assert_in_vain(
                parked(&status(&[("host-3", serves)], &[], None), revision),
                "revision 5 has it serve",
            );
            assert_in_vain(
                parked(&status(&[("host-1", serves)], &[], None), revision),
                "revision 5 does not have",
            );
        }
        let waits =
            |status: &v1::FleetStatus, revision| matches!(parked(status, revision), Err(Wait::For(_)));
        assert!(waits(&status(&[("host-3", leaves)], &[], Some(6)), 6));
        assert!(waits(&status(&[("host-3", leaves)], &[], Some(7)), 6), "another has left as well");
        assert_in_vain(parked(&status(&[("host-3", serves)], &[], Some(7)), 6), "revision 7 has it serve on");
        assert_in_vain(parked(&status(&[("host-3", serves)], &[], None), 6), "knows nothing of revision 6");
    }

    #[test]
    fn a_host_is_parked_only_once_it_has_given_its_word() {
        let mut status = status(&[], &["host-3"], None);
        let missing = v1::Blocker { code: "not-withdrawn".to_owned(), ..v1::Blocker::default() };
        let other = v1::Blocker { code: "drifted".to_owned(), ..v1::Blocker::default() };
        status.parked[0].blockers = vec![other];
        assert!(is_parked(&status, RosterRevision(5), &host()).is_ok());
        status.parked[0].blockers.push(missing);
        let Err(Wait::For(blockers)) = is_parked(&status, RosterRevision(5), &host()) else {
            panic!("it waits")
        };
        assert_eq!(blockers[0].code, Code::NotWithdrawn);
        assert!(blockers[0].detail.contains("--fenced"));
    }

    #[test]
    fn a_host_that_somebody_parks_anew_is_not_waited_for() {
        let (serves, leaves) = (v1::HostState::Serving, v1::HostState::Leaving);
        let listed =
            |status: &v1::FleetStatus, revision| is_listed(status, RosterRevision(revision), &host());
        assert!(listed(&status(&[("host-3", serves)], &[], None), 5).is_ok());
        assert_in_vain(listed(&status(&[], &["host-3"], None), 4), "revision 5 does not have it serve");
        assert_in_vain(listed(&status(&[("host-3", leaves)], &[], Some(6)), 5), "revision 6 has it leave");
    }
}
