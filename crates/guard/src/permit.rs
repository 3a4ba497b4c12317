//! The verb `permit`: what systemd asks before it starts a unit of a fleet (`ExecCondition=`).
//!
//! The guard is asked. Where it does not answer, as while it is upgraded, its records are: what they permit in this boot may be
//! started, unless a deadline runs or a fence has latched, for then a guard that is gone must not be the reason why
//! something is served.
//!
//! What is permitted is then looked at on the disk ([`bytes`]): nothing is started whose bytes are not those of the fleet's release,
//! whether or not anybody has noticed before.

use std::path::Path;
use std::process::ExitCode;

use muster_model::{Digest, FleetName};

use crate::Guard;
use crate::bytes::{self, Bytes};
use crate::client::GuardClient;
use crate::config::{FleetConfig, GuardConfig, Settings};
use crate::error::GuardError;
use crate::ledger::Ledger;
use crate::link::Link;
use crate::log::log;
use crate::process;
use crate::protocol::{LeaseState, LinkState, Opened};
use crate::record::{Permit, RecordFile};

/// systemd skips the unit.
const REFUSED: u8 = 1;

/// systemd counts this as a failure, and tries again as the unit's `Restart=` says.
const UNKNOWN: u8 = 255;

/// Whether a unit may be started now.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    Permitted(Opened),
    Refused(String),
}

/// Answers by the exit status, and says why on stderr.
pub(crate) fn answer(fleet: &FleetName, config: &Path) -> ExitCode {
    match ask(fleet, config) {
        Ok(Verdict::Permitted(Opened { epoch, digest })) => {
            log!("fleet {fleet}: {digest} may be served, in epoch {epoch}");
            ExitCode::SUCCESS
        }
        Ok(Verdict::Refused(why)) => {
            log!("fleet {fleet}: not started: {why}");
            ExitCode::from(REFUSED)
        }
        Err(error) => {
            log!("fleet {fleet}: not started, as it cannot be told whether it may be: {}", error.chain());
            ExitCode::from(UNKNOWN)
        }
    }
}

fn ask(fleet: &FleetName, config: &Path) -> Result<Verdict, GuardError> {
    let settings = GuardConfig::load(config)?;
    look_and_decide(fleet, &settings, bytes::look)
}

fn look_and_decide(
    fleet: &FleetName,
    settings: &Settings,
    look: impl FnOnce(&FleetName, &Path, Digest) -> Result<Bytes, GuardError>,
) -> Result<Verdict, GuardError> {
    let of_fleet = settings.fleets.iter().find(|other| other.name == *fleet);
    let of_fleet = of_fleet.ok_or_else(|| GuardError::UnknownFleet { fleet: fleet.clone() })?;
    let opened = match decided(settings, of_fleet)? {
        Verdict::Permitted(opened) => opened,
        refused @ Verdict::Refused(_) => return Ok(refused),
    };
    match look(fleet, &of_fleet.releases, opened.digest)? {
        Bytes::Changed(what) => Ok(doubted(&what)),
        // It may have taken long, and what has been revoked meanwhile is not started.
        Bytes::Released => match decided(settings, of_fleet)? {
            Verdict::Permitted(now) if now != opened => {
                Ok(Verdict::Refused(format!("{} is to be served by now", now.digest)))
            }
            verdict @ (Verdict::Permitted(_) | Verdict::Refused(_)) => Ok(verdict),
        },
    }
}

/// What the guard says, or its records.
fn decided(settings: &Settings, of_fleet: &FleetConfig) -> Result<Verdict, GuardError> {
    let fleet = &of_fleet.name;
    match GuardClient::new(settings.socket()).status(fleet) {
        Ok(state) => match state.doubt {
            Some(doubt) => Ok(doubted(&doubt)),
            None => Ok(verdict(state.open, state.halted.is_some(), &state.lease, &state.link)),
        },
        Err(error @ (GuardError::Unreachable { .. } | GuardError::Protocol { .. })) => {
            log!("fleet {fleet}: {}; its records are asked", error.chain());
            from_records(settings, of_fleet)
        }
        Err(error) => Err(error),
    }
}

/// What the records say while no guard does.
fn from_records(settings: &Settings, fleet: &FleetConfig) -> Result<Verdict, GuardError> {
    let boot_id = process::boot_id()?;
    let folder = settings.state_dir.join("fleets").join(fleet.name.as_str());
    let ledger = Ledger::new(&folder);
    let halted = ledger.halted()?.is_some();
    let hold = ledger.read()?.map_or(LeaseState::Free, |record| record.hold);
    if !matches!(hold, LeaseState::Free) && !halted {
        return Ok(Verdict::Refused("a deadline ran when the guard was last there".to_owned()));
    }
    let permit = RecordFile::<Permit>::new(folder.join("permit.json")).read()?;
    let permit = permit.filter(|permit| permit.boot_id == boot_id);
    if let Some(doubt) = permit.as_ref().and_then(|permit| permit.doubt.as_ref()) {
        return Ok(doubted(doubt));
    }
    let open = permit.map(|permit| permit.opened());
    let link = Link::new(fleet.link.clone(), fleet.releases.clone()).read()?;
    Ok(verdict(open, halted, &hold, &link))
}

fn doubted(doubt: &str) -> Verdict {
    Verdict::Refused(format!("the release has changed on the disk: {doubt}"))
}

fn verdict(open: Option<Opened>, halted: bool, hold: &LeaseState, link: &LinkState) -> Verdict {
    let refused = |why: &str| Verdict::Refused(why.to_owned());
    match (open, hold) {
        _ if halted => refused("the fleet is halted here; an order of the operators resumes it"),
        (_, LeaseState::Fenced(fence)) => {
            Verdict::Refused(format!("this host is fenced, as {}", fence.cause))
        }
        (None, _) => refused("the fleet has not admitted this host since it was booted"),
        (Some(open), LeaseState::Free | LeaseState::Armed(_) | LeaseState::Decided(_)) => match link {
            LinkState::Release(digest) if *digest == open.digest => Verdict::Permitted(open),
            LinkState::Release(_) | LinkState::Absent | LinkState::Foreign { .. } | LinkState::Obstructed => {
                Verdict::Refused(format!("the link does not lead to {}", open.digest))
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::num::NonZeroUsize;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use muster_artifact::{
        BlobStore, Durability, InstallOptions, MeasureOptions, OutsideLinks, PackOptions, Progress,
        VerityUse, install, pack, seal,
    };
    use muster_model::{BootTime, Epoch, RolloutId, TreeRules, UnixTime};

    use super::*;
    use crate::config::{Driver, HooksConfig};
    use crate::lease::LeaseRecord;
    use crate::protocol::{Armed, Fence, FenceCause, Halt};

    struct Bench {
        folder: tempfile::TempDir,
        settings: Settings,
        permit: Permit,
    }

    impl Bench {
        /// A host whose guard is gone, and whose records permit what the link leads to, a release that its agent has deployed and sealed.
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let at = folder.path();
            let digest = deploy(at);
            let fleet = FleetConfig {
                name: "web".parse().unwrap(),
                link: at.join("current"),
                releases: at.join("fleets/web/releases"),
                driver: Driver::Link,
                hooks: HooksConfig::default(),
            };
            symlink(fleet.releases.join(digest.hex()), &fleet.link).unwrap();
            let config = GuardConfig {
                host: "host-1".parse().unwrap(),
                state_dir: at.to_owned(),
                socket: at.join("guard.sock"),
                exec_shim: None,
                allowed_uids: Vec::new(),
                fleets: vec![fleet],
            };
            let permit =
                Permit { boot_id: process::boot_id().unwrap(), epoch: Epoch(3), digest, doubt: None };
            let bench = Self { settings: config.validate().unwrap(), folder, permit };
            bench.permits(&bench.permit);
            bench
        }

        fn permits(&self, permit: &Permit) {
            RecordFile::new(self.folder.path().join("fleets/web/permit.json")).write(permit).unwrap();
        }

        fn holds(&self, hold: LeaseState) {
            let record = LeaseRecord { boot_id: process::boot_id().unwrap(), hold, flipped: None };
            RecordFile::new(self.folder.path().join("fleets/web/lease.json")).write(&record).unwrap();
        }

        fn verdict(&self) -> Verdict {
            look_and_decide(&self.settings.fleets[0].name, &self.settings, bytes::look).unwrap()
        }

        fn served(&self, path: &str) -> std::path::PathBuf {
            self.folder.path().join("current").join(path)
        }

        #[track_caller]
        fn refuses(&self, why: &str) {
            let verdict = self.verdict();
            assert!(matches!(&verdict, Verdict::Refused(text) if text.contains(why)), "{verdict:?}");
        }
    }

    /// Puts a release where an agent has it, and answers its digest.
    fn deploy(state: &Path) -> Digest {
        let (source, fleet) = (state.join("source"), state.join("fleets/web"));
        [source.join("bin"), fleet.join("seals")].iter().for_each(|it| fs::create_dir_all(it).unwrap());
        fs::write(source.join("bin/web"), "the program").unwrap();
        for path in ["bin", "bin/web"] {
            fs::set_permissions(source.join(path), fs::Permissions::from_mode(0o755)).unwrap();
        }
        let jobs = NonZeroUsize::MIN;
        let options = PackOptions { rules: TreeRules::default(), outside_links: OutsideLinks::Warn, jobs };
        let manifest = pack(&source, &options, &Progress::default()).unwrap().manifest;
        let blobs = BlobStore::open(&state.join("blobs")).unwrap();
        blobs.import_file(&source.join("bin/web")).unwrap();
        let bytes = manifest.to_bytes();
        let mut writer = blobs.writer(manifest.digest(), bytes.len() as u64, Durability::Each).unwrap();
        writer.write(&bytes).unwrap();
        writer.finish().unwrap();
        let options = InstallOptions { jobs, owner: None, verity: VerityUse::Off };
        install(&blobs, &manifest, &fleet.join("releases"), &options, &Progress::default()).unwrap();
        let tree = fleet.join("releases").join(manifest.digest().hex());
        let options = MeasureOptions { jobs, bytes_per_second_max: None, verity: VerityUse::Off };
        let (_, sealed) = seal(&tree, &manifest, &options, &Progress::default()).unwrap();
        sealed.unwrap().write(&fleet.join("seals").join(manifest.digest().hex())).unwrap();
        manifest.digest()
    }

    #[test]
    fn without_a_guard_a_settled_service_may_start_again() {
        let bench = Bench::new();
        assert_eq!(bench.verdict(), Verdict::Permitted(bench.permit.opened()));
        bench.holds(LeaseState::Free);
        assert_eq!(bench.verdict(), Verdict::Permitted(bench.permit.opened()));
    }

    #[test]
    fn p11_a_permit_of_an_earlier_boot_permits_nothing() {
        let bench = Bench::new();
        let boot_id = muster_model::BootId::new("00000000-0000-4000-8000-000000000000").unwrap();
        bench.permits(&Permit { boot_id, ..bench.permit.clone() });
        bench.refuses("has not admitted");
    }

    #[test]
    fn without_a_guard_nothing_starts_under_a_deadline_a_fence_or_a_halt() {
        let bench = Bench::new();
        let armed =
            Armed { k: RolloutId(4), epoch: Epoch(3), deadline_boot_ms: BootTime(u64::MAX), flip: None };
        bench.holds(LeaseState::Armed(armed));
        bench.refuses("a deadline ran");
        bench.holds(LeaseState::Fenced(Fence {
            cause: FenceCause::RecordLost,
            k: None,
            due_boot_ms: BootTime(1),
            begun_boot_ms: BootTime(1),
            dark_boot_ms: None,
            ended_boot_ms: None,
        }));
        bench.refuses("a deadline ran");
        bench.holds(LeaseState::Free);
        let halt = Halt { id: muster_model::HaltId(1), at_unix_ms: UnixTime(1), reason: "smoke".to_owned() };
        Ledger::new(&bench.folder.path().join("fleets/web")).halt(&halt).unwrap();
        bench.refuses("halted");
    }

    #[test]
    fn what_has_drifted_is_not_started() {
        let bench = Bench::new();
        bench.permits(&Permit { doubt: Some("bin/web differs".to_owned()), ..bench.permit.clone() });
        bench.refuses("bin/web differs");
    }

    #[test]
    fn what_nobody_has_noticed_yet_is_not_started_either() {
        let bench = Bench::new();
        let file = bench.served("bin/web");
        fs::write(&file, "the Program").unwrap();
        bench.refuses("bin/web");
        fs::write(&file, "the program").unwrap();
        assert_eq!(bench.verdict(), Verdict::Permitted(bench.permit.opened()), "the bytes are right again");
        fs::write(bench.served("bin/extra"), "nobody released this").unwrap();
        bench.refuses("bin/extra");
        fs::remove_file(bench.served("bin/extra")).unwrap();
        // Without a manifest it cannot be told, and so it is not started.
        fs::remove_dir_all(bench.folder.path().join("blobs")).unwrap();
        bench.refuses("is not in the store");
    }

    #[test]
    fn what_is_revoked_while_it_is_looked_at_is_not_started() {
        let bench = Bench::new();
        let fleet = &bench.settings.fleets[0].name;
        let meanwhile = |permit: Permit| {
            look_and_decide(fleet, &bench.settings, |_, _, _| {
                bench.permits(&permit);
                Ok(Bytes::Released)
            })
            .unwrap()
        };
        let permit = || bench.permit.clone();
        assert_eq!(meanwhile(permit()), Verdict::Permitted(bench.permit.opened()));
        let doubted = meanwhile(Permit { doubt: Some("bin/web differs".to_owned()), ..permit() });
        assert!(matches!(&doubted, Verdict::Refused(why) if why.contains("bin/web differs")), "{doubted:?}");
        bench.permits(&permit());
        let next = meanwhile(Permit { epoch: Epoch(4), ..permit() });
        assert!(matches!(&next, Verdict::Refused(why) if why.contains("by now")), "{next:?}");
    }

    #[test]
    fn what_cannot_be_read_is_no_reason_to_give_up() {
        let bench = Bench::new();
        fs::remove_file(bench.folder.path().join("fleets/web/seals").join(bench.permit.digest.hex()))
            .unwrap();
        let blobs = bench.folder.path().join("blobs");
        fs::remove_dir_all(&blobs).unwrap();
        fs::write(&blobs, "no folder").unwrap();
        let fleet = &bench.settings.fleets[0].name;
        let asked = look_and_decide(fleet, &bench.settings, bytes::look);
        assert!(matches!(asked, Err(GuardError::Unmeasured { .. })), "{asked:?}");
    }

    #[test]
    fn what_the_link_does_not_lead_to_is_not_started() {
        let bench = Bench::new();
        bench.permits(&Permit { digest: Digest::of(b"other"), ..bench.permit.clone() });
        bench.refuses("the link does not lead to");
        fs::remove_file(bench.folder.path().join("current")).unwrap();
        bench.refuses("the link does not lead to");
    }
}
