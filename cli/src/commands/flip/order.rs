//! The orders that a rollout begins with, signed by this operator.

use std::ops::Range;
use std::time::Duration;

use muster_model::{
    Code, FleetName, Flip, FlipMode, OnFailure, Order, Refusal, RolloutId, RosterRef, UnixTime,
};
use muster_trust::{Signer, sign};

use super::Verb;
use super::approvals::Wait;
use crate::clock::{millis, unix_time};
use crate::error::CliError;
use crate::output::counted;
use crate::view::ReleaseView;

/// An order holds for machines too whose clock is so far behind this one's: they verify it within milliseconds of its being
/// signed. That it is not used twice is what its counter is for.
const BEHIND_MAX: Duration = Duration::from_secs(60);

/// What an operator settles beside the release.
#[derive(Debug, Clone, Copy)]
pub(in crate::commands) struct Terms {
    /// Until an undecided rollout is aborted.
    pub(in crate::commands) timeout: Duration,
    /// Until the order no longer holds.
    pub(in crate::commands) valid_for: Duration,
    /// How many hosts may lapse, unless the usual number.
    pub(in crate::commands) max_lapsed: Option<u32>,
    /// Strict or fast.
    pub(in crate::commands) mode: FlipMode,
    /// What to do when hosts fail to start.
    pub(in crate::commands) on_failure: OnFailure,
    /// Whether other operators' signatures are waited for.
    pub(in crate::commands) wait: Wait,
}

/// What is known of the fleet when the order is written.
#[derive(Debug)]
pub(super) struct Circumstances<'a> {
    pub(super) fleet: &'a FleetName,
    pub(super) verb: Verb,
    pub(super) counter: RolloutId,
    pub(super) roster: RosterRef,
    pub(super) from: Option<&'a ReleaseView>,
    pub(super) to: &'a ReleaseView,
    /// Whether the fleet, or a host of it, was halted.
    pub(super) halted: Halted,
}

/// Whether there is anything to resume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::commands) enum Halted {
    /// The fleet, or a host of it, serves nothing because it was halted.
    Yes,
    /// Nobody was halted.
    No,
}

/// Signed orders, as envelopes.
#[derive(Debug)]
pub(super) struct Orders {
    /// What shall happen.
    pub(super) order: Vec<u8>,
    /// What shall happen by itself if too many hosts do not start.
    pub(super) contingency: Option<Vec<u8>>,
    /// How many hosts may lapse.
    pub(super) max_lapsed: u32,
}

impl Terms {
    /// Signs what they come to. `key` is read once it is known that there is something to sign.
    pub(super) fn order(
        &self,
        it: &Circumstances<'_>,
        key: impl FnOnce() -> Result<Box<dyn Signer>, CliError>,
    ) -> Result<Orders, CliError> {
        let doing = format!("order {} for {}", it.to, it.fleet);
        let from = it.from.map(|release| release.digest);
        refuse_what_leads_nowhere(it, &doing)?;
        let max_lapsed = self.max_lapsed(it.roster.hosts)?;
        let back = match (self.on_failure, from) {
            (OnFailure::Hold, _) => None,
            (OnFailure::Rollback, Some(from)) => Some(from),
            (OnFailure::Rollback, None) => return Err(nothing_to_go_back_to(it.fleet)),
        };
        let key = key()?;
        let validity = self.validity(unix_time());
        let sign_flip = |counter, flip| signed(it, counter, flip, validity.clone(), &*key, &doing);
        let (to, mode, on_failure) = (it.to.digest, self.mode, self.on_failure);
        let order = sign_flip(it.counter, Flip { from, to, mode, on_failure, max_lapsed })?;
        // It is used while hosts are still to open, when there is no instant that all could flip at.
        let (mode, on_failure) = (FlipMode::Strict, OnFailure::Hold);
        let contingency = back
            .map(|back| Flip { from: Some(to), to: back, mode, on_failure, max_lapsed })
            .map(|flip| sign_flip(it.counter.next(), flip))
            .transpose()?;
        Ok(Orders { order, contingency, max_lapsed })
    }

    /// No order may be valid for longer than the longest time, so one that is to last that long holds from now on.
    fn validity(&self, now: UnixTime) -> Range<UnixTime> {
        let end = now.after(self.valid_for);
        let earliest = end.0.saturating_sub(Order::VALIDITY_MS_MAX);
        let start = now.0.saturating_sub(millis(BEHIND_MAX)).max(earliest);
        UnixTime(start)..end
    }

    fn max_lapsed(&self, hosts: u32) -> Result<u32, CliError> {
        let most = hosts.saturating_sub(1);
        match self.max_lapsed {
            None => Ok(Order::MAX_LAPSED_DEFAULT.min(most)),
            Some(stated) if stated <= most => Ok(stated),
            Some(stated) => Err(CliError::Usage {
                what: format!(
                    "--max-lapsed {stated} in a fleet of {}: somebody has to prove that the old release is closed",
                    counted(hosts, "host")
                ),
                next: format!("name at most {most}"),
            }),
        }
    }
}

/// No such order would be taken, but for one that resumes: it says so in its kind.
fn refuse_what_leads_nowhere(it: &Circumstances<'_>, doing: &str) -> Result<(), CliError> {
    let Circumstances { fleet, to, .. } = it;
    if it.from.map(|from| from.digest) != Some(to.digest) {
        return Ok(());
    }
    let detail = match (it.verb, it.halted) {
        (Verb::Resume, Halted::Yes) => return Ok(()),
        (Verb::Resume, Halted::No) => format!("{fleet} serves {to} and was not halted"),
        (Verb::Flip | Verb::Rollback, Halted::Yes) => {
            format!("{to} is what {fleet} served when it was halted; `muster resume` serves it again")
        }
        (Verb::Flip | Verb::Rollback, Halted::No) => format!("{fleet} serves {to}"),
    };
    Err(CliError::refused(doing, Refusal::of(Code::AlreadyServing, detail)))
}

fn signed(
    it: &Circumstances<'_>,
    counter: RolloutId,
    flip: Flip,
    validity: Range<UnixTime>,
    key: &dyn Signer,
    doing: &str,
) -> Result<Vec<u8>, CliError> {
    let order = Order::new(it.fleet.clone(), counter, it.roster, flip, validity)
        .map_err(|source| CliError::Document { doing: doing.to_owned(), source })?;
    let signers: [&dyn Signer; 1] = [key];
    let envelope = sign(&order, &signers).map_err(CliError::trust(doing))?;
    Ok(envelope.raw().to_vec())
}

fn nothing_to_go_back_to(fleet: &FleetName) -> CliError {
    CliError::Usage {
        what: format!("{fleet} serves nothing yet, so there is nothing that it could be rolled back to"),
        next: "use --on-failure hold for the first flip of a fleet".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use muster_model::{Digest, Document as _, OrderKind, RosterRevision};
    use muster_trust::{Envelope, KeyAlgorithm, SigningKey};

    use super::*;
    use crate::exit::Exit;

    fn release(byte: u8) -> ReleaseView {
        ReleaseView { version: format!("1.{byte}.0"), digest: Digest::from_bytes([byte; 32]) }
    }

    fn terms() -> Terms {
        Terms {
            timeout: Duration::from_secs(60),
            valid_for: Duration::from_secs(60),
            max_lapsed: None,
            mode: FlipMode::Strict,
            on_failure: OnFailure::Hold,
            wait: Wait::No,
        }
    }

    struct Case {
        verb: Verb,
        hosts: u32,
        from: Option<u8>,
        to: u8,
        halted: Halted,
    }

    const FLIP: Case = Case { verb: Verb::Flip, hosts: 3, from: Some(1), to: 2, halted: Halted::No };

    /// What an envelope says; that its signatures hold is the trust crate's concern.
    fn payload(envelope: &[u8]) -> Order {
        Order::parse(Envelope::parse(envelope).unwrap().payload()).unwrap()
    }

    fn order(terms: Terms, case: &Case) -> Result<(Order, Option<Order>), CliError> {
        let (from, to) = (case.from.map(release), release(case.to));
        let circumstances = Circumstances {
            fleet: &FleetName::new("demo").unwrap(),
            verb: case.verb,
            counter: RolloutId(7),
            roster: RosterRef {
                digest: Digest::of(b"roster"),
                revision: RosterRevision(2),
                hosts: case.hosts,
            },
            from: from.as_ref(),
            to: &to,
            halted: case.halted,
        };
        let orders = terms
            .order(&circumstances, || Ok(Box::new(SigningKey::generate(KeyAlgorithm::Ed25519).unwrap())))?;
        let contingency = orders.contingency.as_deref().map(payload);
        Ok((payload(&orders.order), contingency))
    }

    #[test]
    fn one_host_may_lapse_unless_it_is_said_otherwise() {
        let lapsed = |max_lapsed, hosts| {
            order(Terms { max_lapsed, ..terms() }, &Case { hosts, ..FLIP }).map(|(order, _)| order.max_lapsed)
        };
        assert_eq!(lapsed(None, 3).unwrap(), 1);
        assert_eq!(lapsed(None, 1).unwrap(), 0);
        assert_eq!(lapsed(Some(0), 3).unwrap(), 0);
        assert_eq!(lapsed(Some(2), 3).unwrap(), 2);
        let all = lapsed(Some(3), 3).unwrap_err();
        assert_eq!(all.exit(), Exit::Usage);
        assert!(all.to_string().contains("3 hosts") && all.next().unwrap().contains("at most 2"), "{all}");
    }

    #[test]
    fn an_order_holds_by_clocks_that_are_behind_and_for_no_longer_than_any_may() {
        let now = unix_time();
        let holds = |valid_for| order(Terms { valid_for, ..terms() }, &FLIP).unwrap().0;
        let minute = holds(Duration::from_secs(60));
        assert!(minute.not_before_unix_ms.0 + 55_000 <= now.0, "{minute:?}");
        assert!(minute.expires_unix_ms >= now.after(Duration::from_secs(60)), "{minute:?}");
        let longest = holds(Duration::from_millis(Order::VALIDITY_MS_MAX));
        assert!(longest.not_before_unix_ms >= now, "{longest:?}");
    }

    #[test]
    fn an_order_to_go_back_is_signed_beside_the_other() {
        let back_and_forth =
            Terms { on_failure: OnFailure::Rollback, mode: FlipMode::Fast, max_lapsed: Some(2), ..terms() };
        let (there, back) = order(back_and_forth, &FLIP).unwrap();
        let back = back.unwrap();
        assert_eq!((there.counter, back.counter), (RolloutId(7), RolloutId(8)));
        assert_eq!((back.from, Some(back.to)), (Some(there.to), there.from));
        assert_eq!((there.on_failure, back.on_failure), (OnFailure::Rollback, OnFailure::Hold));
        assert_eq!((there.mode, back.mode), (FlipMode::Fast, FlipMode::Strict));
        assert_eq!((back.max_lapsed, back.roster), (2, there.roster));
        assert_eq!(back.expires_unix_ms, there.expires_unix_ms);
        assert!(order(terms(), &FLIP).unwrap().1.is_none());
    }

    #[test]
    fn the_first_flip_has_nothing_to_go_back_to() {
        let terms = Terms { on_failure: OnFailure::Rollback, ..terms() };
        let error = order(terms, &Case { from: None, ..FLIP }).unwrap_err();
        assert_eq!(error.exit(), Exit::Usage);
        assert!(error.to_string().contains("nothing that it could be rolled back to"), "{error}");
        assert!(error.next().unwrap().contains("--on-failure hold"));
    }

    #[test]
    fn only_what_was_halted_is_resumed() {
        let same = |verb, halted| order(terms(), &Case { verb, halted, to: 1, ..FLIP });
        let (resumed, _) = same(Verb::Resume, Halted::Yes).unwrap();
        assert_eq!((resumed.kind, resumed.from), (OrderKind::Resume, Some(resumed.to)));
        for (verb, halted, word) in [
            (Verb::Resume, Halted::No, "was not halted"),
            (Verb::Flip, Halted::Yes, "muster resume"),
            (Verb::Flip, Halted::No, "demo serves 1.1.0"),
        ] {
            let refused = same(verb, halted).unwrap_err();
            assert_eq!(refused.exit(), Exit::Stale);
            assert!(refused.blockers()[0].detail.contains(word), "{}", refused.blockers()[0]);
        }
        // Another release may be flipped to at once: that order resumes the fleet as well.
        assert_eq!(order(terms(), &Case { halted: Halted::Yes, ..FLIP }).unwrap().0.kind, OrderKind::Flip);
    }
}
