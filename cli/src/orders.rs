//! Orders that wait for approvals, as far as they can be believed: what they say is what operators have signed.

use std::fmt;
use std::str::FromStr;

use muster_model::{
    Blocker, Code, Digest, FleetName, OnFailure, Order, OrderKind, Refusal, RosterRef, SigningRole, UnixTime,
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
                    "it is for {} hosts of roster revision {}, in force is revision {} with {} hosts",
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
            (OnFailure::Rollback, Some(back)) if back.document.leads_back(self.says()) => Ok(()),
            (OnFailure::Rollback, Some(_)) => {
                Err("the order to roll back does not lead back to where it starts")
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
        let roster = match Box::pin(session.roster(fleet)).await {
            Ok(roster) => Some(roster_ref(&roster)),
            Err(CliError::Trust { .. }) => None,
            Err(error) => return Err(error),
        };
        let releases = Box::pin(session.releases(fleet)).await?;
        Ok(Self { status, serving, roster, releases, now: unix_time() })
    }

    /// The release with this manifest, if its signatures hold.
    pub(crate) fn release(&self, manifest: Digest) -> Option<&KnownRelease> {
        self.releases.iter().find(|known| known.release.manifest == manifest)
    }
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
    use super::*;

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
