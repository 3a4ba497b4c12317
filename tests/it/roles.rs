//! Who may call what, over real TLS: every call of the descriptors and of the coordinator's table times every role, and
//! times whoever shows no certificate.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use muster_coordinator::TABLE;
use muster_model::Code;
use muster_mtls::Role;
use prost::Message as _;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::harness::{Caller, Fleet, PATIENCE, artifact, refusal_of, wait_until};

/// Calls that are in no table: of a service that is there, of one that is not, and of none.
const UNKNOWN: [&str; 3] = ["/fleet.v1.Operations/Unheard", "/fleet.v2.Operations/Flip", "/"];

/// All calls of our services, as the descriptors have them. A new one is tried here before it has a row in the table.
fn described() -> Vec<String> {
    let files = prost_types::FileDescriptorSet::decode(muster_proto::DESCRIPTORS).unwrap();
    let services = files.file.iter().flat_map(|file| file.service.iter().map(move |it| (file.package(), it)));
    let calls = services.flat_map(|(package, service)| {
        service.method.iter().map(move |it| format!("/{package}.{}/{}", service.name(), it.name()))
    });
    calls.collect()
}

#[test]
fn every_call_is_open_to_exactly_the_roles_of_the_table() {
    let fleet = Fleet::up(1);
    let described = described();
    assert!(described.len() > 20, "{described:?}");
    let known: BTreeSet<&str> =
        described.iter().map(String::as_str).chain(TABLE.iter().map(|(path, _)| *path)).collect();
    for role in Role::ALL {
        let who = format!("spiffe://muster.local/{role}/somebody");
        let caller = Caller::connect(&fleet, &fleet.credentials(role, "somebody")).unwrap();
        for path in known.iter().copied().chain(UNKNOWN) {
            let is_allowed = TABLE.iter().any(|(row, roles)| *row == path && roles.contains(&role));
            let answer = caller.call(path);
            let denied = answer.err().filter(|status| status.code() == tonic::Code::PermissionDenied);
            assert_eq!(denied.is_none(), is_allowed, "{who} calls {path}: {denied:?}");
            let Some(denied) = denied else { continue };
            assert_eq!(refusal_of(&denied).code(), Some(Code::NotAllowed));
            assert!(denied.message().contains(&format!("{who} may not call {path}")), "{denied}");
        }
    }
    let one = fleet.release(&artifact(&[("lib/a", "a")]), "1.0");
    fleet.assert_all_serve(&one);
}

#[test]
fn whoever_shows_no_certificate_is_not_let_in() {
    let fleet = Fleet::up(1);
    let ca = CertificateDer::from_pem_slice(fleet.authority().cert_pem().as_bytes()).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(ca).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let client = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut stream = StreamOwned::new(client, tcp(&fleet));
    // In TLS 1.3 the client has finished before the server says what it thinks of the missing certificate.
    let _ = stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    let error = stream.read(&mut [0; 64]).expect_err("the server has nothing to say to a stranger");
    assert!(error.to_string().contains("CertificateRequired"), "{error}");
    wait_until("the coordinator names the reason", PATIENCE, || {
        fleet.coordinator().log().contains("peer sent no certificates").then_some(())
    });
    fleet.json(&["status"]).expect_code(0);
}

#[test]
fn an_older_tls_is_refused_with_the_alert_for_it() {
    let fleet = Fleet::up(1);
    let mut stream = tcp(&fleet);
    stream.write_all(&client_hello_of_tls_1_2()).unwrap();
    let mut alert = [0; 7];
    stream.read_exact(&mut alert).unwrap();
    // An alert (21) of two bytes: fatal (2), protocol_version (70).
    assert_eq!((alert[0], &alert[3..]), (21, &[0, 2, 2, 70][..]));
    wait_until("the coordinator names the reason", PATIENCE, || {
        fleet.coordinator().log().contains("SupportedVersionsExtensionRequired").then_some(())
    });
    fleet.json(&["status"]).expect_code(0);
}

fn tcp(fleet: &Fleet) -> TcpStream {
    let address = fleet.address();
    let stream = TcpStream::connect((address.host().as_str(), address.port())).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
    stream
}

/// What a client sends that knows nothing newer than TLS 1.2 (RFC 5246, 7.4.1.2), with a suite and a curve of its time.
fn client_hello_of_tls_1_2() -> Vec<u8> {
    const TLS_1_2: [u8; 2] = [3, 3];
    let extensions: &[&[u8]] = &[
        &[0, 10, 0, 4, 0, 2, 0, 23],         // supported_groups: secp256r1
        &[0, 11, 0, 2, 1, 0],                // ec_point_formats: uncompressed
        &[0, 13, 0, 4, 0, 2, 4, 3],          // signature_algorithms: ecdsa_secp256r1_sha256
        &[0, 16, 0, 5, 0, 3, 2, b'h', b'2'], // application_layer_protocol_negotiation: h2
    ];
    let extensions = extensions.concat();
    let length = |bytes: usize| u16::try_from(bytes).unwrap().to_be_bytes();
    let mut hello = Vec::from(TLS_1_2);
    hello.extend([7; 32]); // random
    hello.push(0); // no session
    hello.extend([0, 2, 0xc0, 0x2b]); // ECDHE-ECDSA-AES128-GCM-SHA256
    hello.extend([1, 0]); // no compression
    hello.extend(length(extensions.len()));
    hello.extend(&extensions);
    let handshake = [&[1, 0][..], &length(hello.len()), &hello].concat();
    [&[22][..], &TLS_1_2, &length(handshake.len()), &handshake].concat()
}
