//! An order in words.

use muster_model::{
    Blocker, ChangeKind, Digest, FleetName, FlipMode, HostName, OnFailure, PublicKey, Root, SigningRole, diff,
};
use serde::Serialize;

use crate::clock::date_text;
use crate::commands::release::fetch_manifest;
use crate::connect::Session;
use crate::error::CliError;
use crate::orders::{PendingOrder, Surroundings};
use crate::output::{Page, Report, Tone, counted};
use crate::view::{KeyView, ReleaseView, listed};

/// Everything that an order says, and how far it is.
#[derive(Debug, Serialize)]
pub(in crate::commands) struct OrderView {
    pub(in crate::commands) id: Digest,
    pub(in crate::commands) state: State,
    fleet: FleetName,
    kind: &'static str,
    rollout: u64,
    from: Option<ReleaseView>,
    to: ReleaseView,
    /// From one release to the other; only where a single order is shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    changes: Option<Changes>,
    roster_revision: u64,
    roster_digest: Digest,
    hosts: u32,
    /// Those of them that no operator has signed for, but a joiner.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    added_hosts: Vec<HostName>,
    mode: FlipMode,
    on_failure: OnFailure,
    max_lapsed: u32,
    contingency: Option<Contingency>,
    not_before: String,
    expires: String,
    proposed_by: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    cancelled_by: Option<String>,
    pub(in crate::commands) approvals: Approvals,
    /// Why it could not be begun now, beside approvals that are missing.
    pub(in crate::commands) blockers: Vec<Blocker>,
}

/// How far an order is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::commands) enum State {
    /// Somebody has yet to sign it.
    Waiting,
    /// Enough have signed it.
    Approved,
    /// Something is in its way, for good.
    Blocked,
}

/// Who has signed, and who may.
#[derive(Debug, Serialize)]
pub(in crate::commands) struct Approvals {
    pub(in crate::commands) threshold: usize,
    pub(in crate::commands) signed: Vec<KeyView>,
    /// Those who have not signed; as many of them as are missing must.
    pub(in crate::commands) unsigned: Vec<KeyView>,
    pub(in crate::commands) missing: usize,
}

/// How many entries of the tree differ.
#[derive(Debug, Default, Serialize)]
struct Changes {
    added: usize,
    removed: usize,
    modified: usize,
    rules: usize,
}

/// The order to go back by itself.
#[derive(Debug, Serialize)]
struct Contingency {
    id: Digest,
    rollout: u64,
    to: Digest,
}

impl Approvals {
    /// Counted by the root that this machine pins.
    pub(in crate::commands) fn of(session: &Session, signers: &[PublicKey]) -> Self {
        Self::by_root(session.root().root(), signers)
    }

    /// Counted by this root.
    pub(in crate::commands) fn by_root(root: &Root, signers: &[PublicKey]) -> Self {
        let role = root.role(SigningRole::Operator);
        let view = |key| KeyView::of(root, key);
        Self {
            threshold: role.threshold as usize,
            signed: signers.iter().map(view).collect(),
            unsigned: role.keys.iter().filter(|key| !signers.contains(key)).map(view).collect(),
            missing: (role.threshold as usize).saturating_sub(signers.len()),
        }
    }

    /// Who may give what is missing.
    pub(in crate::commands) fn unsigned_names(&self) -> String {
        let name = |key: &KeyView| key.name.clone().unwrap_or_else(|| key.key.to_string());
        self.unsigned.iter().map(name).collect::<Vec<_>>().join(" or ")
    }

    /// The count, and the names.
    pub(in crate::commands) fn print(&self, page: &mut Page) {
        let tone = if self.missing == 0 { Tone::Good } else { Tone::Warning };
        page.labelled(tone, "approvals", format_args!("{} of {}", self.signed.len(), self.threshold));
        for key in &self.signed {
            page.line(format_args!("  signed   {key}"));
        }
        if self.missing > 0 {
            page.line(format_args!("  {} of these must still sign:", self.missing));
            for key in &self.unsigned {
                page.line(format_args!("           {key}"));
            }
        }
    }
}

impl OrderView {
    /// What an order says, and whether it fits the fleet.
    pub(in crate::commands) fn of(session: &Session, pending: &PendingOrder, it: &Surroundings) -> Self {
        let order = pending.says();
        let blockers = pending.blockers(it);
        let approvals = Approvals::of(session, &pending.order.signers);
        let state = match (blockers.is_empty(), approvals.missing) {
            (false, _) => State::Blocked,
            (true, 0) => State::Approved,
            (true, _) => State::Waiting,
        };
        let named = |digest| match it.release(digest) {
            Some(known) => ReleaseView::from(known),
            None => ReleaseView { version: "unknown".to_owned(), digest },
        };
        Self {
            id: pending.id(),
            state,
            fleet: order.fleet.clone(),
            kind: pending.kind_text(),
            rollout: order.counter.0,
            from: order.from.map(named),
            to: named(order.to),
            changes: None,
            roster_revision: order.roster_revision.0,
            roster_digest: order.roster,
            hosts: order.hosts,
            added_hosts: it.added.clone(),
            mode: order.mode,
            on_failure: order.on_failure,
            max_lapsed: order.max_lapsed,
            contingency: pending.contingency.as_ref().map(|back| Contingency {
                id: back.payload_digest,
                rollout: back.document.counter.0,
                to: back.document.to,
            }),
            not_before: date_text(order.not_before_unix_ms),
            expires: date_text(order.expires_unix_ms),
            proposed_by: pending.proposed_by.clone(),
            cancelled_by: pending.cancelled_by.clone(),
            approvals,
            blockers,
        }
    }

    /// The same with what the new release changes, counted from both manifests.
    pub(in crate::commands) async fn with_changes(
        mut self,
        session: &Session,
        pending: &PendingOrder,
        it: &Surroundings,
    ) -> Result<Self, CliError> {
        let order = pending.says();
        let known = (order.from.and_then(|from| it.release(from)), it.release(order.to));
        if let (Some(from), Some(to)) = known {
            let from = Box::pin(fetch_manifest(session, from)).await?;
            let to = Box::pin(fetch_manifest(session, to)).await?;
            let mut changes = Changes::default();
            for change in diff(&from, &to) {
                match change.kind {
                    ChangeKind::Added { .. } => changes.added += 1,
                    ChangeKind::Removed { .. } => changes.removed += 1,
                    ChangeKind::Modified { .. } => changes.modified += 1,
                    ChangeKind::RuleAdded { .. } | ChangeKind::RuleRemoved { .. } => changes.rules += 1,
                }
            }
            self.changes = Some(changes);
        }
        Ok(self)
    }

    /// A line of a table.
    pub(super) fn row(&self) -> [String; 6] {
        let state = match self.state {
            State::Waiting => "waiting".to_owned(),
            State::Approved => "approved".to_owned(),
            State::Blocked => self.blockers.first().map_or("blocked", |it| it.code.as_str()).to_owned(),
        };
        [
            self.id.short().to_string(),
            self.rollout.to_string(),
            self.to.short(),
            format!("{} of {}", self.approvals.signed.len(), self.approvals.threshold),
            state,
            self.expires.clone(),
        ]
    }

    const fn mode_text(&self) -> &'static str {
        match self.mode {
            FlipMode::Strict => "strict: no instant with two releases served",
            FlipMode::Fast => "fast: for a moment two releases may be served",
        }
    }

    fn print_failure(&self, page: &mut Page) {
        let back_to = self.from.as_ref().map_or_else(|| "nothing".to_owned(), ToString::to_string);
        match (&self.on_failure, &self.contingency) {
            (OnFailure::Rollback, Some(back)) => {
                page.line(format_args!(
                    "failure  goes back by itself to {back_to}, as rollout {}",
                    back.rollout
                ));
                page.line(format_args!("         by the order {}, which is signed with this one", back.id));
            }
            (OnFailure::Rollback, None) | (OnFailure::Hold, _) => {
                page.line("failure  hosts that do not start stay dark, the others serve");
            }
        }
        let lapsed = counted(self.max_lapsed, "silent host");
        page.line(format_args!("lapse    the others may open over at most {lapsed} whose lease has run out"));
    }
}

impl Report for OrderView {
    const SCHEMA: &'static str = "muster.order/1";

    fn print(&self, page: &mut Page) {
        let from = self.from.as_ref().map_or_else(|| "nothing".to_owned(), ToString::to_string);
        page.line(format_args!("order    {}", self.id));
        page.line(format_args!("what     {} of {}, rollout {}", self.kind, self.fleet, self.rollout));
        page.line(format_args!("from     {from}"));
        page.line(format_args!("to       {}", self.to));
        if let Some(Changes { added, removed, modified, rules }) = &self.changes {
            let rules = if *rules == 0 { String::new() } else { format!(", {}", counted(*rules, "rule")) };
            page.line(format_args!("changes  {added} added, {removed} removed, {modified} modified{rules}"));
        }
        page.line(format_args!(
            "roster   revision {} with {} ({})",
            self.roster_revision,
            counted(self.hosts, "host"),
            self.roster_digest
        ));
        if !self.added_hosts.is_empty() {
            page.line(format_args!("         of these a joiner has added {}", listed(&self.added_hosts)));
        }
        page.line(format_args!("mode     {}", self.mode_text()));
        self.print_failure(page);
        page.line(format_args!("holds    from {} until {}", self.not_before, self.expires));
        page.line(format_args!("proposed by {}", self.proposed_by));
        self.approvals.print(page);
        if !self.blockers.is_empty() {
            page.toned(Tone::Bad, "it cannot be begun:");
            page.blockers(&self.blockers);
        }
    }
}
