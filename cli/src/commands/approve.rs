use clap::Args;
use muster_model::{Code, Order, PublicKey, Refusal, SigningRole};
use muster_proto::v1;
use muster_trust::{Signer, add_signature};
use serde::Serialize;

use super::order::OrderView;
use crate::args::FleetArg;
use crate::commands::Env;
use crate::confirm::{Question, confirm};
use crate::connect::{Session, answer};
use crate::error::CliError;
use crate::exit::Exit;
use crate::orders::{OrderName, PendingOrder, Surroundings};
use crate::output::{Format, Page, Report, Tone};

/// Look at an order that another operator has signed, and sign it as well.
///
/// Everything that the order says is verified here, by the root that this context pins: the roster, the release, what
/// is served, and the order to roll back where one belongs to it. What cannot be explained is not signed. An order that
/// enough have signed is begun by whoever waits for it, or with the command that proposed it.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  muster approve 5f0c2a91
  muster approve 5f0c2a91 --yes --output json")]
pub(crate) struct Approve {
    /// The order: its digest, or at least 8 hex digits of it
    #[arg(value_name = "ID")]
    order: OrderName,
    #[command(flatten)]
    fleet: FleetArg,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

impl Approve {
    pub(super) async fn run(self, env: &Env) -> Result<Exit, CliError> {
        let session = env.session().await?;
        let fleet = session.fleet(self.fleet.fleet).await?;
        let pending = session.order(&fleet, &self.order).await?;
        let it = Surroundings::of(&session, &fleet).await?;
        let doing = format!("approve the order {}", pending.id());
        let view = OrderView::of(&session, &pending, &it);
        if !view.blockers.is_empty() {
            return Err(CliError::refused(doing, Refusal { blockers: view.blockers }));
        }
        let view = view.with_changes(&session, &pending, &it).await?;
        if env.ui.format() == Format::Text {
            env.ui.preview(&view);
        }
        let key = session.context().operator_key()?;
        refuse_needless(&session, &pending, key.public(), &view)
            .map_err(|refusal| CliError::refused(doing.as_str(), refusal))?;
        if !self.yes {
            let question = Question {
                text: "Type yes to sign this order:".to_owned(),
                expected: "yes",
                otherwise: "nothing was signed",
                next: "look at it with `muster order show ID`; add --yes to sign it without being asked",
            };
            confirm(env, &question)?;
        }
        let request = signed(&pending, &*key).map_err(CliError::trust(doing.as_str()))?;
        let mut client = session.operations();
        let approved = Box::pin(answer(&doing, client.approve_order(request))).await?;
        // It may have been begun by now, and would not be found any more.
        let pending = session.read_order(approved.order.unwrap_or_default());
        let pending = pending.map_err(CliError::trust(doing))?;
        env.ui.report(&Approved { order: OrderView::of(&session, &pending, &it) })?;
        Ok(Exit::Proven)
    }
}

/// A signature that would count for nothing is not given.
fn refuse_needless(
    session: &Session,
    pending: &PendingOrder,
    key: &PublicKey,
    view: &OrderView,
) -> Result<(), Refusal> {
    let root = session.root().root();
    if !root.role(SigningRole::Operator).keys.contains(key) {
        let detail = format!("{key} is no operator's key by root version {}", root.version);
        return Err(Refusal::of(Code::NotAllowed, detail));
    }
    let is_signed = |it: &muster_trust::OrderProposal| it.signers.contains(key);
    if is_signed(&pending.order) && pending.contingency.iter().all(is_signed) {
        let detail = if view.approvals.missing == 0 {
            "you have signed it already, and enough others have as well".to_owned()
        } else {
            let others = view.approvals.unsigned_names();
            format!("you have signed it already, and nobody counts twice; it needs {others}")
        };
        return Err(Refusal::of(Code::ApprovalMissing, detail));
    }
    Ok(())
}

/// The order and the order to roll back are signed together.
fn signed(
    pending: &PendingOrder,
    key: &dyn Signer,
) -> Result<v1::ApproveOrderRequest, muster_trust::TrustError> {
    let add = |it: &muster_trust::OrderProposal| {
        add_signature::<Order>(&it.envelope, key).map(|envelope| envelope.raw().to_vec())
    };
    Ok(v1::ApproveOrderRequest {
        order_envelope: add(&pending.order)?,
        contingency_envelope: pending.contingency.as_ref().map(add).transpose()?,
    })
}

#[derive(Debug, Serialize)]
struct Approved {
    order: OrderView,
}

impl Report for Approved {
    const SCHEMA: &'static str = "muster.approve/1";

    fn print(&self, page: &mut Page) {
        let OrderView { id, approvals, .. } = &self.order;
        let (signed, threshold) = (approvals.signed.len(), approvals.threshold);
        page.toned(
            Tone::Good,
            format_args!("you have signed the order {id}: {signed} of {threshold} approvals"),
        );
        if approvals.missing > 0 {
            let others = approvals.unsigned_names();
            page.line(format_args!("{} more must sign: {others}", approvals.missing));
        } else {
            page.line(
                "Whoever waits for it goes on now; if nobody does, run the command that proposed it again.",
            );
        }
    }
}
