//! The authority: what it signs, what it refuses, and its files.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use rcgen::{BasicConstraints, DnType, IsCa, KeyUsagePurpose, PublicKeyData as _};

use super::*;

/// A request that asks for everything.
fn greedy_request(key: &KeyPair) -> Vec<u8> {
    let mut params = CertificateParams::new(vec!["evil.example".to_owned(), "10.9.8.7".to_owned()]).unwrap();
    params
        .subject_alt_names
        .push(SanType::URI("spiffe://fleet.example/operator/mallory".try_into().unwrap()));
    params.distinguished_name.push(DnType::CommonName, "mallory");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::Any];
    params.serialize_request(key).unwrap().der().to_vec()
}

fn der(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
}

#[test]
fn a_request_contributes_its_public_key_and_nothing_else() {
    let authority = authority();
    let key = KeyPair::generate().unwrap();
    let host = identity(Role::Agent, "host-1");
    let validity = an_hour();
    let issued = authority.issue_for_csr(&greedy_request(&key), &host, validity, &Usage::Client).unwrap();

    let der = der(&issued.cert_pem);
    let cert = certificate::parse(&der).unwrap();
    assert_eq!(cert.public_key().raw, key.subject_public_key_info());
    assert!(!cert.is_ca());
    let names = &cert.subject_alternative_name().unwrap().unwrap().value.general_names;
    assert_eq!(names.len(), 1, "{names:?}");
    assert_eq!(identity_of(&der).unwrap(), host);
    assert_eq!(cert.subject().to_string(), "OU=agent, CN=host-1");
    let usage = cert.key_usage().unwrap().unwrap().value;
    assert!(usage.digital_signature() && !usage.key_cert_sign() && !usage.crl_sign());
    let extended = cert.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.client_auth && !extended.server_auth && !extended.any && extended.other.is_empty());
    assert_eq!(issued.validity.not_after.0, validity.not_after.0 / 1000 * 1000);
    assert_eq!(certificate::validity_of(&cert), issued.validity);
}

#[test]
fn requests_that_prove_nothing_are_refused() {
    let authority = authority();
    let host = identity(Role::Agent, "host-1");
    let good = greedy_request(&KeyPair::generate().unwrap());
    let refused = |request: &[u8]| match authority.issue_for_csr(request, &host, an_hour(), &Usage::Client) {
        Err(Error::Request { reason }) => reason,
        other => panic!("{other:?}"),
    };
    let mut forged = good.clone();
    *forged.last_mut().unwrap() ^= 1;
    assert!(refused(&forged).contains("signature"));
    assert!(refused(&[good.as_slice(), b"x"].concat()).contains("behind it"));
    assert!(refused(b"").contains("not one in DER"));
    assert!(refused(&vec![0x30; 17 << 10]).contains("bytes"));
    for algorithm in [&rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
        let request = greedy_request(&KeyPair::generate_for(algorithm).unwrap());
        assert!(refused(&request).contains("P-256"));
    }
    // The key of somebody else, taken from their request, under a signature of one's own.
    let mut stolen = greedy_request(&KeyPair::generate().unwrap());
    let victim = KeyPair::generate().unwrap();
    let attacker_spki = {
        use x509_parser::prelude::FromDer as _;
        let (_, parsed) =
            x509_parser::certification_request::X509CertificationRequest::from_der(&stolen).unwrap();
        parsed.certification_request_info.subject_pki.raw.to_vec()
    };
    let at = stolen.windows(attacker_spki.len()).position(|window| window == attacker_spki).unwrap();
    stolen[at..at + attacker_spki.len()].copy_from_slice(&victim.subject_public_key_info());
    assert!(refused(&stolen).contains("signature"));
}

#[test]
fn usages_go_with_roles() {
    let authority = authority();
    let issue = |role, usage: &Usage| authority.issue(&identity(role, "x"), an_hour(), usage);
    for role in Role::ALL {
        let is_server = role == Role::Coordinator;
        assert_eq!(issue(role, &loopback()).is_ok(), is_server, "{role}");
        assert_eq!(issue(role, &Usage::Client).is_ok(), !is_server, "{role}");
    }
    for names in [vec![], vec!["a b".to_owned()], vec![String::new()], vec!["*.example".to_owned()]] {
        assert!(matches!(issue(Role::Coordinator, &Usage::Server { names }), Err(Error::Usage { .. })));
    }
    let foreign = "spiffe://other.example/agent/host-1".parse().unwrap();
    let result = authority.issue(&foreign, an_hour(), &Usage::Client);
    assert!(matches!(result, Err(Error::ForeignIdentity { .. })));
}

#[test]
fn a_server_knows_by_which_names_it_is_reached() {
    let authority = authority();
    let names = ["::1", "127.0.0.1", "muster.example"].map(str::to_owned).to_vec();
    let usage = Usage::Server { names: names.clone() };
    let issued = authority.issue(&identity(Role::Coordinator, "x"), an_hour(), &usage).unwrap();
    let mut found = credentials_of(&issued, &authority, None).server_names().unwrap();
    found.sort();
    assert_eq!(found, ["127.0.0.1", "::1", "muster.example"]);
    let host = issue(&authority, Role::Agent, "host-1", an_hour());
    assert_eq!(credentials_of(&host, &authority, None).server_names().unwrap(), [""; 0]);
}

#[test]
fn a_certificate_never_outlives_its_authority() {
    let authority = authority();
    let forever = Validity::starting(now(), 20 * 365 * 24 * HOUR);
    let issued = issue(&authority, Role::Agent, "host-1", forever);
    assert_eq!(issued.certificate.validity.not_after, authority.validity().not_after);
    let after = Validity { not_before: authority.validity().not_after, not_after: forever.not_after };
    let result = authority.issue(&identity(Role::Agent, "host-1"), after, &Usage::Client);
    assert!(matches!(result, Err(Error::Validity { .. })));
    let backwards = Validity { not_before: now(), not_after: ago(HOUR) };
    let result = authority.issue(&identity(Role::Agent, "host-1"), backwards, &Usage::Client);
    assert!(matches!(result, Err(Error::Validity { .. })));
}

#[test]
fn every_certificate_has_its_own_serial_even_for_one_key() {
    let authority = authority();
    let request = greedy_request(&KeyPair::generate().unwrap());
    let host = identity(Role::Agent, "host-1");
    let serial =
        || authority.issue_for_csr(&request, &host, an_hour(), &Usage::Client).unwrap().serial.to_string();
    let (first, second) = (serial(), serial());
    assert_ne!(first, second);
    assert_eq!((first.len(), second.len()), (32, 32));
}

#[test]
fn an_authority_survives_its_files() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("ca");
    let authority = authority();
    authority.save(&folder).unwrap();
    assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(fs::metadata(folder.join("ca.key")).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(matches!(authority.save(&folder), Err(Error::Write { .. })), "nothing is overwritten");

    let loaded = Authority::load(&folder).unwrap();
    assert_eq!(loaded.trust_domain(), authority.trust_domain());
    assert_eq!(loaded.spki_pin(), authority.spki_pin());
    assert_eq!(loaded.validity(), authority.validity());
    // What the loaded one issues, peers of the first one accept.
    let issued = issue(&loaded, Role::Agent, "host-1", an_hour());
    credentials_of(&issued, &authority, None);
}

#[test]
fn an_authority_with_wrong_files_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (dir.path().join("1"), dir.path().join("2"));
    let authority = authority();
    authority.save(&first).unwrap();
    self::authority().save(&second).unwrap();

    fs::copy(first.join("ca.pem"), second.join("ca.pem")).unwrap();
    assert!(matches!(Authority::load(&second), Err(Error::KeyMismatch { .. })));

    fs::set_permissions(first.join("ca.key"), Permissions::from_mode(0o640)).unwrap();
    assert!(matches!(Authority::load(&first), Err(Error::KeyFileMode { mode: 0o640, .. })));

    let leaf = issue(&authority, Role::Agent, "host-1", an_hour());
    let third = dir.path().join("3");
    create_private_directory(&third).unwrap();
    let (cert, key) = odd_leaf(&authority, &["spiffe://fleet.example"], &[]);
    fs::write(third.join("ca.pem"), cert).unwrap();
    write_private(&third.join("ca.key"), key.as_bytes()).unwrap();
    assert!(matches!(Authority::load(&third), Err(Error::NotAnAuthority { .. })));
    fs::write(third.join("ca.pem"), &leaf.certificate.cert_pem).unwrap();
    assert!(matches!(Authority::load(&third), Err(Error::Certificate { .. })));
}

/// An independent opinion on certificates and revocation lists.
#[test]
fn openssl_agrees() {
    let dir = tempfile::tempdir().unwrap();
    let authority = authority();
    let (good, bad) = (
        issue(&authority, Role::Agent, "host-1", an_hour()),
        issue(&authority, Role::Agent, "host-2", an_hour()),
    );
    let revoked = [Revoked { serial: bad.certificate.serial.clone(), since: now() }];
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let ca = file("ca.pem", authority.cert_pem());
    let crl = file("crl.pem", &authority.revocation_list(&revoked, an_hour()).unwrap());
    let verify = |leaf: &IssuedIdentity| {
        let leaf = file("leaf.pem", &leaf.certificate.cert_pem);
        let output = Command::new("openssl")
            .args(["verify", "-x509_strict", "-purpose", "sslclient", "-crl_check", "-CAfile"])
            .args([&ca, &"-CRLfile".into(), &crl, &leaf])
            .output()
            .expect("openssl is installed");
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (ok, text) = verify(&good);
    assert!(ok, "{text}");
    let (ok, text) = verify(&bad);
    assert!(!ok && text.contains("certificate revoked"), "{text}");
}

#[test]
fn credentials_are_loaded_and_what_is_wrong_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let authority = authority();
    let mut paths = CredentialPaths::in_dir(dir.path());
    let issued = issue(&authority, Role::Agent, "host-1", an_hour());
    issued.save(&paths, &authority).unwrap();
    let loaded = Credentials::load(&paths).unwrap();
    assert_eq!(loaded.identity(), &identity(Role::Agent, "host-1"));
    assert_eq!(loaded.serial(), &issued.certificate.serial);
    assert_eq!(loaded.validity(), issued.certificate.validity);
    assert_eq!(loaded.crl_validity(), None);

    // A list that was named must be there.
    let crl = dir.path().join("crl.pem");
    paths.crl = Some(crl.clone());
    let Err(Error::Read { path, .. }) = Credentials::load(&paths) else { panic!("loaded without the list") };
    assert_eq!(path, crl);
    fs::write(&crl, authority.revocation_list(&[], an_hour()).unwrap()).unwrap();
    assert!(Credentials::load(&paths).unwrap().crl_validity().unwrap().contains(now()));
    fs::write(&crl, authority.cert_pem()).unwrap();
    assert!(matches!(Credentials::load(&paths), Err(Error::Pem { what: "revocation list", .. })));
    paths.crl = None;

    fs::write(&paths.ca, &issued.certificate.cert_pem).unwrap();
    assert!(matches!(Credentials::load(&paths), Err(Error::NotAnAuthority { .. })));
    fs::write(&paths.ca, authority.cert_pem()).unwrap();

    let other = issue(&authority, Role::Agent, "host-1", an_hour());
    fs::write(&paths.certificate, &other.certificate.cert_pem).unwrap();
    assert!(matches!(Credentials::load(&paths), Err(Error::KeyMismatch { .. })));
    fs::write(&paths.certificate, "nothing").unwrap();
    assert!(matches!(Credentials::load(&paths), Err(Error::Pem { what: "certificate", .. })));
    fs::set_permissions(&paths.key, Permissions::from_mode(0o644)).unwrap();
    assert!(matches!(Credentials::load(&paths), Err(Error::KeyFileMode { .. })));
}

#[test]
fn debug_output_has_no_secrets() {
    let authority = authority();
    let issued = issue(&authority, Role::Agent, "host-1", an_hour());
    let credentials = credentials_of(&issued, &authority, None);
    let secret = issued.key_pem.lines().nth(1).unwrap();
    let tls = ClientTls::new(&credentials).unwrap();
    let text = format!("{authority:?} {issued:?} {credentials:?} {tls:?}");
    assert!(text.contains("host-1"));
    assert!(!text.contains(secret) && !text.contains("PRIVATE"), "{text}");
}
