//! Where the replay takes place: a fleet in a folder, a narrator, and a hand that types.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use muster_guard::{FleetState, Guard as _, GuardClient};
use muster_model::HostName;
use muster_proto::v1;
use tempfile::TempDir;

use super::super::DevError;
use super::super::fleet::{Daemon, LEASE_DEFAULT, LocalFleet, Program, Wanted};
use super::super::start::{self, Programs, Started};
use super::super::{ready, stop};
use super::hold::{Hold, Suspended};
use super::story::{FLEET, HOSTS};
use super::{Pace, cut_off};
use crate::connect::Session;
use crate::error::CliError;
use crate::files::folder_of;
use crate::output::{Format, Page, Tone, Ui};
use crate::provision::Driver;

const PAUSE: Duration = Duration::from_millis(800);

/// Where the replay takes place.
pub(super) struct Stage {
    ui: Ui,
    pace: Pace,
    dir: PathBuf,
    /// Removes a temporary folder once nothing runs in it.
    temporary: Option<TempDir>,
    keep: bool,
    programs: Programs,
    fleet: Option<LocalFleet>,
    session: Option<Session>,
    started: Vec<Started>,
    hold: Option<Hold>,
    step: usize,
}

impl Stage {
    pub(super) fn build(dir: Option<PathBuf>, pace: Pace, keep: bool, ui: Ui) -> Result<Self, CliError> {
        let (dir, temporary) = match dir {
            Some(dir) => (dir, None),
            None => {
                let system = std::env::temp_dir();
                let made = tempfile::Builder::new().prefix("muster-demo-").tempdir_in(&system);
                let made = made.map_err(CliError::file("make a folder in", system))?;
                (made.path().join("fleet"), Some(made))
            }
        };
        Ok(Self {
            ui,
            pace,
            dir,
            temporary,
            keep,
            programs: Programs::beside_this()?,
            fleet: None,
            session: None,
            started: Vec::new(),
            hold: None,
            step: 0,
        })
    }

    /// Brings the fleet up.
    pub(super) async fn open(&mut self) -> Result<(), CliError> {
        let _lock = LocalFleet::lock(&self.dir)?;
        let name = FLEET.parse().expect("the replay's fleet has a valid name");
        let wanted = Wanted { fleet: name, hosts: HOSTS, driver: Driver::Link, lease: LEASE_DEFAULT };
        let fleet = LocalFleet::create(&self.dir, &wanted)?;
        self.fleet = Some(fleet.clone());
        // Before the guard of that host reads its configuration.
        self.hold = Some(Hold::install(&fleet, &fleet.hosts[cut_off::HELD - 1])?);
        self.session =
            Some(Box::pin(start::fleet(&fleet, &self.programs, &[], &mut self.started, &self.ui)).await?);
        Ok(())
    }

    /// Ends everything and removes the folder. Doing it twice is doing it once.
    pub(super) fn clear(&mut self) -> Result<(), CliError> {
        self.session = None;
        let Some(fleet) = self.fleet.take() else { return Ok(()) };
        stop::all(&fleet)?;
        self.started.clear();
        if self.keep {
            let dir = fleet.dir.display();
            self.temporary.take().map(TempDir::keep);
            self.say(format_args!("Kept {dir}; start it again with: muster dev up --dir {dir}"));
            return Ok(());
        }
        remove_tree(&fleet.dir).map_err(CliError::file("remove", fleet.dir.as_path()))
    }

    /// The fleet that is up.
    pub(super) fn fleet(&self) -> &LocalFleet {
        self.fleet.as_ref().expect("the story begins by opening the stage")
    }

    /// What holds a rollout up at one of the hosts.
    pub(super) fn hold(&self) -> &Hold {
        self.hold.as_ref().expect("the story begins by opening the stage")
    }

    /// The fleet as the coordinator sees it.
    pub(super) async fn status(&self) -> Result<v1::FleetStatus, CliError> {
        let session = self.session.as_ref().expect("the story begins by opening the stage");
        Box::pin(session.status(&self.fleet().name)).await
    }

    /// What a host's guard says of the fleet, past the agent and the coordinator.
    pub(super) fn guard_state(&self, host: &HostName) -> Result<FleetState, CliError> {
        let socket = self.fleet().host_folder(host).join("guard.sock");
        match GuardClient::new(&socket).status(&self.fleet().name) {
            Ok(state) => Ok(state),
            Err(error) => self.failed(format!("the guard of {host} did not answer: {error}")),
        }
    }

    /// Suspends one program of a host, for as long as what is returned lives.
    pub(super) fn suspend(&self, program: Program, host: &HostName) -> Result<Suspended, CliError> {
        let daemon = self.fleet().on(program, host);
        let running = stop::running(self.fleet())?;
        let Some((_, process)) = running.into_iter().find(|(found, _)| *found == daemon) else {
            return self.failed(format!("{daemon} was not running"));
        };
        Suspended::new(process).map_err(|source| CliError::System { doing: "suspend a process", source })
    }

    /// A host by its number.
    pub(super) fn host(&self, number: usize) -> HostName {
        self.fleet().hosts[number - 1].clone()
    }

    /// Where the first operator has their context.
    pub(super) fn operator_folder(&self) -> PathBuf {
        folder_of(&self.fleet().context()).to_owned()
    }

    /// Where the releases are written that the story pushes.
    pub(super) fn build_folder(&self) -> PathBuf {
        self.fleet().dir.join("build")
    }

    /// Begins the next step.
    pub(super) fn begin(&mut self, title: &str) {
        self.step += 1;
        let step = self.step;
        self.show(|page| {
            page.line("");
            page.line(format_args!(
                "── {step}. {title} {}",
                "─".repeat(88_usize.saturating_sub(title.chars().count()))
            ));
        });
    }

    /// Tells something.
    pub(super) fn say(&self, text: impl std::fmt::Display) {
        self.show(|page| page.line(text));
    }

    /// Tells how something turned out well.
    pub(super) fn good(&self, text: impl std::fmt::Display) {
        self.show(|page| page.toned(Tone::Good, text));
    }

    /// Waits for the reader.
    pub(super) async fn pause(&self) {
        if self.pace == Pace::Slow {
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Ends the replay: the step did not go as it has to.
    pub(super) fn failed<T>(&self, what: impl Into<String>) -> Result<T, CliError> {
        Err(DevError::Step { step: self.step, what: what.into() }.into())
    }

    /// Ends the agent of a host: nothing reaches it any more, and it tells nothing.
    pub(super) fn cut_off(&mut self, host: &HostName) -> Result<i32, CliError> {
        let agent = self.agent(host);
        let stopped = stop::one(&agent)?;
        self.started.retain(|started| started.daemon != agent);
        match stopped {
            Some(stopped) => Ok(stopped.pid),
            None => self.failed(format!("{agent} was not running")),
        }
    }

    /// Starts the agent of a host again and waits until it is connected.
    pub(super) async fn reconnect(&mut self, host: &HostName) -> Result<u32, CliError> {
        let started = self.programs.start(&self.agent(host))?;
        let pid = started.pid();
        self.started.push(started);
        let fleet = self.fleet().clone();
        let session = self.session.as_ref().expect("the story begins by opening the stage");
        Box::pin(ready::agents(&fleet, &fleet.hosts, session, &mut self.started)).await?;
        Ok(pid)
    }

    /// Reads every host's link: which release it leads to, and the hosts that have it so.
    pub(super) fn links(&self) -> Result<BTreeMap<Option<String>, Vec<HostName>>, CliError> {
        let mut links: BTreeMap<_, Vec<HostName>> = BTreeMap::new();
        for host in &self.fleet().hosts {
            let link = self.fleet_folder(host).join("current");
            let release = match fs::read_link(&link) {
                Ok(target) => target.file_name().map(|name| name.to_string_lossy().into_owned()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => return Err(CliError::file("read the link", link)(error)),
            };
            links.entry(release).or_default().push(host.clone());
        }
        Ok(links)
    }

    /// Where a host keeps what belongs to the fleet.
    pub(super) fn fleet_folder(&self, host: &HostName) -> PathBuf {
        self.fleet().host_folder(host).join("fleets").join(self.fleet().name.as_str())
    }

    fn agent(&self, host: &HostName) -> Daemon {
        self.fleet().on(Program::Agent, host)
    }

    /// For people on stdout; where a program reads stdout, on stderr.
    pub(super) fn show(&self, write: impl FnOnce(&mut Page)) {
        let mut page = self.ui.page();
        write(&mut page);
        let text = page.into_text();
        match self.ui.format() {
            // A reader who has gone misses nothing that still matters: the exit code tells how it ended.
            Format::Text => drop(self.ui.raw(text.as_bytes())),
            Format::Json | Format::Junit => self.ui.say(text.trim_end_matches('\n')),
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // After an ordinary end there is nothing left to clear; after a panic nobody is there to be told of a failure.
        drop(self.clear());
    }
}

/// Removes a folder with releases in it, whose folders may be read-only.
fn remove_tree(dir: &Path) -> io::Result<()> {
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        fs::set_permissions(&folder, Permissions::from_mode(0o700))?;
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    fs::remove_dir_all(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn read_only_trees_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir_all(tree.join("a/b")).unwrap();
        fs::write(tree.join("a/b/c"), "").unwrap();
        for folder in ["a/b", "a", ""] {
            fs::set_permissions(tree.join(folder), Permissions::from_mode(0o555)).unwrap();
        }
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
    }
}
