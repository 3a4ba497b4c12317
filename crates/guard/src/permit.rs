//! The verb `permit`: what systemd asks before it starts a unit of a fleet (`ExecCondition=`).
//!
//! The guard is asked. Where it does not answer, as while it is upgraded, its records are: what they permit in this boot may be
//! started, unless a deadline runs or a fence has latched, for then a guard that is gone must not be the reason why
//! something is served.

use std::path::Path;
use std::process::ExitCode;

use muster_model::FleetName;

use crate::Guard;
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
    let of_fleet = settings.fleets.iter().find(|other| other.name == *fleet);
    let of_fleet = of_fleet.ok_or_else(|| GuardError::UnknownFleet { fleet: fleet.clone() })?;
    match GuardClient::new(settings.socket()).status(fleet) {
        Ok(state) => match state.doubt {
            Some(doubt) => Ok(doubted(&doubt)),
            None => Ok(verdict(state.open, state.halted.is_some(), &state.lease, &state.link)),
        },
        Err(error @ (GuardError::Unreachable { .. } | GuardError::Protocol { .. })) => {
            log!("fleet {fleet}: {}; its records are asked", error.chain());
            from_records(&settings, of_fleet)
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
    use std::os::unix::fs::symlink;

    use muster_model::{BootTime, Digest, Epoch, RolloutId, UnixTime};

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
        /// A host whose guard is gone, and whose records permit what the link leads to.
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let (at, digest) = (folder.path(), Digest::of(b"tree"));
            let fleet = FleetConfig {
                name: "web".parse().unwrap(),
                link: at.join("current"),
                releases: at.join("releases"),
                driver: Driver::Link,
                hooks: HooksConfig::default(),
            };
            fs::create_dir_all(at.join("fleets/web")).unwrap();
            symlink(format!("releases/{}", digest.hex()), &fleet.link).unwrap();
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
            from_records(&self.settings, &self.settings.fleets[0]).unwrap()
        }

        #[track_caller]
        fn refuses(&self, why: &str) {
            let verdict = self.verdict();
            assert!(matches!(&verdict, Verdict::Refused(text) if text.contains(why)), "{verdict:?}");
        }
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
    fn what_the_link_does_not_lead_to_is_not_started() {
        let bench = Bench::new();
        bench.permits(&Permit { digest: Digest::of(b"other"), ..bench.permit.clone() });
        bench.refuses("the link does not lead to");
        fs::remove_file(bench.folder.path().join("current")).unwrap();
        bench.refuses("the link does not lead to");
    }
}
