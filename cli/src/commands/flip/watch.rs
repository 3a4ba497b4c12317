//! What is seen of a rollout while it is under way, and how it is given up.

use std::collections::BTreeSet;
use std::time::Duration;

use muster_model::{FleetName, FlipMode, HostName, RolloutId, Roster};
use muster_proto::v1::flip_event::Event;
use muster_proto::v1::rollout_progress::Stage;
use muster_proto::{convert, v1};
use tokio::time::Instant;

use crate::clock::{millis, span_text};
use crate::commands::Env;
use crate::connect::{Events, Session, answer};
use crate::error::CliError;
use crate::output::{StageLine, counted};

/// How long after the decision nothing is said of hosts that have not closed: most do so at once.
const SILENCE_PATIENCE: Duration = Duration::from_secs(1);

/// How many silent hosts are named; the rest is counted.
const SILENT_NAMED_MAX: usize = 8;

/// Which rollout is watched.
#[derive(Debug, Clone, Copy)]
pub(super) struct Watched<'a> {
    pub(super) fleet: &'a FleetName,
    pub(super) k: RolloutId,
    /// Completes "cannot …".
    pub(super) doing: &'a str,
}

/// Step 11, as far as it can be seen from here: for whom the others are dark, and how long at most.
#[derive(Debug)]
pub(super) struct Barrier {
    silent: BTreeSet<HostName>,
    mode: FlipMode,
    max_lapsed: u32,
    /// `W`.
    wait: Duration,
    notice: Notice,
}

/// Whether people are told of silent hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Notice {
    /// Nobody is waited for, or everything was said.
    None,
    /// At this time, unless all have closed by then.
    At(Instant),
}

/// Shows what happens until it is over. The first Ctrl-C asks the coordinator to abort; the second leaves.
pub(super) async fn watch(
    env: &Env,
    session: &Session,
    watched: Watched<'_>,
    mut barrier: Barrier,
    request: v1::FlipRequest,
) -> Result<v1::RolloutEnd, CliError> {
    let timeout = Duration::from_millis(request.timeout_ms);
    let mut client = session.operations();
    let mut events = Box::pin(Events::open(watched.doing, timeout, client.flip(request))).await?;
    let line = StageLine::new(&env.ui);
    let mut has_aborted = false;
    loop {
        tokio::select! {
            event = events.next() => match event?.event {
                Some(Event::Progress(progress)) => {
                    barrier
                        .heard(&progress, Instant::now())
                        .and_then(|()| show(&line, &progress))
                        .map_err(CliError::answer(events.doing()))?;
                }
                Some(Event::End(end)) => return Ok(end),
                None => {}
            },
            () = barrier.due() => line.say(&barrier.notice(watched.k)),
            interrupt = tokio::signal::ctrl_c() => {
                interrupt.map_err(|source| CliError::System { doing: "wait for Ctrl-C", source })?;
                if has_aborted {
                    return Err(CliError::Lost { doing: events.doing().to_owned(), status: None });
                }
                has_aborted = true;
                line.say(&abort(session, watched).await);
            }
        }
    }
}

impl Barrier {
    pub(super) fn new(roster: &Roster, mode: FlipMode, max_lapsed: u32) -> Self {
        let silent = roster.hosts().iter().map(|member| member.name.clone()).collect();
        let wait = roster.policy().timing.wait();
        Self { silent, mode, max_lapsed, wait, notice: Notice::None }
    }

    /// Takes note of what the coordinator tells.
    fn heard(&mut self, progress: &v1::RolloutProgress, now: Instant) -> Result<(), convert::ConvertError> {
        match (progress.stage(), &progress.host) {
            // In fast mode hosts flip by themselves, and nobody waits for anybody.
            (Stage::Decided, _) if self.mode == FlipMode::Strict => {
                self.notice = Notice::At(now + SILENCE_PATIENCE);
            }
            (Stage::Closed, Some(host)) => {
                self.silent.remove(&convert::host(host)?);
            }
            (Stage::Opened, _) => self.notice = Notice::None,
            (
                Stage::Unspecified
                | Stage::Proposed
                | Stage::Attested
                | Stage::Prepared
                | Stage::Probed
                | Stage::Armed
                | Stage::Decided
                | Stage::Closed
                | Stage::Serving
                | Stage::Measured
                | Stage::Trouble,
                _,
            ) => {}
        }
        Ok(())
    }

    /// Ends when people have to be told of silent hosts.
    async fn due(&self) {
        match self.notice {
            Notice::At(at) if !self.silent.is_empty() => tokio::time::sleep_until(at).await,
            Notice::At(_) | Notice::None => std::future::pending().await,
        }
    }

    /// For whom the others are dark, and how long at most. Said once.
    fn notice(&mut self, k: RolloutId) -> String {
        self.notice = Notice::None;
        let names: Vec<&str> = self.silent.iter().take(SILENT_NAMED_MAX).map(HostName::as_str).collect();
        let names = match self.silent.len().checked_sub(SILENT_NAMED_MAX) {
            Some(rest @ 1..) => format!("{} and {}", names.join(", "), counted(rest, "more host")),
            Some(0) | None => names.join(", "),
        };
        let max_lapsed = self.max_lapsed as usize;
        if self.silent.len() <= max_lapsed {
            let wait = span_text(millis(self.wait));
            return format!(
                "rollout {k}: waiting for {names} to close; {wait} after the decision their leases must have run out, \
                 and the others open"
            );
        }
        let lapsed = counted(max_lapsed, "such host");
        format!(
            "rollout {k}: waiting for {names} to close, however long it takes: the order lets the others open over at \
             most {lapsed}"
        )
    }
}

/// Asks for an abort and says what came of it; the rollout's own end tells the rest.
async fn abort(session: &Session, Watched { fleet, k, .. }: Watched<'_>) -> String {
    let request = v1::AbortRequest { fleet: fleet.to_string(), k: k.0 };
    let mut client = session.operations();
    match Box::pin(answer("abort", client.abort(request))).await {
        Ok(_) => format!("aborting rollout {k}: the old release goes on being served"),
        Err(error) => {
            let reasons: Vec<String> = error.blockers().iter().map(ToString::to_string).collect();
            let why = if reasons.is_empty() { error.to_string() } else { reasons.join("; ") };
            format!(
                "rollout {k} cannot be aborted ({why}); it goes on, and Ctrl-C again only stops watching it"
            )
        }
    }
}

fn show(line: &StageLine, progress: &v1::RolloutProgress) -> Result<(), convert::ConvertError> {
    let (k, done, hosts) = (progress.k, progress.done, progress.hosts);
    let text = match progress.stage() {
        Stage::Unspecified => return Ok(()),
        Stage::Trouble => {
            for blocker in convert::blockers(progress.blockers.clone())? {
                line.say(&format!("trouble: {blocker}"));
            }
            return Ok(());
        }
        Stage::Proposed => format!("rollout {k}: proposed to {hosts} hosts"),
        Stage::Decided => format!("rollout {k}: decided; from here it only goes forward"),
        Stage::Attested => stage(k, "attested", done, hosts),
        Stage::Prepared => stage(k, "prepared", done, hosts),
        Stage::Probed => stage(k, "answered fast enough for a lease", done, hosts),
        Stage::Armed => stage(k, "armed", done, hosts),
        Stage::Closed => stage(k, "closed", done, hosts),
        Stage::Opened => stage(k, "opened", done, hosts),
        Stage::Serving => stage(k, "serving", done, hosts),
        Stage::Measured => stage(k, "measured again", done, hosts),
    };
    // What a single host reached is drawn; what the whole fleet reached stays to be read.
    if progress.host.is_none() {
        line.say(&text)
    } else {
        line.draw(text)
    }
    Ok(())
}

fn stage(k: u64, what: &str, done: u32, hosts: u32) -> String {
    format!("rollout {k}: {what} {done} of {hosts}")
}

#[cfg(test)]
mod tests {
    use muster_model::{Member, Policy, PublicKey, RosterRevision, Timing};

    use super::*;

    fn barrier(mode: FlipMode, max_lapsed: u32) -> Barrier {
        let member = |number: u8| Member {
            name: HostName::new(&format!("host-{number}")).unwrap(),
            attestation_key: PublicKey::Ed25519([number; 32]),
        };
        let policy = Policy { timing: Timing::with_lease(2000, 500), ..Policy::default() };
        let members = (1..=3).map(member).collect();
        let fleet = FleetName::new("demo").unwrap();
        Barrier::new(&Roster::new(fleet, RosterRevision(1), policy, members).unwrap(), mode, max_lapsed)
    }

    fn tell(barrier: &mut Barrier, stage: Stage, host: Option<&str>) {
        let host = host.map(str::to_owned);
        let progress = v1::RolloutProgress { stage: stage.into(), host, ..v1::RolloutProgress::default() };
        barrier.heard(&progress, Instant::now()).unwrap();
    }

    #[test]
    fn who_is_waited_for_is_named_and_how_long_at_most() {
        let mut one = barrier(FlipMode::Strict, 1);
        tell(&mut one, Stage::Decided, None);
        assert_ne!(one.notice, Notice::None);
        tell(&mut one, Stage::Closed, Some("host-1"));
        tell(&mut one, Stage::Closed, Some("host-3"));
        assert_eq!(
            one.notice(RolloutId(5)),
            "rollout 5: waiting for host-2 to close; 3s after the decision their leases must have run out, and the \
             others open"
        );
        assert_eq!(one.notice, Notice::None, "it is said once");

        let mut none = barrier(FlipMode::Strict, 0);
        tell(&mut none, Stage::Decided, None);
        tell(&mut none, Stage::Closed, Some("host-1"));
        let said = none.notice(RolloutId(5));
        assert!(said.contains("host-2, host-3 to close, however long it takes"), "{said}");
    }

    #[test]
    fn nobody_is_waited_for_once_the_others_open_or_in_fast_mode() {
        let mut opened = barrier(FlipMode::Strict, 1);
        tell(&mut opened, Stage::Decided, None);
        tell(&mut opened, Stage::Opened, None);
        assert_eq!(opened.notice, Notice::None);
        let mut fast = barrier(FlipMode::Fast, 1);
        tell(&mut fast, Stage::Decided, None);
        assert_eq!(fast.notice, Notice::None);
    }

    #[test]
    fn a_host_without_a_valid_name_is_no_answer() {
        let progress = v1::RolloutProgress {
            stage: Stage::Closed.into(),
            host: Some("../host".to_owned()),
            ..v1::RolloutProgress::default()
        };
        assert!(barrier(FlipMode::Strict, 1).heard(&progress, Instant::now()).is_err());
    }
}
