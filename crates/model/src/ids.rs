//! Numbers that only ever rise, and values that are drawn at random.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! counter {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The number that follows.
            ///
            /// # Panics
            /// After 2^64 steps, which no fleet lives to see.
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0.checked_add(1).expect("a 64-bit counter does not run out"))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

counter!(
    /// The number `e` of what a fleet serves; it rises at every completed flip, rollback included. 0: nothing yet.
    Epoch
);
counter!(
    /// The number `τ` of a coordinator's leadership.
    Term
);
counter!(
    /// The number `k` of one attempt to take a fleet from one release to another; it is also the order's counter.
    RolloutId
);
counter!(
    /// The revision of a fleet's roster.
    RosterRevision
);
counter!(
    /// One stream between an agent and a coordinator; unique within a coordinator's term.
    SessionId
);
counter!(
    /// The life of a coordinator's database: a restored or rebuilt coordinator has a new one.
    Incarnation
);
counter!(
    /// One halt of a fleet on one host; a later one has a higher number, so that lifting one does not lift the next.
    HaltId
);

macro_rules! random {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name([u8; 32]);

        impl $name {
            /// Wraps 32 bytes drawn by the caller from a secure source.
            #[must_use]
            pub const fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }

            /// The 32 bytes.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = &'static str;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                let mut bytes = [0; 32];
                let is_lower = !text.bytes().any(|byte| byte.is_ascii_uppercase());
                let decoded = hex::decode_to_slice(&text, &mut bytes);
                decoded.ok().filter(|()| is_lower).ok_or("64 lower-case hex digits are needed")?;
                Ok(Self(bytes))
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> Self {
                hex::encode(value.0)
            }
        }
    };
}
pub(crate) use random;

random!(
    /// A fresh random value by which a host knows that an answer is young. Not secret.
    Nonce
);
random!(
    /// The right to end a host's earlier session and begin the next one. Secret between one host and the coordinator.
    Token
);

impl fmt::Debug for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Nonce({})", hex::encode(&self.0[..4]))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// The kernel's boot id (`/proc/sys/kernel/random/boot_id`): it changes with every boot and with nothing else.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BootId(String);

impl BootId {
    /// Checks the 36 characters of a UUID in lower case.
    pub fn new(text: &str) -> Result<Self, &'static str> {
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        let ok = text.len() == 36
            && text.bytes().enumerate().all(|(i, b)| match i {
                8 | 13 | 18 | 23 => b == b'-',
                _ => hex(b),
            });
        if ok { Ok(Self(text.to_owned())) } else { Err("a boot id is a UUID in lower case") }
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for BootId {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::new(&text)
    }
}

impl From<BootId> for String {
    fn from(id: BootId) -> Self {
        id.0
    }
}

impl fmt::Display for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
