//! A fleet whose certificates come from somebody else's PKI: made by `openssl` alone, with identities as SPIRE gives them.

use std::fs;
use std::path::{Path, PathBuf};

use muster_model::Code;
use muster_mtls::{CredentialPaths, Credentials};
use muster_proto::v1;

use super::{new_key, openssl, text, wait_for_log};
use crate::harness::{Caller, Fleet, artifact, refusal_of};

/// A root, an intermediate authority, and what is issued below it.
struct Foreign {
    dir: PathBuf,
}

impl Foreign {
    fn create(dir: PathBuf) -> Self {
        fs::create_dir(&dir).unwrap();
        let it = Self { dir };
        let root =
            ["-x509", "-days", "10", "-subj", "/CN=their root", "-addext", "keyUsage=critical,keyCertSign"];
        let (key, pem) = (it.file("root.key"), it.file("root.pem"));
        openssl(&[&new_key(&key)[..], &root[..], &["-out", text(&pem)]].concat());
        it.sign(
            "middle",
            "/CN=their intermediate",
            "root",
            "basicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=critical,keyCertSign",
        );
        it
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn sign(&self, name: &str, subject: &str, by: &str, extensions: &str) {
        let (key, csr, pem) =
            (self.file(&format!("{name}.key")), self.file("csr"), self.file(&format!("{name}.pem")));
        openssl(&[&new_key(&key)[..], &["-subj", subject, "-out", text(&csr)]].concat());
        let ext = self.file("ext");
        fs::write(&ext, extensions).unwrap();
        let (ca, ca_key) = (self.file(&format!("{by}.pem")), self.file(&format!("{by}.key")));
        openssl(&[
            "x509",
            "-req",
            "-in",
            text(&csr),
            "-CA",
            text(&ca),
            "-CAkey",
            text(&ca_key),
            "-CAcreateserial",
            "-days",
            "5",
            "-extfile",
            text(&ext),
            "-out",
            text(&pem),
        ]);
    }

    /// Issues an identity and puts it where a daemon or the operator has its own.
    fn give(&self, id: &str, more: &str, certificate: &Path, key: &Path) {
        let usage = "basicConstraints=CA:FALSE\nkeyUsage=critical,digitalSignature\nextendedKeyUsage=clientAuth,serverAuth";
        self.sign(
            "leaf",
            "/O=SPIRE",
            "middle",
            &format!("{usage}\nsubjectAltName=URI:spiffe://muster.local/{id}{more}"),
        );
        let chain =
            ["leaf.pem", "middle.pem"].map(|file| fs::read_to_string(self.file(file)).unwrap()).concat();
        // In two steps, as others do it: in between the two do not fit.
        fs::write(certificate, chain).unwrap();
        fs::write(key, fs::read(self.file("leaf.key")).unwrap()).unwrap();
    }
}

#[test]
fn certificates_may_come_from_a_pki_of_ones_own_and_are_picked_up_when_they_change() {
    let fleet = Fleet::up(2);
    let tree = artifact(&[("lib/a", "a")]);
    fleet.release(&tree, "1.0");
    fleet.down();
    let foreign = Foreign::create(fleet.scratch().join("pki"));
    let dir = fleet.dir();
    let (coordinator, operator) = (dir.join("coordinator"), dir.join("operator"));
    let give = |id: &str, more: &str, folder: &Path, name: &str| {
        let (pem, key) = (folder.join(format!("{name}.pem")), folder.join(format!("{name}.key")));
        foreign.give(id, more, &pem, &key);
    };
    give("coordinator/coordinator", ",IP:127.0.0.1", &coordinator, "coordinator");
    give("operator/operator", "", &operator, "operator");
    for host in fleet.hosts() {
        give(&format!("agent/{}", host.name()), "", host.folder(), "agent");
    }
    for folder in
        fleet.hosts().iter().map(|host| host.folder().to_owned()).chain([coordinator.clone(), operator])
    {
        fs::copy(foreign.file("root.pem"), folder.join("ca.pem")).unwrap();
    }
    let file = coordinator.join("coordinator.toml");
    let mut settings: toml::Table = fs::read_to_string(&file).unwrap().parse().unwrap();
    settings.remove("issuer");
    settings.remove("enrol_listen");
    fs::write(&file, toml::to_string(&settings).unwrap()).unwrap();
    fleet.start(&[]);
    fleet.wait_connected(2);
    tree.write("lib/a", "b");
    let two = fleet.release(&tree, "2.0");
    fleet.assert_all_serve(&two);

    let refused = fleet.json(&["host", "token", "host-9", "--fleet", "demo"]).expect_code(12);
    refused.expect_blocker("no-issuer", "", "");
    fleet.json(&["certificate", "renew"]).expect_code(12).expect_blocker("no-issuer", "", "");

    give("agent/host-1", "", fleet.host(1).folder(), "agent");
    wait_for_log(&fleet.host(1).agent, "the certificate files were read again");
    wait_for_log(&fleet.host(1).agent, "begins anew with the new certificate");
    give("coordinator/coordinator", ",IP:127.0.0.1", &coordinator, "coordinator");
    wait_for_log(&fleet.coordinator(), "certificate files were read again");
    fleet.wait_connected(2);
    tree.write("lib/a", "c");
    let three = fleet.release(&tree, "3.0");
    fleet.assert_all_serve(&three);
    // An eviction needs no authority of ours. Nothing takes it back without one, so that it is asked for twice.
    let evict = ["host", "evict", "host-2", "--reason", "stolen"];
    let asked = fleet.json(&evict).expect_code(2);
    assert!(asked.to_string().contains("nothing would take it back"), "{asked}");
    let operator = dir.join("operator");
    let paths = CredentialPaths {
        certificate: operator.join("operator.pem"),
        key: operator.join("operator.key"),
        ca: operator.join("ca.pem"),
        crl: None,
    };
    let caller = Caller::connect(&fleet, &Credentials::load(&paths).unwrap()).unwrap();
    let request = v1::EvictHostRequest { host: "host-2".to_owned(), ..v1::EvictHostRequest::default() };
    let request = v1::EvictHostRequest { reason: "stolen".to_owned(), ..request };
    let refused = caller.wait(caller.operations().evict_host(request)).unwrap_err();
    assert_eq!(refusal_of(&refused).code(), Some(Code::NoIssuer), "whatever the program is that asks");
    fleet.wait_connected(2);
    fleet.json(&[&evict[..], &["--yes"]].concat()).expect_code(0);
    wait_for_log(&fleet.host(2).agent, "this host was evicted");
}
