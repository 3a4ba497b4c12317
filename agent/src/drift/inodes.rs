//! Watching each file and folder itself, whatever name or mount it is changed through.
//!
//! Since Linux 5.13 that needs no privilege, as long as the kernel is asked for nothing but which file it was. Not even that matters here:
//! any event is a hint, also the one that events were lost.

use std::fs;
use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use nix::errno::Errno;
use nix::fcntl::AT_FDCWD;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::fanotify::{EventFFlags, Fanotify, InitFlags, MarkFlags, MaskFlags};
use tokio::sync::Notify;

/// `FAN_REPORT_FID`, which nix has no name for.
const REPORT_FILE: InitFlags = InitFlags::from_bits_retain(0x200);

/// More than this many files and folders are left to inotify, which watches folders only: each mark keeps a file in the kernel's memory.
const MARKS_MAX: usize = 100_000;

/// Tells of changes of the inodes of one tree, for as long as it lives.
#[derive(Debug)]
pub(crate) struct InodeWatch {
    /// Its end ends the thread that reads.
    _stop: PipeWriter,
}

impl InodeWatch {
    /// Marks all of `tree` but what lies at `mutable` paths.
    pub(super) fn new(tree: &Path, mutable: &[PathBuf], changed: Arc<Notify>) -> io::Result<Self> {
        let flags =
            InitFlags::FAN_CLASS_NOTIF | InitFlags::FAN_CLOEXEC | InitFlags::FAN_NONBLOCK | REPORT_FILE;
        let group = Fanotify::init(flags, EventFFlags::O_RDONLY)?;
        mark_all(&group, tree, mutable)?;
        let (stopped, stop) = io::pipe()?;
        thread::Builder::new()
            .name("muster-changes".to_owned())
            .spawn(move || pass_on(&group, &stopped, &changed))?;
        Ok(Self { _stop: stop })
    }
}

/// Until the watch is dropped, or nothing can be read any more.
fn pass_on(group: &Fanotify, stopped: &PipeReader, changed: &Notify) {
    loop {
        let mut waiting = [group.as_fd(), stopped.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        let outcome = match poll(&mut waiting, PollTimeout::NONE) {
            Ok(_) if waiting[1].any().unwrap_or(true) => return,
            Ok(_) => group.read_events().map(|_| changed.notify_one()),
            Err(error) => Err(error),
        };
        match outcome {
            Ok(()) | Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(error) => {
                tracing::warn!(%error, "changes are not told any more");
                return changed.notify_one();
            }
        }
    }
}

/// A folder is marked before it is listed: what comes meanwhile is told, or found.
fn mark_all(group: &Fanotify, tree: &Path, mutable: &[PathBuf]) -> io::Result<()> {
    let of_all = MaskFlags::FAN_ATTRIB | MaskFlags::FAN_DELETE_SELF | MaskFlags::FAN_MOVE_SELF;
    let of_files = of_all | MaskFlags::FAN_MODIFY | MaskFlags::FAN_CLOSE_WRITE;
    let of_folders = of_all
        | MaskFlags::FAN_CREATE
        | MaskFlags::FAN_DELETE
        | MaskFlags::FAN_MOVED_FROM
        | MaskFlags::FAN_MOVED_TO
        | MaskFlags::FAN_ONDIR;
    let flags = MarkFlags::FAN_MARK_ADD | MarkFlags::FAN_MARK_DONT_FOLLOW;
    let mark = |mask, path: &Path| group.mark(flags, mask, AT_FDCWD, Some(path)).map_err(io::Error::from);
    mark(of_folders, tree)?;
    let (mut folders, mut marks) = (vec![tree.to_owned()], 1);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            let (kind, path) = (entry.file_type()?, entry.path());
            if mutable.contains(&path) {
                continue;
            }
            marks += 1;
            if marks > MARKS_MAX {
                return Err(io::Error::other(format!("more than {MARKS_MAX} files and folders")));
            }
            if kind.is_dir() {
                mark(of_folders, &path)?;
                folders.push(path);
            } else if kind.is_file() {
                mark(of_files, &path)?;
            }
            // A symbolic link cannot be changed, only replaced, which its folder tells.
        }
    }
    Ok(())
}
