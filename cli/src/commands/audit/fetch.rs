//! The log as a coordinator sends it: every entry is verified before any is believed.

use muster_audit::{Entry, LogVerifier, SignedCheckpoint, VerifiedLog};
use muster_model::PublicKey;
use muster_proto::v1;
use muster_proto::v1::read_audit_response::Part;
use tonic::Streaming;

use crate::connect::{Session, failed};
use crate::error::CliError;

/// A log that arrives.
pub(super) struct Fetch {
    doing: &'static str,
    stream: Streaming<v1::ReadAuditResponse>,
    verifier: LogVerifier,
    key: PublicKey,
    key_was_known: bool,
}

impl Fetch {
    /// Begins with the head. `key` is the log's key, if it is known beforehand.
    pub(super) async fn begin(
        session: &Session,
        key: Option<&PublicKey>,
        doing: &'static str,
    ) -> Result<Self, CliError> {
        let mut client = session.operations();
        let call = client.read_audit(v1::ReadAuditRequest {});
        let mut stream = call.await.map_err(|status| failed(doing, status))?.into_inner();
        let first = stream.message().await.map_err(|status| failed(doing, status))?;
        let Some(v1::ReadAuditResponse { part: Some(Part::Head(head)) }) = first else {
            return Err(contradiction(doing, "the coordinator sent no head of its audit log"));
        };
        let named: PublicKey = head
            .key
            .parse()
            .map_err(|_| contradiction(doing, "the coordinator sent something else than a key"))?;
        let key_was_known = key.is_some();
        let key = key.cloned().unwrap_or_else(|| named.clone());
        if key != named {
            let fault = muster_audit::ExportFault::Key { expected: key, found: named };
            return Err(CliError::audit(doing)(fault));
        }
        let verifier = LogVerifier::begin(&head.checkpoint, &key).map_err(CliError::audit(doing))?;
        Ok(Self { doing, stream, verifier, key, key_was_known })
    }

    /// What was signed.
    pub(super) const fn checkpoint(&self) -> &SignedCheckpoint {
        self.verifier.checkpoint()
    }

    /// The key that signed it.
    pub(super) const fn key(&self) -> &PublicKey {
        &self.key
    }

    /// Takes all entries, and says at the end whether they are those that were signed, and whether the key was known.
    pub(super) async fn all(
        mut self,
        mut take: impl FnMut(&[u8], Entry) -> Result<(), CliError>,
    ) -> Result<(VerifiedLog, bool), CliError> {
        let doing = self.doing;
        while let Some(message) = self.stream.message().await.map_err(|status| failed(doing, status))? {
            let Some(Part::Entries(v1::AuditEntries { entries })) = message.part else {
                return Err(contradiction(doing, "the coordinator sent something else than entries"));
            };
            for bytes in entries {
                let entry = self.verifier.push(&bytes).map_err(CliError::audit(doing))?;
                take(&bytes, entry)?;
            }
        }
        let log = self.verifier.finish().map_err(CliError::audit(doing))?;
        Ok((log, self.key_was_known))
    }
}

fn contradiction(doing: &str, what: &str) -> CliError {
    CliError::Contradiction { doing: doing.to_owned(), what: what.to_owned() }
}
