//! Who may add hosts without operators, as the command line, a draft and a page say it.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use clap::Args;
use muster_model::{DocumentError, FleetName, FleetScope, Joiners, PublicKey, RoleKeys, Root};
use serde::{Deserialize, Serialize};

use super::edit::KeyArg;
use crate::args::duration;
use crate::clock::{millis, span_text};
use crate::error::CliError;
use crate::output::{Page, Tone};
use crate::view::KeyView;

/// For how long operators' rosters may be added to where nobody has said it.
const BASE_AGE_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

/// The keys that may add hosts to rosters without operators.
#[derive(Debug, Args)]
#[command(next_help_heading = "Keys that may add hosts, as for autoscaling")]
pub(super) struct JoinerArgs {
    /// Let this key add hosts, and do nothing else; may be repeated
    #[arg(long, value_name = "KEY")]
    joiner: Vec<KeyArg>,
    /// Let this key add hosts no more; may be repeated
    #[arg(long, value_name = "KEY")]
    remove_joiner: Vec<KeyArg>,
    /// The fleets that they may add to, instead of those before; may be repeated
    #[arg(long, value_name = "FLEET", conflicts_with = "joiner_all_fleets")]
    joiner_fleet: Vec<FleetName>,
    /// Let them add to every fleet, those that are still to come included
    #[arg(long)]
    joiner_all_fleets: bool,
    /// The most hosts that a fleet may have by what they add
    #[arg(long, value_name = "N")]
    joiner_hosts_max: Option<u32>,
    /// How long after operators have signed a roster hosts may be added to it [default: 30d]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    joiner_base_age: Option<Duration>,
    /// How many of these keys must sign [default: 1]
    #[arg(long, value_name = "N")]
    joiner_threshold: Option<u32>,
    /// Let nobody add hosts any more
    #[arg(long, conflicts_with_all = ["joiner", "joiner_fleet", "joiner_all_fleets"])]
    no_joiners: bool,
}

/// The part of a draft that speaks of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct JoinerFile {
    /// How many of the keys must sign.
    threshold: u32,
    /// The most hosts that a fleet may have by what they add.
    hosts_max: u32,
    /// How long after operators have signed a roster hosts may be added to it.
    base_age_ms_max: u64,
    /// Whether they may add to every fleet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    all_fleets: bool,
    /// The fleets, if not all are meant.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    fleets: BTreeSet<FleetName>,
    /// The keys.
    #[serde(default, rename = "key")]
    keys: Vec<JoinerKey>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct JoinerKey {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    public: PublicKey,
}

impl JoinerArgs {
    /// What the draft says after them.
    pub(super) fn edit(
        &self,
        root: &Root,
        before: Option<JoinerFile>,
    ) -> Result<Option<JoinerFile>, CliError> {
        if self.no_joiners {
            return Ok(None);
        }
        let mut file = match before {
            None if !self.says_something() => return Ok(None),
            None => JoinerFile {
                threshold: 1,
                hosts_max: 0,
                base_age_ms_max: millis(BASE_AGE_MAX),
                all_fleets: false,
                fleets: BTreeSet::new(),
                keys: Vec::new(),
            },
            Some(file) => file,
        };
        for key in &self.joiner {
            let (public, name) = key.read(root)?;
            if file.keys.iter().any(|known| known.public == public) {
                return Err(unchanged(key, "may add hosts already"));
            }
            file.keys.push(JoinerKey { name, public });
        }
        for key in &self.remove_joiner {
            let (public, _) = key.read(root)?;
            let before = file.keys.len();
            file.keys.retain(|known| known.public != public);
            if file.keys.len() == before {
                return Err(unchanged(key, "may not add hosts as it is"));
            }
        }
        if self.joiner_all_fleets || !self.joiner_fleet.is_empty() {
            file.all_fleets = self.joiner_all_fleets;
            file.fleets = self.joiner_fleet.iter().cloned().collect();
        }
        file.hosts_max = self.joiner_hosts_max.unwrap_or(file.hosts_max);
        file.base_age_ms_max = self.joiner_base_age.map_or(file.base_age_ms_max, millis);
        file.threshold = self.joiner_threshold.unwrap_or(file.threshold);
        if file.keys.is_empty() && self.remove_joiner.is_empty() {
            return Err(CliError::Usage {
                what: "no key may add hosts yet, so there is nobody to limit".to_owned(),
                next: "name one with `--joiner KEY`".to_owned(),
            });
        }
        Ok(Some(file).filter(|file| !file.keys.is_empty()))
    }

    fn says_something(&self) -> bool {
        !self.joiner.is_empty()
            || !self.remove_joiner.is_empty()
            || !self.joiner_fleet.is_empty()
            || self.joiner_all_fleets
            || self.joiner_hosts_max.is_some()
            || self.joiner_base_age.is_some()
            || self.joiner_threshold.is_some()
    }
}

impl JoinerFile {
    /// What says the same as the root does.
    pub(super) fn of(root: &Root) -> Option<Self> {
        let Joiners { role, fleets, hosts_max, base_age_ms_max } = root.joiners.clone()?;
        let key = |public: PublicKey| JoinerKey { name: root.name_of(&public).map(str::to_owned), public };
        let (all_fleets, fleets) = match fleets {
            FleetScope::All => (true, BTreeSet::new()),
            FleetScope::Named(names) => (false, names),
        };
        let (threshold, keys) = (role.threshold, role.keys.into_iter().map(key).collect());
        Some(Self { threshold, hosts_max, base_age_ms_max, all_fleets, fleets, keys })
    }

    /// The keys that have a name.
    pub(super) fn names(&self) -> impl Iterator<Item = (PublicKey, String)> {
        self.keys.iter().filter_map(|key| Some((key.public.clone(), key.name.clone()?)))
    }

    pub(super) fn to_joiners(&self) -> Result<Joiners, DocumentError> {
        let fleets = match (self.all_fleets, self.fleets.is_empty()) {
            (true, true) => FleetScope::All,
            (false, _) => FleetScope::Named(self.fleets.clone()),
            (true, false) => {
                let reason = "the joiners may add to all fleets and to some; write one of the two".to_owned();
                return Err(DocumentError::Invalid { kind: "root", reason });
            }
        };
        let keys = self.keys.iter().map(|key| key.public.clone()).collect();
        let role = RoleKeys { threshold: self.threshold, keys };
        Ok(Joiners { role, fleets, hosts_max: self.hosts_max, base_age_ms_max: self.base_age_ms_max })
    }
}

fn unchanged(key: &KeyArg, why: &str) -> CliError {
    CliError::Usage { what: format!("{key} {why}"), next: "look at `muster root show`".to_owned() }
}

/// Who may add hosts, and how far.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct JoinersView {
    threshold: u32,
    keys: Vec<KeyView>,
    fleets: FleetScope,
    hosts_max: u32,
    base_age_ms_max: u64,
}

impl JoinersView {
    pub(super) fn of(root: &Root) -> Option<Self> {
        let joiners = root.joiners.as_ref()?;
        Some(Self {
            threshold: joiners.role.threshold,
            keys: joiners.role.keys.iter().map(|key| KeyView::of(root, key)).collect(),
            fleets: joiners.fleets.clone(),
            hosts_max: joiners.hosts_max,
            base_age_ms_max: joiners.base_age_ms_max,
        })
    }

    pub(super) fn print(&self, page: &mut Page) {
        page.line(format_args!("joiner    {self}"));
        for key in &self.keys {
            page.line(format_args!("          {key}"));
        }
    }
}

impl fmt::Display for JoinersView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fleets = match &self.fleets {
            FleetScope::All => "every fleet".to_owned(),
            FleetScope::Named(names) => names.iter().map(FleetName::as_str).collect::<Vec<_>>().join(", "),
        };
        write!(
            f,
            "{} of {} may add hosts to {fleets}, up to {}, within {} of the operators' signature",
            self.threshold,
            self.keys.len(),
            self.hosts_max,
            span_text(self.base_age_ms_max)
        )
    }
}

/// What the next root changes about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct JoinersDifference {
    #[serde(skip_serializing_if = "Option::is_none")]
    before: Option<JoinersView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<JoinersView>,
}

impl JoinersDifference {
    /// Nothing where neither root speaks of it.
    pub(super) fn of(present: &Root, next: &Root) -> Option<Self> {
        let (before, next) = (JoinersView::of(present), JoinersView::of(next));
        (before.is_some() || next.is_some()).then_some(Self { before, next })
    }

    pub(super) fn print(&self, page: &mut Page) {
        let keys =
            |view: &Option<JoinersView>| view.iter().flat_map(|it| it.keys.clone()).collect::<Vec<_>>();
        match &self.next {
            Some(next) => page.line(format_args!("joiner    {next}")),
            None => page.line("joiner    nobody may add hosts any more"),
        }
        if let Some(before) = &self.before
            && self.next.as_ref().is_some_and(|next| next.to_string() != before.to_string())
        {
            page.line(format_args!("   was    {before}"));
        }
        let (before, next) = (keys(&self.before), keys(&self.next));
        for key in next.iter().filter(|key| !before.contains(key)) {
            page.toned(Tone::Good, format_args!("  + {key}"));
        }
        for key in before.iter().filter(|key| !next.contains(key)) {
            page.toned(Tone::Bad, format_args!("  - {key}"));
        }
    }
}
