//! Keys that OpenSSH keeps: files that `ssh-keygen` writes, and an `ssh-agent` that signs with what no file holds.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use muster_model::PublicKey;
use muster_trust::{AgentKey, KeySource, Signer, SigningKey, public_key};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject as _;
use tempfile::TempDir;

use crate::harness::{Fleet, PATIENCE, run, versioned, wait_until};

/// A real agent in the foreground, which ends with this.
struct SshAgent {
    process: Child,
    folder: TempDir,
}

impl SshAgent {
    #[track_caller]
    fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("muster-").tempdir().unwrap();
        let process = Command::new("ssh-agent")
            .args(["-D", "-a"])
            .arg(folder.path().join("agent"))
            .stdout(Stdio::null())
            .spawn()
            .expect("ssh-agent is needed: it is in Debian's package openssh-client");
        let agent = Self { process, folder };
        wait_until("the agent listens", PATIENCE, || agent.socket().exists().then_some(()));
        agent
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("agent")
    }

    /// Runs `ssh-add`, which reads a key from its standard input where it is told to.
    #[track_caller]
    fn add(&self, arguments: &[&str], input: &[u8]) -> Output {
        let mut process = Command::new("ssh-add")
            .args(arguments)
            .env("SSH_AUTH_SOCK", self.socket())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        process.stdin.take().unwrap().write_all(input).unwrap();
        let output = process.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        output
    }

    fn find(&self, key: &AgentKey) -> impl Signer + use<> {
        muster_trust::AgentSigner::find_at(&self.socket(), key, PATIENCE, PATIENCE).unwrap()
    }
}

impl Drop for SshAgent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Makes a key as people do.
#[track_caller]
fn ssh_keygen(folder: &Path, name: &str, arguments: &[&str]) -> PathBuf {
    let path = folder.join(name);
    let output =
        Command::new("ssh-keygen").args(["-q", "-N", "", "-f"]).arg(&path).args(arguments).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    path
}

/// What `ssh-keygen -l` shows of a key.
fn fingerprint(path: &Path) -> String {
    let output = Command::new("ssh-keygen").args(["-l", "-f"]).arg(path).output().unwrap();
    String::from_utf8(output.stdout).unwrap().split(' ').nth(1).unwrap().to_owned()
}

/// Takes an Ed25519 key out of its PKCS#8 file into the agent, as `openssh-key-v1`. Nobody else has it afterwards.
#[track_caller]
fn move_into(agent: &SshAgent, path: &Path) -> PublicKey {
    let key = SigningKey::read(path).unwrap();
    let PublicKey::Ed25519(public) = key.public() else { panic!("`muster init` makes Ed25519 keys") };
    let der = PrivatePkcs8KeyDer::from_pem_file(path).unwrap();
    // RFC 8410: the seed is an octet string in an octet string, and in version 2 the public key follows it.
    let der = der.secret_pkcs8_der();
    let at = der.windows(4).position(|window| window == [4, 34, 4, 32]).unwrap() + 4;
    let seed = &der[at..at + 32];
    let string = |bytes: &[u8]| [&u32::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat();
    let blob = [string(b"ssh-ed25519"), string(public)].concat();
    let mut private = [&[7; 8][..], &blob, &string(&[seed, public].concat()), &string(b"")].concat();
    private.extend((1..).take(private.len().next_multiple_of(8) - private.len()));
    let none = [string(b"none"), string(b"none"), string(b"")].concat();
    let file =
        [b"openssh-key-v1\0", &none[..], &1_u32.to_be_bytes(), &string(&blob), &string(&private)].concat();
    let armoured = format!(
        "-----BEGIN OPENSSH PRIVATE KEY-----\n{}\n-----END OPENSSH PRIVATE KEY-----\n",
        base64(&file)
    );
    agent.add(&["-q", "-"], armoured.as_bytes());
    fs::remove_file(path).unwrap();
    key.public().clone()
}

/// Base64 by way of the only text that holds it: a public key's. 33 bytes at a time leave no padding.
fn base64(bytes: &[u8]) -> String {
    let mut text = String::new();
    for part in bytes.chunks(33) {
        let mut padded = [0; 33];
        padded[..part.len()].copy_from_slice(part);
        let written = PublicKey::P256(padded).to_string();
        let digits = (part.len() * 4).div_ceil(3);
        text.push_str(&written["p256:".len()..][..digits]);
        text.push_str(&"=".repeat(digits.next_multiple_of(4) - digits));
    }
    text
}

#[test]
#[ignore = "needs ssh-agent, of Debian's package openssh-client: cargo test --workspace -- --ignored"]
fn keys_of_ssh_keygen_sign_from_their_file_and_from_the_agent() {
    let agent = SshAgent::start();
    let folder = tempfile::tempdir().unwrap();
    for (name, arguments) in [("ed25519", &["-t", "ed25519"][..]), ("p256", &["-t", "ecdsa", "-b", "256"])] {
        let path = ssh_keygen(folder.path(), name, arguments);
        agent.add(&["-q", path.to_str().unwrap()], b"");
        let public = path.with_extension("pub");
        let from_file = SigningKey::read(&path).unwrap();
        assert_eq!(*from_file.public(), public_key(&public).unwrap().key);
        for key in [AgentKey::Fingerprint(fingerprint(&path)), AgentKey::PublicKeyFile(public.clone())] {
            let signer = agent.find(&key);
            assert_eq!(signer.public(), from_file.public());
            // It is checked against the key before it is given out.
            for message in [&b""[..], b"message", &[0; 100_000]] {
                signer.sign(message).unwrap();
            }
        }
        let signer = agent.find(&AgentKey::PublicKeyFile(public));
        agent.add(&["-q", "-d", path.to_str().unwrap()], b"");
        let error = signer.sign(b"message").unwrap_err();
        let reason = std::error::Error::source(&error).unwrap().to_string();
        assert!(reason.contains("refused to sign"), "{reason}");
    }
}

#[test]
#[ignore = "needs ssh-agent, of Debian's package openssh-client: cargo test --workspace -- --ignored"]
fn a_flip_is_signed_by_keys_that_only_the_agent_has() {
    let agent = SshAgent::start();
    let fleet = Fleet::up(2);
    let operator = fleet.dir().join("operator");
    let mut context = fs::read_to_string(fleet.context()).unwrap();
    for role in ["operator", "release"] {
        let file = format!("{role}-signing.key");
        let key = move_into(&agent, &operator.join(&file));
        fs::write(operator.join(format!("{role}.pub")), key.to_string()).unwrap();
        context = context.replace(&file, &KeySource::from(&*format!("ssh-agent:{role}.pub")).to_string());
    }
    fs::write(fleet.context(), context).unwrap();
    let (context, socket, tree) = (fleet.context(), agent.socket(), versioned("1"));
    let environment =
        [("MUSTER_CONTEXT", context.to_str().unwrap()), ("SSH_AUTH_SOCK", socket.to_str().unwrap())];
    let muster = |arguments: &[&str]| run(&[arguments, &["--output", "json"]].concat(), &environment);

    let pushed = muster(&["release", "push", tree.argument(), "--version", "1"]).expect_code(0);
    muster(&["deploy", "1"]).expect_code(0);
    muster(&["flip", "1"]).expect_code(0);
    fleet.assert_all_serve(&pushed.text_at("/digest"));

    agent.add(&["-q", "-D"], b"");
    let tree = versioned("2");
    let refused = muster(&["release", "push", tree.argument(), "--version", "2"]).expect_code(12);
    assert!(refused.to_string().contains("ssh-add"), "{refused}");
    drop(agent);
    let gone = muster(&["release", "push", tree.argument(), "--version", "2"]).expect_code(12);
    assert!(gone.to_string().contains("is it still running?"), "{gone}");
    let unset = run(
        &["release", "push", tree.argument(), "--version", "2", "--output", "json"],
        &[("MUSTER_CONTEXT", context.to_str().unwrap()), ("SSH_AUTH_SOCK", "")],
    );
    assert!(unset.expect_code(12).to_string().contains("SSH_AUTH_SOCK"));
}
