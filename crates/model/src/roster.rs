//! The roster: the exact, signed set of hosts of a fleet.

use serde::{Deserialize, Serialize};

use crate::document::{check_format, parse_json, to_json};
use crate::membership::check_names;
use crate::{
    Additions, Document, DocumentError, DocumentKind, FleetName, FollowError, HostName, HostPlace, PublicKey,
    RosterRevision, Timing, UnixTime, Withdrawn,
};

const FORMAT: &str = "muster.roster/1";

/// One host of a roster.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// The host.
    pub name: HostName,
    /// The key that signs the host's attestations, and nothing else.
    pub attestation_key: PublicKey,
}

/// A statement of the operators who sign the roster: this host serves nothing any more, because its machine is off or wiped.
///
/// It is the only evidence for a host that cannot answer. It is signed with the roster that leaves the host out, so that nobody states
/// it alone where two must sign.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fence {
    /// The host, as the roster before lists it.
    pub host: HostName,
    /// How that is known.
    pub reason: String,
    /// Milliseconds since 1970 when it was stated.
    pub stated_unix_ms: UnixTime,
}

impl Fence {
    /// The longest reason, in bytes.
    pub const REASON_BYTES_MAX: usize = 400;
}

/// What a fleet accepts of its hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "lowercase")]
pub struct Policy {
    /// Whether the link must vanish at a reboot.
    #[serde(default)]
    pub boot_gate: BootGatePolicy,
    /// How far a host's clock must be trusted.
    #[serde(default)]
    pub clock: ClockPolicy,
    /// How long hosts may serve without hearing from the coordinator while they are armed, and what follows from that.
    #[serde(default)]
    pub timing: Timing,
}

/// Whether hosts are accepted whose clock may stop with them, such as virtual machines that can be paused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClockPolicy {
    /// Every host's clock must go on whatever happens to the host.
    #[default]
    Steady,
    /// A clock that may stand still is accepted: whoever pauses such a host while it is armed must fence it first.
    Any,
}

/// Whether hosts are accepted whose link outlives a reboot, so that something could serve before it was admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BootGatePolicy {
    /// Every host's link must vanish at a reboot.
    #[default]
    Required,
    /// A link that outlives a reboot is accepted: for development, or services that check the permit themselves.
    Optional,
}

/// The roster of a fleet. N is its length, never the number of hosts that are connected.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Roster {
    format: String,
    fleet: FleetName,
    revision: RosterRevision,
    policy: Policy,
    hosts: Vec<Member>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    fenced: Vec<Fence>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    parked: Vec<Withdrawn>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    retired: Vec<Withdrawn>,
    /// When operators signed it; needed only where joiners may add to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    issued_unix_ms: Option<UnixTime>,
    /// No part of any document: the rule by which an addition makes a roster sets it.
    #[serde(skip)]
    additions: Option<Box<Additions>>,
}

impl Roster {
    /// The largest roster that is accepted. So many may be parked, and as many retired.
    pub const HOSTS_MAX: usize = 20_000;

    /// Makes a roster; `hosts` may come in any order.
    pub fn new(
        fleet: FleetName,
        revision: RosterRevision,
        policy: Policy,
        mut hosts: Vec<Member>,
    ) -> Result<Self, DocumentError> {
        hosts.sort_by(|a, b| a.name.cmp(&b.name));
        let format = FORMAT.to_owned();
        let (fenced, parked, retired) = (Vec::new(), Vec::new(), Vec::new());
        let (issued_unix_ms, additions) = (None, None);
        let roster = Self {
            format,
            fleet,
            revision,
            policy,
            hosts,
            fenced,
            parked,
            retired,
            issued_unix_ms,
            additions,
        };
        roster.check()?;
        Ok(roster)
    }

    /// The same with statements about hosts that leave with it; they may come in any order.
    pub fn stating(mut self, mut fenced: Vec<Fence>) -> Result<Self, DocumentError> {
        fenced.sort_by(|a, b| a.host.cmp(&b.host));
        self.fenced = fenced;
        self.check()?;
        Ok(self)
    }

    /// The same, signed at this time.
    #[must_use]
    pub fn issued(self, at: UnixTime) -> Self {
        Self { issued_unix_ms: Some(at), ..self }
    }

    /// When the operators signed it, if it says so.
    #[must_use]
    pub const fn issued_unix_ms(&self) -> Option<UnixTime> {
        self.issued_unix_ms
    }

    /// What joiners have added to what the operators signed; nothing if they signed it as it is.
    #[must_use]
    pub fn additions(&self) -> Option<&Additions> {
        self.additions.as_deref()
    }

    /// The same with more hosts. What operators stated about the step to this roster is not stated again.
    pub(crate) fn lengthened(
        mut self,
        revision: RosterRevision,
        additions: Additions,
    ) -> Result<Self, DocumentError> {
        self.revision = revision;
        self.fenced = Vec::new();
        self.hosts.extend(additions.hosts.iter().cloned());
        self.hosts.sort_by(|a, b| a.name.cmp(&b.name));
        self.additions = Some(Box::new(additions));
        self.check()?;
        Ok(self)
    }

    /// The same with hosts that do not serve; they may come in any order.
    pub fn setting_aside(
        mut self,
        mut parked: Vec<Withdrawn>,
        mut retired: Vec<Withdrawn>,
    ) -> Result<Self, DocumentError> {
        parked.sort_by(|a, b| a.name.cmp(&b.name));
        retired.sort_by(|a, b| a.name.cmp(&b.name));
        (self.parked, self.retired) = (parked, retired);
        self.check()?;
        Ok(self)
    }

    /// Whether whoever has seen revision `held`, with these additions, may go on to this roster. That its revision is not
    /// lower is for the caller.
    ///
    /// A joiner's key signs alone, so two rosters of one revision can come about. So what was added once stays until the
    /// operators say otherwise, and they say it knowing of it: their roster has a higher revision than the one that added it.
    pub fn check_follows(
        &self,
        held: RosterRevision,
        additions: Option<&Additions>,
    ) -> Result<(), FollowError> {
        match (additions, self.additions()) {
            (None, None) => Ok(()),
            (Some(_), None) if self.revision > held => Ok(()),
            (Some(_), None) => Err(FollowError::NotLater { found: self.revision, held }),
            (Some(before), Some(next)) if before.base == next.base => {
                let stays = |member: &&Member| next.hosts.contains(member);
                match before.hosts.iter().find(|member| !stays(member)) {
                    None => Ok(()),
                    Some(gone) => Err(FollowError::Dropped { host: gone.name.clone(), held }),
                }
            }
            (None, Some(next)) if next.base_revision >= held => Ok(()),
            (Some(_), Some(next)) if next.base_revision > held => Ok(()),
            (_, Some(next)) => Err(FollowError::StaleBase { base: next.base_revision, held }),
        }
    }

    /// The hosts that serve nothing and may be asked back, sorted by name.
    #[must_use]
    pub fn parked(&self) -> &[Withdrawn] {
        &self.parked
    }

    /// The hosts that have left for good, sorted by name. None of them comes back unless the operators take it off this list.
    #[must_use]
    pub fn retired(&self) -> &[Withdrawn] {
        &self.retired
    }

    /// Where `host` stands, if it is listed.
    #[must_use]
    pub fn place(&self, host: &HostName) -> Option<HostPlace> {
        let is_in = |list: &[Withdrawn]| list.binary_search_by(|it| it.name.cmp(host)).is_ok();
        if self.position(host).is_some() {
            Some(HostPlace::Serving)
        } else if is_in(&self.parked) {
            Some(HostPlace::Parked)
        } else {
            is_in(&self.retired).then_some(HostPlace::Retired)
        }
    }

    /// The entry of `host` among those that are parked.
    #[must_use]
    pub fn parked_host(&self, host: &HostName) -> Option<&Withdrawn> {
        self.parked.binary_search_by(|it| it.name.cmp(host)).ok().map(|index| &self.parked[index])
    }

    /// The entry of `host` among those that are retired.
    #[must_use]
    pub fn retired_host(&self, host: &HostName) -> Option<&Withdrawn> {
        self.retired.binary_search_by(|it| it.name.cmp(host)).ok().map(|index| &self.retired[index])
    }

    /// The key that it lists `host` with, in whichever of its lists.
    #[must_use]
    pub fn key_of(&self, host: &HostName) -> Option<&PublicKey> {
        let aside =
            || self.parked_host(host).or_else(|| self.retired_host(host)).map(|it| &it.attestation_key);
        self.member(host).map(|member| &member.attestation_key).or_else(aside)
    }

    /// The hosts that are stated to serve nothing any more, sorted by name.
    #[must_use]
    pub fn fenced(&self) -> &[Fence] {
        &self.fenced
    }

    /// The fleet.
    #[must_use]
    pub const fn fleet(&self) -> &FleetName {
        &self.fleet
    }

    /// The revision, from 1 on.
    #[must_use]
    pub const fn revision(&self) -> RosterRevision {
        self.revision
    }

    /// What the fleet accepts.
    #[must_use]
    pub const fn policy(&self) -> Policy {
        self.policy
    }

    /// The hosts, sorted by name. Never empty.
    #[must_use]
    pub fn hosts(&self) -> &[Member] {
        &self.hosts
    }

    /// The position of `host` in the order of the roster.
    #[must_use]
    pub fn position(&self, host: &HostName) -> Option<usize> {
        self.hosts.binary_search_by(|member| member.name.cmp(host)).ok()
    }

    /// The entry of `host`.
    #[must_use]
    pub fn member(&self, host: &HostName) -> Option<&Member> {
        self.position(host).map(|index| &self.hosts[index])
    }

    fn check(&self) -> Result<(), DocumentError> {
        self.policy.timing.check()?;
        let invalid = |reason: String| Err(DocumentError::Invalid { kind: "roster", reason });
        if self.revision.0 == 0 {
            return invalid("revisions begin at 1".to_owned());
        }
        if self.hosts.is_empty() {
            return invalid("it lists no hosts; nothing can be proven of an empty fleet".to_owned());
        }
        if self.hosts.len() > Self::HOSTS_MAX {
            return invalid(format!(
                "it lists {} hosts; at most {} are supported",
                self.hosts.len(),
                Self::HOSTS_MAX
            ));
        }
        check_names("roster", "", self.hosts.iter().map(|it| &it.name))?;
        if self.fenced.len() > Self::HOSTS_MAX
            || self.fenced.windows(2).any(|pair| pair[0].host >= pair[1].host)
        {
            return invalid("the hosts that are stated to be off are not sorted, or listed twice".to_owned());
        }
        let is_short = |reason: &str| !reason.trim().is_empty() && reason.len() <= Fence::REASON_BYTES_MAX;
        if let Some(fence) = self.fenced.iter().find(|fence| !is_short(&fence.reason)) {
            let max = Fence::REASON_BYTES_MAX;
            return invalid(format!("that {} is off needs a reason of at most {max} bytes", fence.host));
        }
        Withdrawn::check_all("parked", &self.parked, Self::HOSTS_MAX, self.revision)?;
        Withdrawn::check_all("retired", &self.retired, Self::HOSTS_MAX, self.revision)?;
        let aside = self.parked.iter().chain(&self.retired).map(|it| (&it.attestation_key, &it.name));
        let mut keys: Vec<_> =
            self.hosts.iter().map(|member| (&member.attestation_key, &member.name)).chain(aside).collect();
        // A key of a host that has retired belongs to nobody else.
        keys.sort();
        if let Some(pair) = keys.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return invalid(format!("the hosts {} and {} share an attestation key", pair[0].1, pair[1].1));
        }
        let mut names: Vec<_> = keys.into_iter().map(|(_, name)| name).collect();
        names.sort();
        match names.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => invalid(format!("the host {} is in two of its lists", pair[0])),
            None => Ok(()),
        }
    }
}

impl Document for Roster {
    const KIND: DocumentKind = DocumentKind::Roster;

    fn parse(bytes: &[u8]) -> Result<Self, DocumentError> {
        let roster: Self = parse_json(Self::KIND, bytes)?;
        check_format(Self::KIND, &roster.format, FORMAT)?;
        roster.check()?;
        Ok(roster)
    }

    fn to_bytes(&self) -> Vec<u8> {
        to_json(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, key: u8) -> Member {
        Member { name: HostName::new(name).expect("a name"), attestation_key: PublicKey::Ed25519([key; 32]) }
    }

    fn roster(hosts: Vec<Member>) -> Result<Roster, DocumentError> {
        Roster::new(FleetName::new("smars").expect("a name"), RosterRevision(1), Policy::default(), hosts)
    }

    #[test]
    fn an_empty_roster_is_an_error() {
        assert!(matches!(roster(vec![]), Err(DocumentError::Invalid { .. })));
    }

    #[test]
    fn a_statement_that_a_host_is_off_has_a_reason_and_is_made_once() {
        let fence = |host: &str, reason: &str| Fence {
            host: HostName::new(host).expect("a name"),
            reason: reason.to_owned(),
            stated_unix_ms: UnixTime(7),
        };
        let one = || roster(vec![member("host-1", 1)]).expect("valid");
        let stated = one().stating(vec![fence("host-3", "off"), fence("host-2", "wiped")]).expect("valid");
        assert_eq!(stated.fenced()[0].host.as_str(), "host-2");
        assert_eq!(Roster::parse(&stated.to_bytes()), Ok(stated));
        assert!(
            !String::from_utf8(one().to_bytes()).expect("JSON").contains("fenced"),
            "older readers know none"
        );
        assert!(one().stating(vec![fence("host-2", " ")]).is_err());
        assert!(one().stating(vec![fence("host-2", "off"), fence("host-2", "off")]).is_err());
    }

    fn aside(name: &str, key: u8, reason: &str) -> Withdrawn {
        let Member { name, attestation_key } = member(name, key);
        let since_unix_ms = UnixTime(7);
        Withdrawn {
            name,
            attestation_key,
            reason: reason.to_owned(),
            since_unix_ms,
            since: None,
            fenced: false,
        }
    }

    #[test]
    fn hosts_that_are_set_aside_are_in_one_list_each_and_not_in_n() {
        let one = || roster(vec![member("host-1", 1)]).expect("valid");
        let both = one().setting_aside(
            vec![aside("host-3", 3, "disk"), aside("host-2", 2, "fan")],
            vec![aside("host-4", 4, "sold")],
        );
        let both = both.expect("valid");
        assert_eq!(both.hosts().len(), 1);
        let place = |name: &str| both.place(&HostName::new(name).expect("a name"));
        assert_eq!(place("host-1"), Some(HostPlace::Serving));
        assert_eq!((place("host-2"), place("host-4")), (Some(HostPlace::Parked), Some(HostPlace::Retired)));
        assert_eq!(place("host-5"), None);
        assert_eq!(Roster::parse(&both.to_bytes()), Ok(both));
        let text = String::from_utf8(one().to_bytes()).expect("JSON");
        assert!(!text.contains("parked") && !text.contains("retired"), "older readers know neither: {text}");
    }

    #[test]
    fn a_host_that_is_set_aside_in_a_strange_way_is_refused_by_name() {
        let one = || roster(vec![member("host-1", 1)]).expect("valid");
        for (parked, retired, named) in [
            (
                vec![aside("host-2", 2, "a"), aside("host-2", 3, "b")],
                vec![],
                "parked host host-2 is listed twice",
            ),
            (
                vec![],
                vec![aside("host-2", 2, "a"), aside("host-2", 3, "b")],
                "retired host host-2 is listed twice",
            ),
            (vec![aside("host-1", 2, "a")], vec![], "host-1 is in two"),
            (vec![aside("host-2", 2, "a")], vec![aside("host-2", 3, "b")], "host-2 is in two"),
            (vec![aside("host-2", 1, "a")], vec![], "host-1 and host-2 share"),
            (vec![aside("host-2", 2, "a")], vec![aside("host-3", 2, "b")], "host-2 and host-3 share"),
            (vec![aside("host-2", 2, " ")], vec![], "host-2 is parked needs a reason"),
            (vec![], vec![aside("host-2", 2, &"x".repeat(401))], "host-2 is retired needs a reason"),
        ] {
            let error = one().setting_aside(parked, retired).expect_err(named).to_string();
            assert!(error.contains(named), "{error}");
        }
        let sorted = one().setting_aside(vec![aside("host-2", 2, "a"), aside("host-3", 3, "b")], vec![]);
        let text = String::from_utf8(sorted.expect("valid").to_bytes()).expect("JSON");
        let swapped = text.replace("host-2", "host-9");
        assert!(Roster::parse(swapped.as_bytes()).is_err_and(|it| it.to_string().contains("not sorted")));
        let too_many: Vec<_> =
            (0..=Roster::HOSTS_MAX).map(|at| aside(&format!("h{at:05}"), 2, "a")).collect();
        let error = one().setting_aside(too_many, vec![]).expect_err("too many").to_string();
        assert!(error.contains("lists 20001 parked hosts"), "{error}");
    }

    #[test]
    fn hosts_and_keys_are_unique_and_sorted() {
        let good = roster(vec![member("host-2", 2), member("host-1", 1)]).expect("valid");
        assert_eq!(good.hosts()[0].name.as_str(), "host-1");
        assert_eq!(good.position(&HostName::new("host-2").expect("a name")), Some(1));
        assert_eq!(good.member(&HostName::new("host-3").expect("a name")), None);
        assert!(roster(vec![member("host-1", 1), member("host-1", 2)]).is_err());
        assert!(roster(vec![member("host-1", 1), member("host-2", 1)]).is_err());
        let text = String::from_utf8(good.to_bytes()).expect("JSON");
        let swapped = text.replace("host-1", "host-9");
        assert!(Roster::parse(swapped.as_bytes()).is_err_and(|e| e.to_string().contains("not sorted")));
        assert_eq!(Roster::parse(text.as_bytes()), Ok(good));
    }
}
