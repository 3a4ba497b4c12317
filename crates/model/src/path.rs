//! Names of files as bytes, and their one text form.
//!
//! A file name on Linux is a string of bytes, not of characters. Documents and people get a text form that
//! loses nothing and hides nothing: printable UTF-8 stays as it is, and every byte of anything else is `%`
//! and two upper-case hex digits. Each string of bytes has exactly one text form, so two paths are equal when
//! their texts are.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The longest path in bytes: what one system call can name (`PATH_MAX` less its terminator).
pub const MAX_PATH_BYTES: usize = 4095;
/// The longest component of a path in bytes.
pub const MAX_COMPONENT_BYTES: usize = 255;
/// The greatest number of components of a path.
pub const MAX_DEPTH: usize = 128;

const HEX: &[u8; 16] = b"0123456789ABCDEF";
/// No text form is longer: every byte escaped, and the slash of a [`HostPath`].
const MAX_TEXT_BYTES: usize = 3 * MAX_PATH_BYTES + 1;
/// How much of a refused text an error repeats, in characters.
const SHOWN_CHARS: usize = 120;

/// Characters that nobody can see or that move others about: blanks other than the space, format and bidi
/// controls, fillers, variation selectors and tags. The list belongs to the manifest format and does not
/// follow Unicode's releases: a longer list would change the text, and so the digest, of a manifest.
const INVISIBLE: &[(char, char)] = &[
    ('\u{a0}', '\u{a0}'),
    ('\u{ad}', '\u{ad}'),
    ('\u{34f}', '\u{34f}'),
    ('\u{600}', '\u{605}'),
    ('\u{61c}', '\u{61c}'),
    ('\u{6dd}', '\u{6dd}'),
    ('\u{70f}', '\u{70f}'),
    ('\u{890}', '\u{891}'),
    ('\u{8e2}', '\u{8e2}'),
    ('\u{115f}', '\u{1160}'),
    ('\u{1680}', '\u{1680}'),
    ('\u{17b4}', '\u{17b5}'),
    ('\u{180b}', '\u{180f}'),
    ('\u{2000}', '\u{200f}'),
    ('\u{2028}', '\u{202f}'),
    ('\u{205f}', '\u{206f}'),
    ('\u{2800}', '\u{2800}'),
    ('\u{3000}', '\u{3000}'),
    ('\u{3164}', '\u{3164}'),
    ('\u{fe00}', '\u{fe0f}'),
    ('\u{feff}', '\u{feff}'),
    ('\u{ffa0}', '\u{ffa0}'),
    ('\u{fff0}', '\u{fffb}'),
    ('\u{110bd}', '\u{110bd}'),
    ('\u{110cd}', '\u{110cd}'),
    ('\u{13430}', '\u{1343f}'),
    ('\u{1bca0}', '\u{1bca3}'),
    ('\u{1d173}', '\u{1d17a}'),
    ('\u{e0000}', '\u{e0fff}'),
];

/// A path inside a tree: relative and normal by construction, so that it can only name something below the
/// tree's root. Ordered by its bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EntryPath(Box<[u8]>);

/// A path on a host, outside the tree: absolute and normal by construction. Written `/` and an [`EntryPath`].
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostPath(EntryPath);

/// What a symlink points to: 1 to 4095 bytes without NUL, in any form. Its text form is that of paths.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LinkTarget(Box<[u8]>);

/// Why bytes or a text are not a path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// No bytes at all.
    #[error("a path is empty")]
    Empty,
    /// A path inside the tree that begins with a slash.
    #[error("`{path}` is absolute; paths in a tree are relative")]
    Absolute {
        /// The path, shortened.
        path: String,
    },
    /// A path on the host that does not begin with a slash.
    #[error("`{path}` is relative; paths on a host are absolute")]
    Relative {
        /// The path, shortened.
        path: String,
    },
    /// Two slashes in a row or one at the end.
    #[error("`{path}` has an empty component (a double or trailing slash)")]
    EmptyComponent {
        /// The path, shortened.
        path: String,
    },
    /// A component that means "here" or "up".
    #[error("`{path}` has a component `.` or `..`")]
    Dot {
        /// The path, shortened.
        path: String,
    },
    /// A NUL byte, which no file name has.
    #[error("`{path}` has a NUL byte")]
    Nul {
        /// The path, shortened.
        path: String,
    },
    /// A component of more than [`MAX_COMPONENT_BYTES`].
    #[error("`{path}` has a component of {len} bytes; at most {MAX_COMPONENT_BYTES}")]
    ComponentTooLong {
        /// The path, shortened.
        path: String,
        /// The component's length in bytes.
        len: usize,
    },
    /// More than [`MAX_PATH_BYTES`].
    #[error("`{path}` has {len} bytes; at most {MAX_PATH_BYTES}")]
    TooLong {
        /// The path, shortened.
        path: String,
        /// Its length in bytes.
        len: usize,
    },
    /// More than [`MAX_DEPTH`] components.
    #[error("`{path}` has {depth} components; at most {MAX_DEPTH}")]
    TooDeep {
        /// The path, shortened.
        path: String,
        /// The number of its components.
        depth: usize,
    },
    /// A text that is not the one text form of its bytes.
    #[error(
        "`{text}` is not in the one text form: `%` and two upper-case hex digits for what needs escaping only"
    )]
    Escape {
        /// The text, shortened.
        text: String,
    },
}

impl EntryPath {
    /// Checks the bytes of a relative path.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, PathError> {
        check(bytes)?;
        Ok(Self(bytes.into()))
    }

    /// Reads the text form. Strict: any other spelling of the same bytes is an error.
    pub fn from_text(text: &str) -> Result<Self, PathError> {
        Self::from_bytes(&unescape(text)?)
    }

    /// The path of `name` in the folder `parent`, or in the tree's root.
    pub fn child(parent: Option<&Self>, name: &[u8]) -> Result<Self, PathError> {
        if name.contains(&b'/') {
            return Err(PathError::EmptyComponent { path: shown(name) });
        }
        match parent {
            None => Self::from_bytes(name),
            Some(parent) => Self::from_bytes(&[parent.as_bytes(), b"/", name].concat()),
        }
    }

    /// The path's bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The folder the path is in; none for what lies directly in the root.
    #[must_use]
    pub fn parent(&self) -> Option<Self> {
        self.parent_bytes().map(|bytes| Self(bytes.into()))
    }

    /// The last component.
    #[must_use]
    pub fn name(&self) -> &[u8] {
        let start = self.parent_bytes().map_or(0, |parent| parent.len() + 1);
        &self.0[start..]
    }

    /// Whether the path lies below `folder`; no path lies below itself.
    #[must_use]
    pub fn is_below(&self, folder: &Self) -> bool {
        self.0.strip_prefix(folder.as_bytes()).is_some_and(|rest| rest.first() == Some(&b'/'))
    }

    pub(crate) fn parent_bytes(&self) -> Option<&[u8]> {
        self.0.iter().rposition(|&byte| byte == b'/').map(|slash| &self.0[..slash])
    }
}

impl HostPath {
    /// Checks the bytes of an absolute path.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, PathError> {
        match bytes.strip_prefix(b"/") {
            Some(rest) => EntryPath::from_bytes(rest).map(Self),
            None if bytes.is_empty() => Err(PathError::Empty),
            None => Err(PathError::Relative { path: shown(bytes) }),
        }
    }

    /// Reads the text form. Strict, as [`EntryPath::from_text`] is.
    pub fn from_text(text: &str) -> Result<Self, PathError> {
        Self::from_bytes(&unescape(text)?)
    }

    /// The path's bytes, beginning with a slash.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        [b"/", self.0.as_bytes()].concat()
    }

    /// Whether the path lies below `folder`; no path lies below itself.
    #[must_use]
    pub fn is_below(&self, folder: &Self) -> bool {
        self.0.is_below(&folder.0)
    }
}

impl LinkTarget {
    /// Checks the bytes of a target.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, PathError> {
        if bytes.is_empty() {
            return Err(PathError::Empty);
        }
        if bytes.len() > MAX_PATH_BYTES {
            return Err(PathError::TooLong { path: shown(bytes), len: bytes.len() });
        }
        if bytes.contains(&0) {
            return Err(PathError::Nul { path: shown(bytes) });
        }
        Ok(Self(bytes.into()))
    }

    /// Reads the text form. Strict, as [`EntryPath::from_text`] is.
    pub fn from_text(text: &str) -> Result<Self, PathError> {
        Self::from_bytes(&unescape(text)?)
    }

    /// The target's bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// The text form of any bytes, for people; what the paths of this module print.
#[must_use]
pub fn escape(bytes: &[u8]) -> String {
    if bytes.iter().all(|&byte| matches!(byte, b' '..=b'~') && byte != b'%') {
        return String::from_utf8_lossy(bytes).into_owned();
    }
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            if needs_escape(c) {
                let mut buffer = [0; 4];
                c.encode_utf8(&mut buffer).bytes().for_each(|byte| push_escaped(&mut text, byte));
            } else {
                text.push(c);
            }
        }
        chunk.invalid().iter().for_each(|&byte| push_escaped(&mut text, byte));
    }
    text
}

fn check(bytes: &[u8]) -> Result<(), PathError> {
    let path = || shown(bytes);
    if bytes.is_empty() {
        return Err(PathError::Empty);
    }
    if bytes[0] == b'/' {
        return Err(PathError::Absolute { path: path() });
    }
    if bytes.len() > MAX_PATH_BYTES {
        return Err(PathError::TooLong { path: path(), len: bytes.len() });
    }
    if bytes.contains(&0) {
        return Err(PathError::Nul { path: path() });
    }
    let mut depth = 0;
    for component in bytes.split(|&byte| byte == b'/') {
        depth += 1;
        match component {
            b"" => return Err(PathError::EmptyComponent { path: path() }),
            b"." | b".." => return Err(PathError::Dot { path: path() }),
            _ if component.len() > MAX_COMPONENT_BYTES => {
                return Err(PathError::ComponentTooLong { path: path(), len: component.len() });
            }
            _ => {}
        }
    }
    if depth > MAX_DEPTH {
        return Err(PathError::TooDeep { path: path(), depth });
    }
    Ok(())
}

fn needs_escape(c: char) -> bool {
    if c.is_ascii() {
        return c == '%' || c.is_ascii_control();
    }
    c.is_control() || INVISIBLE.iter().any(|&(first, last)| (first..=last).contains(&c))
}

fn push_escaped(text: &mut String, byte: u8) {
    text.push('%');
    text.push(char::from(HEX[usize::from(byte >> 4)]));
    text.push(char::from(HEX[usize::from(byte & 15)]));
}

/// The bytes of a text form, which must be the one that [`escape`] gives.
fn unescape(text: &str) -> Result<Vec<u8>, PathError> {
    if text.len() > MAX_TEXT_BYTES {
        return Err(PathError::TooLong { path: shortened(text), len: text.len() });
    }
    let refused = || PathError::Escape { text: shortened(text) };
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let mut digit =
                || rest.next().and_then(|b| HEX.iter().position(|&hex| hex == b)).ok_or_else(refused);
            let value = 16 * digit()? + digit()?;
            bytes.push(u8::try_from(value).expect("two hex digits are a byte"));
        } else {
            bytes.push(byte);
        }
    }
    if escape(&bytes) == text { Ok(bytes) } else { Err(refused()) }
}

fn shown(bytes: &[u8]) -> String {
    shortened(&escape(&bytes[..bytes.len().min(4 * SHOWN_CHARS)]))
}

/// A refused text may hold anything, so whatever is not printable is escaped before it is repeated.
fn shortened(text: &str) -> String {
    let mut chars = text.chars();
    let mut short: String = chars.by_ref().take(SHOWN_CHARS).flat_map(char::escape_debug).collect();
    if chars.next().is_some() {
        short.push('…');
    }
    short
}

macro_rules! text_form {
    ($name:ident, $bytes:expr) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let bytes: fn(&Self) -> String = $bytes;
                f.pad(&bytes(self))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", self.to_string())
            }
        }

        impl FromStr for $name {
            type Err = PathError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Self::from_text(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = PathError;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                Self::from_text(&text)
            }
        }

        impl From<$name> for String {
            fn from(path: $name) -> Self {
                path.to_string()
            }
        }
    };
}

text_form!(EntryPath, |path| escape(&path.0));
text_form!(HostPath, |path| format!("/{}", path.0));
text_form!(LinkTarget, |target| escape(&target.0));

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_text_form_hides_nothing_and_keeps_what_is_readable() {
        let cases: &[(&[u8], &str)] = &[
            (b"bin/server", "bin/server"),
            ("Grüße/日本.txt".as_bytes(), "Grüße/日本.txt"),
            (b"a\\b \"c\"", "a\\b \"c\""),
            (b"100%", "100%25"),
            (b"a\nb\x7f", "a%0Ab%7F"),
            (b"latin-\xe9", "latin-%E9"),
            ("x\u{202e}gpj.exe".as_bytes(), "x%E2%80%AEgpj.exe"),
            ("a\u{85}\u{a0}\u{200b}b".as_bytes(), "a%C2%85%C2%A0%E2%80%8Bb"),
        ];
        for (bytes, text) in cases {
            let path = EntryPath::from_bytes(bytes).expect("a path");
            assert_eq!(path.to_string(), *text);
            assert_eq!(EntryPath::from_text(text), Ok(path));
        }
    }

    #[test]
    fn other_spellings_of_the_same_bytes_are_refused() {
        for text in ["%41", "a%0a", "a%", "a%4", "%%", "a\nb", "x\u{202e}y", "%C3%A9", "100%2", "%+1"] {
            let refused = EntryPath::from_text(text);
            assert!(matches!(refused, Err(PathError::Escape { .. })), "{text:?}: {refused:?}");
        }
    }

    #[test]
    fn each_bad_path_is_refused_by_its_name() {
        let deep = ["d"; MAX_DEPTH + 1].join("/");
        let long = ["d".repeat(250).as_str(); 17].join("/");
        type Named = fn(&PathError) -> bool;
        let cases: Vec<(&[u8], Named)> = vec![
            (b"", |e| matches!(e, PathError::Empty)),
            (b"/etc/passwd", |e| matches!(e, PathError::Absolute { .. })),
            (b"a//b", |e| matches!(e, PathError::EmptyComponent { .. })),
            (b"a/", |e| matches!(e, PathError::EmptyComponent { .. })),
            (b"..", |e| matches!(e, PathError::Dot { .. })),
            (b"a/../b", |e| matches!(e, PathError::Dot { .. })),
            (b"./a", |e| matches!(e, PathError::Dot { .. })),
            (b"a\0b", |e| matches!(e, PathError::Nul { .. })),
            (&[b'x'; 256], |e| matches!(e, PathError::ComponentTooLong { len: 256, .. })),
            (deep.as_bytes(), |e| matches!(e, PathError::TooDeep { depth: 129, .. })),
            (long.as_bytes(), |e| matches!(e, PathError::TooLong { .. })),
        ];
        for (bytes, expected) in cases {
            let error = EntryPath::from_bytes(bytes).expect_err("not a path");
            assert!(expected(&error), "{error:?}");
        }
        assert!(EntryPath::from_bytes(b"..a/.b/c..").is_ok());
        assert!(EntryPath::from_bytes(["d"; MAX_DEPTH].join("/").as_bytes()).is_ok());
    }

    #[test]
    fn host_paths_and_targets_have_their_own_rules() {
        assert_eq!(
            HostPath::from_text("/usr/sbin/nginx").map(|p| p.to_string()),
            Ok("/usr/sbin/nginx".into())
        );
        assert!(matches!(HostPath::from_text("usr"), Err(PathError::Relative { .. })));
        assert!(matches!(HostPath::from_text("/"), Err(PathError::Empty)));
        assert!(matches!(HostPath::from_text("/a/../b"), Err(PathError::Dot { .. })));
        assert!(matches!(HostPath::from_text("//a"), Err(PathError::Absolute { .. })));
        assert_eq!(
            LinkTarget::from_text("../a//b%0A").map(|t| t.as_bytes().to_vec()),
            Ok(b"../a//b\n".to_vec())
        );
        assert!(matches!(LinkTarget::from_bytes(b""), Err(PathError::Empty)));
        assert!(matches!(LinkTarget::from_bytes(b"a\0"), Err(PathError::Nul { .. })));
        assert!(matches!(LinkTarget::from_bytes(&[b'x'; 4096]), Err(PathError::TooLong { .. })));
    }

    #[test]
    fn relations_follow_components_not_prefixes() {
        let path = |text| EntryPath::from_text(text).expect("a path");
        assert!(path("a/b").is_below(&path("a")));
        assert!(!path("ab").is_below(&path("a")) && !path("a").is_below(&path("a")));
        assert_eq!(path("a/b/c").parent(), Some(path("a/b")));
        assert_eq!((path("a").parent(), path("a/b").name()), (None, b"b".as_slice()));
        assert_eq!(EntryPath::child(Some(&path("a")), b"b"), Ok(path("a/b")));
        assert!(EntryPath::child(None, b"a/b").is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn text_forms_round_trip_and_tell_bytes_apart(
            a in proptest::collection::vec(any::<u8>(), 1..40),
            b in proptest::collection::vec(any::<u8>(), 1..40),
        ) {
            prop_assert_eq!(unescape(&escape(&a)), Ok(a.clone()));
            prop_assert_eq!(escape(&a) == escape(&b), a == b);
        }

        #[test]
        fn any_text_is_read_as_what_it_prints_or_refused(text in "[a%/.A-F0-9é\u{202e}\n]{0,12}") {
            if let Ok(path) = EntryPath::from_text(&text) {
                prop_assert_eq!(path.to_string(), text);
            }
        }
    }
}
