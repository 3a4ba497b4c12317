//! Which root document was in force at each entry, whether whoever approved was somebody whom it lets approve, and whether
//! enough have approved each order that was given to its fleet.
//!
//! A log names each root that came into force. What was approved goes with the root of its time, not with the one of today:
//! a key that was removed since did approve, and one that was added since did not. Whoever verifies brings the roots that they
//! trust; the log's word decides nothing about them.

use std::collections::{BTreeMap, BTreeSet};

use muster_model::{Digest, FleetName, PublicKey, RoleKeys, RolloutId, SigningRole};
use muster_trust::TrustRoot;

use crate::entry::{Entry, Kind, ORDER_DOCUMENT, ROOT_DOCUMENT};

/// What a log says of roots and approvals that the roots themselves do not bear out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthorityFault {
    /// Another document than the trusted one of this version was in force.
    #[error("entry {entry}: root version {version} is {found} there, and {known} here")]
    OtherRoot {
        /// Where it came into force.
        entry: u64,
        /// Its version.
        version: u64,
        /// What the log names.
        found: Digest,
        /// What is trusted.
        known: Digest,
    },
    /// An entry about a root that does not say which.
    #[error("entry {entry}: it does not name a root document and its version")]
    Unnamed {
        /// Which.
        entry: u64,
    },
    /// A root that something was approved by is only ever followed by a later one.
    #[error("entry {entry}: root version {found} is in force there, after version {before} was")]
    WentBack {
        /// Where.
        entry: u64,
        /// The version before.
        before: u64,
        /// The version after it.
        found: u64,
    },
    /// Something was approved, and the log has not said by which root.
    #[error("entry {entry}: something was approved before any root was in force")]
    NoRoot {
        /// Which.
        entry: u64,
    },
    /// The key was none that could approve this.
    #[error("entry {entry}: {key} is no key that approves by root version {version}")]
    NotAuthorised {
        /// Which.
        entry: u64,
        /// The key.
        key: String,
        /// The root of the time.
        version: u64,
    },
    /// Fewer keys have approved the order than the root of its time demands.
    #[error(
        "entry {entry}: the order has {found} of the {threshold} approvals that root version {version} demands"
    )]
    NotEnough {
        /// Where it was given to its fleet.
        entry: u64,
        /// How many different keys of that root have approved it.
        found: usize,
        /// How many must.
        threshold: u32,
        /// The root of the time.
        version: u64,
    },
    /// An order that does not say which it is.
    #[error("entry {entry}: it does not name the order, its fleet and its rollout")]
    UnnamedOrder {
        /// Which.
        entry: u64,
    },
}

/// What the roots bear out of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Authority {
    /// The versions that were in force at its beginning and at its end.
    pub root_versions: Option<(u64, u64)>,
    /// Approvals by keys that could give them.
    pub approvals_verified: u64,
    /// Approvals of a time whose root is not known here.
    pub approvals_unverified: u64,
    /// Orders that enough keys had approved when they were given to their fleets.
    pub orders_verified: u64,
    /// Orders of a time whose root is not known here.
    pub orders_unverified: u64,
}

/// Follows the roots through a log.
#[derive(Debug)]
pub struct RootHistory {
    known: BTreeMap<u64, Known>,
    in_force: Option<InForce>,
    /// Who has approved which order so far, by its envelope.
    approved: BTreeMap<Digest, BTreeSet<String>>,
    /// The order at the end of the log so far: its approvals stand behind it.
    given: Option<Given>,
    /// Orders that a coordinator was writing down when it died, by what they would have begun.
    cut: BTreeMap<(FleetName, RolloutId), AuthorityFault>,
    found: Authority,
}

#[derive(Debug)]
struct Known {
    digest: Digest,
    root_keys: Vec<PublicKey>,
    operators: RoleKeys,
}

/// An order that was given to its fleet.
#[derive(Debug)]
struct Given {
    entry: u64,
    begins: (FleetName, RolloutId),
    envelope: Digest,
    root: InForce,
}

/// A root as the log tells of it.
#[derive(Debug, Clone, Copy)]
struct InForce {
    entry: u64,
    version: u64,
    digest: Digest,
    use_of_it: UseOfIt,
}

/// Whether anything was approved by a root. One that was written down right before the coordinator died may never have come
/// into force, and the coordinator then says at its next start which one is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum UseOfIt {
    None,
    Some,
}

impl RootHistory {
    /// Begins with the roots that are trusted, in any order.
    pub fn new<'a>(roots: impl IntoIterator<Item = &'a TrustRoot>) -> Self {
        let known = roots.into_iter().map(|root| {
            let (document, keys_of) = (root.root(), |role| root.root().role(role).keys.clone());
            let known = Known {
                digest: root.authentic().payload_digest(),
                root_keys: keys_of(SigningRole::Root),
                operators: document.role(SigningRole::Operator).clone(),
            };
            (document.version, known)
        });
        Self {
            known: known.collect(),
            in_force: None,
            approved: BTreeMap::new(),
            given: None,
            cut: BTreeMap::new(),
            found: Authority::default(),
        }
    }

    /// Takes the next entry into account.
    pub fn take(&mut self, entry: &Entry) -> Result<(), AuthorityFault> {
        if entry.kind != Kind::Approval {
            self.settle_order(entry.kind)?;
        }
        match entry.kind {
            Kind::Root => self.came_into_force(entry),
            Kind::Order => self.ordered(entry),
            Kind::Lead | Kind::Phase | Kind::Ended => self.went_on(entry),
            Kind::Approval if entry.documents.contains_key(ROOT_DOCUMENT) => self.root_approved(entry),
            Kind::Approval if entry.documents.contains_key(ORDER_DOCUMENT) => self.order_approved(entry),
            Kind::Approval
            | Kind::Began
            | Kind::Roster
            | Kind::Fence
            | Kind::Readmit
            | Kind::Release
            | Kind::Propose
            | Kind::Cancel
            | Kind::Refusal
            | Kind::Denied
            | Kind::Abort
            | Kind::Halt
            | Kind::Restore
            | Kind::Token
            | Kind::Enrol
            | Kind::Certificate
            | Kind::Revoke
            | Kind::Evict
            | Kind::Alarm
            | Kind::Rebuild
            | Kind::BreakGlass
            | Kind::SettleGlass
            | Kind::Drift
            | Kind::Reconcile => Ok(()),
        }
    }

    /// What was found, once every entry was taken.
    pub fn finish(mut self) -> Result<Authority, AuthorityFault> {
        // Whatever would follow, no coordinator has started anew.
        self.settle_order(Kind::Ended)?;
        if let Some(last) = &self.in_force {
            self.is_known(last)?;
        }
        Ok(self.found)
    }

    fn came_into_force(&mut self, entry: &Entry) -> Result<(), AuthorityFault> {
        let digest = entry.documents.get(ROOT_DOCUMENT).copied();
        let (Some(version), Some(digest)) = (entry.root_version, digest) else {
            return Err(AuthorityFault::Unnamed { entry: entry.entry });
        };
        if let Some(before) = &self.in_force {
            match (version > before.version, before.use_of_it) {
                (true, _) => self.is_known(before)?,
                (false, UseOfIt::None) => {}
                (false, UseOfIt::Some) => {
                    let (entry, before) = (entry.entry, before.version);
                    return Err(AuthorityFault::WentBack { entry, before, found: version });
                }
            }
        }
        let (first, _) = self.found.root_versions.unwrap_or((version, version));
        self.found.root_versions = Some((first, version));
        self.in_force = Some(InForce { entry: entry.entry, version, digest, use_of_it: UseOfIt::None });
        Ok(())
    }

    /// The keys of the root before and those of the next one sign it.
    fn root_approved(&mut self, entry: &Entry) -> Result<(), AuthorityFault> {
        let next = self.in_force.ok_or(AuthorityFault::NoRoot { entry: entry.entry })?;
        // One that never came into force may have had the version of one that did.
        let known = self.known.get(&next.version).filter(|known| known.digest == next.digest);
        let before = next.version.checked_sub(1).and_then(|before| self.known.get(&before));
        let both = [known, before];
        let is_known = both.iter().all(Option::is_some);
        let may = both.iter().flatten().any(|root| has(&root.root_keys, entry));
        self.count(entry, next.version, may, is_known)
    }

    fn order_approved(&mut self, entry: &Entry) -> Result<(), AuthorityFault> {
        let root = self.in_force.as_mut().ok_or(AuthorityFault::NoRoot { entry: entry.entry })?;
        root.use_of_it = UseOfIt::Some;
        let root = *root;
        self.is_known(&root)?;
        let known = self.known.get(&root.version);
        let may = known.is_some_and(|known| has(&known.operators.keys, entry));
        self.count(entry, root.version, may, known.is_some())?;
        if let Some(envelope) = entry.documents.get(ORDER_DOCUMENT) {
            self.approved.entry(*envelope).or_default().insert(entry.who.clone());
        }
        Ok(())
    }

    /// An order was given to its fleet. Its approvals are written down together with it, behind it; those of an order to roll
    /// back that lay ready stand further back as well.
    fn ordered(&mut self, entry: &Entry) -> Result<(), AuthorityFault> {
        let root = self.in_force.ok_or(AuthorityFault::NoRoot { entry: entry.entry })?;
        let envelope = entry.documents.get(ORDER_DOCUMENT).copied();
        let (Some(fleet), Some(rollout), Some(envelope)) = (entry.fleet.clone(), entry.rollout, envelope)
        else {
            return Err(AuthorityFault::UnnamedOrder { entry: entry.entry });
        };
        self.given = Some(Given { entry: entry.entry, begins: (fleet, rollout), envelope, root });
        Ok(())
    }

    /// All approvals of the order at the end have been seen; `next` follows.
    fn settle_order(&mut self, next: Kind) -> Result<(), AuthorityFault> {
        let Some(given) = self.given.take() else { return Ok(()) };
        let known = self.known.get(&given.root.version).filter(|known| known.digest == given.root.digest);
        let Some(Known { operators, .. }) = known else {
            self.found.orders_unverified += 1;
            return Ok(());
        };
        let approved = self.approved.get(&given.envelope);
        let by = |key: &&PublicKey| approved.is_some_and(|approved| approved.contains(&key.to_string()));
        let found = operators.keys.iter().filter(by).count();
        if found >= operators.threshold as usize {
            self.found.orders_verified += 1;
            self.cut.remove(&given.begins);
            return Ok(());
        }
        let (entry, threshold, version) = (given.entry, operators.threshold, given.root.version);
        let fault = AuthorityFault::NotEnough { entry, found, threshold, version };
        // A coordinator that died while it wrote them down has begun nothing; the next thing in the log is its next start.
        if matches!(next, Kind::Lead | Kind::Root) {
            self.cut.insert(given.begins, fault);
            return Ok(());
        }
        Err(fault)
    }

    /// A rollout that goes on has begun.
    fn went_on(&mut self, entry: &Entry) -> Result<(), AuthorityFault> {
        let begun = entry.fleet.clone().zip(entry.rollout);
        begun.and_then(|begun| self.cut.remove(&begun)).map_or(Ok(()), Err)
    }

    fn is_known(&self, root: &InForce) -> Result<(), AuthorityFault> {
        match self.known.get(&root.version) {
            Some(known) if known.digest != root.digest => Err(AuthorityFault::OtherRoot {
                entry: root.entry,
                version: root.version,
                found: root.digest,
                known: known.digest,
            }),
            Some(_) | None => Ok(()),
        }
    }

    fn count(
        &mut self,
        entry: &Entry,
        version: u64,
        may: bool,
        is_known: bool,
    ) -> Result<(), AuthorityFault> {
        match (may, is_known) {
            (true, _) => self.found.approvals_verified += 1,
            (false, false) => self.found.approvals_unverified += 1,
            (false, true) => {
                return Err(AuthorityFault::NotAuthorised {
                    entry: entry.entry,
                    key: entry.who.clone(),
                    version,
                });
            }
        }
        Ok(())
    }
}

fn has(keys: &[PublicKey], entry: &Entry) -> bool {
    keys.iter().any(|key| key.to_string() == entry.who)
}

#[cfg(test)]
mod tests;
