//! How much Muster may do to a fleet's service on this host: root's word, in root's file, which nothing that comes over the
//! network changes.
//!
//! It can only ever keep a fleet from flipping, be it to another release, back, or to the same one after a halt: a host that is not fully in
//! refuses, and a flip needs all N.

use muster_model::{Code, HostName, Refusal, RolloutId, ToHost};
use serde::{Deserialize, Serialize};

use crate::refusal;

/// How much Muster may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Enforce {
    /// It measures, and reports; a flip is refused as soon as it is proposed.
    Observe,
    /// It also attests to flips, so that other tools can ask for that before they change anything; a flip is refused once all
    /// have attested, before any host arms.
    Gate,
    /// All of it.
    #[default]
    Full,
}

impl Enforce {
    /// Whether nothing is kept back.
    #[must_use]
    pub const fn is_full(&self) -> bool {
        matches!(self, Self::Full)
    }

    /// The text form.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Observe => "observe",
            Self::Gate => "gate",
            Self::Full => "full",
        }
    }

    /// The rollout that is refused, and why, if it must not go on with this message. What was decided before this was
    /// configured goes on, and halts are obeyed.
    pub(crate) fn refuses(self, host: &HostName, message: &ToHost) -> Option<(RolloutId, Refusal)> {
        let (k, detail) = match (self, message) {
            (Self::Observe, ToHost::Propose { k, .. }) => (*k, "it only observes"),
            (Self::Gate, ToHost::Prepare { k, .. }) => (*k, "it has attested, and takes part in no flip"),
            // Arming is what a flip cannot do without: no way around the above leads there.
            (Self::Observe | Self::Gate, ToHost::Arm { k, .. }) => (*k, "it takes part in no flip"),
            (Self::Observe | Self::Gate | Self::Full, _) => return None,
        };
        let detail = format!("{detail} (`enforce = \"{}\"` in its agent.toml)", self.as_str());
        Some((k, refusal::at(host, Code::NotEnforced, detail)))
    }
}

#[cfg(test)]
mod tests {
    use muster_model::{Digest, Documents, Epoch};

    use super::*;

    #[test]
    fn a_flip_is_refused_where_it_says_and_nothing_else_is() {
        let host = HostName::new("host-1").unwrap();
        let (k, digest) = (RolloutId(4), Digest::of(b"release"));
        let documents = Documents { order: digest, release: digest, roster: digest, evidence: digest };
        let steps = [
            ToHost::Propose { k, to: digest },
            ToHost::Prepare { k, epoch: Epoch(2), documents },
            ToHost::Arm { k, instant: None },
            ToHost::Probe { k },
            ToHost::Halt { k },
            ToHost::Close { k },
            ToHost::Disarm { k },
        ];
        for (enforce, refused) in [
            (Enforce::Observe, [true, false, true, false, false, false, false]),
            (Enforce::Gate, [false, true, true, false, false, false, false]),
            (Enforce::Full, [false; 7]),
        ] {
            for (step, is_refused) in steps.iter().zip(refused) {
                let said = enforce.refuses(&host, step);
                assert_eq!(said.is_some(), is_refused, "{enforce:?} {step:?}");
                if let Some((of, refusal)) = said {
                    assert_eq!((of, refusal.code()), (k, Some(Code::NotEnforced)));
                }
            }
        }
    }
}
