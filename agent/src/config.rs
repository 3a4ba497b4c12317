//! What root's local file says: which coordinator, which keys, which fleets.

use std::collections::BTreeSet;
use std::num::{NonZeroU64, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::time::Duration;

use muster_config::{Fault, Fragments};
use muster_daemon::{LogFormat, resolve_path};
use muster_model::{BootGate, Digest, EntryPath, FleetName, PublicKey};
use muster_mtls::{Address, CredentialPaths};
use serde::{Deserialize, Serialize};

use crate::refusal::chain;
use crate::{Adopted, AgentError, ClockError, DriftSettings, Enforce, OnDrift, Verity};

const FILE_NAME: &str = "agent.toml";

/// Where relative paths of the system's configuration begin.
const SYSTEM_FOLDER: &str = "/etc/muster";

/// A host is in a few fleets; more than this is a mistake.
const FLEETS_MAX: usize = 64;

const JOBS_MAX: usize = 1024;

/// Ten minutes.
const MEASURE_EVERY_S: u64 = 600;

/// What a disk that serves others as well can spare.
const MEASURE_BYTES_PER_SECOND: u64 = 64 << 20;

/// The agent's configuration, as written in TOML. Relative paths are relative to the file's folder; `credential:NAME` is
/// the credential of that name that systemd passes.
///
/// ```toml
/// coordinator = "coordinator.example:7400"
/// state = "/var/lib/muster"
/// certificate = "agent.pem"
/// key = "agent.key"
/// ca = "ca.pem"
/// root = "root.json"
/// attestation_key = "attestation.key"
/// guard_socket = "/run/muster/guard.sock"
///
/// [[fleet]]
/// name = "smars"
/// boot_gate = "volatile"
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentConfig {
    /// The coordinator's `host:port`.
    pub coordinator: String,
    /// Where hosts without a good certificate are expected, `host:port`: there the agent recovers once its own has expired.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enrolment: Option<String>,
    /// Where blobs, trees and journals are kept.
    pub state: PathBuf,
    /// The certificate; its identity is this host's name.
    pub certificate: PathBuf,
    /// The certificate's key.
    pub key: PathBuf,
    /// The authorities that are trusted.
    pub ca: PathBuf,
    /// The revocation lists, if there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crl: Option<PathBuf>,
    /// The pinned root document: which keys may sign orders, rosters and releases.
    pub root: PathBuf,
    /// The key that signs this host's attestations.
    pub attestation_key: PathBuf,
    /// The public key of the coordinator's audit log, in its text form. Without it, the first one that is seen is kept to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit_key: Option<PublicKey>,
    /// The guard's socket.
    pub guard_socket: PathBuf,
    /// How many threads read and hash a tree while somebody waits for it; all cores by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jobs: Option<NonZeroUsize>,
    /// How far this host's time of day may be off, in milliseconds, as its time daemon keeps it. Without it the host takes
    /// no part in flips in fast mode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_error_ms: Option<u64>,
    /// Where chrony keeps the time of day, how it is asked for the error of the clock instead: `["chronyc"]`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub chronyc: Vec<String>,
    /// How often all that is served is measured, in seconds, whether or not a change was told; 0: never, and changes are not looked
    /// for at all.
    #[serde(default = "default_measure_every_s", skip_serializing_if = "is_default_measure_every_s")]
    pub measure_every_s: u64,
    /// How fast that reads, in bytes a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measure_bytes_per_second: Option<NonZeroU64>,
    /// Whether files of releases are to be sealed by the kernel, with fs-verity: `auto`, `require` or `off`.
    #[serde(default, skip_serializing_if = "Verity::is_auto")]
    pub verity: Verity,
    /// How the log is written.
    #[serde(default, skip_serializing)]
    pub log: LogFormat,
    /// The fleets that this host is in.
    #[serde(rename = "fleet")]
    pub fleets: Vec<FleetSettings>,
}

/// One fleet of this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FleetSettings {
    /// The fleet.
    pub name: FleetName,
    /// Whether the link that the guard makes vanishes at a reboot: `volatile` for a link on a tmpfs.
    #[serde(default = "no_boot_gate")]
    pub boot_gate: BootGate,
    /// What follows when what is served changes on the disk: `alarm`, or `fence`, which stops it as well.
    #[serde(default, skip_serializing_if = "OnDrift::is_alarm")]
    pub on_drift: OnDrift,
    /// How much Muster may do to the fleet's service on this host.
    #[serde(default, skip_serializing_if = "Enforce::is_full")]
    pub enforce: Enforce,
    /// The folder that the fleet's service runs from before any release of the fleet does, for `muster adopt`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adopt_from: Option<PathBuf>,
    /// Paths in it that the service writes to, as `mutable` in a release's `muster.toml`: they are not measured.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub adopt_mutable: Vec<EntryPath>,
}

impl FleetSettings {
    /// What runs before any release does, if it is to be adopted.
    #[must_use]
    pub fn adopted(&self) -> Option<Adopted> {
        self.adopt_from.clone().map(|from| Adopted::new(from, self.adopt_mutable.clone()))
    }
}

const fn default_measure_every_s() -> u64 {
    MEASURE_EVERY_S
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
const fn is_default_measure_every_s(seconds: &u64) -> bool {
    *seconds == MEASURE_EVERY_S
}

impl AgentConfig {
    /// Reads and checks `file` with its drop-ins, or `agent.toml` in the system's folders.
    pub fn load(file: Option<&Path>) -> Result<Self, AgentError> {
        Self::load_with(file, Credentials::Present)
    }

    /// As [`Self::load`], for what is done on the host without any key: credentials that systemd passes to the agent alone keep
    /// their names.
    pub(crate) fn load_without_keys(file: Option<&Path>) -> Result<Self, AgentError> {
        Self::load_with(file, Credentials::Elsewhere)
    }

    fn load_with(file: Option<&Path>, credentials: Credentials) -> Result<Self, AgentError> {
        let folder = file.map_or(Path::new(SYSTEM_FOLDER), |file| file.parent().unwrap_or(Path::new("")));
        Self::checked(&Self::fragments(file)?)?.relative_to(folder, credentials)
    }

    /// The files that [`Self::load`] reads.
    pub(crate) fn fragments(file: Option<&Path>) -> Result<Fragments, AgentError> {
        let fragments = match file {
            Some(file) => Fragments::from_file(file),
            None => Fragments::from_system(FILE_NAME),
        };
        fragments.map_err(|source| AgentError::Config { source })
    }

    /// Where the bound on the error of this host's time of day comes from.
    #[must_use]
    pub fn clock_error(&self) -> ClockError {
        match (self.clock_error_ms, self.chronyc.as_slice()) {
            (Some(ms), _) => ClockError::Stated(ms),
            (None, []) => ClockError::Unknown,
            (None, command) => ClockError::Chrony(command.to_vec()),
        }
    }

    /// How the trees that are served are watched.
    #[must_use]
    pub fn drift(&self) -> Option<DriftSettings> {
        let rate = self.measure_bytes_per_second.map_or(MEASURE_BYTES_PER_SECOND, NonZeroU64::get);
        let every = Duration::from_secs(self.measure_every_s);
        let settings = DriftSettings { every, bytes_per_second_max: rate, on_drift: OnDrift::Alarm };
        (self.measure_every_s > 0).then_some(settings)
    }

    /// Where the credentials are.
    #[must_use]
    pub fn credential_paths(&self) -> CredentialPaths {
        CredentialPaths {
            certificate: self.certificate.clone(),
            key: self.key.clone(),
            ca: self.ca.clone(),
            crl: self.crl.clone(),
        }
    }

    /// The coordinator's address.
    pub fn address(&self) -> Result<Address, AgentError> {
        self.coordinator.parse().map_err(|source| AgentError::Credentials { source })
    }

    /// Where it recovers from an expired certificate.
    pub fn enrolment_address(&self) -> Result<Option<Address>, AgentError> {
        let address = self.enrolment.as_deref().map(str::parse).transpose();
        address.map_err(|source| AgentError::Credentials { source })
    }

    /// How many threads read and hash a tree.
    #[must_use]
    pub fn jobs(&self) -> NonZeroUsize {
        self.jobs.or_else(|| std::thread::available_parallelism().ok()).unwrap_or(NonZeroUsize::MIN)
    }

    /// A digest of all settings that bear on what is served and attested.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of(&serde_json::to_vec(self).expect("settings have string keys and UTF-8 paths"))
    }

    fn relative_to(mut self, folder: &Path, credentials: Credentials) -> Result<Self, AgentError> {
        let paths = [
            &mut self.state,
            &mut self.certificate,
            &mut self.key,
            &mut self.ca,
            &mut self.root,
            &mut self.attestation_key,
            &mut self.guard_socket,
        ];
        let adopted = self.fleets.iter_mut().filter_map(|fleet| fleet.adopt_from.as_mut());
        for path in paths.into_iter().chain(&mut self.crl).chain(adopted) {
            // `.` names the folder itself and not a folder in it.
            *path = if path.as_path() == Path::new(".") {
                folder.to_owned()
            } else {
                match (resolve_path(path, folder), credentials) {
                    (Ok(resolved), _) => resolved,
                    (Err(muster_daemon::Error::NoCredentials { .. }), Credentials::Elsewhere) => path.clone(),
                    (Err(source), _) => return Err(AgentError::Daemon { source }),
                }
            };
            if path.as_os_str().is_empty() {
                *path = PathBuf::from(".");
            }
        }
        Ok(self)
    }

    fn checked(fragments: &Fragments) -> Result<Self, AgentError> {
        let wrong = |source| AgentError::Config { source };
        let config: Self = fragments.merge().map_err(wrong)?;
        match config.faults().as_slice() {
            [] => Ok(config),
            faults => Err(wrong(fragments.refuse(faults))),
        }
    }

    /// Everything that the types do not say.
    fn faults(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        let addresses =
            [("coordinator", self.address().err()), ("enrolment", self.enrolment_address().err())];
        for (key, error) in addresses.into_iter().filter_map(|(key, error)| Some((key, error?))) {
            faults.push(Fault::new(key, chain(&error)));
        }
        if self.fleets.is_empty() {
            faults.push(Fault::new("fleet", "there is no fleet; write a `[[fleet]]` with a `name`"));
        }
        if self.fleets.len() > FLEETS_MAX {
            faults.push(Fault::new("fleet", format!("{} fleets; at most {FLEETS_MAX}", self.fleets.len())));
        }
        if let Some(jobs) = self.jobs.filter(|jobs| jobs.get() > JOBS_MAX) {
            faults.push(Fault::new("jobs", format!("`jobs` is {jobs}; at most {JOBS_MAX}")));
        }
        if self.clock_error_ms.is_some() && !self.chronyc.is_empty() {
            let reason = "`clock_error_ms` states what `chronyc` is to be asked for; leave one of them out";
            faults.push(Fault::new("clock_error_ms", reason));
        }
        let mut names = BTreeSet::new();
        for (index, fleet) in self.fleets.iter().enumerate() {
            if !fleet.on_drift.is_alarm() && self.measure_every_s == 0 {
                let reason = "it needs somebody who looks, and `measure_every_s` is 0";
                faults.push(Fault::new(format!("fleet[{index}].on_drift"), reason));
            }
            if !names.insert(&fleet.name) {
                let reason = format!("fleet {} is there twice", fleet.name);
                faults.push(Fault::new(format!("fleet[{index}].name"), reason));
            }
        }
        faults
    }
}

/// Whether the credentials that a configuration names were passed to this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Credentials {
    Present,
    /// To the agent, and this process is not the agent.
    Elsewhere,
}

const fn no_boot_gate() -> BootGate {
    BootGate::None
}

#[cfg(test)]
mod tests {
    use muster_config::Fragment;

    use super::*;

    const BUNDLE: &str = r#"
        coordinator = "127.0.0.1:7400"
        state = "."
        certificate = "agent.pem"
        key = "agent.key"
        ca = "ca.pem"
        root = "root.json"
        attestation_key = "attestation.key"
        guard_socket = "/run/muster/guard.sock"
    "#;

    fn parse(text: &str) -> Result<AgentConfig, AgentError> {
        let fragment = Fragment { path: "agent.toml".into(), text: text.to_owned() };
        let fragments = Fragments::new(vec![fragment]).unwrap();
        AgentConfig::checked(&fragments)?.relative_to(Path::new("/etc/muster"), Credentials::Present)
    }

    #[test]
    fn whether_the_kernel_seals_is_one_of_three_words() {
        let with = |line: &str| parse(&format!("{BUNDLE}\n{line}\n[[fleet]]\nname = 'web'"));
        assert_eq!(with("").unwrap().verity, Verity::Auto);
        for (word, verity) in [("auto", Verity::Auto), ("require", Verity::Require), ("off", Verity::Off)] {
            assert_eq!(with(&format!("verity = '{word}'")).unwrap().verity, verity);
        }
        let error = crate::refusal::chain(&with("verity = 'yes'").unwrap_err());
        assert!(error.contains("`auto`, `require`"), "{error}");
        // What is attested of a configuration is as before where nothing is said.
        let digests = ["", "verity = 'auto'"].map(|line| with(line).unwrap().digest());
        assert_eq!(digests[0], digests[1]);
        assert_ne!(with("verity = 'require'").unwrap().digest(), digests[0]);
    }

    #[test]
    fn a_bundle_is_read_and_its_paths_are_the_files() {
        let config = parse(&format!(
            "{BUNDLE}\ncrl = 'crl.pem'\n[[fleet]]\nname = 'smars'\n[[fleet]]\nname = 'web'\nboot_gate = 'volatile'"
        ))
        .unwrap();
        assert_eq!(config.state, Path::new("/etc/muster"));
        assert_eq!(config.certificate, Path::new("/etc/muster/agent.pem"));
        assert_eq!(config.credential_paths().crl.unwrap(), Path::new("/etc/muster/crl.pem"));
        assert_eq!(config.guard_socket, Path::new("/run/muster/guard.sock"));
        let gates: Vec<_> = config.fleets.iter().map(|fleet| fleet.boot_gate).collect();
        assert_eq!(gates, [BootGate::None, BootGate::Volatile]);
        assert!(config.jobs().get() >= 1);
        assert_eq!(config.clock_error(), ClockError::Unknown);
        let clock = |line: &str| {
            parse(&format!("{BUNDLE}\n{line}\n[[fleet]]\nname = 'smars'")).unwrap().clock_error()
        };
        assert_eq!(clock("clock_error_ms = 3"), ClockError::Stated(3));
        assert_eq!(clock("chronyc = ['chronyc']"), ClockError::Chrony(vec!["chronyc".to_owned()]));
    }

    #[test]
    fn what_needs_no_key_needs_no_credentials() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("agent.toml");
        let text = BUNDLE.replace("\"agent.key\"", "\"credential:agent.key\"");
        std::fs::write(&file, format!("{text}[[fleet]]\nname = 'smars'\n")).unwrap();
        let refused = crate::refusal::chain(&AgentConfig::load(Some(&file)).unwrap_err());
        assert!(refused.contains("LoadCredential=agent.key"), "{refused}");
        let config = AgentConfig::load_without_keys(Some(&file)).unwrap();
        assert_eq!(config.guard_socket, Path::new("/run/muster/guard.sock"));
        assert_eq!(config.key, Path::new("credential:agent.key"));
    }

    #[test]
    fn what_is_unknown_missing_or_double_is_refused() {
        let fleet = "[[fleet]]\nname = 'smars'\n";
        let source = |more: &str| {
            let error = parse(&format!("{BUNDLE}\n{more}")).unwrap_err();
            crate::refusal::chain(&error)
        };
        assert!(
            source("fleet = []").contains("agent.toml:11:9: there is no fleet"),
            "{}",
            source("fleet = []")
        );
        assert!(source(&format!("{fleet}{fleet}")).contains("agent.toml:14:8: fleet smars is there twice"));
        let both = "clock_error_ms = 3\nchronyc = ['chronyc']\njobs = 5000\n";
        let all = source(&format!("{both}{fleet}"));
        assert!(all.contains("agent.toml:11:18: `clock_error_ms` states"), "{all}");
        assert!(all.contains("agent.toml:13:8: `jobs` is 5000; at most 1024"), "{all}");
        let blind = "measure_every_s = 0\n";
        assert!(source(&format!("{blind}{fleet}on_drift = 'fence'\n")).contains("needs somebody who looks"));
        assert!(parse(&format!("{BUNDLE}{blind}{fleet}on_drift = 'alarm'\n")).is_ok());
        assert!(source(&format!("colour = 'red'\n{fleet}")).contains("unknown field `colour`"));
        assert!(source("").contains("missing field `fleet`"));
        assert!(source("[[fleet]]\nname = 'A B'").contains("fleet name"));
        let elsewhere = BUNDLE.replace("127.0.0.1:7400", "nowhere") + fleet;
        assert!(crate::refusal::chain(&parse(&elsewhere).unwrap_err()).contains("nowhere"));
    }

    #[test]
    fn the_digest_tells_settings_apart_but_not_log_formats() {
        let fleet = "[[fleet]]\nname = 'smars'\n";
        let one = parse(&format!("{BUNDLE}{fleet}")).unwrap();
        let logged = parse(&format!("{BUNDLE}log = 'json'\n{fleet}")).unwrap();
        let other = parse(&format!("{BUNDLE}jobs = 3\n{fleet}")).unwrap();
        assert_eq!(one.digest(), logged.digest());
        assert_ne!(one.digest(), other.digest());
        let fences = parse(&format!("{BUNDLE}{fleet}on_drift = 'fence'\n")).unwrap();
        assert_ne!(one.digest(), fences.digest(), "what a host does on drift is attested");
    }
}
