//! One rollout from the side of who ordered it: sign the order, hand it over, watch, and say how it ended.

use muster_model::{Blocker, FleetName, FlipMode, Refusal, RolloutId, Roster};
use muster_proto::v1;

use super::approvals::{Asked, Waits, ask};
use super::order::{Circumstances, Halted, Terms};
use super::outcome::{Ended, Outcome, Start};
use super::watch::{Barrier, Watched, watch};
use crate::clock::millis;
use crate::commands::Env;
use crate::commands::order::OrderView;
use crate::connect::{Session, roster_ref};
use crate::error::CliError;
use crate::exit::Exit;
use crate::orders::added;
use crate::view::{ReleaseView, listed};

/// What the operator calls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    /// Forward.
    Flip,
    /// Back to what was served before.
    Rollback,
    /// To what was served when the fleet was halted.
    Resume,
}

/// What fast mode gives up, said before it is used.
const FAST_MODE: &str = "fast mode: every host flips at one instant by its own clock, so for a moment some may serve the \
                         old release and others the new one; the skew is bounded and measured, and that no two releases \
                         are ever served is not claimed";

impl Verb {
    /// The outcome if all goes well.
    pub(super) const fn success(self) -> Outcome {
        match self {
            Self::Flip | Self::Resume => Outcome::Flipped,
            Self::Rollback => Outcome::RolledBack,
        }
    }

    const fn text(self) -> &'static str {
        match self {
            Self::Flip => "flip",
            Self::Rollback => "roll back",
            Self::Resume => "resume",
        }
    }
}

impl Halted {
    /// What the coordinator says of the fleet and its hosts.
    pub(in crate::commands) fn of(status: &v1::FleetStatus) -> Self {
        let is_halted = status.halted_k.is_some() || status.hosts.iter().any(|host| host.halted_k.is_some());
        if is_halted { Self::Yes } else { Self::No }
    }
}

/// Takes the fleet to `release`.
pub(crate) async fn carry_out(
    env: &Env,
    session: &Session,
    fleet: &FleetName,
    release: ReleaseView,
    terms: Terms,
    verb: Verb,
) -> Result<Exit, CliError> {
    let doing = format!("{} {fleet} to {release}", verb.text());
    let status = session.status(fleet).await?;
    let roster = session.roster(fleet).await?;
    let from = ReleaseView::optional(status.serving.as_ref()).map_err(CliError::answer(doing.as_str()))?;

    let added = added(roster.document());
    if !added.is_empty() {
        env.ui.say(format_args!("a joiner has added {} to the operators' roster", listed(&added)));
    }
    let counter = RolloutId(status.last_k).next();
    let circumstances = Circumstances {
        fleet,
        verb,
        counter,
        roster: roster_ref(&roster),
        from: from.as_ref(),
        to: &release,
        halted: Halted::of(&status),
    };
    let start = Start {
        fleet: fleet.clone(),
        halted: circumstances.halted,
        k: counter,
        mode: terms.mode,
        release: release.clone(),
        from: from.clone(),
        hosts: roster.document().hosts().len(),
        solo: session.operators_needed() < 2,
    };
    let begun = Box::pin(begin(env, session, &circumstances, terms, (&doing, roster.document()))).await;
    let end = match begun {
        Err(CliError::Refused { refusal, .. }) => never_begun(counter, status.epoch, refusal),
        Ok(Begun::Waits(order, blockers)) => {
            let report = Waits::new(start, status.epoch, *order, blockers);
            env.ui.report(&report)?;
            return Ok(report.exit_code);
        }
        Ok(Begun::Ended(end)) => end,
        Err(error) => return Err(error),
    };
    let report = Ended::new(start, verb, end).map_err(CliError::answer(doing))?;
    env.ui.report(&report)?;
    Ok(report.exit_code)
}

/// How far the command came.
enum Begun {
    /// The rollout is over, or no longer waited for.
    Ended(v1::RolloutEnd),
    /// Others have yet to sign.
    Waits(Box<OrderView>, Vec<Blocker>),
}

/// Signs the orders, has them approved, hands them over and watches.
async fn begin(
    env: &Env,
    session: &Session,
    it: &Circumstances<'_>,
    terms: Terms,
    (doing, roster): (&str, &Roster),
) -> Result<Begun, CliError> {
    let orders = terms.order(it, || session.context().operator_key())?;
    if terms.mode == FlipMode::Fast {
        env.ui.warn(FAST_MODE);
    }
    let orders = match Box::pin(ask(env, session, (it.fleet, doing), orders, terms.wait)).await? {
        Asked::Approved(orders) => orders,
        Asked::Waits(order, blockers) => return Ok(Begun::Waits(order, blockers)),
    };
    let barrier = Barrier::new(roster, terms.mode, orders.max_lapsed);
    let request = v1::FlipRequest {
        order_envelope: orders.order,
        timeout_ms: millis(terms.timeout),
        contingency_envelope: orders.contingency,
    };
    let watched = Watched { fleet: it.fleet, k: it.counter, doing };
    Box::pin(watch(env, session, watched, barrier, request)).await.map(Begun::Ended)
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
