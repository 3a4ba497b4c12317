//! Orders that more than one operator has to sign: they are proposed, and waited for if that was asked.

use std::time::Duration;

use muster_model::{Blocker, Code, FleetName, FlipMode, Refusal, UnixTime};
use muster_proto::v1;
use serde::Serialize;
use tokio::time::Instant;

use super::order::Orders;
use super::outcome::{Outcome, Start, goes_on_serving};
use crate::clock::{date_text, unix_time};
use crate::commands::Env;
use crate::commands::order::OrderView;
use crate::connect::{Session, answer};
use crate::error::CliError;
use crate::exit::Exit;
use crate::orders::{PendingOrder, Surroundings};
use crate::output::{Page, Report, Tone};
use crate::view::ReleaseView;

/// How often it is asked whether somebody has approved.
const INTERVAL: Duration = Duration::from_millis(250);

/// Whether, and how long, approvals are waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::commands) enum Wait {
    /// Not at all.
    No,
    /// At most so long.
    AtMost(Duration),
    /// As long as the order holds.
    UntilExpiry,
}

/// What came of asking for approvals.
pub(super) enum Asked {
    /// Enough operators have signed these.
    Approved(Orders),
    /// The order waits, for these reasons.
    Waits(Box<OrderView>, Vec<Blocker>),
}

/// Has the orders signed by as many operators as the root demands: at once where one is enough.
pub(super) async fn ask(
    env: &Env,
    session: &Session,
    (fleet, doing): (&FleetName, &str),
    orders: Orders,
    wait: Wait,
) -> Result<Asked, CliError> {
    if session.operators_needed() < 2 {
        return Ok(Asked::Approved(orders));
    }
    let (max_lapsed, pending) = (orders.max_lapsed, propose(session, (fleet, doing), orders).await?);
    let deadline = match wait {
        Wait::No => Some(Instant::now()),
        Wait::AtMost(duration) => Instant::now().checked_add(duration),
        Wait::UntilExpiry => None,
    };
    let mut waiting = Waiting { env, session, fleet, doing, deadline, told: None };
    match waiting.approved(pending).await? {
        (pending, Ended::Approved) => Ok(Asked::Approved(Orders {
            order: pending.order.envelope.raw().to_vec(),
            contingency: pending.contingency.map(|back| back.envelope.raw().to_vec()),
            max_lapsed,
        })),
        (pending, ended) => {
            let it = Surroundings::of(session, fleet).await?;
            let view = OrderView::of(session, &pending, &it).with_changes(session, &pending, &it).await?;
            let detail = format!(
                "{} of {} operators have signed the order {}; {} may give what is missing, until {}",
                view.approvals.signed.len(),
                view.approvals.threshold,
                pending.id(),
                view.approvals.unsigned_names(),
                date_text(pending.says().expires_unix_ms)
            );
            let mut blockers = vec![Blocker::fleet(Code::ApprovalMissing, detail)];
            if ended == Ended::TimeIsUp && wait != Wait::No {
                blockers
                    .push(Blocker::fleet(Code::TimedOut, "nobody approved it in the time it was waited for"));
            }
            Ok(Asked::Waits(Box::new(view), blockers))
        }
    }
}

/// Gives the order to the coordinator, unless the same waits there already: then that one is meant.
async fn propose(
    session: &Session,
    (fleet, doing): (&FleetName, &str),
    orders: Orders,
) -> Result<PendingOrder, CliError> {
    let own = session.root().review_order(&orders.order, unix_time()).map_err(CliError::trust(doing))?;
    let is_the_same = |known: &PendingOrder| {
        known.cancelled_by.is_none()
            && known.says().is_alike(&own.document)
            && unix_time() < known.says().expires_unix_ms
    };
    let known = session.orders(fleet).await?.into_iter().find(is_the_same);
    if let Some(known) = known {
        return Ok(known);
    }
    let request =
        v1::ProposeOrderRequest { order_envelope: orders.order, contingency_envelope: orders.contingency };
    let mut client = session.operations();
    let proposed = Box::pin(answer(doing, client.propose_order(request))).await?;
    session.read_order(proposed.order.unwrap_or_default()).map_err(CliError::trust(doing))
}

/// How waiting ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    Approved,
    TimeIsUp,
    /// By Ctrl-C. The order stays.
    Left,
}

struct Waiting<'a> {
    env: &'a Env,
    session: &'a Session,
    fleet: &'a FleetName,
    doing: &'a str,
    deadline: Option<Instant>,
    /// How many signatures were told last.
    told: Option<usize>,
}

impl Waiting<'_> {
    /// Waits until enough have signed, time is up or the order can no longer be begun.
    async fn approved(&mut self, mut pending: PendingOrder) -> Result<(PendingOrder, Ended), CliError> {
        loop {
            if pending.order.missing(self.session.root()) == 0 {
                return Ok((pending, Ended::Approved));
            }
            self.refuse_expired(pending.says().expires_unix_ms)?;
            if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Ok((pending, Ended::TimeIsUp));
            }
            self.tell(&pending);
            tokio::select! {
                () = tokio::time::sleep(INTERVAL) => {}
                interrupt = tokio::signal::ctrl_c() => {
                    interrupt.map_err(|source| CliError::System { doing: "wait for Ctrl-C", source })?;
                    return Ok((pending, Ended::Left));
                }
            }
            pending = self.again(pending).await?;
        }
    }

    /// Asks how the order stands. A coordinator that is away, as while it starts again, is asked once more.
    async fn again(&self, pending: PendingOrder) -> Result<PendingOrder, CliError> {
        let orders = match self.session.orders(self.fleet).await {
            Ok(orders) => orders,
            Err(CliError::Call { .. } | CliError::TimedOut { .. } | CliError::Lost { .. }) => {
                return Ok(pending);
            }
            Err(error) => return Err(error),
        };
        let refused = |code, detail: String| Err(CliError::refused(self.doing, Refusal::of(code, detail)));
        let id = pending.id();
        match orders.into_iter().find(|known| known.id() == id) {
            Some(known) => match &known.cancelled_by {
                Some(who) => refused(Code::OrderCancelled, format!("{who} took the order {id} back")),
                None => Ok(known),
            },
            None => {
                refused(Code::OrderUnknown, format!("the order {id} was begun by somebody else, or is lost"))
            }
        }
    }

    fn refuse_expired(&self, expires: UnixTime) -> Result<(), CliError> {
        if unix_time() < expires {
            return Ok(());
        }
        let detail =
            format!("the order expired at {} before enough operators had signed it", date_text(expires));
        Err(CliError::refused(self.doing, Refusal::of(Code::OrderExpired, detail)))
    }

    fn tell(&mut self, pending: &PendingOrder) {
        let signed = pending.order.signers.len();
        if self.told.replace(signed) != Some(signed) {
            let (id, needed) = (pending.id(), self.session.operators_needed());
            self.env.ui.say(format_args!(
                "order {id}: {signed} of {needed} approvals; waiting for `muster approve {}`",
                id.short()
            ));
        }
    }
}

/// What is reported where nothing was begun yet.
#[derive(Debug, Serialize)]
pub(super) struct Waits {
    fleet: FleetName,
    outcome: Outcome,
    release: ReleaseView,
    from: Option<ReleaseView>,
    rollout: u64,
    epoch: u64,
    hosts: usize,
    mode: FlipMode,
    solo: bool,
    order: OrderView,
    blockers: Vec<Blocker>,
    pub(super) exit_code: Exit,
}

impl Waits {
    /// What is known of the fleet, and of the order.
    pub(super) fn new(start: Start, epoch: u64, order: OrderView, blockers: Vec<Blocker>) -> Self {
        Self {
            fleet: start.fleet,
            outcome: Outcome::Unchanged,
            release: start.release,
            from: start.from,
            rollout: start.k.0,
            epoch,
            hosts: start.hosts,
            mode: start.mode,
            solo: start.solo,
            order,
            exit_code: Exit::of_blockers(&blockers),
            blockers,
        }
    }
}

impl Report for Waits {
    const SCHEMA: &'static str = "muster.flip/1";

    fn print(&self, page: &mut Page) {
        page.toned(Tone::Warning, goes_on_serving(&self.fleet, self.from.as_ref()));
        page.line("the order waits for the approval of another operator:");
        page.gap();
        self.order.print(page);
        page.gap();
        page.reasons(&self.blockers);
        let id = self.order.id.short();
        page.line(format_args!(
            "  next: another operator runs `muster order show {id}`, then `muster approve {id}`"
        ));
        page.line("        then run this command again, or begin it with --wait-for-approval");
    }
}
