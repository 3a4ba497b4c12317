//! The order: the signed statement of one flip.

use serde::{Deserialize, Serialize};

use crate::document::{check_format, parse_json, to_json};
use crate::{Digest, Document, DocumentError, DocumentKind, FleetName, RolloutId, RosterRevision, UnixTime};

const FORMAT: &str = "muster.order/1";

/// How a fleet flips.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FlipMode {
    /// No instant with two releases served; a short one with none.
    Strict,
    /// At a fixed time, with bounded and measured skew.
    Fast,
}

/// What happens when a host does not start the release it was told to open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnFailure {
    /// That host stays dark and alarmed, the others serve.
    Hold,
    /// The fleet rolls back when too many hosts fail, through the same gate.
    Rollback,
}

/// What an order is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OrderKind {
    /// Another release than the one that is served.
    Flip,
    /// The release that was served when the fleet was halted.
    Resume,
}

/// The statement of one flip, signed by the operators. Its counter is the rollout's number `k`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    format: String,
    /// The fleet.
    pub fleet: FleetName,
    /// What it is for.
    pub kind: OrderKind,
    /// The rollout's number; one more than the fleet's last.
    pub counter: RolloutId,
    /// The manifest that is served now; none before the first flip.
    pub from: Option<Digest>,
    /// The manifest to serve.
    pub to: Digest,
    /// The digest of the signed roster's payload.
    pub roster: Digest,
    /// The roster's revision.
    pub roster_revision: RosterRevision,
    /// N: how many hosts the roster has.
    pub hosts: u32,
    /// Strict or fast.
    pub mode: FlipMode,
    /// What to do when hosts fail to start.
    pub on_failure: OnFailure,
    /// How many hosts may be opened over without their closing secret, on the strength of a lapsed lease.
    pub max_lapsed: u32,
    /// Milliseconds since 1970 before which the order does not hold.
    pub not_before_unix_ms: UnixTime,
    /// Milliseconds since 1970 from which the order no longer holds.
    pub expires_unix_ms: UnixTime,
}

/// What an order says, before it becomes a document.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Flip {
    /// The manifest that is served now.
    pub from: Option<Digest>,
    /// The manifest to serve.
    pub to: Digest,
    /// Strict or fast.
    pub mode: FlipMode,
    /// What to do when hosts fail to start.
    pub on_failure: OnFailure,
    /// How many hosts may be opened over on the strength of a lapsed lease.
    pub max_lapsed: u32,
}

/// The roster an order is bound to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RosterRef {
    /// The digest of the roster's payload.
    pub digest: Digest,
    /// Its revision.
    pub revision: RosterRevision,
    /// N.
    pub hosts: u32,
}

impl Order {
    /// How many hosts may lapse unless the operator says otherwise: a host that dies at the worst moment does not keep
    /// the others dark, and a coordinator that lies about its clock gains one host, which the receipt names.
    pub const MAX_LAPSED_DEFAULT: u32 = 1;

    /// The longest time an order may be valid for.
    pub const VALIDITY_MS_MAX: u64 = 7 * 24 * 3600 * 1000;

    /// Makes an order and checks it. One that leads to what is served already resumes a fleet that was halted.
    pub fn new(
        fleet: FleetName,
        counter: RolloutId,
        roster: RosterRef,
        flip: Flip,
        validity: std::ops::Range<UnixTime>,
    ) -> Result<Self, DocumentError> {
        let kind = if flip.from == Some(flip.to) { OrderKind::Resume } else { OrderKind::Flip };
        let order = Self {
            format: FORMAT.to_owned(),
            fleet,
            kind,
            counter,
            from: flip.from,
            to: flip.to,
            roster: roster.digest,
            roster_revision: roster.revision,
            hosts: roster.hosts,
            mode: flip.mode,
            on_failure: flip.on_failure,
            max_lapsed: flip.max_lapsed,
            not_before_unix_ms: validity.start,
            expires_unix_ms: validity.end,
        };
        order.check()?;
        Ok(order)
    }

    /// Whether this is the order to go back from where `order` leads to where it starts, for the same hosts.
    #[must_use]
    pub fn leads_back(&self, order: &Self) -> bool {
        self.fleet == order.fleet
            && self.counter == order.counter.next()
            && self.from == Some(order.to)
            && Some(self.to) == order.from
            && (self.roster, self.roster_revision, self.hosts)
                == (order.roster, order.roster_revision, order.hosts)
            && self.on_failure == OnFailure::Hold
    }

    /// Whether both say the same, at whatever time.
    #[must_use]
    pub fn is_alike(&self, other: &Self) -> bool {
        let at_the_same_time = Self {
            not_before_unix_ms: other.not_before_unix_ms,
            expires_unix_ms: other.expires_unix_ms,
            ..self.clone()
        };
        at_the_same_time == *other
    }

    fn check(&self) -> Result<(), DocumentError> {
        let invalid = |reason: String| Err(DocumentError::Invalid { kind: "order", reason });
        if self.counter.0 == 0 {
            return invalid("counters begin at 1".to_owned());
        }
        if self.hosts == 0 {
            return invalid("it is for no hosts".to_owned());
        }
        if self.max_lapsed >= self.hosts {
            return invalid(format!("max_lapsed is {} of {} hosts", self.max_lapsed, self.hosts));
        }
        match self.kind {
            OrderKind::Flip if self.from == Some(self.to) => {
                return invalid(format!("it goes from {} to itself", self.to));
            }
            OrderKind::Resume if self.from != Some(self.to) => {
                return invalid(format!("it resumes {}, which is not what was served", self.to));
            }
            OrderKind::Flip | OrderKind::Resume => {}
        }
        let validity_ms = self.expires_unix_ms.0.saturating_sub(self.not_before_unix_ms.0);
        if validity_ms == 0 || validity_ms > Self::VALIDITY_MS_MAX {
            return invalid("it must be valid for more than nothing and at most seven days".to_owned());
        }
        Ok(())
    }
}

impl Document for Order {
    const KIND: DocumentKind = DocumentKind::Order;

    fn parse(bytes: &[u8]) -> Result<Self, DocumentError> {
        let order: Self = parse_json(Self::KIND, bytes)?;
        check_format(Self::KIND, &order.format, FORMAT)?;
        order.check()?;
        Ok(order)
    }

    fn to_bytes(&self) -> Vec<u8> {
        to_json(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(from: u8, to: u8, hosts: u32, validity: std::ops::Range<u64>) -> Result<Order, DocumentError> {
        let digest = |byte| Digest::from_bytes([byte; 32]);
        Order::new(
            FleetName::new("smars").expect("a name"),
            RolloutId(1),
            RosterRef { digest: digest(9), revision: RosterRevision(1), hosts },
            Flip {
                from: Some(digest(from)),
                to: digest(to),
                mode: FlipMode::Strict,
                on_failure: OnFailure::Hold,
                max_lapsed: 0,
            },
            UnixTime(validity.start)..UnixTime(validity.end),
        )
    }

    #[test]
    fn an_order_is_bound_to_hosts_time_and_a_change() {
        let good = order(1, 2, 8, 0..1000).expect("valid");
        assert_eq!(Order::parse(&good.to_bytes()), Ok(good));
        assert_eq!(order(1, 1, 8, 0..1000).map(|order| order.kind), Ok(OrderKind::Resume));
        let mut unlike = order(1, 2, 8, 0..1000).expect("valid");
        unlike.kind = OrderKind::Resume;
        assert!(Order::parse(&unlike.to_bytes()).is_err(), "a change that says it is none");
        let mut same = order(1, 1, 8, 0..1000).expect("valid");
        same.kind = OrderKind::Flip;
        assert!(Order::parse(&same.to_bytes()).is_err(), "no change");
        let mut all = order(1, 2, 8, 0..1000).expect("valid");
        all.max_lapsed = 8;
        assert!(Order::parse(&all.to_bytes()).is_err(), "nobody would have to close");
        assert!(order(1, 2, 0, 0..1000).is_err(), "no hosts");
        assert!(order(1, 2, 8, 5..5).is_err(), "never valid");
        assert!(order(1, 2, 8, 0..Order::VALIDITY_MS_MAX + 1).is_err(), "valid for ever");
    }
}
