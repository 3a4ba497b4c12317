use std::fs::{self, Permissions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use muster_model::PublicKey;
use tempfile::TempDir;

use super::wire::{Reader, put_string};
use super::*;
use crate::keys::is_signed_by;
use crate::{KeySource, Signer, SigningKey, TrustError};

const ED25519: &str = include_str!("../../vectors/openssh/ed25519");
const ED25519_PUB: &str = include_str!("../../vectors/openssh/ed25519.pub");
const ECDSA: &str = include_str!("../../vectors/openssh/ecdsa");
const ECDSA_PUB: &str = include_str!("../../vectors/openssh/ecdsa.pub");
const ENCRYPTED: &str = include_str!("../../vectors/openssh/encrypted");
const P384: &str = include_str!("../../vectors/openssh/p384");
const RSA: &str = include_str!("../../vectors/openssh/rsa");
const RSA_PUB: &str = include_str!("../../vectors/openssh/rsa.pub");
// As `ssh-keygen -l` shows them.
const ED25519_FINGERPRINT: &str = "SHA256:y7JN/auztF5Fp6xTTcP6pMBZ21111XJmzvtfD+c23Ms";
const ECDSA_FINGERPRINT: &str = "SHA256:Hgv7PbvDvtz8sALep6lQbo9bksQiwBnQmeioSFSWWTQ";

const PATIENCE: Duration = Duration::from_secs(30);

fn file(folder: &TempDir, name: &str, text: &str) -> PathBuf {
    let path = folder.path().join(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    path
}

fn read(text: &str) -> Result<SigningKey, TrustError> {
    let folder = TempDir::new().unwrap();
    SigningKey::read(&file(&folder, "key", text))
}

fn armour(bytes: &[u8]) -> String {
    use base64::Engine as _;
    let body = base64::engine::general_purpose::STANDARD.encode(bytes);
    format!("-----BEGIN OPENSSH PRIVATE KEY-----\n{body}\n-----END OPENSSH PRIVATE KEY-----\n")
}

fn unarmour(text: &str) -> Vec<u8> {
    use base64::Engine as _;
    let body: String = text.lines().filter(|line| !line.starts_with("---")).collect();
    base64::engine::general_purpose::STANDARD.decode(body).unwrap()
}

#[test]
fn openssh_key_files_sign_for_the_public_half_beside_them() {
    for (private, public) in [(ED25519, ED25519_PUB), (ECDSA, ECDSA_PUB)] {
        let key = read(private).unwrap();
        let text = KeyText::parse(public).unwrap();
        assert_eq!(*key.public(), text.key);
        assert_eq!(text.comment.as_deref(), Some("made for a test"));
        assert!(is_signed_by(&text.key, b"message", &key.sign(b"message").unwrap()));
        assert!(read(&private.replace('\n', "\r\n")).is_ok(), "a file that went through Windows");
    }
}

#[test]
fn an_encrypted_file_leads_to_the_agent() {
    let error = read(ENCRYPTED).unwrap_err().to_string();
    assert!(
        error.contains("encrypted") && error.contains("ssh-add") && error.contains("ssh-agent:"),
        "{error}"
    );
}

#[test]
fn keys_of_other_kinds_are_refused_by_name() {
    for (text, name) in [(RSA, "ssh-rsa"), (P384, "ecdsa-sha2-nistp384")] {
        let error = read(text).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains("ssh-keygen -t ed25519"), "{error}");
    }
    let mut blob = Vec::new();
    put_string(&mut blob, b"sk-ssh-ed25519@openssh.com");
    let error = public::of_blob(&blob).unwrap_err().to_string();
    assert!(error.contains("sk-ssh-ed25519@openssh.com") && error.contains("security key"), "{error}");
    assert!(KeyText::parse(RSA_PUB).unwrap_err().contains("ssh-rsa"));
}

#[test]
fn a_damaged_file_is_no_key() {
    for text in [ED25519, ECDSA] {
        let bytes = unarmour(text);
        for at in 0..bytes.len() {
            assert!(read(&armour(&bytes[..at])).is_err(), "cut at {at}");
        }
        let whole = read(text).unwrap().public().clone();
        let mut accepted = 0;
        for at in 0..bytes.len() {
            let mut bytes = bytes.clone();
            bytes[at] ^= 1;
            if let Ok(key) = read(&armour(&bytes)) {
                // Neither the outer copy of the public key nor the comment counts.
                assert_eq!(*key.public(), whole, "byte {at}");
                accepted += 1;
            }
        }
        assert!(accepted < bytes.len() / 2, "{accepted}");
    }
}

#[test]
fn public_keys_are_read_in_our_text_and_in_that_of_openssh() {
    let parsed = KeyText::parse(ED25519_PUB).unwrap();
    let ours = format!("# alice\n\n  {}\n", parsed.key);
    assert_eq!(KeyText::parse(&ours), Ok(KeyText { key: parsed.key, comment: None }));
    let renamed = ED25519_PUB.replace("ssh-ed25519", "ssh-rsa");
    let twice = ED25519_PUB.repeat(2);
    for (wrong, word) in [
        ("", "no key"),
        ("ssh-ed25519", "public key is"),
        ("ssh-ed25519 AAAA", "damaged"),
        (renamed.as_str(), "damaged"),
        (twice.as_str(), "more than one"),
        (ED25519.lines().next().unwrap(), "private key"),
    ] {
        let error = KeyText::parse(wrong).unwrap_err();
        assert!(error.contains(word), "{wrong}: {error}");
    }
}

#[test]
fn a_key_is_named_by_its_path_or_by_what_the_agent_has() {
    let source = |text: &str| KeySource::from(text);
    assert_eq!(source("/a/b.key"), KeySource::File("/a/b.key".into()));
    let fingerprint = format!("ssh-agent:{ED25519_FINGERPRINT}");
    let by_fingerprint = KeySource::SshAgent(AgentKey::Fingerprint(ED25519_FINGERPRINT.to_owned()));
    assert_eq!(source(&fingerprint), by_fingerprint);
    assert_eq!(by_fingerprint.relative_to("/x".as_ref()), by_fingerprint);
    let by_file = source("ssh-agent:alice.pub").relative_to("/x".as_ref());
    assert_eq!(by_file.to_string(), "ssh-agent:/x/alice.pub");
    assert_eq!(source("a.key").relative_to("/x".as_ref()).to_string(), "/x/a.key");
}

/// Something that listens where an agent should, and answers each connection with `answer` of the request.
struct Impostor {
    folder: TempDir,
    serving: JoinHandle<()>,
}

impl Impostor {
    fn new(
        connections: usize,
        answer: impl Fn(&[u8], &mut UnixStream) -> std::io::Result<()> + Send + 'static,
    ) -> Self {
        let folder = TempDir::new().unwrap();
        let listener = UnixListener::bind(folder.path().join("agent")).unwrap();
        let serving = std::thread::spawn(move || {
            for _ in 0..connections {
                let (mut stream, _) = listener.accept().unwrap();
                let mut len = [0; 4];
                stream.read_exact(&mut len).unwrap();
                let mut request = vec![0; u32::from_be_bytes(len) as usize];
                stream.read_exact(&mut request).unwrap();
                // Whoever asked may have hung up by now, as it should.
                let _ = answer(&request, &mut stream);
            }
        });
        Self { folder, serving }
    }

    fn find(&self, fingerprint: &str, timeout: Duration) -> Result<AgentSigner, SshAgentError> {
        let key = AgentKey::Fingerprint(fingerprint.to_owned());
        AgentSigner::find_at(&self.folder.path().join("agent"), &key, timeout, timeout).map_err(agent_error)
    }

    fn end(self) {
        self.serving.join().unwrap();
    }
}

fn agent_error(error: TrustError) -> SshAgentError {
    if let TrustError::SshAgent { source, .. } = error {
        return source;
    }
    let TrustError::Signing { source, .. } = error else { panic!("{error}") };
    *source.downcast().unwrap()
}

fn frame(parts: &[&[u8]]) -> Vec<u8> {
    let mut frame = Vec::new();
    put_string(&mut frame, &parts.concat());
    frame
}

fn blob(line: &str) -> Vec<u8> {
    unarmour(line.split(' ').nth(1).unwrap())
}

/// The list of these public keys.
fn identities(lines: &[&str]) -> Vec<u8> {
    let mut list = vec![12];
    list.extend(u32::try_from(lines.len()).unwrap().to_be_bytes());
    for line in lines {
        put_string(&mut list, &blob(line));
        put_string(&mut list, b"comment");
    }
    frame(&[&list])
}

/// Lists one key, and answers the request to sign with `signed` of the message.
fn signing_impostor(line: &'static str, signed: impl Fn(&[u8]) -> Vec<u8> + Send + 'static) -> Impostor {
    Impostor::new(2, move |request, stream| match request[0] {
        11 => stream.write_all(&identities(&[line])),
        _ => {
            let mut reader = Reader::new(&request[1..]);
            assert_eq!(reader.string(), Some(&blob(line)[..]));
            stream.write_all(&signed(reader.string().unwrap()))
        }
    })
}

fn wire_signature(name: &str, signature: &[u8]) -> Vec<u8> {
    let (mut wire, mut answer) = (Vec::new(), vec![14]);
    put_string(&mut wire, name.as_bytes());
    put_string(&mut wire, signature);
    put_string(&mut answer, &wire);
    frame(&[&answer])
}

/// `r` and `s` of an ASN.1 signature as SSH writes them.
fn wire_numbers(asn1: &[u8]) -> Vec<u8> {
    let (mut wire, mut rest) = (Vec::new(), &asn1[2..]);
    while let [2, len, tail @ ..] = rest {
        let (number, after) = tail.split_at(usize::from(*len));
        put_string(&mut wire, number);
        rest = after;
    }
    wire
}

#[test]
fn signatures_of_both_algorithms_become_what_documents_carry() {
    // ECDSA is randomised: numbers with and without a zero in front come up.
    for _ in 0..8 {
        let ed25519 = signing_impostor(ED25519_PUB, |message| {
            wire_signature("ssh-ed25519", &read(ED25519).unwrap().sign(message).unwrap())
        });
        let p256 = signing_impostor(ECDSA_PUB, |message| {
            wire_signature("ecdsa-sha2-nistp256", &wire_numbers(&read(ECDSA).unwrap().sign(message).unwrap()))
        });
        for (agent, fingerprint) in [(ed25519, ED25519_FINGERPRINT), (p256, ECDSA_FINGERPRINT)] {
            let signer = agent.find(fingerprint, PATIENCE).unwrap();
            let signature = signer.sign(b"message").unwrap();
            assert!(is_signed_by(signer.public(), b"message", &signature));
            if let PublicKey::P256(_) = signer.public() {
                assert_eq!(signature[0], 0x30, "ASN.1");
            }
            agent.end();
        }
    }
}

#[test]
fn an_agent_that_lies_about_its_signature_is_found_out() {
    let other_message =
        |_: &[u8]| wire_signature("ssh-ed25519", &read(ED25519).unwrap().sign(b"other").unwrap());
    let agent = signing_impostor(ED25519_PUB, other_message);
    let signer = agent.find(ED25519_FINGERPRINT, PATIENCE).unwrap();
    assert!(matches!(agent_error(signer.sign(b"message").unwrap_err()), SshAgentError::WrongSignature));
    agent.end();

    let needless_zero = [0, 0, 0, 2, 0, 1, 0, 0, 0, 1, 1];
    let of_another_key = wire_signature("ssh-ed25519", &[0; 64]);
    for answer in [
        wire_signature("ecdsa-sha2-nistp256", &needless_zero),
        wire_signature("ecdsa-sha2-nistp256", &[]),
        of_another_key,
        frame(&[&[14]]),
        frame(&[&[99]]),
    ] {
        let agent = signing_impostor(ECDSA_PUB, move |_| answer.clone());
        let signer = agent.find(ECDSA_FINGERPRINT, PATIENCE).unwrap();
        let error = agent_error(signer.sign(b"message").unwrap_err());
        assert!(matches!(error, SshAgentError::Garbage { .. }), "{error}");
        agent.end();
    }
    let agent = signing_impostor(ED25519_PUB, |_| frame(&[&[5]]));
    let signer = agent.find(ED25519_FINGERPRINT, PATIENCE).unwrap();
    assert!(matches!(agent_error(signer.sign(b"message").unwrap_err()), SshAgentError::Refused));
    agent.end();
}

#[test]
fn an_agent_that_answers_garbage_or_too_much_is_not_listened_to() {
    let mut cut_short = identities(&[ED25519_PUB]);
    cut_short.truncate(40);
    cut_short[..4].copy_from_slice(&36_u32.to_be_bytes());
    let many = frame(&[&[12], &u32::MAX.to_be_bytes()]);
    for answer in [vec![0; 4], vec![0xff; 4], frame(&[&[5]]), frame(&[b"hello"]), cut_short, many] {
        let agent = Impostor::new(1, move |_, stream| stream.write_all(&answer));
        let error = agent.find(ECDSA_FINGERPRINT, PATIENCE).unwrap_err();
        assert!(matches!(error, SshAgentError::Garbage { .. }), "{error}");
        agent.end();
    }
}

#[test]
fn an_agent_that_never_answers_or_only_drips_ends_the_wait() {
    let allowed = Duration::from_millis(200);
    let wait_for_the_end = |stream: &mut UnixStream| stream.read_exact(&mut [0]);
    let silent = Impostor::new(1, move |_, stream| wait_for_the_end(stream));
    let dripping = Impostor::new(1, move |_, stream| {
        stream.write_all(&1000_u32.to_be_bytes())?;
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            stream.write_all(&[12])?;
            stream.set_read_timeout(Some(Duration::from_millis(20)))?;
            if stream.read_exact(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::UnexpectedEof) {
                return Ok(());
            }
        }
        Ok(())
    });
    for agent in [silent, dripping] {
        let begun = Instant::now();
        let error = agent.find(ED25519_FINGERPRINT, allowed).unwrap_err();
        assert!(matches!(error, SshAgentError::TimedOut { .. }), "{error}");
        assert!(begun.elapsed() < PATIENCE / 2, "{:?}", begun.elapsed());
        agent.end();
    }
}

#[test]
fn an_agent_that_accepts_nobody_or_reads_nothing_ends_the_wait() {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, bind, listen, socket};
    let allowed = Duration::from_millis(200);
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("agent");
    let listener = socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
    bind(&listener, &SocketAddrUnix::new(&path).unwrap()).unwrap();
    listen(&listener, 0).unwrap();
    let key = AgentKey::Fingerprint(ED25519_FINGERPRINT.to_owned());
    let begun = Instant::now();
    // The first waits for an answer, and its place is free only once it is accepted; the next one waits for a place.
    let _held = UnixStream::connect(&path).unwrap();
    for _ in 0..2 {
        let error = agent_error(AgentSigner::find_at(&path, &key, allowed, allowed).unwrap_err());
        assert!(matches!(error, SshAgentError::TimedOut { .. }), "{error}");
    }
    assert!(begun.elapsed() < PATIENCE / 2, "{:?}", begun.elapsed());

    let listed = UnixListener::bind(folder.path().join("deaf")).unwrap();
    let deaf = std::thread::spawn(move || {
        let (mut stream, _) = listed.accept().unwrap();
        stream.read_exact(&mut [0; 5]).unwrap();
        stream.write_all(&identities(&[ED25519_PUB])).unwrap();
        // It takes the request to sign and reads none of it, until the other side gives up.
        let (stream, _) = listed.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        while !has_hung_up(&stream) {}
    });
    let signer = AgentSigner::find_at(&folder.path().join("deaf"), &key, PATIENCE, allowed).unwrap();
    let error = agent_error(signer.sign(&[0; 200_000]).unwrap_err());
    assert!(matches!(error, SshAgentError::TimedOut { .. }), "{error}");
    deaf.join().unwrap();
}

/// Waits for the other side to close.
fn has_hung_up(stream: &UnixStream) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut wait = [PollFd::new(stream, PollFlags::empty())];
    let second = Timespec { tv_sec: 1, tv_nsec: 0 };
    poll(&mut wait, Some(&second)).unwrap();
    wait[0].revents().contains(PollFlags::HUP)
}

#[test]
fn a_key_that_the_agent_lacks_or_cannot_use_says_what_to_do() {
    let agent = Impostor::new(2, |_, stream| stream.write_all(&identities(&[ECDSA_PUB, RSA_PUB])));
    let missing = agent.find(ED25519_FINGERPRINT, PATIENCE).unwrap_err();
    assert!(matches!(missing, SshAgentError::NoSuchKey { count: 2 }), "{missing}");
    assert!(missing.to_string().contains("ssh-add"));
    let rsa = agent.find(&public::fingerprint(&blob(RSA_PUB)), PATIENCE).unwrap_err();
    assert!(rsa.to_string().contains("ssh-rsa"), "{rsa}");
    agent.end();
}

#[test]
fn an_agent_that_is_gone_says_so() {
    let agent = signing_impostor(ED25519_PUB, |_| Vec::new());
    let signer = agent.find(ED25519_FINGERPRINT, PATIENCE).unwrap();
    let hung_up = agent_error(signer.sign(b"message").unwrap_err());
    assert!(matches!(hung_up, SshAgentError::Unreachable { action: "read from", .. }), "{hung_up}");
    agent.end();
    let gone = agent_error(signer.sign(b"message").unwrap_err());
    assert!(matches!(gone, SshAgentError::Unreachable { action: "connect to", .. }), "{gone}");
}

#[test]
fn what_agents_do_not_read_is_not_sent() {
    let agent = Impostor::new(1, |_, stream| stream.write_all(&identities(&[ED25519_PUB])));
    let signer = agent.find(ED25519_FINGERPRINT, PATIENCE).unwrap();
    let error = agent_error(signer.sign(&vec![0; 256 << 10]).unwrap_err());
    assert!(
        matches!(error, SshAgentError::TooLarge { .. }) && error.to_string().contains("key file"),
        "{error}"
    );
    agent.end();
}

#[test]
fn a_public_key_file_chooses_the_key() {
    let folder = TempDir::new().unwrap();
    let path = file(&folder, "key.pub", ECDSA_PUB);
    let agent = Impostor::new(1, |_, stream| stream.write_all(&identities(&[ED25519_PUB, ECDSA_PUB])));
    let key = AgentKey::PublicKeyFile(path);
    let signer = AgentSigner::find_at(&agent.folder.path().join("agent"), &key, PATIENCE, PATIENCE).unwrap();
    assert_eq!(*signer.public(), KeyText::parse(ECDSA_PUB).unwrap().key);
    agent.end();
    let missing = AgentKey::PublicKeyFile(folder.path().join("missing.pub"));
    let error = AgentSigner::find_at("/nowhere".as_ref(), &missing, PATIENCE, PATIENCE).unwrap_err();
    assert!(matches!(error, TrustError::KeyFile { action: "open", .. }), "{error}");
}
