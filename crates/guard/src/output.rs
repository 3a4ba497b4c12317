//! What a service or a hook writes: a bounded log, and its last lines.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The log is turned over at this size; one older log is kept.
const LOG_BYTES_MAX: u64 = 10 * 1024 * 1024;

/// What of a failed start's output is told to the agent.
const TAIL_BYTES_MAX: usize = 4 * 1024;
const TAIL_LINES_MAX: usize = 20;

/// Copies everything to the log until the service's last process has closed its end, and gives back the last lines. A
/// log that cannot be written loses lines; it never stops the service.
pub(crate) fn collect(mut from: impl Read, path: &Path) -> String {
    let mut log = Log::open(path);
    let mut tail = VecDeque::with_capacity(TAIL_BYTES_MAX);
    let mut buffer = [0; 8 * 1024];
    loop {
        let read = match from.read(&mut buffer) {
            Ok(0) => return last_lines(&tail),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return last_lines(&tail),
        };
        log.write(&buffer[..read]);
        tail.extend(&buffer[..read]);
        tail.drain(..tail.len().saturating_sub(TAIL_BYTES_MAX));
    }
}

fn last_lines(tail: &VecDeque<u8>) -> String {
    let bytes: Vec<u8> = tail.iter().copied().collect();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES_MAX)..].join("\n")
}

struct Log {
    path: PathBuf,
    file: Option<File>,
    size: u64,
}

impl Log {
    fn open(path: &Path) -> Self {
        let mut log = Self { path: path.to_owned(), file: None, size: 0 };
        log.reopen();
        log
    }

    fn reopen(&mut self) {
        self.file = OpenOptions::new().create(true).append(true).mode(0o600).open(&self.path).ok();
        self.size = self.file.as_ref().and_then(|file| file.metadata().ok()).map_or(0, |found| found.len());
    }

    fn write(&mut self, bytes: &[u8]) {
        let len = bytes.len() as u64;
        if self.size + len > LOG_BYTES_MAX {
            let _ = fs::rename(&self.path, self.path.with_extension("log.1"));
            self.reopen();
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
    use super::*;

    #[test]
    fn keeps_the_last_lines_and_turns_the_log_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("service.log");
        let text: String = (0..1_700_000).map(|n| format!("{n:07}\n")).collect();
        let tail = collect(text.as_bytes(), &path);
        assert_eq!(tail.lines().count(), TAIL_LINES_MAX);
        assert!(tail.ends_with("1699999"));
        let (old, new) = (fs::read(folder.path().join("service.log.1")).unwrap(), fs::read(&path).unwrap());
        assert!(old.len() as u64 <= LOG_BYTES_MAX && new.len() as u64 <= LOG_BYTES_MAX);
        assert_eq!([old, new].concat(), text.as_bytes());
    }

    #[test]
    fn a_log_that_cannot_be_opened_loses_nothing_but_the_log() {
        assert_eq!(collect(&b"one\ntwo\n"[..], Path::new("/nowhere/service.log")), "one\ntwo");
    }
}
