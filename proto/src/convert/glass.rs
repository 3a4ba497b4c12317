//! The use of break-glass tokens, on the wire.

use muster_model::{BrokenGlass, Epoch, GlassToken, PublicKey, UnixTime};

use super::{ConvertError, digest};
use crate::v1;

/// The most keys that are read of one.
const SIGNERS_MAX: usize = 64;

impl From<BrokenGlass> for v1::BrokenGlass {
    fn from(used: BrokenGlass) -> Self {
        Self {
            id: used.id.as_bytes().to_vec(),
            at_unix_ms: used.at_unix_ms.0,
            release: used.release.as_bytes().to_vec(),
            epoch: used.epoch.0,
            reason: used.reason,
            signers: used.signers.iter().map(PublicKey::to_string).collect(),
            settled: used.settled,
        }
    }
}

/// All uses that a host tells of. More than a host keeps are none that it tells.
pub fn all(wire: Vec<v1::BrokenGlass>) -> Result<Vec<BrokenGlass>, ConvertError> {
    if wire.len() > BrokenGlass::KEPT_MAX {
        return Err(ConvertError::invalid("glass", format!("{} uses of tokens", wire.len())));
    }
    wire.into_iter().map(one).collect()
}

fn one(wire: v1::BrokenGlass) -> Result<BrokenGlass, ConvertError> {
    if wire.reason.len() > GlassToken::REASON_BYTES_MAX {
        return Err(ConvertError::invalid("glass.reason", "longer than a token has it"));
    }
    let key = |text: &String| text.parse().map_err(|error| ConvertError::invalid("glass.signers", error));
    Ok(BrokenGlass {
        id: digest("glass.id", &wire.id)?,
        at_unix_ms: UnixTime(wire.at_unix_ms),
        release: digest("glass.release", &wire.release)?,
        epoch: Epoch(wire.epoch),
        reason: wire.reason,
        signers: wire
            .signers
            .iter()
            .take(SIGNERS_MAX)
            .map(key)
            .collect::<Result<Vec<PublicKey>, ConvertError>>()?,
        settled: wire.settled,
    })
}
