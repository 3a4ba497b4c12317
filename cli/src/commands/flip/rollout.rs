//! One rollout from the side of who ordered it: sign the order, hand it over, watch, and abort on Ctrl-C.

use std::time::Duration;

use muster_model::{Code, FleetName, Flip, FlipMode, OnFailure, Order, Refusal, RolloutId, RosterRef};
use muster_proto::v1::flip_event::Event;
use muster_proto::v1::rollout_progress::Stage;
use muster_proto::{convert, v1};
use muster_trust::{Signer, sign};

use super::outcome::{Ended, Outcome, Start};
use crate::clock::{millis, unix_time};
use crate::commands::Env;
use crate::connect::{Events, Session, answer, roster_ref};
use crate::error::CliError;
use crate::exit::Exit;
use crate::output::StageLine;
use crate::view::ReleaseView;

/// What the operator calls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    /// Forward.
    Flip,
    /// Back to what was served before.
    Rollback,
}

/// How long it may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timing {
    /// Until an undecided rollout is aborted.
    pub(crate) timeout: Duration,
    /// Until the order no longer holds.
    pub(crate) valid_for: Duration,
}

impl Verb {
    /// The outcome if all goes well.
    pub(super) const fn success(self) -> Outcome {
        match self {
            Self::Flip => Outcome::Flipped,
            Self::Rollback => Outcome::RolledBack,
        }
    }

    const fn text(self) -> &'static str {
        match self {
            Self::Flip => "flip",
            Self::Rollback => "roll back",
        }
    }
}

/// Takes the fleet to `release`.
pub(crate) async fn carry_out(
    env: &Env,
    session: &Session,
    fleet: &FleetName,
    release: ReleaseView,
    timing: Timing,
    verb: Verb,
) -> Result<Exit, CliError> {
    let doing = format!("{} {fleet} to {release}", verb.text());
    let status = session.status(fleet).await?;
    let roster = roster_ref(&session.roster(fleet).await?);
    let from = ReleaseView::optional(status.serving.as_ref()).map_err(CliError::answer(doing.as_str()))?;

    let counter = RolloutId(status.last_k).next();
    let ordered = ordered(session, fleet, counter, roster, (from.as_ref(), &release), timing.valid_for);

    let start = Start {
        fleet: fleet.clone(),
        release,
        from,
        hosts: roster.hosts as usize,
        solo: session.root().root().is_solo(),
    };
    let watched = match ordered {
        Ok(order_envelope) => {
            let request = v1::FlipRequest { order_envelope, timeout_ms: millis(timing.timeout) };
            Box::pin(watch(env, session, fleet, counter, &doing, request)).await
        }
        Err(error) => Err(error),
    };
    let end = match watched {
        Err(CliError::Refused { refusal, .. }) => never_begun(counter, status.epoch, refusal),
        watched => watched?,
    };
    let report = Ended::new(start, verb, end).map_err(CliError::answer(doing))?;
    env.ui.report(&report)?;
    Ok(report.exit_code)
}

/// The signed order from what is served to another release.
fn ordered(
    session: &Session,
    fleet: &FleetName,
    counter: RolloutId,
    roster: RosterRef,
    (from, to): (Option<&ReleaseView>, &ReleaseView),
    valid_for: Duration,
) -> Result<Vec<u8>, CliError> {
    let doing = format!("order {to} for {fleet}");
    if from.is_some_and(|from| from.digest == to.digest) {
        // No such order can be written, so that nobody else can refuse it.
        let refusal = Refusal::of(Code::AlreadyServing, format!("{fleet} serves {to}"));
        return Err(CliError::refused(doing, refusal));
    }
    let flip = Flip {
        from: from.map(|release| release.digest),
        to: to.digest,
        mode: FlipMode::Strict,
        on_failure: OnFailure::Hold,
    };
    let now = unix_time();
    let order = Order::new(fleet.clone(), counter, roster, flip, now..now.after(valid_for))
        .map_err(|source| CliError::Document { doing: doing.clone(), source })?;
    let key = session.context().operator_key()?;
    let signers: [&dyn Signer; 1] = [&key];
    let envelope = sign(&order, &signers).map_err(CliError::trust(doing))?;
    Ok(envelope.raw().to_vec())
}

/// Shows what happens until it is over. The first Ctrl-C asks the coordinator to abort; the second leaves.
async fn watch(
    env: &Env,
    session: &Session,
    fleet: &FleetName,
    k: RolloutId,
    doing: &str,
    request: v1::FlipRequest,
) -> Result<v1::RolloutEnd, CliError> {
    let timeout = Duration::from_millis(request.timeout_ms);
    let mut client = session.operations();
    let mut events = Box::pin(Events::open(doing, timeout, client.flip(request))).await?;
    let line = StageLine::new(&env.ui);
    let mut has_aborted = false;
    loop {
        tokio::select! {
            event = events.next() => match event?.event {
                Some(Event::Progress(progress)) => {
                    show(&line, &progress).map_err(CliError::answer(events.doing()))?;
                }
                Some(Event::End(end)) => return Ok(end),
                None => {}
            },
            interrupt = tokio::signal::ctrl_c() => {
                interrupt.map_err(|source| CliError::System { doing: "wait for Ctrl-C", source })?;
                if has_aborted {
                    return Err(CliError::Lost { doing: events.doing().to_owned(), status: None });
                }
                has_aborted = true;
                line.say(&abort(session, fleet, k).await);
            }
        }
    }
}

/// A rollout that was refused: the coordinator refuses before it changes anything, and tells of what it has begun by an
/// end.
fn never_begun(k: RolloutId, epoch: u64, refusal: Refusal) -> v1::RolloutEnd {
    v1::RolloutEnd {
        k: k.0,
        outcome: v1::rollout_end::Outcome::Unchanged.into(),
        epoch,
        blockers: refusal.blockers.into_iter().map(Into::into).collect(),
        dark_window: None,
        release: None,
    }
}

/// Asks for an abort and says what came of it; the rollout's own end tells the rest.
async fn abort(session: &Session, fleet: &FleetName, k: RolloutId) -> String {
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
