//! What a service or a hook writes: a bounded log, and its last lines.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

/// The log is turned over at this size; one older log is kept.
const LOG_BYTES_MAX: u64 = 10 * 1024 * 1024;

/// What of a failed start's output is told to the agent.
const TAIL_BYTES_MAX: usize = 4 * 1024;
const TAIL_LINES_MAX: usize = 20;

/// An output that is read on a thread of its own, so that whoever writes it is never held up by a full pipe.
pub(crate) struct Reading {
    tail: Arc<Tail>,
    /// Says nothing; its other end goes with the output's.
    ended: mpsc::Receiver<()>,
}

/// What was read last.
#[derive(Default)]
struct Tail(Mutex<VecDeque<u8>>);

impl Reading {
    /// Begins to read. `name` is the thread's.
    pub(crate) fn begin(from: impl Read + Send + 'static, name: String, log: &Path) -> io::Result<Self> {
        let tail = Arc::new(Tail::default());
        let (sender, ended) = mpsc::sync_channel(0);
        let (reads_to, path) = (Arc::clone(&tail), log.to_owned());
        let read = move || {
            collect(from, &path, &reads_to);
            drop(sender);
        };
        thread::Builder::new().name(name).spawn(read)?;
        Ok(Self { tail, ended })
    }

    /// The last lines once the output has ended; if that takes longer than `patience`, of what was read by then.
    pub(crate) fn last_lines(&self, patience: Duration) -> String {
        // Nothing is ever sent: it ends in time, or it does not.
        let _ = self.ended.recv_timeout(patience);
        self.tail.last_lines()
    }
}

/// Copies everything to the log until the service's last process has closed its end. A log that cannot be written loses lines; it
/// never stops the service. What a slow disk holds up is in the tail already.
fn collect(mut from: impl Read, path: &Path, tail: &Tail) {
    let mut log = Log::at(path);
    let mut buffer = [0; 8 * 1024];
    loop {
        let read = match from.read(&mut buffer) {
            Ok(0) => return,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return,
        };
        tail.push(&buffer[..read]);
        log.write(&buffer[..read]);
    }
}

impl Tail {
    fn push(&self, bytes: &[u8]) {
        let mut tail = self.lock();
        tail.extend(bytes);
        let surplus = tail.len().saturating_sub(TAIL_BYTES_MAX);
        tail.drain(..surplus);
    }

    fn last_lines(&self) -> String {
        let bytes: Vec<u8> = self.lock().iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES_MAX)..].join("\n")
    }

    /// Nobody panics while holding it.
    fn lock(&self) -> MutexGuard<'_, VecDeque<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Log {
    path: PathBuf,
    is_new: bool,
    file: Option<File>,
    size: u64,
}

impl Log {
    /// It is opened when there is something to write.
    fn at(path: &Path) -> Self {
        Self { path: path.to_owned(), is_new: true, file: None, size: 0 }
    }

    fn open(&mut self) {
        self.is_new = false;
        self.file = OpenOptions::new().create(true).append(true).mode(0o600).open(&self.path).ok();
        self.size = self.file.as_ref().and_then(|file| file.metadata().ok()).map_or(0, |found| found.len());
    }

    fn write(&mut self, bytes: &[u8]) {
        if self.is_new {
            self.open();
        }
        let len = bytes.len() as u64;
        if self.size + len > LOG_BYTES_MAX {
            let _ = fs::rename(&self.path, self.path.with_extension("log.1"));
            self.open();
        }
        if let Some(file) = &mut self.file
            && file.write_all(bytes).is_ok()
        {
            self.size += len;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    fn read_all(text: &str, path: &Path) -> String {
        let from = io::Cursor::new(text.to_owned());
        Reading::begin(from, "a test".to_owned(), path).unwrap().last_lines(PATIENCE)
    }

    #[test]
    fn keeps_the_last_lines_and_turns_the_log_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("service.log");
        let text: String = (0..1_700_000).map(|n| format!("{n:07}\n")).collect();
        let tail = read_all(&text, &path);
        assert_eq!(tail.lines().count(), TAIL_LINES_MAX);
        assert!(tail.ends_with("1699999"));
        let (old, new) = (fs::read(folder.path().join("service.log.1")).unwrap(), fs::read(&path).unwrap());
        assert!(old.len() as u64 <= LOG_BYTES_MAX && new.len() as u64 <= LOG_BYTES_MAX);
        assert_eq!([old, new].concat(), text.as_bytes());
    }

    #[test]
    fn a_log_that_cannot_be_opened_loses_nothing_but_the_log() {
        assert_eq!(read_all("one\ntwo\n", Path::new("/nowhere/service.log")), "one\ntwo");
    }

    #[test]
    fn what_was_read_is_told_before_the_output_has_ended_and_while_the_disk_hangs() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("service.log");
        // Whoever opens it to write waits for whoever reads it.
        assert!(Command::new("mkfifo").arg(&log).status().unwrap().success());
        let (from, mut to) = io::pipe().unwrap();
        let reading = Reading::begin(from, "a test".to_owned(), &log).unwrap();
        to.write_all(b"one\n").unwrap();
        let deadline = std::time::Instant::now() + PATIENCE;
        while reading.last_lines(Duration::from_millis(1)) != "one" {
            assert!(std::time::Instant::now() < deadline, "nothing is told");
        }
        to.write_all(b"two\n").unwrap();
        drop(to);
        assert_eq!(fs::read(&log).unwrap(), b"one\ntwo\n", "the log has all of it, late");
        assert_eq!(reading.last_lines(PATIENCE), "one\ntwo");
    }
}
