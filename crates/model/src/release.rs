//! The release: an immutable, signed, named manifest of one fleet, as an in-toto statement.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::document::{check_format, parse_json, to_json};
use crate::{Digest, Document, DocumentError, DocumentKind, FleetName, UnixTime, Version};

const FORMAT: &str = "muster.release/1";
const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
const PREDICATE_TYPE: &str = "urn:muster:release:v1";

/// A flag as its release declares it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FlagDeclaration {
    /// `boolean`, `string`, `number` or `object`; absent for a flag that the release no longer reads.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "type")]
    pub kind: Option<FlagKind>,
    /// The value while nothing else is decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<serde_json::Value>,
    /// What the flag does, in words; together with the key it is the flag's identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub semantics: Option<String>,
    /// The day, `YYYY-MM-DD`, after which later releases must have removed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<String>,
    /// Whether this release no longer reads the flag.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub removed: bool,
}

/// The type of a flag's value, as in OpenFeature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FlagKind {
    /// True or false.
    Boolean,
    /// Text.
    String,
    /// A number.
    Number,
    /// A JSON object.
    Object,
}

/// A release: `(fleet, version, manifest digest)` with what is known of its making.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Release {
    /// The fleet it is for.
    pub fleet: FleetName,
    /// The version, for people.
    pub version: Version,
    /// The digest of the manifest's bytes: what the release is.
    pub manifest: Digest,
    /// What built it, if stated.
    pub builder: Option<String>,
    /// The source revision it was built from, if stated.
    pub source_revision: Option<String>,
    /// Milliseconds since 1970 when it was signed.
    pub created_unix_ms: UnixTime,
    /// Milliseconds since 1970 from which it may no longer be flipped to, if any.
    pub expires_unix_ms: Option<UnixTime>,
    /// The flags it declares.
    pub flags: BTreeMap<String, FlagDeclaration>,
}

impl Release {
    const TEXT_LEN_MAX: usize = 1024;
    const FLAGS_MAX: usize = 1000;

    fn check(&self) -> Result<(), DocumentError> {
        let texts = [&self.builder, &self.source_revision];
        if texts.into_iter().flatten().any(|text| text.len() > Self::TEXT_LEN_MAX) {
            return Err(invalid(format!(
                "builder and source revision have at most {} bytes",
                Self::TEXT_LEN_MAX
            )));
        }
        if self.flags.len() > Self::FLAGS_MAX {
            return Err(invalid(format!(
                "it declares {} flags; at most {}",
                self.flags.len(),
                Self::FLAGS_MAX
            )));
        }
        Ok(())
    }
}

impl Document for Release {
    const KIND: DocumentKind = DocumentKind::Release;

    fn parse(bytes: &[u8]) -> Result<Self, DocumentError> {
        let statement: Statement = parse_json(Self::KIND, bytes)?;
        check_format(Self::KIND, &statement.statement_type, STATEMENT_TYPE)?;
        check_format(Self::KIND, &statement.predicate_type, PREDICATE_TYPE)?;
        let predicate = statement.predicate;
        check_format(Self::KIND, &predicate.format, FORMAT)?;
        let [subject] = <[Subject; 1]>::try_from(statement.subject)
            .map_err(|subjects| invalid(format!("it has {} subjects instead of one", subjects.len())))?;
        if subject.name != predicate.fleet.as_str() {
            return Err(invalid(format!("its subject `{}` is not its fleet", subject.name.escape_debug())));
        }
        let manifest =
            Digest::from_hex(&subject.digest.sha256).map_err(|error| invalid(error.to_string()))?;
        let release = Self {
            fleet: predicate.fleet,
            version: predicate.version,
            manifest,
            builder: predicate.builder,
            source_revision: predicate.source_revision,
            created_unix_ms: predicate.created_unix_ms,
            expires_unix_ms: predicate.expires_unix_ms,
            flags: predicate.flags,
        };
        release.check()?;
        Ok(release)
    }

    fn to_bytes(&self) -> Vec<u8> {
        to_json(&Statement {
            statement_type: STATEMENT_TYPE.to_owned(),
            subject: vec![Subject {
                name: self.fleet.as_str().to_owned(),
                digest: DigestSet { sha256: self.manifest.hex() },
            }],
            predicate_type: PREDICATE_TYPE.to_owned(),
            predicate: Predicate {
                format: FORMAT.to_owned(),
                fleet: self.fleet.clone(),
                version: self.version.clone(),
                builder: self.builder.clone(),
                source_revision: self.source_revision.clone(),
                created_unix_ms: self.created_unix_ms,
                expires_unix_ms: self.expires_unix_ms,
                flags: self.flags.clone(),
            },
        })
    }
}

fn invalid(reason: String) -> DocumentError {
    DocumentError::Invalid { kind: DocumentKind::Release.name(), reason }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Statement {
    #[serde(rename = "_type")]
    statement_type: String,
    subject: Vec<Subject>,
    #[serde(rename = "predicateType")]
    predicate_type: String,
    predicate: Predicate,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Subject {
    name: String,
    digest: DigestSet,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DigestSet {
    sha256: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Predicate {
    format: String,
    fleet: FleetName,
    version: Version,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    builder: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    source_revision: Option<String>,
    created_unix_ms: UnixTime,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires_unix_ms: Option<UnixTime>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    flags: BTreeMap<String, FlagDeclaration>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn release() -> Release {
        Release {
            fleet: FleetName::new("smars").expect("a name"),
            version: Version::new("1.0.0").expect("a version"),
            manifest: Digest::of(b"manifest"),
            builder: None,
            source_revision: Some("0a1b2c".to_owned()),
            created_unix_ms: UnixTime(1),
            expires_unix_ms: None,
            flags: BTreeMap::new(),
        }
    }

    #[test]
    fn a_release_is_an_in_toto_statement_of_one_subject() {
        let bytes = release().to_bytes();
        assert_eq!(Release::parse(&bytes), Ok(release()));
        let text = String::from_utf8(bytes).expect("JSON");
        assert!(text.starts_with(r#"{"_type":"https://in-toto.io/Statement/v1","subject":[{"name":"smars""#));
        let other = text.replacen("smars", "other", 1);
        assert!(matches!(Release::parse(other.as_bytes()), Err(DocumentError::Invalid { .. })));
        let empty =
            text.replace(&text[text.find('[').expect("subject")..=text.find(']').expect("subject")], "[]");
        assert!(matches!(Release::parse(empty.as_bytes()), Err(DocumentError::Invalid { .. })));
    }
}
