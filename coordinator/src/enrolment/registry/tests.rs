use super::*;

const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 3600);
const START: UnixTime = UnixTime(1_700_000_000_000);

fn host(name: &str) -> HostName {
    HostName::new(name).unwrap()
}

fn key(seed: u8) -> PublicKey {
    PublicKey::Ed25519([seed; 32])
}

fn spki(seed: u8) -> Digest {
    Digest::of(&[seed])
}

fn issued(serial: &str, at: UnixTime) -> Issued {
    Issued { serial: serial.to_owned(), at, not_after: at.after(7 * DAY) }
}

fn token(registry: &mut Registry, secret: &[u8], name: &str, at: UnixTime) -> Digest {
    let digest = Digest::of(secret);
    let record =
        TokenRecord::new(host(name), BTreeSet::new(), "ann".to_owned(), at, at.after(TOKEN_LIFE_MAX));
    registry.apply(Change::Token { digest, record });
    digest
}

fn enrol(registry: &mut Registry, digest: Digest, seed: u8, serial: &str, at: UnixTime) {
    let bound =
        Bound { spki: spki(seed), attestation_key: key(seed), certificate_pem: format!("pem of {serial}") };
    registry.apply(Change::Enrolled { token: digest, bound, issued: issued(serial, at) });
}

#[test]
fn a_token_is_the_first_keys_for_its_life_and_for_its_host() {
    let mut registry = Registry::default();
    let digest = token(&mut registry, b"s", "host-1", START);
    let show = |registry: &Registry, digest: &Digest, name: &str, seed: u8, at| {
        registry.enrol(digest, &host(name), (&spki(seed), &key(seed)), at)
    };
    assert_eq!(show(&registry, &digest, "host-1", 1, START), Verdict::Bind);
    assert!(matches!(show(&registry, &digest, "host-2", 1, START), Verdict::Refused(_)));
    assert!(matches!(show(&registry, &Digest::of(b"x"), "host-1", 1, START), Verdict::Refused(_)));
    assert!(matches!(show(&registry, &digest, "host-1", 1, START.after(15 * MINUTE)), Verdict::Refused(_)));
    enrol(&mut registry, digest, 1, "0a", START);
    let again = Verdict::Again { certificate_pem: "pem of 0a".to_owned(), fleets: BTreeSet::new() };
    assert_eq!(show(&registry, &digest, "host-1", 1, START.after(14 * MINUTE)), again);
    assert_eq!(show(&registry, &digest, "host-1", 2, START), Verdict::Elsewhere { first: true });
    for (tls, attestation) in [(1, 2), (2, 1)] {
        let other = registry.enrol(&digest, &host("host-1"), (&spki(tls), &key(attestation)), START);
        assert_eq!(other, Verdict::Elsewhere { first: true }, "either key is another");
    }
    registry.apply(Change::Contested { token: digest });
    assert_eq!(show(&registry, &digest, "host-1", 2, START), Verdict::Elsewhere { first: false });
    assert!(matches!(show(&registry, &digest, "host-1", 1, START.after(15 * MINUTE)), Verdict::Refused(_)));
}

#[test]
fn tokens_are_forgotten_some_time_after_they_have_expired() {
    let mut registry = Registry::default();
    let first = token(&mut registry, b"1", "host-1", START);
    assert_eq!(registry.live_tokens(START), 1);
    assert_eq!(registry.live_tokens(START.after(TOKEN_LIFE_MAX)), 0);
    token(&mut registry, b"2", "host-2", START.after(DAY));
    assert!(registry.token(&first).is_some(), "the log can still say that it has expired");
    token(&mut registry, b"3", "host-3", START.after(2 * DAY));
    assert!(registry.token(&first).is_none());
}

#[test]
fn an_evicted_host_has_nothing_until_a_new_token_is_used() {
    let mut registry = Registry::default();
    let digest = token(&mut registry, b"s", "host-1", START);
    let unused = token(&mut registry, b"u", "host-1", START);
    enrol(&mut registry, digest, 1, "0a", START);
    registry.apply(Change::Renewed { host: host("host-1"), issued: issued("0b", START) });
    registry.apply(Change::Evicted { host: host("host-1"), at: START });
    assert!(registry.is_evicted(&host("host-1")) && !registry.is_evicted(&host("host-2")));
    assert!(registry.token(&digest).is_none() && registry.token(&unused).is_none());
    assert!(registry.recover(&host("host-1"), &spki(9), START, START).is_err());
    let listed: Vec<String> =
        registry.revocations(START).iter().map(|revoked| revoked.serial.to_string()).collect();
    assert_eq!(listed, ["0a", "0b"]);
    assert_eq!(registry.revocations(START.after(8 * DAY)).len(), 0, "they have expired by then");
    let name = IdentityName::new("host-1").unwrap();
    assert_eq!(registry.exclusions().hosts[&name], BTreeSet::new());

    let anew = token(&mut registry, b"n", "host-1", START);
    enrol(&mut registry, anew, 2, "0c", START);
    assert!(!registry.is_evicted(&host("host-1")));
    assert_eq!(
        registry.exclusions().hosts[&name],
        BTreeSet::from(["0c".parse().unwrap()]),
        "old ones stay out"
    );
}

#[test]
fn recovery_is_for_those_whose_certificate_has_expired_and_a_few_times() {
    let mut registry = Registry::default();
    let it = host("host-1");
    registry.apply(Change::Renewed { host: it.clone(), issued: issued("0a", START) });
    assert!(registry.recover(&it, &spki(1), START, START).is_err(), "its certificate is good");
    let mut now = START;
    for number in 0..RECOVERIES_MAX {
        now = now.after(7 * DAY).after(MINUTE);
        assert!(registry.recover(&it, &spki(1), now.after(11 * MINUTE), now).is_err(), "its clock is off");
        let seed = u8::try_from(number).unwrap() + 10;
        let left = RECOVERIES_MAX - number - 1;
        assert_eq!(registry.recover(&it, &spki(seed), now, now), Ok(Recovery::Issue { left }));
        let (spki, certificate_pem) = (spki(seed), format!("pem {number}"));
        let change = Change::Recovered {
            host: it.clone(),
            issued: issued("0b", now),
            spki,
            certificate_pem: certificate_pem.clone(),
        };
        registry.apply(change);
        assert_eq!(registry.recover(&it, &spki, now, now), Ok(Recovery::Again { certificate_pem, left }));
        if number == 0 {
            // A host that was off until it had ended needs another one, and its key is as good as any.
            let late = now.after(7 * DAY).after(MINUTE);
            let left = left - 1;
            assert_eq!(registry.recover(&it, &spki, late, late), Ok(Recovery::Issue { left }));
        }
    }
    let later = now.after(7 * DAY).after(MINUTE);
    assert_eq!(
        registry.recover(&it, &spki(99), later, later),
        Err("it has recovered as often as a host may")
    );
    let much_later = START.after(60 * DAY);
    assert!(registry.recover(&it, &spki(99), much_later, much_later).is_ok(), "long ago does not count");
}

#[test]
fn a_host_is_given_a_bounded_number_of_certificates() {
    let mut registry = Registry::default();
    let it = host("host-1");
    for number in 0..20_u8 {
        assert_eq!(registry.may_renew(&it, 7 * DAY, START), number < 8);
        registry.apply(Change::Renewed { host: it.clone(), issued: issued(&format!("{number:02x}"), START) });
    }
    assert_eq!(registry.hosts[&it].certificates.len(), CERTIFICATES_MAX);
    assert!(registry.may_renew(&it, 7 * DAY, START.after(DAY)));
}

#[test]
fn what_is_kept_survives_writing() {
    let mut registry = Registry::default();
    let digest = token(&mut registry, b"s", "host-1", START);
    enrol(&mut registry, digest, 1, "0a", START);
    registry.apply(Change::Revoked { serial: "0f".to_owned(), at: START });
    let text = serde_json::to_string(&registry).unwrap();
    let read: Registry = serde_json::from_str(&text).unwrap();
    assert_eq!(serde_json::to_string(&read).unwrap(), text);
    assert_eq!(read.exclusions(), registry.exclusions());
    assert_eq!(read.revoked_count(), 1);
}

#[test]
fn what_was_renewed_from_a_certificate_is_known_until_it_ends() {
    let mut registry = Registry::default();
    let who = "spiffe://a/operator/bob";
    let mut renew = |before: &str, serial: &str, at| {
        let before = before.to_owned();
        registry.apply(Change::PersonRenewed { who: who.to_owned(), before, issued: issued(serial, at) });
    };
    renew("0a", "0b", START);
    renew("0b", "0c", START);
    renew("0a", "0d", START.after(DAY));
    renew("ff", "0e", START);
    assert_eq!(registry.renewed_from("0a"), ["0b", "0c", "0d"]);
    assert_eq!(registry.renewed_from("0b"), ["0c"]);
    assert!(registry.renewed_from("0d").is_empty());
    assert_eq!(registry.may_renew_person(who, "0b", START), Ok(()));
    registry.apply(Change::Revoked { serial: "0b".to_owned(), at: START });
    assert_eq!(registry.may_renew_person(who, "0b", START), Err(PersonRefused::Revoked));

    for number in 0..RENEWALS_MAX {
        let issued = issued(&format!("{number:04x}"), START.after(8 * DAY));
        registry.apply(Change::PersonRenewed { who: who.to_owned(), before: "0a".to_owned(), issued });
    }
    let (then, later) = (START.after(9 * DAY), START.after(16 * DAY));
    assert_eq!(registry.renewed_from("0b").len(), 0, "those that have ended are forgotten");
    assert_eq!(registry.may_renew_person(who, "0a", then), Err(PersonRefused::TooMany));
    assert_eq!(registry.may_renew_person("spiffe://a/operator/ann", "0a", then), Ok(()));
    assert_eq!(registry.may_renew_person(who, "0a", later), Ok(()));
}
