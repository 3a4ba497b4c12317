//! Fragments laid over each other.

use std::ops::Range;
use std::path::Path;

use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::error::{Error, Place, Problem};
use crate::files::{Fragment, Fragments};
use crate::problems::{self, Found};

/// A setting that no type refuses and that is wrong all the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Which one, such as `jobs` or `fleet[1].name`.
    pub key: String,
    /// What is wrong with it.
    pub reason: String,
}

impl Fault {
    /// One with this key.
    pub fn new(key: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { key: key.into(), reason: reason.into() }
    }
}

impl Fragments {
    /// Lays the fragments over each other and reads the result. Tables are merged key by key; every other value, arrays
    /// included, is replaced as a whole. All that is wrong is told at once, as far as one thing does not hide another.
    pub fn merge<T: DeserializeOwned>(&self) -> Result<T, Error> {
        let end = self.end();
        self.merged(|table| problems::read(table, end).map_err(|found| self.invalid(found)))?
    }

    /// The error that tells where the settings are that cannot be as they are.
    ///
    /// # Panics
    /// If there is no fault.
    #[must_use]
    pub fn refuse(&self, faults: &[Fault]) -> Error {
        assert!(!faults.is_empty(), "nothing is refused for no reason");
        let found = self.merged(|table| {
            let found =
                |fault: &Fault| Found { span: span_of(&table, &fault.key), reason: fault.reason.clone() };
            faults.iter().map(found).collect()
        });
        match found {
            Ok(found) => self.invalid(found),
            Err(error) => error,
        }
    }

    /// Calls `then` with the table that results. It borrows from text that does not live any longer.
    pub(crate) fn merged<R>(&self, then: impl FnOnce(DeTable<'_>) -> R) -> Result<R, Error> {
        // Each fragment is parsed behind as many blanks as there are bytes before it, so that a position tells the
        // fragment as well, whichever table the value ends up in.
        let padded: Vec<String> =
            self.starts().zip(&self.0).map(|(start, fragment)| " ".repeat(start) + &fragment.text).collect();
        let (mut merged, mut found) = (DeTable::new(), Vec::new());
        for text in &padded {
            match DeTable::parse(text) {
                Ok(table) => lay_over(&mut merged, table.into_inner()),
                Err(error) => found.push(Found::of(&error)),
            }
        }
        if found.is_empty() { Ok(then(merged)) } else { Err(self.invalid(found)) }
    }

    pub(crate) fn place(&self, span: Option<&Range<usize>>) -> Place {
        let found = span.and_then(|span| {
            let (start, fragment) =
                self.starts().zip(&self.0).take_while(|(start, _)| *start <= span.start).last()?;
            let Fragment { path, text } = fragment;
            text.is_char_boundary(span.start - start).then(|| place_in(path, text, span.start - start))
        });
        found.unwrap_or_else(|| Place::Whole { paths: self.paths().map(Path::to_owned).collect() })
    }

    fn invalid(&self, mut found: Vec<Found>) -> Error {
        // What is missing from the whole is told last.
        found.sort_by_key(|found| found.span.as_ref().map_or(usize::MAX, |span| span.start));
        let problem = |Found { span, reason }| Problem { place: self.place(span.as_ref()), reason };
        Error::Invalid { problems: found.into_iter().map(problem).collect() }
    }

    /// Where each fragment begins if all stand one behind the other, with a byte between them.
    fn starts(&self) -> impl Iterator<Item = usize> {
        self.0.iter().scan(0, |next, fragment| {
            let start = *next;
            *next += fragment.text.len() + 1;
            Some(start)
        })
    }

    /// What is missing from the whole is the fault of no fragment: the whole lies behind all of them.
    fn end(&self) -> usize {
        self.0.iter().map(|fragment| fragment.text.len() + 1).sum()
    }
}

/// The place of the byte `at` of a text.
pub(crate) fn place_in(path: &Path, text: &str, at: usize) -> Place {
    let before = text.get(..at).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let line = 1 + before.bytes().filter(|byte| *byte == b'\n').count();
    Place::Line { path: path.to_owned(), line, column: 1 + before[line_start..].chars().count() }
}

/// Where the setting `key` is, or else the closest table around it that is written anywhere.
fn span_of(table: &DeTable<'_>, key: &str) -> Option<Range<usize>> {
    let mut around = None;
    let mut here: Option<&DeValue<'_>> = None;
    for part in key.split(['.', '[']) {
        let next = match part.strip_suffix(']') {
            Some(index) => here?.get(index.parse::<usize>().ok()?),
            None => match here {
                None => table.get(part),
                Some(value) => value.get(part),
            },
        };
        let Some(next) = next else { break };
        around = Some(next.span());
        here = Some(next.get_ref());
    }
    around
}

/// Puts `upper` over `lower`: tables are merged, everything else is replaced.
fn lay_over<'i>(lower: &mut DeTable<'i>, upper: DeTable<'i>) {
    for (key, value) in upper {
        match (lower.remove(&key), value) {
            (Some(below), above)
                if matches!((below.get_ref(), above.get_ref()), (DeValue::Table(_), DeValue::Table(_))) =>
            {
                let span = above.span();
                if let (DeValue::Table(mut below), DeValue::Table(above)) =
                    (below.into_inner(), above.into_inner())
                {
                    lay_over(&mut below, above);
                    lower.insert(key, Spanned::new(span, DeValue::Table(below)));
                }
            }
            (_, above) => {
                lower.insert(key, above);
            }
        }
    }
}

#[cfg(test)]
mod tests;
