//! Breaking glass: the operators' leave, signed ahead, to start a release on a host with no coordinator; what a host keeps of
//! its use; and the operators' word that it is settled.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::document::{check_format, parse_json, to_json};
use crate::{
    Digest, Document, DocumentError, DocumentKind, Epoch, FleetName, HostName, PublicKey, RosterRef, UnixTime,
};

const FORMAT: &str = "muster.break-glass/1";

const SETTLEMENT_FORMAT: &str = "muster.glass-settlement/1";

/// What a host keeps of a token that was used on it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BrokenGlass {
    /// The token's id.
    pub id: Digest,
    /// When it was used, by the host's clock.
    pub at_unix_ms: UnixTime,
    /// What was started.
    pub release: Digest,
    /// In which epoch.
    pub epoch: Epoch,
    /// Why the token was made.
    pub reason: String,
    /// The operators' keys that had signed it, sorted.
    pub signers: Vec<PublicKey>,
    /// Whether operators have settled it.
    pub settled: bool,
}

impl BrokenGlass {
    /// How many uses a host keeps. They are what keeps a token from being used again.
    pub const KEPT_MAX: usize = 64;
}

/// That operators have looked at what a host did without a coordinator, and it takes part again.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GlassSettlement {
    format: String,
    /// The fleet.
    pub fleet: FleetName,
    /// The host.
    pub host: HostName,
    /// The tokens whose use is settled, by id. Sorted, at least one.
    pub tokens: Vec<Digest>,
    /// What was found.
    pub reason: String,
}

impl GlassSettlement {
    /// Makes a settlement and checks it; `tokens` may come in any order.
    pub fn new(
        fleet: FleetName,
        host: HostName,
        mut tokens: Vec<Digest>,
        reason: String,
    ) -> Result<Self, DocumentError> {
        tokens.sort();
        let settlement = Self { format: SETTLEMENT_FORMAT.to_owned(), fleet, host, tokens, reason };
        settlement.check()?;
        Ok(settlement)
    }

    fn check(&self) -> Result<(), DocumentError> {
        let invalid = |reason: String| {
            Err(DocumentError::Invalid { kind: DocumentKind::GlassSettlement.name(), reason })
        };
        if self.tokens.is_empty() || self.tokens.len() > BrokenGlass::KEPT_MAX {
            return invalid(format!("it settles 1 to {} tokens", BrokenGlass::KEPT_MAX));
        }
        if self.tokens.windows(2).any(|pair| pair[0] >= pair[1]) {
            return invalid("the tokens are not sorted, or listed twice".to_owned());
        }
        check_reason(&self.reason).or_else(invalid)
    }
}

impl Document for GlassSettlement {
    const KIND: DocumentKind = DocumentKind::GlassSettlement;

    fn parse(bytes: &[u8]) -> Result<Self, DocumentError> {
        let settlement: Self = parse_json(Self::KIND, bytes)?;
        check_format(Self::KIND, &settlement.format, SETTLEMENT_FORMAT)?;
        settlement.check()?;
        Ok(settlement)
    }

    fn to_bytes(&self) -> Vec<u8> {
        to_json(self)
    }
}

fn check_reason(reason: &str) -> Result<(), String> {
    if reason.trim().is_empty() || reason.len() > GlassToken::REASON_BYTES_MAX {
        return Err(format!("it needs a reason of at most {} bytes", GlassToken::REASON_BYTES_MAX));
    }
    Ok(())
}

/// That a host which is dark after a boot may start one release on its own, once, within a time.
///
/// Its id is the digest of the bytes that were signed, so that it stays the same whoever signs.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GlassToken {
    format: String,
    /// The fleet.
    pub fleet: FleetName,
    /// The hosts that may use it, each once. Sorted, at least one.
    pub hosts: Vec<HostName>,
    /// The manifest of the release that is started.
    pub release: Digest,
    /// The epoch in which the fleet serves it.
    pub epoch: Epoch,
    /// The roster that the operators had in mind.
    pub roster: RosterRef,
    /// Whether it may be used on a host that was halted, and ends that halt.
    pub end_halt: bool,
    /// Why it was made.
    pub reason: String,
    /// From when on it holds, by the host's clock.
    pub not_before_unix_ms: UnixTime,
    /// From when on it holds no more.
    pub expires_unix_ms: UnixTime,
}

/// What a token allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GlassLeave {
    /// The fleet.
    pub fleet: FleetName,
    /// The hosts, in any order.
    pub hosts: Vec<HostName>,
    /// The manifest.
    pub release: Digest,
    /// The epoch in which the fleet serves it.
    pub epoch: Epoch,
    /// The roster in force.
    pub roster: RosterRef,
    /// Whether it ends a halt.
    pub end_halt: bool,
}

impl GlassToken {
    /// The longest reason, in bytes.
    pub const REASON_BYTES_MAX: usize = 400;

    /// The longest time that a token may hold: who finds one can use it that long.
    pub const VALIDITY_MS_MAX: u64 = 7 * 24 * 3600 * 1000;

    /// The most hosts of one token.
    pub const HOSTS_MAX: usize = 1_000;

    /// Makes a token and checks it.
    pub fn new(leave: GlassLeave, reason: String, validity: Range<UnixTime>) -> Result<Self, DocumentError> {
        let GlassLeave { fleet, mut hosts, release, epoch, roster, end_halt } = leave;
        hosts.sort();
        let token = Self {
            format: FORMAT.to_owned(),
            fleet,
            hosts,
            release,
            epoch,
            roster,
            end_halt,
            reason,
            not_before_unix_ms: validity.start,
            expires_unix_ms: validity.end,
        };
        token.check()?;
        Ok(token)
    }

    /// Whether this host may use it.
    #[must_use]
    pub fn is_for(&self, host: &HostName) -> bool {
        self.hosts.binary_search(host).is_ok()
    }

    fn check(&self) -> Result<(), DocumentError> {
        let invalid =
            |reason: String| Err(DocumentError::Invalid { kind: DocumentKind::GlassToken.name(), reason });
        if self.epoch.0 == 0 {
            return invalid("in epoch 0 there is nothing to start".to_owned());
        }
        if self.hosts.is_empty() || self.hosts.len() > Self::HOSTS_MAX {
            return invalid(format!(
                "it names {} hosts, and 1 to {} may be",
                self.hosts.len(),
                Self::HOSTS_MAX
            ));
        }
        if self.hosts.windows(2).any(|pair| pair[0] >= pair[1]) {
            return invalid("the hosts are not sorted, or listed twice".to_owned());
        }
        if self.hosts.len() > self.roster.hosts as usize {
            return invalid(format!("it names more hosts than the {} of its roster", self.roster.hosts));
        }
        check_reason(&self.reason).or_else(invalid)?;
        let lasts = self.expires_unix_ms.0.checked_sub(self.not_before_unix_ms.0);
        if !lasts.is_some_and(|lasts| (1..=Self::VALIDITY_MS_MAX).contains(&lasts)) {
            return invalid("it holds for no time, or for more than 7 days".to_owned());
        }
        Ok(())
    }
}

impl Document for GlassToken {
    const KIND: DocumentKind = DocumentKind::GlassToken;

    fn parse(bytes: &[u8]) -> Result<Self, DocumentError> {
        let token: Self = parse_json(Self::KIND, bytes)?;
        check_format(Self::KIND, &token.format, FORMAT)?;
        token.check()?;
        Ok(token)
    }

    fn to_bytes(&self) -> Vec<u8> {
        to_json(self)
    }
}

#[cfg(test)]
mod tests {
    use crate::RosterRevision;

    use super::*;

    fn leave(hosts: &[&str]) -> GlassLeave {
        GlassLeave {
            fleet: FleetName::new("smars").expect("a name"),
            hosts: hosts.iter().map(|name| HostName::new(name).expect("a name")).collect(),
            release: Digest::of(b"release"),
            epoch: Epoch(4),
            roster: RosterRef { digest: Digest::of(b"roster"), revision: RosterRevision(3), hosts: 3 },
            end_halt: false,
        }
    }

    fn token(leave: GlassLeave, reason: &str, from: u64, to: u64) -> Result<GlassToken, DocumentError> {
        GlassToken::new(leave, reason.to_owned(), UnixTime(from)..UnixTime(to))
    }

    #[test]
    fn a_token_names_its_hosts_and_reads_as_it_was_written() {
        let good = token(leave(&["host-3", "host-1"]), "dr", 5, 6).expect("valid");
        assert!(good.is_for(&good.hosts[1]) && !good.is_for(&HostName::new("host-2").expect("a name")));
        assert_eq!(good.hosts[0].as_str(), "host-1");
        assert_eq!(GlassToken::parse(&good.to_bytes()), Ok(good.clone()));
        let text = String::from_utf8(good.to_bytes()).expect("JSON");
        assert!(GlassToken::parse(text.replace("host-1", "host-9").as_bytes()).is_err(), "unsorted");
        assert!(GlassToken::parse(text.replacen('{', "{\"more\":1,", 1).as_bytes()).is_err());
        assert!(GlassToken::parse(text.replace("glass/1", "glass/2").as_bytes()).is_err());
    }

    #[test]
    fn a_settlement_names_what_it_settles() {
        let (fleet, host) =
            (FleetName::new("smars").expect("a name"), HostName::new("host-1").expect("a name"));
        let settle = |tokens: Vec<Digest>, reason: &str| {
            GlassSettlement::new(fleet.clone(), host.clone(), tokens, reason.to_owned())
        };
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        let good = settle(vec![a, b], "looked at").expect("valid");
        assert!(good.tokens[0] < good.tokens[1]);
        assert_eq!(GlassSettlement::parse(&good.to_bytes()), Ok(good));
        let many = (0..=BrokenGlass::KEPT_MAX).map(|it| Digest::of(&it.to_be_bytes())).collect();
        for bad in [settle(vec![], "x"), settle(vec![a, a], "x"), settle(vec![a], ""), settle(many, "x")] {
            assert!(matches!(bad, Err(DocumentError::Invalid { .. })), "{bad:?}");
        }
    }

    #[test]
    fn a_token_that_allows_too_much_or_nothing_is_none() {
        let week = GlassToken::VALIDITY_MS_MAX;
        assert!(token(leave(&["host-1"]), "dr", 5, 5 + week).is_ok());
        let long = "x".repeat(GlassToken::REASON_BYTES_MAX + 1);
        for bad in [
            token(leave(&[]), "dr", 5, 6),
            token(leave(&["host-1", "host-1"]), "dr", 5, 6),
            token(leave(&["host-1", "host-2", "host-3", "host-4"]), "dr", 5, 6),
            token(leave(&["host-1"]), " ", 5, 6),
            token(leave(&["host-1"]), &long, 5, 6),
            token(leave(&["host-1"]), "dr", 5, 5),
            token(leave(&["host-1"]), "dr", 6, 5),
            token(leave(&["host-1"]), "dr", 5, 6 + week),
            token(GlassLeave { epoch: Epoch(0), ..leave(&["host-1"]) }, "dr", 5, 6),
        ] {
            assert!(matches!(bad, Err(DocumentError::Invalid { .. })), "{bad:?}");
        }
    }
}
