//! How far this host's time of day may be off: what a flip at an instant rests on.

use std::io::Read as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use wait_timeout::ChildExt as _;

/// A time daemon that does not answer by then does not answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// What a time daemon says fits easily.
const ANSWER_BYTES_MAX: u64 = 4 * 1024;

/// What chrony says of a clock that follows a source: whether a leap second comes.
const SYNCHRONISED: [&str; 3] = ["Normal", "Insert second", "Delete second"];

/// How chrony names a server that is synchronised to nothing and pretends to be.
const LOCAL_REFERENCE: &str = "7F7F0101";

/// Where the bound on the error of this host's time of day comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClockError {
    /// From nowhere: the host takes no part in flips in fast mode.
    Unknown,
    /// Whoever configured the host answers for it, in milliseconds.
    Stated(u64),
    /// chrony is asked each time, with this command and its first arguments.
    Chrony(Vec<String>),
}

impl ClockError {
    /// The bound in milliseconds at this moment, rounded up. Blocks for up to a second.
    pub(crate) fn bound_ms(&self) -> Option<u64> {
        match self {
            Self::Unknown => None,
            Self::Stated(ms) => Some(*ms),
            Self::Chrony(command) => match ask(command).and_then(|answer| bound_ms(&answer)) {
                Ok(ms) => Some(ms),
                Err(reason) => {
                    tracing::warn!(command = command.join(" "), reason, "chrony tells no error of the clock");
                    None
                }
            },
        }
    }
}

fn ask(command: &[String]) -> Result<String, String> {
    let (program, arguments) = command.split_first().ok_or("no command is configured")?;
    let mut child = Command::new(program)
        .args(arguments)
        .args(["-c", "-n", "tracking"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("it cannot be started: {error}"))?;
    let ended = child.wait_timeout(PATIENCE).map_err(|error| format!("it cannot be waited for: {error}"))?;
    let Some(status) = ended else {
        // It may have ended meanwhile; either way nothing is left of it.
        let _ = child.kill();
        let _ = child.wait();
        return Err(format!("it does not answer within {} ms", PATIENCE.as_millis()));
    };
    if !status.success() {
        return Err(format!("it ended with {status}"));
    }
    let mut answer = String::new();
    let stdout = child.stdout.take().ok_or("it has no output")?;
    let read = stdout.take(ANSWER_BYTES_MAX).read_to_string(&mut answer);
    read.map_err(|error| format!("its answer cannot be read: {error}"))?;
    Ok(answer)
}

/// What `chronyc -c tracking` means. Its manual: the clock's error is at most the offset that is still being corrected,
/// and the root dispersion, and half of the root delay.
fn bound_ms(answer: &str) -> Result<u64, String> {
    const FIELDS: usize = 14;
    let fields: Vec<&str> = answer.trim_end().split(',').collect();
    if fields.len() != FIELDS {
        return Err(format!("its answer has {} fields, not {FIELDS}", fields.len()));
    }
    let seconds = |index: usize, name: &str| {
        let value: f64 = fields[index].parse().map_err(|_| format!("its {name} is `{}`", fields[index]))?;
        if value.is_finite() { Ok(value.abs()) } else { Err(format!("its {name} is `{value}`")) }
    };
    if fields[0] == LOCAL_REFERENCE {
        return Err("the clock follows only itself (`local` in chrony.conf)".to_owned());
    }
    if !SYNCHRONISED.contains(&fields[13]) {
        return Err(format!("the clock is not synchronised: `{}`", fields[13]));
    }
    let (offset, delay) = (seconds(4, "system time")?, seconds(10, "root delay")?);
    let bound = offset + seconds(11, "root dispersion")? + delay / 2.0;
    // A clock that is off by a day is as bad as one that is off by more.
    Ok(
        Duration::try_from_secs_f64(bound)
            .unwrap_or(Duration::MAX)
            .as_micros()
            .div_ceil(1_000)
            .min(86_400_000) as u64,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "A9FEA97B,169.254.169.123,4,1763884800.123456789,0.000012345,-0.000004210,0.000031000,\
                        -12.345,0.001,0.025,0.000400000,0.000600000,64.2,Normal\n";

    #[test]
    fn the_bound_is_offset_and_dispersion_and_half_of_the_delay() {
        assert_eq!(bound_ms(GOOD), Ok(1));
        assert_eq!(bound_ms(&GOOD.replace("0.000600000", "0.0205")), Ok(21));
        assert_eq!(bound_ms(&GOOD.replace(",0.000012345", ",-1.5")), Ok(1_501), "whichever way it is off");
        assert_eq!(bound_ms(&GOOD.replace("0.000600000", "1e300")), Ok(86_400_000));
    }

    #[test]
    fn what_is_no_bound_is_none() {
        for (from, to, word) in [
            ("Normal", "Not synchronised", "not synchronised"),
            ("A9FEA97B", "7F7F0101", "only itself"),
            ("0.000400000", "inf", "root delay"),
            ("0.000600000", "", "root dispersion"),
            (",Normal", "", "13 fields"),
        ] {
            let reason = bound_ms(&GOOD.replace(from, to)).unwrap_err();
            assert!(reason.contains(word), "{reason}");
        }
        let command = |line: &str| ClockError::Chrony(["sh", "-c", line].map(str::to_owned).to_vec());
        assert_eq!(command(&format!("echo '{}'", GOOD.trim())).bound_ms(), Some(1));
        for line in ["exit 1", "sleep 600", "yes", "kill -9 $$"] {
            assert_eq!(command(line).bound_ms(), None, "{line}");
        }
        assert_eq!(ClockError::Chrony(vec!["/nowhere/chronyc".to_owned()]).bound_ms(), None);
        assert_eq!((ClockError::Unknown.bound_ms(), ClockError::Stated(3).bound_ms()), (None, Some(3)));
    }
}
