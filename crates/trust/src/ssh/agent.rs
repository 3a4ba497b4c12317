//! Signing by way of `ssh-agent`: draft-miller-ssh-agent over its Unix socket.

use std::ffi::OsString;
use std::fmt;
use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use muster_model::PublicKey;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};

use super::public::{ED25519, P256, fingerprint, of_blob, public_key};
use super::wire::{Reader, put_string};
use crate::TrustError;
use crate::keys::{Signer, is_signed_by};

/// The variable that names the socket.
const SOCKET_VARIABLE: &str = "SSH_AUTH_SOCK";

/// The longest message of the protocol in OpenSSH, in bytes; its agent reads no more either.
const FRAME_BYTES_MAX: usize = 256 << 10;

/// How long the list of keys may take: an agent has it in memory.
const LIST_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a signature may take: the agent may ask its user first (`ssh-add -c`).
const SIGN_TIMEOUT: Duration = Duration::from_secs(60);

const FAILURE: u8 = 5;
const REQUEST_IDENTITIES: u8 = 11;
const IDENTITIES_ANSWER: u8 = 12;
const SIGN_REQUEST: u8 = 13;
const SIGN_RESPONSE: u8 = 14;

/// Which key of the agent is meant.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum AgentKey {
    /// `SHA256:` and what `ssh-add -l` shows behind it.
    Fingerprint(String),
    /// A file that holds the public key.
    PublicKeyFile(PathBuf),
}

impl fmt::Display for AgentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fingerprint(fingerprint) => f.write_str(fingerprint),
            Self::PublicKeyFile(path) => write!(f, "{}", path.display()),
        }
    }
}

/// Why an agent cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SshAgentError {
    /// No agent is named.
    #[error(
        "{SOCKET_VARIABLE} is not set; start an agent with `eval $(ssh-agent)` and load the key with `ssh-add`"
    )]
    NoSocket,
    /// The agent is not there, or went away.
    #[error("cannot {action} the agent at {}; is it still running?", .socket.display())]
    Unreachable {
        /// What was tried.
        action: &'static str,
        /// Its socket.
        socket: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It did not answer in time.
    #[error("the agent did not answer within {after:?}; does it wait for somebody's consent?")]
    TimedOut {
        /// How long it was waited for.
        after: Duration,
    },
    /// It answered with something else.
    #[error("the agent answered with what is not an answer: {what}")]
    Garbage {
        /// What is wrong with it.
        what: &'static str,
    },
    /// It has other keys, or none.
    #[error(
        "the agent has {count} keys and this is not one of them; load it with `ssh-add`, and look at `ssh-add -l`"
    )]
    NoSuchKey {
        /// How many it has.
        count: usize,
    },
    /// The key is of another kind.
    #[error("{reason}")]
    Unusable {
        /// Which, and what to do.
        reason: String,
    },
    /// It said no.
    #[error("the agent refused to sign: the key was removed or locked, or its user did not consent")]
    Refused,
    /// The document is larger than agents read.
    #[error("the document has {len} bytes, and agents sign no more than {max}; sign it with a key file")]
    TooLarge {
        /// The length of what is to be signed, in bytes.
        len: usize,
        /// The limit in bytes.
        max: usize,
    },
    /// What it gave is no signature of the document by the key.
    #[error("the agent gave a signature that does not verify with the key; do not trust this agent")]
    WrongSignature,
}

/// A key that only the user's `ssh-agent` has. Every signature is a connection of its own, so that nothing is kept.
#[derive(Debug)]
pub struct AgentSigner {
    socket: PathBuf,
    public: PublicKey,
    blob: Vec<u8>,
    timeout: Duration,
}

impl AgentSigner {
    /// Looks for the key in the agent that `SSH_AUTH_SOCK` names.
    pub fn find(key: &AgentKey) -> Result<Self, TrustError> {
        let socket: Option<OsString> = std::env::var_os(SOCKET_VARIABLE).filter(|socket| !socket.is_empty());
        let socket = socket.ok_or_else(|| failed(key)(SshAgentError::NoSocket))?;
        Self::find_at(Path::new(&socket), key, LIST_TIMEOUT, SIGN_TIMEOUT)
    }

    /// Looks for the key in the agent behind `socket`, which has `list_timeout` for its keys and `sign_timeout` for
    /// each signature.
    pub fn find_at(
        socket: &Path,
        key: &AgentKey,
        list_timeout: Duration,
        sign_timeout: Duration,
    ) -> Result<Self, TrustError> {
        let wanted = match key {
            AgentKey::Fingerprint(fingerprint) => Wanted::Fingerprint(fingerprint),
            AgentKey::PublicKeyFile(path) => Wanted::Key(public_key(path)?.key),
        };
        let (blob, public) = find(socket, &wanted, list_timeout).map_err(failed(key))?;
        Ok(Self { socket: socket.to_owned(), public, blob, timeout: sign_timeout })
    }

    fn sign_once(&self, message: &[u8]) -> Result<Vec<u8>, SshAgentError> {
        let mut request = vec![SIGN_REQUEST];
        put_string(&mut request, &self.blob);
        let max = FRAME_BYTES_MAX - request.len() - 2 * size_of::<u32>();
        if message.len() > max {
            return Err(SshAgentError::TooLarge { len: message.len(), max });
        }
        put_string(&mut request, message);
        request.extend_from_slice(&0_u32.to_be_bytes());
        let answer = ask(&self.socket, &request, self.timeout)?;
        let mut reader = Reader::new(&answer);
        match reader.byte() {
            Some(SIGN_RESPONSE) => {}
            Some(FAILURE) => return Err(SshAgentError::Refused),
            Some(_) | None => return Err(SshAgentError::Garbage { what: "no signature was sent" }),
        }
        let signature = reader.string().filter(|_| reader.end().is_some());
        let signature = signature
            .and_then(|signature| of_wire(&self.public, signature))
            .ok_or(SshAgentError::Garbage { what: "the signature is damaged or of another kind of key" })?;
        if is_signed_by(&self.public, message, &signature) {
            Ok(signature)
        } else {
            Err(SshAgentError::WrongSignature)
        }
    }
}

impl Signer for AgentSigner {
    fn public(&self) -> &PublicKey {
        &self.public
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, TrustError> {
        self.sign_once(message)
            .map_err(|error| TrustError::Signing { key: self.public.clone(), source: error.into() })
    }
}

enum Wanted<'a> {
    Fingerprint(&'a str),
    Key(PublicKey),
}

fn find(
    socket: &Path,
    wanted: &Wanted<'_>,
    timeout: Duration,
) -> Result<(Vec<u8>, PublicKey), SshAgentError> {
    let answer = ask(socket, &[REQUEST_IDENTITIES], timeout)?;
    let garbage = || SshAgentError::Garbage { what: "no list of keys was sent" };
    let mut reader = Reader::new(&answer);
    if reader.byte() != Some(IDENTITIES_ANSWER) {
        return Err(garbage());
    }
    let count = reader.number().ok_or_else(garbage)?;
    for _ in 0..count {
        let blob = reader.string().ok_or_else(garbage)?;
        let _comment = reader.string().ok_or_else(garbage)?;
        let key = of_blob(blob);
        let is_wanted = match wanted {
            Wanted::Fingerprint(wanted) => fingerprint(blob) == *wanted,
            Wanted::Key(wanted) => key.as_ref() == Ok(wanted),
        };
        if is_wanted {
            let key = key.map_err(|unusable| SshAgentError::Unusable { reason: unusable.to_string() })?;
            return Ok((blob.to_vec(), key));
        }
    }
    Err(SshAgentError::NoSuchKey { count: count as usize })
}

/// Sends a request over a connection of its own and reads the answer, both within `timeout` however slowly it comes.
fn ask(socket: &Path, request: &[u8], timeout: Duration) -> Result<Vec<u8>, SshAgentError> {
    let deadline = Instant::now() + timeout;
    let failed = |action| {
        move |source: io::Error| {
            let is_late = matches!(source.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
            if is_late {
                SshAgentError::TimedOut { after: timeout }
            } else {
                SshAgentError::Unreachable { action, socket: socket.to_owned(), source }
            }
        }
    };
    let mut stream = connect(socket, timeout).map_err(failed("connect to"))?;
    let mut frame = Vec::with_capacity(request.len() + size_of::<u32>());
    put_string(&mut frame, request);
    send(&mut stream, &frame, deadline, timeout, failed("write to"))?;
    let mut len = [0; size_of::<u32>()];
    fill(&mut stream, &mut len, deadline, timeout, failed("read from"))?;
    let len = u32::from_be_bytes(len) as usize;
    if len == 0 || len > FRAME_BYTES_MAX {
        return Err(SshAgentError::Garbage { what: "it is empty, or longer than agents answer" });
    }
    let mut answer = vec![0; len];
    fill(&mut stream, &mut answer, deadline, timeout, failed("read from"))?;
    Ok(answer)
}

/// Like `UnixStream::connect`, which waits without end for an agent that accepts nobody.
fn connect(socket: &Path, timeout: Duration) -> io::Result<UnixStream> {
    let address = SocketAddrUnix::new(socket)?;
    let stream = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&stream, Timeout::Send, Some(timeout))?;
    rustix::net::connect(&stream, &address)?;
    Ok(UnixStream::from(stream))
}

/// Like `write_all`, with an end for all of it.
fn send(
    stream: &mut UnixStream,
    mut frame: &[u8],
    deadline: Instant,
    timeout: Duration,
    failed: impl Fn(io::Error) -> SshAgentError,
) -> Result<(), SshAgentError> {
    while !frame.is_empty() {
        stream.set_write_timeout(Some(left(deadline, timeout)?)).map_err(&failed)?;
        match stream.write(frame) {
            Ok(0) => return Err(failed(io::ErrorKind::WriteZero.into())),
            Ok(written) => frame = &frame[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(())
}

/// Like `read_exact`, but an agent that sends a byte now and then does not win time by it.
fn fill(
    stream: &mut UnixStream,
    buffer: &mut [u8],
    deadline: Instant,
    timeout: Duration,
    failed: impl Fn(io::Error) -> SshAgentError,
) -> Result<(), SshAgentError> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        stream.set_read_timeout(Some(left(deadline, timeout)?)).map_err(&failed)?;
        match stream.read(rest) {
            Ok(0) => return Err(failed(io::ErrorKind::UnexpectedEof.into())),
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(())
}

fn left(deadline: Instant, timeout: Duration) -> Result<Duration, SshAgentError> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(SshAgentError::TimedOut { after: timeout }) } else { Ok(left) }
}

/// RFC 8709, section 6, and RFC 5656, section 3.1.2, as [`Signer::sign`] promises them.
fn of_wire(key: &PublicKey, signature: &[u8]) -> Option<Vec<u8>> {
    let mut reader = Reader::new(signature);
    let (name, bytes) = (reader.string()?, reader.string()?);
    reader.end()?;
    match key {
        PublicKey::Ed25519(_) => (name == ED25519.as_bytes()).then(|| bytes.to_vec()),
        PublicKey::P256(_) if name == P256.as_bytes() => {
            let mut reader = Reader::new(bytes);
            let (r, s) = (reader.positive()?, reader.positive()?);
            reader.end()?;
            Some(asn1(r, s))
        }
        PublicKey::P256(_) => None,
    }
}

/// The sequence of two integers. SSH writes a positive number as DER does, and all lengths are below 128.
fn asn1(r: &[u8], s: &[u8]) -> Vec<u8> {
    const SEQUENCE: u8 = 0x30;
    const INTEGER: u8 = 0x02;
    let length = |bytes: &[u8]| u8::try_from(bytes.len()).expect("a number of P-256 has at most 33 bytes");
    let numbers = [&[INTEGER, length(r)], r, &[INTEGER, length(s)], s].concat();
    [&[SEQUENCE, length(&numbers)], &numbers[..]].concat()
}

fn failed(key: &AgentKey) -> impl Fn(SshAgentError) -> TrustError {
    let key = key.clone();
    move |source| TrustError::SshAgent { key: key.clone(), source }
}
