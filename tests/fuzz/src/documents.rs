//! The payloads that are signed: what is read is kept, and believed only as it was signed.

use std::collections::BTreeSet;
use std::fmt::Debug;

use muster_model::{
    Addition, Attestation, Digest, Document, GlassToken, HostPlace, Order, Release, Root, Roster,
    SigningRole, Withdrawal,
};
use muster_trust::{Authentic, TrustRoot, sign, verify, verify_attestation, verify_withdrawal};

use crate::Verdict;
use crate::fixture::{FLIP, HOSTS_MAX, KEY, KEY_PUBLIC, NOW, OTHER_KEY, ROOT, host, key_alone};

/// What holds for all documents. The envelope is one that the right key has signed.
fn read<T: Document + Clone + PartialEq + Debug>(bytes: &[u8]) -> Option<(T, Vec<u8>)> {
    let document = T::parse(bytes).ok()?;
    let written = document.to_bytes();
    assert_eq!(T::parse(&written).as_ref(), Ok(&document), "what is written is what was read");
    let envelope = sign(&document, &[&*KEY]).unwrap();
    assert_eq!(envelope.payload(), written);
    if T::KIND != Attestation::KIND && T::KIND != Withdrawal::KIND {
        let verified: Authentic<T> = verify(envelope.raw(), &key_alone()).unwrap();
        assert_eq!(**verified.document(), document);
        assert_eq!(verified.payload_digest(), Digest::of(&written));
        assert_eq!(verified.raw(), envelope.raw());
    }
    Some((document, envelope.raw().to_vec()))
}

pub(crate) fn root(bytes: &[u8]) -> Verdict {
    let Some((root, envelope)) = read::<Root>(bytes) else { return Verdict::Refused };
    for role in [SigningRole::Root, SigningRole::Release, SigningRole::Operator] {
        let keys = root.role(role);
        assert!((1..=keys.keys.len()).contains(&(keys.threshold as usize)));
    }
    let own = root.role(SigningRole::Root);
    let may_sign = own.threshold == 1 && own.keys.contains(&KEY_PUBLIC);
    let pinned = TrustRoot::pin(&envelope);
    assert_eq!(pinned.is_ok(), may_sign, "a root vouches for itself by its own keys");
    if let Ok(pinned) = pinned {
        assert_eq!(**pinned.root(), root);
        assert!(pinned.succeed(&envelope).is_err(), "no root follows itself");
        let follows = ROOT.succeed(&envelope).is_ok();
        assert_eq!(follows, root.version == 2, "only the next version follows");
    }
    Verdict::Taken
}

pub(crate) fn roster(bytes: &[u8]) -> Verdict {
    let Some((roster, _)) = read::<Roster>(bytes) else { return Verdict::Refused };
    assert!((1..=Roster::HOSTS_MAX).contains(&roster.hosts().len()));
    assert!(roster.revision().0 > 0);
    assert!(roster.hosts().windows(2).all(|pair| pair[0].name < pair[1].name), "sorted, and each host once");
    for (position, member) in roster.hosts().iter().enumerate() {
        assert_eq!(roster.position(&member.name), Some(position));
    }
    is_listed_once(&roster);
    Verdict::Taken
}

/// Each name has one place and each key one name, whether or not its host serves.
fn is_listed_once(roster: &Roster) {
    let serving = roster.hosts().iter().map(|it| (&it.name, &it.attestation_key, HostPlace::Serving));
    let parked = roster.parked().iter().map(|it| (&it.name, &it.attestation_key, HostPlace::Parked));
    let retired = roster.retired().iter().map(|it| (&it.name, &it.attestation_key, HostPlace::Retired));
    let (mut names, mut keys) = (BTreeSet::new(), BTreeSet::new());
    for (name, key, place) in serving.chain(parked).chain(retired) {
        assert_eq!(roster.place(name), Some(place));
        assert!(names.insert(name) && keys.insert(key), "{name} or its key is listed twice");
    }
}

pub(crate) fn addition(bytes: &[u8]) -> Verdict {
    let Some((addition, _)) = read::<Addition>(bytes) else { return Verdict::Refused };
    let envelope = sign(&addition, &[&*OTHER_KEY]).unwrap();
    let Ok(longer) = ROOT.verify_held_roster(envelope.raw(), NOW) else { return Verdict::Refused };
    let longer = longer.document();
    let base: Authentic<Roster> = verify(addition.base().as_bytes(), &key_alone()).unwrap();
    let base = base.document();
    assert!(base.hosts().iter().all(|host| longer.member(&host.name) == Some(host)), "none leaves");
    assert!(longer.hosts().len() > base.hosts().len() && longer.hosts().len() <= HOSTS_MAX as usize);
    assert_eq!((longer.policy(), longer.fleet()), (base.policy(), base.fleet()));
    assert_eq!((longer.parked(), longer.retired()), (base.parked(), base.retired()), "none comes back");
    is_listed_once(longer);
    assert!(longer.revision() > base.revision() && longer.fenced().is_empty());
    assert_eq!(longer.additions().map(|additions| &additions.hosts[..]), Some(addition.added()));
    assert_eq!(longer.check_follows(base.revision(), None), Ok(()));
    assert_eq!(longer.check_follows(longer.revision(), longer.additions()), Ok(()));
    Verdict::Taken
}

pub(crate) fn release(bytes: &[u8]) -> Verdict {
    read::<Release>(bytes).is_some().into()
}

pub(crate) fn order(bytes: &[u8]) -> Verdict {
    let Some((order, _)) = read::<Order>(bytes) else { return Verdict::Refused };
    assert!(order.counter.0 > 0 && order.hosts > 0 && order.max_lapsed < order.hosts);
    assert!(order.not_before_unix_ms < order.expires_unix_ms);
    assert!(order.expires_unix_ms.0 - order.not_before_unix_ms.0 <= Order::VALIDITY_MS_MAX);
    Verdict::Taken
}

pub(crate) fn break_glass(bytes: &[u8]) -> Verdict {
    let Some((token, envelope)) = read::<GlassToken>(bytes) else { return Verdict::Refused };
    assert!(token.epoch.0 > 0 && !token.reason.trim().is_empty());
    assert!((1..=token.roster.hosts as usize).contains(&token.hosts.len()));
    assert!(token.hosts.windows(2).all(|pair| pair[0] < pair[1]), "each host once");
    assert!(token.hosts.iter().all(|host| token.is_for(host)));
    let lasts = token.expires_unix_ms.0 - token.not_before_unix_ms.0;
    assert!((1..=GlassToken::VALIDITY_MS_MAX).contains(&lasts));
    assert_eq!(**ROOT.verify_glass_token(&envelope, NOW).unwrap().document(), token);
    let stranger = sign(&token, &[&*OTHER_KEY]).unwrap();
    assert!(ROOT.verify_glass_token(stranger.raw(), NOW).is_err(), "it is no operator's");
    Verdict::Taken
}

pub(crate) fn attestation(bytes: &[u8]) -> Verdict {
    let Some((attestation, envelope)) = read::<Attestation>(bytes) else { return Verdict::Refused };
    let is_ours = attestation.fleet == *FLIP.roster.document().fleet() && attestation.host == host(0);
    let verified = verify_attestation(&envelope, FLIP.roster.document());
    assert_eq!(verified.is_ok(), is_ours, "{verified:?}");
    if let Ok(verified) = verified {
        assert_eq!(**verified.document(), attestation);
    }
    Verdict::Taken
}

pub(crate) fn withdrawal(bytes: &[u8]) -> Verdict {
    let Some((withdrawal, envelope)) = read::<Withdrawal>(bytes) else { return Verdict::Refused };
    assert!(withdrawal.roster_revision.0 > 0);
    let fleet = FLIP.roster.document().fleet();
    let verify = |key| verify_withdrawal(&envelope, fleet, &host(0), key);
    let verified = verify(&KEY_PUBLIC);
    let is_ours = withdrawal.fleet == *fleet && withdrawal.host == host(0);
    assert_eq!(verified.is_ok(), is_ours, "{verified:?}");
    if let Ok(verified) = verified {
        assert_eq!(**verified.document(), withdrawal);
    }
    assert!(verify(OTHER_KEY.public()).is_err(), "another key has not signed it");
    Verdict::Taken
}
