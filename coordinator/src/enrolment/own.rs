//! The coordinator's own certificate, which it renews by itself where it has an issuing authority of its own.
//!
//! The next one has another key, the names of the one before, and the same identity: nobody else's trust changes. It is kept
//! in the state, beside the files that the configuration names, of which the later one counts.

use std::time::Duration;

use muster_audit::Kind;
use muster_daemon::crash_point;
use muster_model::{BootTime, UnixTime};
use muster_mtls::{CertificateFiles, Credentials, Keeping, Usage, Validity};

use super::Issuer;
use super::keeper::half_of;
use crate::Error;
use crate::coordinator::Shared;

/// A failed attempt is repeated after this part of a life, within these limits.
const RETRY_PART: u64 = 50;
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(15 * 60);

/// The time of day must have gone on as the other clock did for this part of a life, and no longer than this, before it is believed: what
/// is issued while somebody has set it wrong would not be valid yet once it is right again, and nobody could connect.
const STEADY_PART: u64 = 20;
const STEADY_MAX: Duration = Duration::from_secs(3600);

/// A time of day that leaps by more than this was set.
const LEAP: Duration = Duration::from_secs(60);

/// When the next attempt may be made.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    not_before: Option<UnixTime>,
    clock: Steadiness,
}

/// For how long the time of day has not been set.
#[derive(Debug, Default)]
struct Steadiness {
    /// The last look, and when the time of day was set last, or looked at first.
    last: Option<((BootTime, UnixTime), BootTime)>,
}

impl Steadiness {
    /// Looks at both clocks, of one moment.
    fn lasts(&mut self, (boot, unix): (BootTime, UnixTime)) -> Duration {
        let since = match self.last {
            Some(((boot_before, unix_before), since)) => {
                let expected = unix_before.after(boot.since(boot_before));
                if Duration::from_millis(unix.0.abs_diff(expected.0)) > LEAP { boot } else { since }
            }
            None => boot,
        };
        self.last = Some(((boot, unix), since));
        boot.since(since)
    }
}

impl Schedule {
    /// Whether it is time for the next certificate.
    pub(super) fn is_due(&mut self, shared: &Shared, now: UnixTime) -> bool {
        let validity = shared.tls.credentials().validity();
        let issuer = shared.enrolments.issuer.as_ref();
        let (boot, _) = shared.machine.now();
        self.is_due_at((boot, now), validity, issuer.and_then(|issuer| due(validity, issuer)))
    }

    /// The same by both clocks, of one moment.
    fn is_due_at(&mut self, clocks: (BootTime, UnixTime), validity: Validity, due: Option<UnixTime>) -> bool {
        let steady = self.clock.lasts(clocks);
        let (_, now) = clocks;
        due.is_some_and(|due| due <= now)
            && self.not_before.is_none_or(|at| at <= now)
            && steady >= Duration::from_millis(life_ms(validity) / STEADY_PART).min(STEADY_MAX)
    }

    /// Takes note of an attempt.
    pub(super) fn tried(&mut self, shared: &Shared, now: UnixTime, went_well: bool) {
        let validity = shared.tls.credentials().validity();
        let pause = Duration::from_millis(life_ms(validity) / RETRY_PART).clamp(RETRY_MIN, RETRY_MAX);
        self.not_before = (!went_well).then(|| now.after(pause));
    }
}

fn life_ms(validity: Validity) -> u64 {
    validity.not_after.0.saturating_sub(validity.began().0)
}

/// When this certificate of ours is to be followed by the next: at half of its life. Never, where the authority ends with it,
/// of which the warnings speak.
pub(super) fn due(own: Validity, issuer: &Issuer) -> Option<UnixTime> {
    (issuer.authority.validity().not_after > own.not_after).then(|| half_of(own))
}

/// Issues the next one and keeps it. It is in the audit log before it is used.
pub(super) async fn renew(shared: &Shared, files: &CertificateFiles) -> Result<Credentials, Error> {
    let failed = |reason: String| Error::Issuer { reason };
    let issuer = shared.enrolments.issuer.as_ref();
    let issuer = issuer.ok_or_else(|| failed("there is none".to_owned()))?;
    let (in_use, now) = (shared.tls.credentials(), shared.machine.unix_time());
    if !in_use.trusts(&issuer.authority) {
        return Err(failed("none of the authorities in `ca` is it or the one above it".to_owned()));
    }
    let usage = Usage::Server { names: in_use.server_names()? };
    let validity = Validity::starting(now, issuer.own_life);
    let issued = issuer.authority.issue(in_use.identity(), validity, &usage)?;
    let said = format!("certificate {} in place of {}", issued.certificate.serial, in_use.serial());
    let entry = shared.audit.own_entry(Kind::Certificate).saying(said.as_str());
    shared.audit(vec![entry]).await.map_err(|refusal| failed(refusal.to_string()))?;
    let files = files.clone();
    let kept = shared.machine.run_blocking(move || {
        files.keep(&in_use, (&issued.certificate.cert_pem, &issued.key_pem), now, |step| {
            crash_point(match step {
                Keeping::Written => "coordinator.identity.written",
                Keeping::Named => "coordinator.identity.named",
                Keeping::Linked => "coordinator.identity.linked",
            });
        })
    });
    let kept = kept.await.map_err(|error| failed(error.to_string()))??;
    tracing::info!(said, "the coordinator's own certificate was renewed");
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_of_day_that_was_set_is_believed_only_after_a_while() {
        const HOUR_MS: u64 = 3600 * 1000;
        let mut clock = Steadiness::default();
        let mut look = |boot_ms, unix_ms| clock.lasts((BootTime(boot_ms), UnixTime(unix_ms))).as_millis();
        assert_eq!(look(0, 100 * HOUR_MS), 0, "nothing is known of the time before");
        assert_eq!(look(HOUR_MS, 101 * HOUR_MS + 50), 1000 * 3600, "a clock may run a little fast");
        assert_eq!(look(HOUR_MS + 1000, 127 * HOUR_MS), 0, "somebody set it");
        assert_eq!(look(HOUR_MS + 3000, 127 * HOUR_MS + 2000), 2000);
        assert_eq!(look(HOUR_MS + 4000, 101 * HOUR_MS + 4000), 0, "and set it back");
    }

    #[test]
    fn a_certificate_is_renewed_by_a_time_of_day_that_is_steady() {
        const MINUTE_MS: u64 = 60 * 1000;
        let validity = Validity { not_before: UnixTime(0), not_after: UnixTime(200 * MINUTE_MS) };
        let due = Some(UnixTime(100 * MINUTE_MS));
        let mut schedule = Schedule::default();
        let mut is_due = |boot_min: u64, unix_min: u64, due| {
            schedule.is_due_at(
                (BootTime(boot_min * MINUTE_MS), UnixTime(unix_min * MINUTE_MS)),
                validity,
                due,
            )
        };
        assert!(!is_due(1, 20, due), "it is young");
        assert!(!is_due(5, 110, due), "somebody set the time of day");
        assert!(!is_due(14, 119, due), "nine minutes ago, of a life of 200");
        assert!(!is_due(15, 120, None), "the authority ends with it");
        assert!(is_due(15, 120, due));
        schedule.not_before = Some(UnixTime(130 * MINUTE_MS));
        let mut is_due = |boot_min: u64, unix_min: u64| {
            schedule.is_due_at(
                (BootTime(boot_min * MINUTE_MS), UnixTime(unix_min * MINUTE_MS)),
                validity,
                due,
            )
        };
        assert!(!is_due(20, 125), "an attempt has failed");
        assert!(is_due(25, 130));
    }
}
