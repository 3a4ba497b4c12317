//! Which certificates will be trouble unless somebody looks at them: for the status and for the health.

use muster_model::{Blocker, Code};

use crate::coordinator::Shared;
use crate::fleet::FleetHandle;

/// Attempts to renew a certificate that may fail before anybody needs to look.
const FAILURES_MAX: u32 = 2;

/// The coordinator's own, with its list and its authority.
pub(crate) fn of_coordinator(shared: &Shared) -> Vec<Blocker> {
    let warnings = shared.enrolments.standing().warnings(shared.machine.unix_time());
    warnings.into_iter().map(|warning| Blocker::fleet(Code::CertificateEnding, warning)).collect()
}

/// Those of a fleet's hosts, as they say and as was seen.
pub(crate) fn of_hosts(shared: &Shared, fleet: &FleetHandle) -> Vec<Blocker> {
    let (now, inventory) = (shared.machine.unix_time(), fleet.inventory());
    let (registry, roster) = (shared.enrolments.registry(), fleet.roster().roster);
    let names = roster.hosts().iter().map(|member| &member.name);
    let hosts = names.chain(roster.parked().iter().map(|it| &it.name)).filter_map(|host| {
        if registry.is_evicted(host) {
            return Some(Blocker::host(
                Code::HostEvicted,
                host,
                "it was evicted, and is still in the roster",
            ));
        }
        let report = inventory.get(host).and_then(|held| held.certificate.as_ref());
        let failing = report.filter(|report| report.failures >= FAILURES_MAX);
        if let Some(report) = failing {
            let (failures, failure) = (report.failures, &report.failure);
            let detail = format!("{failures} attempts to renew its certificate have failed: {failure}");
            return Some(Blocker::host(Code::CertificateEnding, host, detail));
        }
        let validity = shared.certificate_of(host)?;
        let left_s = validity.not_after.0.saturating_sub(now.0) / 1000;
        let detail = format!("less than a third of its certificate's life is left: {left_s} s");
        validity.is_ending(now).then(|| Blocker::host(Code::CertificateEnding, host, detail))
    });
    hosts.collect()
}
