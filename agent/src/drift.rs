//! Watching the tree that is served for changes: each file and folder itself by fanotify where that is permitted, and names in folders by
//! inotify elsewhere.
//!
//! What the kernel tells of a change is a hint and no more: it tells nothing of a write through a mapping, may lose events, and
//! knows a network disk only in part. The measurement that follows a hint decides, and one on a schedule finds what no hint told.

mod inodes;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use muster_model::EntryPath;
use notify::event::{AccessKind, AccessMode, EventKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use inodes::InodeWatch;

/// How the served tree is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DriftSettings {
    /// How often all of it is measured, whether or not anything was told.
    pub every: Duration,
    /// How fast that measurement reads.
    pub bytes_per_second_max: u64,
    /// What follows when it has changed.
    pub on_drift: OnDrift,
}

/// What follows when what is served changes on the disk. It is told in any case, and not started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnDrift {
    /// What runs goes on.
    #[default]
    Alarm,
    /// The guard stops it. It is served again once it was repaired and the host was admitted.
    Fence,
}

impl OnDrift {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
    pub(crate) const fn is_alarm(&self) -> bool {
        matches!(self, Self::Alarm)
    }
}

/// Tells of changes in one tree, for as long as it lives.
#[derive(Debug)]
pub(crate) enum TreeWatch {
    /// By fanotify, also through another name or mount.
    Inodes { _watch: InodeWatch },
    /// By inotify.
    Names { _watcher: RecommendedWatcher },
}

impl TreeWatch {
    /// Watches `tree` and everything in it but what lies at `mutable` paths, which change all the time. Blocks: each folder is looked at.
    pub(crate) fn new(
        tree: &Path,
        mutable: &[EntryPath],
        changed: Arc<Notify>,
    ) -> Result<Self, notify::Error> {
        let mutable: Vec<_> =
            mutable.iter().map(|path| tree.join(OsStr::from_bytes(path.as_bytes()))).collect();
        match InodeWatch::new(tree, &mutable, Arc::clone(&changed)) {
            Ok(watch) => Ok(Self::Inodes { _watch: watch }),
            Err(error) => {
                tracing::debug!(%error, "fanotify cannot be had; inotify is asked");
                Self::by_names(tree, mutable, changed)
            }
        }
    }

    /// What tells it, for people.
    pub(crate) const fn teller(&self) -> &'static str {
        match self {
            Self::Inodes { .. } => "fanotify",
            Self::Names { .. } => "inotify",
        }
    }

    fn by_names(tree: &Path, mutable: Vec<PathBuf>, changed: Arc<Notify>) -> Result<Self, notify::Error> {
        let is_mutable = move |path: &Path| mutable.iter().any(|mutable| path.starts_with(mutable));
        let told = move |event: notify::Result<notify::Event>| {
            if is_hint(&event, &is_mutable) {
                changed.notify_one();
            }
        };
        let mut watcher = notify::recommended_watcher(told)?;
        watcher.watch(tree, RecursiveMode::Recursive)?;
        Ok(Self::Names { _watcher: watcher })
    }
}

/// That events were lost, or could not be read, is a hint too.
fn is_hint(event: &notify::Result<notify::Event>, is_mutable: &dyn Fn(&Path) -> bool) -> bool {
    let Ok(event) = event else { return true };
    let is_known = !event.paths.is_empty() && event.paths.iter().all(|path| is_mutable(path));
    event.need_rescan() || may_change(event.kind) && !is_known
}

/// Reading, which measuring does as well, changes nothing.
const fn may_change(kind: EventKind) -> bool {
    match kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => true,
        EventKind::Access(_) => false,
        EventKind::Any
        | EventKind::Create(_)
        | EventKind::Modify(_)
        | EventKind::Remove(_)
        | EventKind::Other => true,
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use nix::errno::Errno;
    use notify::event::Flag;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    /// A watch of one kind; `None` where the kernel or a sandbox does not permit it.
    fn watch(is_by_inodes: bool, tree: &Path, mutable: &[&str], changed: &Arc<Notify>) -> Option<TreeWatch> {
        let mutable: Vec<_> = mutable.iter().map(|path| tree.join(path)).collect();
        if !is_by_inodes {
            return Some(TreeWatch::by_names(tree, mutable, Arc::clone(changed)).unwrap());
        }
        match InodeWatch::new(tree, &mutable, Arc::clone(changed)) {
            Ok(watch) => Some(TreeWatch::Inodes { _watch: watch }),
            Err(error) => {
                let code = error.raw_os_error().map(Errno::from_raw);
                let codes = [Errno::EPERM, Errno::ENOSYS, Errno::EINVAL, Errno::EOPNOTSUPP, Errno::ENODEV];
                assert!(code.is_some_and(|code| codes.contains(&code)), "{error}");
                None
            }
        }
    }

    #[tokio::test]
    async fn each_kind_of_change_is_told_and_reading_is_not() {
        for is_by_inodes in [true, false] {
            tell_each_kind_of_change(is_by_inodes).await;
        }
    }

    async fn tell_each_kind_of_change(is_by_inodes: bool) {
        let folder = tempfile::tempdir().unwrap();
        let (tree, file) = (folder.path().join("tree"), folder.path().join("tree/bin/web"));
        fs::create_dir_all(tree.join("bin")).unwrap();
        fs::write(&file, "old").unwrap();
        let changed = Arc::new(Notify::new());
        let Some(watch) = watch(is_by_inodes, &tree, &[], &changed) else { return };
        let teller = watch.teller();
        let changes: [(&str, &dyn Fn()); 5] = [
            ("a byte", &|| File::options().append(true).open(&file).unwrap().set_len(7).unwrap()),
            ("a mode", &|| fs::set_permissions(&file, Permissions::from_mode(0o700)).unwrap()),
            ("a file more", &|| fs::write(tree.join("bin/extra"), "x").unwrap()),
            ("a file fewer", &|| fs::remove_file(tree.join("bin/extra")).unwrap()),
            ("another file in its place", &|| {
                fs::write(folder.path().join("next"), "new").unwrap();
                fs::rename(folder.path().join("next"), &file).unwrap();
            }),
        ];
        for (what, change) in changes {
            change();
            tokio::time::timeout(PATIENCE, changed.notified())
                .await
                .unwrap_or_else(|_| panic!("{what} was not told by {teller}"));
            // What else the change has told is taken, so that the next one is seen by itself.
            while tokio::time::timeout(Duration::from_millis(100), changed.notified()).await.is_ok() {}
        }
        fs::read(&file).unwrap();
        assert_eq!(fs::read_dir(&tree).unwrap().count(), 1);
        let told = tokio::time::timeout(Duration::from_millis(300), changed.notified()).await;
        assert!(told.is_err(), "reading is no change");
    }

    #[test]
    fn events_that_were_lost_are_a_hint_wherever_they_were() {
        let at = |path: &str| notify::Event::new(EventKind::Other).add_path(path.into());
        let is_mutable = |path: &Path| path.starts_with("log");
        let hints = |event| is_hint(&Ok(event), &is_mutable);
        assert!(!hints(at("log/now")) && hints(at("bin/web")) && hints(at("log/now").add_path("bin".into())));
        assert!(hints(at("log/now").set_flag(Flag::Rescan)));
        assert!(hints(notify::Event::new(EventKind::Other)), "it says of nothing what it was");
        assert!(is_hint(&Err(notify::Error::generic("no more watches")), &is_mutable));
    }

    #[tokio::test]
    async fn what_a_service_writes_at_its_mutable_paths_is_no_change() {
        for is_by_inodes in [true, false] {
            write_at_mutable_paths(is_by_inodes).await;
        }
    }

    #[tokio::test]
    async fn a_change_through_another_name_is_told_by_the_file_itself() {
        let folder = tempfile::tempdir().unwrap();
        let (tree, other) = (folder.path().join("tree"), folder.path().join("other"));
        fs::create_dir(&tree).unwrap();
        fs::write(tree.join("web"), "old").unwrap();
        fs::hard_link(tree.join("web"), &other).unwrap();
        let changed = Arc::new(Notify::new());
        let Some(_watch) = watch(true, &tree, &[], &changed) else { return };
        fs::write(&other, "new").unwrap();
        tokio::time::timeout(PATIENCE, changed.notified()).await.expect("it is the same file");
    }

    async fn write_at_mutable_paths(is_by_inodes: bool) {
        let folder = tempfile::tempdir().unwrap();
        let tree = folder.path().join("tree");
        fs::create_dir_all(tree.join("var/log")).unwrap();
        fs::write(tree.join("var/log/now"), "").unwrap();
        fs::write(tree.join("var/login"), "").unwrap();
        let changed = Arc::new(Notify::new());
        let Some(_watch) = watch(is_by_inodes, &tree, &["var/log"], &changed) else { return };
        fs::write(tree.join("var/log/now"), "a line").unwrap();
        fs::write(tree.join("var/log/next"), "a line").unwrap();
        let told = tokio::time::timeout(Duration::from_millis(300), changed.notified()).await;
        assert!(told.is_err(), "a log that grows is no change");
        fs::write(tree.join("var/login"), "changed").unwrap();
        tokio::time::timeout(PATIENCE, changed.notified()).await.expect("what is beside it is told");
    }
}
