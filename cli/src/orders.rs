//! Orders that wait for approvals, as far as they can be believed: what they say is what operators have signed.

use std::fmt;
use std::str::FromStr;

use muster_model::{
    Blocker, Code, Digest, FleetName, FlipMode, HostName, OnFailure, Order, OrderKind, Refusal, Roster,
    RosterRef, SigningRole, UnixTime,
};
use muster_proto::v1;
use muster_trust::{OrderProposal, TrustError};

use crate::clock::{date_text, unix_time};
use crate::connect::{KnownRelease, Session, answer, roster_ref};
use crate::error::CliError;
use crate::view::ReleaseView;

/// The fewest hex digits that name an order.
const DIGITS_MIN: usize = 8;

/// The most orders that are read; the coordinator keeps fewer.
const ORDERS_MAX: usize = 256;

/// An order by its digest, or the beginning of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OrderName(String);

/// A text that names no order.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an order is `sha256:…`, or at least 8 hex digits of it; `muster order list` shows them")]
pub(crate) struct NotAnOrder;

/// An order that the coordinator keeps.
#[derive(Debug, Clone)]
pub(crate) struct PendingOrder {
    /// The order, with who has signed it.
    pub(crate) order: OrderProposal,
    /// The order to roll back that goes with it.
    pub(crate) contingency: Option<OrderProposal>,
    /// Who gave it to the coordinator, as that says.
    pub(crate) proposed_by: String,
    /// Who took it back, as the coordinator says.
    pub(crate) cancelled_by: Option<String>,
}

/// What an order has to fit.
pub(crate) struct Surroundings {
    /// The fleet, as the coordinator sees it.
    pub(crate) status: v1::FleetStatus,
    /// The release that is served.
    pub(crate) serving: Option<ReleaseView>,
    /// The roster in force; none if too few have signed it.
    pub(crate) roster: Option<RosterRef>,
    /// Those of its hosts that no operator has signed for, but a joiner.
    pub(crate) added: Vec<HostName>,
    /// Releases whose signatures hold.
    pub(crate) releases: Vec<KnownRelease>,
    /// The time now.
    pub(crate) now: UnixTime,
}

impl FromStr for OrderName {
    type Err = NotAnOrder;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.strip_prefix("sha256:").unwrap_or(text);
        let is_hex = digits.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if is_hex && (DIGITS_MIN..=2 * Digest::LEN).contains(&digits.len()) {
            return Ok(Self(digits.to_owned()));
        }
        Err(NotAnOrder)
    }
}

impl fmt::Display for OrderName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl PendingOrder {
    /// Its name: the digest of what is signed.
    pub(crate) const fn id(&self) -> Digest {
        self.order.payload_digest
    }

    /// What it says.
    pub(crate) const fn says(&self) -> &Order {
        &self.order.document
    }

    /// Why it could not be begun now, beside approvals that are missing.
    pub(crate) fn blockers(&self, it: &Surroundings) -> Vec<Blocker> {
        let (order, mut found) = (self.says(), Vec::new());
        let mut blocker = |code, detail: String| found.push(Blocker::fleet(code, detail));
        if let Some(who) = &self.cancelled_by {
            blocker(Code::OrderCancelled, format!("{who} took it back"));
        }
        if it.now >= order.expires_unix_ms {
            blocker(Code::OrderExpired, format!("it expired at {}", date_text(order.expires_unix_ms)));
        } else if it.now < order.not_before_unix_ms {
            let from = date_text(order.not_before_unix_ms);
            blocker(Code::OrderExpired, format!("it does not hold before {from}, by this machine's clock"));
        }
        let next = it.status.last_k + 1;
        if order.counter.0 != next {
            blocker(Code::Superseded, format!("it is for rollout {}, the next one is {next}", order.counter));
        }
        match it.roster {
            None => blocker(
                Code::SignatureInvalid,
                "the roster in force is not signed by as many operators as the root demands".to_owned(),
            ),
            Some(roster) if roster != bound_to(order) => blocker(
                Code::RosterChanged,
                format!(
                    "it is for {} hosts of roster revision {}, in force is revision {} with {} hosts: who has proposed it \
                     proposes it anew with `muster flip`",
                    order.hosts, order.roster_revision, roster.revision, roster.hosts
                ),
            ),
            Some(_) => {}
        }
        if order.from != it.serving.as_ref().map(|release| release.digest) {
            let serving = it.serving.as_ref().map_or_else(|| "nothing".to_owned(), ToString::to_string);
            blocker(Code::OrderStale, format!("it does not start from what is served, which is {serving}"));
        }
        match it.release(order.to) {
            None => blocker(
                Code::ReleaseUnknown,
                format!("there is no release {} of {} whose signatures hold", order.to, order.fleet),
            ),
            Some(known) if known.release.expires_unix_ms.is_some_and(|expiry| it.now >= expiry) => {
                blocker(Code::ReleaseExpired, format!("the release {} has expired", order.to));
            }
            Some(_) => {}
        }
        if let Err(detail) = self.contingency_fits() {
            blocker(Code::OrderInvalid, detail.to_owned());
        }
        found
    }

    /// Step 15: whoever lets the fleet roll back by itself signs the order to do so too, which leads back and nowhere else.
    fn contingency_fits(&self) -> Result<(), &'static str> {
        match (self.says().on_failure, &self.contingency) {
            (OnFailure::Hold, None) => Ok(()),
            (OnFailure::Rollback, Some(back)) => {
                let (back, order) = (&back.document, self.says());
                if !back.leads_back(order) {
                    return Err("the order to roll back does not lead back to where it starts");
                }
                // What is shown of the one has to hold for the other.
                if back.max_lapsed > order.max_lapsed
                    || back.mode != FlipMode::Strict
                    || back.expires_unix_ms > order.expires_unix_ms
                {
                    return Err("the order to roll back allows more than the order itself");
                }
                Ok(())
            }
            (OnFailure::Rollback, None) => Err("the order to roll back by itself is missing"),
            (OnFailure::Hold, Some(_)) => Err("an order to roll back came with it that it does not ask for"),
        }
    }

    /// What the fleet does.
    pub(crate) const fn kind_text(&self) -> &'static str {
        match self.says().kind {
            OrderKind::Flip => "flip",
            OrderKind::Resume => "resume",
        }
    }
}

impl Surroundings {
    /// Asks for everything that an order of `fleet` has to fit.
    pub(crate) async fn of(session: &Session, fleet: &FleetName) -> Result<Self, CliError> {
        let status = session.status(fleet).await?;
        let doing = format!("see what {fleet} serves");
        let serving = ReleaseView::optional(status.serving.as_ref()).map_err(CliError::answer(doing))?;
        let (roster, added) = match Box::pin(session.roster(fleet)).await {
            Ok(roster) => (Some(roster_ref(&roster)), added(roster.document())),
            Err(CliError::Trust { .. }) => (None, Vec::new()),
            Err(error) => return Err(error),
        };
        let releases = Box::pin(session.releases(fleet)).await?;
        Ok(Self { status, serving, roster, added, releases, now: unix_time() })
    }

    /// The release with this manifest, if its signatures hold.
    pub(crate) fn release(&self, manifest: Digest) -> Option<&KnownRelease> {
        self.releases.iter().find(|known| known.release.manifest == manifest)
    }
}

/// The hosts that joiners have added to what operators signed.
pub(crate) fn added(roster: &Roster) -> Vec<HostName> {
    let hosts = roster.additions().into_iter().flat_map(|additions| &additions.hosts);
    hosts.map(|member| member.name.clone()).collect()
}

impl Session {
    /// The orders of a fleet that the coordinator keeps, as far as operators of today's root have signed them.
    pub(crate) async fn orders(&self, fleet: &FleetName) -> Result<Vec<PendingOrder>, CliError> {
        let doing = format!("list the orders of {fleet}");
        let request = v1::ListOrdersRequest { fleet: fleet.to_string() };
        let mut client = self.operations();
        let listed = Box::pin(answer(&doing, client.list_orders(request))).await?;
        let mut orders = Vec::new();
        for order in listed.orders.into_iter().take(ORDERS_MAX) {
            match self.read_order(order) {
                Ok(order) if order.says().fleet == *fleet => orders.push(order),
                Ok(order) => {
                    let what =
                        format!("the coordinator answered with an order of the fleet {}", order.says().fleet);
                    return Err(CliError::Contradiction { doing, what });
                }
                // Whoever signed it may sign no more.
                Err(TrustError::Threshold { .. }) => {}
                Err(error) => return Err(CliError::trust(doing)(error)),
            }
        }
        Ok(orders)
    }

    /// The order that is meant.
    pub(crate) async fn order(&self, fleet: &FleetName, name: &OrderName) -> Result<PendingOrder, CliError> {
        let orders = self.orders(fleet).await?;
        let mut meant = orders.into_iter().filter(|order| order.id().hex().starts_with(&name.0));
        match (meant.next(), meant.next()) {
            (Some(order), None) => Ok(order),
            (Some(_), Some(_)) => Err(CliError::Usage {
                what: format!("`{name}` could mean several orders"),
                next: "give more digits".to_owned(),
            }),
            (None, _) => {
                let detail = format!("no order `{name}` of {fleet} waits for approvals");
                Err(CliError::refused(
                    format!("find the order {name}"),
                    Refusal::of(Code::OrderUnknown, detail),
                ))
            }
        }
    }

    /// How many operators have to sign.
    pub(crate) fn operators_needed(&self) -> usize {
        self.root().root().role(SigningRole::Operator).threshold as usize
    }

    /// Looks at an order that the coordinator has answered with.
    pub(crate) fn read_order(&self, wire: v1::PendingOrder) -> Result<PendingOrder, TrustError> {
        let review = |raw: &Vec<u8>| self.root().review_order(raw, unix_time());
        Ok(PendingOrder {
            order: review(&wire.order_envelope)?,
            contingency: wire.contingency_envelope.as_ref().map(review).transpose()?,
            proposed_by: wire.proposed_by,
            cancelled_by: wire.cancelled_by,
        })
    }
}

fn bound_to(order: &Order) -> RosterRef {
    RosterRef { digest: order.roster, revision: order.roster_revision, hosts: order.hosts }
}

#[cfg(test)]
mod tests {
    use muster_model::{Flip, RolloutId, RosterRevision};
    use muster_trust::{KeyAlgorithm, SigningKey, sign};

    use super::*;

    const ROSTER: RosterRef =
        RosterRef { digest: Digest::from_bytes([9; 32]), revision: RosterRevision(2), hosts: 3 };

    fn digest(byte: u8) -> Digest {
        Digest::from_bytes([byte; 32])
    }

    fn order(counter: u64, from: u8, to: u8, on_failure: OnFailure, max_lapsed: u32) -> Order {
        let mode = FlipMode::Strict;
        let flip = Flip { from: Some(digest(from)), to: digest(to), mode, on_failure, max_lapsed };
        let fleet = FleetName::new("demo").unwrap();
        Order::new(fleet, RolloutId(counter), ROSTER, flip, UnixTime(1000)..UnixTime(2000)).unwrap()
    }

    fn proposal(document: Order) -> OrderProposal {
        let key = SigningKey::generate(KeyAlgorithm::Ed25519).unwrap();
        let envelope = sign(&document, &[&key]).unwrap();
        let payload_digest = Digest::of(envelope.payload());
        OrderProposal { document, payload_digest, signers: vec![key.public().clone()], envelope }
    }

    fn pending(order: Order, back: Option<Order>) -> PendingOrder {
        PendingOrder {
            order: proposal(order),
            contingency: back.map(proposal),
            proposed_by: "alice".to_owned(),
            cancelled_by: None,
        }
    }

    fn codes(pending: &PendingOrder, change: impl FnOnce(&mut Surroundings)) -> Vec<Code> {
        let mut it = Surroundings {
            status: v1::FleetStatus { last_k: 6, ..v1::FleetStatus::default() },
            serving: Some(ReleaseView { version: "1".to_owned(), digest: digest(1) }),
            roster: Some(ROSTER),
            added: Vec::new(),
            releases: Vec::new(),
            now: UnixTime(1500),
        };
        change(&mut it);
        let blockers = pending.blockers(&it).into_iter().map(|blocker| blocker.code);
        // No release can be made up here: that it is unknown is always among the reasons.
        blockers.filter(|code| *code != Code::ReleaseUnknown).collect()
    }

    #[test]
    fn what_does_not_fit_the_fleet_is_named() {
        let good = pending(order(7, 1, 2, OnFailure::Hold, 1), None);
        assert_eq!(codes(&good, |_| ()), []);
        assert_eq!(codes(&good, |it| it.now = UnixTime(2000)), [Code::OrderExpired]);
        assert_eq!(codes(&good, |it| it.now = UnixTime(999)), [Code::OrderExpired]);
        assert_eq!(codes(&good, |it| it.status.last_k = 7), [Code::Superseded]);
        assert_eq!(codes(&good, |it| it.serving = None), [Code::OrderStale]);
        assert_eq!(codes(&good, |it| it.roster = None), [Code::SignatureInvalid]);
        for changed in [
            RosterRef { hosts: 2, ..ROSTER },
            RosterRef { revision: RosterRevision(3), ..ROSTER },
            RosterRef { digest: digest(8), ..ROSTER },
        ] {
            assert_eq!(codes(&good, |it| it.roster = Some(changed)), [Code::RosterChanged]);
        }
        let cancelled = PendingOrder { cancelled_by: Some("bob".to_owned()), ..good };
        assert_eq!(codes(&cancelled, |_| ()), [Code::OrderCancelled]);
    }

    #[test]
    fn nobody_signs_a_way_back_that_leads_elsewhere_or_allows_more() {
        let there = || order(7, 1, 2, OnFailure::Rollback, 1);
        let back = |counter, from, to, max_lapsed| order(counter, from, to, OnFailure::Hold, max_lapsed);
        assert_eq!(codes(&pending(there(), Some(back(8, 2, 1, 1))), |_| ()), []);
        let mut later = back(8, 2, 1, 1);
        later.expires_unix_ms = UnixTime(3000);
        let wrong =
            [None, Some(back(9, 2, 1, 1)), Some(back(8, 2, 3, 1)), Some(back(8, 2, 1, 2)), Some(later)];
        for back in wrong {
            assert_eq!(codes(&pending(there(), back), |_| ()), [Code::OrderInvalid]);
        }
        let unasked = pending(order(7, 1, 2, OnFailure::Hold, 1), Some(back(8, 2, 1, 1)));
        assert_eq!(codes(&unasked, |_| ()), [Code::OrderInvalid]);
    }

    #[test]
    fn an_order_goes_by_the_beginning_of_its_digest() {
        let digest = Digest::of(b"order");
        for name in [digest.to_string(), digest.hex(), digest.hex()[..8].to_owned()] {
            let name: OrderName = name.parse().unwrap();
            assert!(digest.hex().starts_with(&name.0), "{name}");
        }
        for wrong in ["", "1234567", "sha256:", "2.0.0.0.0", "ABCDEF0123", &"0".repeat(65)] {
            assert_eq!(wrong.parse::<OrderName>(), Err(NotAnOrder), "{wrong}");
        }
    }
}
