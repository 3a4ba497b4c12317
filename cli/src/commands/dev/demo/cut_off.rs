//! A host is cut off between arm and decide: the guard fences it, the rest carry on, and it comes back dark.

use std::time::{Duration, Instant};

use muster_guard::{Fence, FenceCause, LeaseState, LinkState, boot_time};
use muster_model::HostName;
use muster_proto::v1::{self, Phase, host_mode};
use serde::Serialize;

use super::super::fleet::Program;
use super::hold::Suspended;
use super::releases::NEXT;
use super::stage::Stage;
use super::story::{DEPLOYED, HOSTS, all_serve, digest_in, progress, push, report};
use super::typed::Typing;
use crate::clock::millis;
use crate::error::CliError;

/// Waits in its hook `quiesce`, so that nobody arms before all is arranged.
pub(super) const HELD: usize = 2;

/// Arms last, as its guard is suspended until the other one is cut off.
const LAST: usize = 3;

/// Is cut off once it has armed.
const CUT_OFF: usize = 5;

/// On a machine that is very busy the hosts that are held may be given up before all is arranged.
const TRIES_MAX: usize = 3;

/// How long anything may take that is waited for here.
const PATIENCE: Duration = Duration::from_secs(15);

/// How often it is looked.
const INTERVAL: Duration = Duration::from_millis(10);

/// What was seen of the host that was cut off, and of the others.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct CutOff {
    /// From the decision until the guard had taken the host's link away.
    fenced_after_ms: u64,
    /// From the decision until all others served.
    carried_on_after_ms: u64,
}

/// The host is armed, the rollout is decided, and the host does not know.
struct Cut {
    host: HostName,
    agent: Suspended,
    decided: Instant,
}

/// How an attempt to cut a host off at the right moment ended.
enum Attempt {
    Cut(Cut),
    /// The rollout ended before: nothing has changed.
    GivenUp,
}

/// Tells it. Gives the digest that is served then, and what was seen.
pub(super) async fn tell(stage: &mut Stage) -> Result<(String, CutOff), CliError> {
    stage.begin("A host is cut off at the worst moment: armed, and never told the decision");
    let pushed = push(stage, NEXT).await?;
    let digest = digest_in(stage, &pushed)?;
    stage.types(&["deploy", NEXT], &DEPLOYED).await?;
    let (held, last) = (stage.host(HELD), stage.host(LAST));
    let lease = seconds(stage.fleet().timing().lease());
    stage.say(format_args!(
        "While a flip is under way, a host serves under a lease: {lease} unless it is heard. That moment is short, so"
    ));
    stage.say(format_args!(
        "{held} and {last} are made to be late: {held} waits in its hook `quiesce`, then the guard of {last} is suspended."
    ));
    for _ in 0..TRIES_MAX {
        stage.hold().begin()?;
        let flip = stage.begins(&["flip", NEXT]);
        match Box::pin(attempt(stage, &flip)).await? {
            Attempt::Cut(cut) => {
                let seen = Box::pin(cut_off(stage, cut, flip, &digest)).await?;
                return Ok((digest, seen));
            }
            Attempt::GivenUp => {
                stage.hold().release()?;
                stage.say("The machine was too busy, and the rollout was given up before it was decided:");
                stage.fails(flip).await?;
                stage.say("Nothing has changed by that, and it is tried again.");
            }
        }
    }
    stage.failed(format!("no host could be cut off between arm and decide in {TRIES_MAX} tries"))
}

/// Arranges that all hosts are armed, that the rollout is decided, and that one host is cut off in between.
async fn attempt(stage: &Stage, flip: &Typing) -> Result<Attempt, CliError> {
    let others = u32::from(HOSTS) - 1;
    let (last, host) = (stage.host(LAST), stage.host(CUT_OFF));
    if !until(|| async { Ok(flip.has_ended() || stage.hold().is_reached()) }).await? || flip.has_ended() {
        return Ok(Attempt::GivenUp);
    }
    // Whoever is in its hook was asked to prepare, so that what is counted from now on are the hosts that have prepared.
    let prepared = |status: &v1::FleetStatus| {
        let rollout = status.rollout.as_ref();
        status.phase() == Phase::Preparing && rollout.is_some_and(|it| it.acknowledged == others)
    };
    if !until_status(stage, flip, prepared).await? {
        return Ok(Attempt::GivenUp);
    }
    let guard = stage.suspend(Program::Guard, &last)?;
    stage.hold().release()?;
    let armed = |status: &v1::FleetStatus| {
        let waiting = status.hosts.iter().filter(|it| !is_armed(it)).map(|it| it.host.as_str());
        status.phase() == Phase::Arming && waiting.eq([last.as_str()])
    };
    if !until_status(stage, flip, armed).await? {
        return Ok(Attempt::GivenUp);
    }
    let agent = stage.suspend(Program::Agent, &host)?;
    let decided = Instant::now();
    drop(guard);
    let is_decided = |status: &v1::FleetStatus| matches!(status.phase(), Phase::Decided | Phase::Opened);
    if !until_status(stage, flip, is_decided).await? {
        return Ok(Attempt::GivenUp);
    }
    stage.say(format_args!(
        "{host} has armed and is cut off: its agent (process {}) is suspended. The last host arms; it is decided.",
        agent.pid()
    ));
    Ok(Attempt::Cut(Cut { host, agent, decided }))
}

fn is_armed(host: &v1::HostStatus) -> bool {
    host.mode.as_ref().is_some_and(|mode| mode.kind() == host_mode::Kind::Armed)
}

async fn cut_off(stage: &Stage, cut: Cut, flip: Typing, digest: &str) -> Result<CutOff, CliError> {
    let Cut { host, agent, decided } = cut;
    let fenced_after = fences_itself(stage, &host, decided).await?;
    let carried_on_after = the_rest_carry_on(stage, &host, digest, decided).await?;
    stage.types(&["status"], &report(0, &["opened", host.as_str()])).await?;

    drop(agent);
    stage.say(format_args!(
        "{host} hears again. It comes back dark: it proves that it is closed, opens, and serves. The flip ends:"
    ));
    stage.ends(flip, &progress(0, &["8 of 8", host.as_str(), digest])).await?;
    all_serve(stage, NEXT, digest)?;
    stage.types(&["status", "--check"], &report(0, &["settled", "no blockers"])).await?;
    stage.types(&["receipt", "show"], &report(0, &[digest, "lapsed", host.as_str()])).await?;
    Ok(CutOff { fenced_after_ms: millis(fenced_after), carried_on_after_ms: millis(carried_on_after) })
}

/// The guard alone, asked on its socket: armed, and then fenced.
async fn fences_itself(stage: &Stage, host: &HostName, decided: Instant) -> Result<Duration, CliError> {
    if let LeaseState::Armed(armed) = stage.guard_state(host)?.lease {
        let left = seconds(armed.deadline_boot_ms.since(boot_time()));
        stage.say(format_args!("  guard of {host}: armed for rollout {}, {left} left", armed.k));
    }
    let fence = || -> Result<Option<Fence>, CliError> {
        let state = stage.guard_state(host)?;
        let is_dark = state.open.is_none() && state.link == LinkState::Absent;
        Ok(state.fenced().copied().filter(|fence| is_dark && fence.dark_boot_ms.is_some()))
    };
    until(|| async { fence().map(|fence| fence.is_some()) }).await?;
    let after = decided.elapsed();
    let Some(Fence { cause: FenceCause::DeadlinePassed, due_boot_ms, dark_boot_ms: Some(dark), .. }) =
        fence()?
    else {
        return stage.failed(format!("the guard of {host} did not fence it at its deadline"));
    };
    let took = dark.since(due_boot_ms).as_millis();
    stage.good(format_args!(
        "  guard of {host}: fenced, as the deadline passed; its link was gone {took} ms later, with its agent still \
         suspended"
    ));
    let wait = seconds(stage.fleet().timing().wait());
    stage.say(format_args!(
        "The others have closed and proven it. {host} cannot, so they wait {wait}: longer than its lease could last."
    ));
    stage.pause().await;
    Ok(after)
}

/// All but the one that is cut off open, and at no time does anybody serve what was left behind.
async fn the_rest_carry_on(
    stage: &Stage,
    host: &HostName,
    digest: &str,
    decided: Instant,
) -> Result<Duration, CliError> {
    let new = Some(digest.trim_start_matches("sha256:").to_owned());
    let (mut is_mixed, mut silent) = (false, Vec::new());
    let mut looks = || -> Result<bool, CliError> {
        let mut links = stage.links()?;
        let serving = links.remove(&new).map_or(0, |hosts| hosts.len());
        silent = links.remove(&None).unwrap_or_default();
        is_mixed = !links.is_empty();
        Ok(is_mixed || serving + 1 >= usize::from(HOSTS))
    };
    until(|| std::future::ready(looks())).await?;
    let after = decided.elapsed();
    if is_mixed || silent != [host.clone()] {
        return stage.failed(format!("not exactly {host} serves nothing and all others {NEXT}"));
    }
    stage.good(format_args!(
        "{} after the decision the seven others serve {NEXT}, and {host} nothing",
        seconds(after)
    ));
    Ok(after)
}

/// Waits until the coordinator sees the fleet so. Says whether it came about before the command ended.
async fn until_status(
    stage: &Stage,
    flip: &Typing,
    is_so: impl Fn(&v1::FleetStatus) -> bool,
) -> Result<bool, CliError> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline && !flip.has_ended() {
        if is_so(&stage.status().await?) {
            return Ok(true);
        }
        tokio::time::sleep(INTERVAL).await;
    }
    Ok(false)
}

/// Waits until it is so, and says whether that came about.
pub(super) async fn until<F>(mut is_so: impl FnMut() -> F) -> Result<bool, CliError>
where
    F: Future<Output = Result<bool, CliError>>,
{
    let deadline = Instant::now() + PATIENCE;
    loop {
        if is_so().await? {
            return Ok(true);
        }
        if Instant::now() >= deadline {
            return Ok(false);
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Seconds with a tenth, for a time that the reader waits.
fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}
