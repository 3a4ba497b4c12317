//! As many problems at once as can be told.
//!
//! serde ends at the first thing that it does not understand. What it complains of is taken out and it is asked again; what it
//! misses is given to it, so that it goes on to the next. The result of such an attempt is thrown away: it only serves to find
//! what else is wrong.

use std::collections::BTreeSet;
use std::ops::Range;

use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeArray, DeInteger, DeTable, DeValue, Deserializer, Error};

/// More than these are not read by anybody at once.
const PROBLEMS_MAX: usize = 32;

/// Each problem takes one attempt and one for each stand-in at most.
const ATTEMPTS_MAX: usize = 8 * PROBLEMS_MAX;

/// From here on two words are alike enough for one to be a slip of the other; 1 is equality.
const LIKENESS_MIN: f64 = 0.8;

/// Something wrong, and where in the fragments that stand one behind the other.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) span: Option<Range<usize>>,
    pub(crate) reason: String,
}

impl Found {
    pub(crate) fn of(error: &Error) -> Self {
        Self { span: error.span(), reason: reason(error.message().trim_ascii_end()) }
    }
}

/// Reads the table; `end` is behind all positions in it.
pub(crate) fn read<T: DeserializeOwned>(table: DeTable<'_>, end: usize) -> Result<T, Vec<Found>> {
    let mut search = Search {
        root: Spanned::new(end..end, DeValue::Table(table)),
        end,
        found: Vec::new(),
        taken: BTreeSet::new(),
        stand_ins: 0,
        tried: 0,
    };
    for _ in 0..ATTEMPTS_MAX {
        let DeValue::Table(table) = search.root.get_ref().clone() else { break };
        match T::deserialize(Deserializer::from(Spanned::new(end..end, table))) {
            Ok(value) if search.found.is_empty() => return Ok(value),
            Ok(_) => break,
            Err(error) => {
                if search.note(&error).is_none() || search.found.len() == PROBLEMS_MAX {
                    break;
                }
            }
        }
    }
    Err(search.found)
}

struct Search<'i> {
    root: Spanned<DeValue<'i>>,
    end: usize,
    found: Vec<Found>,
    /// What was taken out, by the position of its table and its key: it is missing for a reason that was told.
    taken: BTreeSet<(usize, usize, String)>,
    /// How many stand-ins were made: each has a position of its own.
    stand_ins: usize,
    /// How many kinds of value were tried for the last one.
    tried: usize,
}

impl Search<'_> {
    /// Notes what is wrong and changes the tables so that the next attempt gets further; nothing if that is not possible.
    fn note(&mut self, error: &Error) -> Option<()> {
        let message = error.message().trim_ascii_end();
        let Some(span) = error.span() else {
            self.found.push(Found::of(error));
            return None;
        };
        if self.stand_ins > 0 && span == self.stand_in_span() {
            return self.try_another(&span);
        }
        if let Some(key) = message.strip_prefix("missing field `").and_then(|rest| rest.strip_suffix('`')) {
            if !self.taken.contains(&(span.start, span.end, key.to_owned())) {
                self.found.push(Found::of(error));
            }
            self.stand_ins += 1;
            self.tried = 0;
            let stand_in = Spanned::new(self.stand_in_span(), stand_in(0)?);
            let DeValue::Table(table) = at(&mut self.root, &span, Wanted::Table)?.get_mut() else {
                return None;
            };
            table.insert(Spanned::new(stand_in.span(), key.to_owned().into()), stand_in);
            return Some(());
        }
        self.found.push(Found::of(error));
        self.take_out(&span)
    }

    fn stand_in_span(&self) -> Range<usize> {
        let position = self.end + self.stand_ins;
        position..position
    }

    /// The last stand-in was not of the right kind.
    fn try_another(&mut self, span: &Range<usize>) -> Option<()> {
        self.tried += 1;
        match stand_in(self.tried) {
            Some(other) => {
                *at(&mut self.root, span, Wanted::Any)?.get_mut() = other;
                Some(())
            }
            None => take_out(&mut self.root, span).and_then(|(table, _)| self.take_out(&table)),
        }
    }

    fn take_out(&mut self, span: &Range<usize>) -> Option<()> {
        let (table, key) = take_out(&mut self.root, span)?;
        if let Some(key) = key {
            self.taken.insert((table.start, table.end, key));
        }
        Some(())
    }
}

/// What may pass for a value that is missing.
fn stand_in(kind: usize) -> Option<DeValue<'static>> {
    match kind {
        0 => Some(DeValue::String("x".into())),
        1 => Some(DeValue::Array(DeArray::new())),
        2 => Some(DeValue::Table(DeTable::new())),
        3 => Some(DeValue::Boolean(false)),
        4 => Some(DeValue::Integer(DeInteger::default())),
        _ => None,
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Table,
    Any,
}

/// The value at a position.
fn at<'a, 'i>(
    value: &'a mut Spanned<DeValue<'i>>,
    span: &Range<usize>,
    wanted: Wanted,
) -> Option<&'a mut Spanned<DeValue<'i>>> {
    if value.span() == *span && (wanted == Wanted::Any || value.get_ref().is_table()) {
        return Some(value);
    }
    match value.get_mut() {
        DeValue::Table(table) => table.iter_mut().find_map(|(_, below)| at(below, span, wanted)),
        DeValue::Array(array) => array.iter_mut().find_map(|below| at(below, span, wanted)),
        DeValue::String(_)
        | DeValue::Integer(_)
        | DeValue::Float(_)
        | DeValue::Boolean(_)
        | DeValue::Datetime(_) => None,
    }
}

/// Takes the key or the value at a position out of what it is in, and says where that is.
fn take_out(value: &mut Spanned<DeValue<'_>>, span: &Range<usize>) -> Option<(Range<usize>, Option<String>)> {
    let here = value.span();
    match value.get_mut() {
        DeValue::Table(table) => {
            // A key before a value: the table that a dotted key implies lies where the key does.
            if let Some(key) = table.keys().find(|key| key.span() == *span).cloned() {
                table.remove(&key);
                return Some((here, Some(key.into_inner().into_owned())));
            }
            // What is inside before what it is in: an array of tables lies where the first of them does.
            if let Some(taken) = table.iter_mut().find_map(|(_, below)| take_out(below, span)) {
                return Some(taken);
            }
            let key = table.iter().find(|(_, below)| below.span() == *span).map(|(key, _)| key.clone())?;
            table.remove(&key);
            Some((here, Some(key.into_inner().into_owned())))
        }
        DeValue::Array(array) => {
            if let Some(index) = array.iter().position(|below| below.span() == *span) {
                let rest = std::mem::replace(array, DeArray::new()).into_iter().enumerate();
                *array = rest.filter(|(other, _)| *other != index).map(|(_, below)| below).collect();
                return Some((here, None));
            }
            array.iter_mut().find_map(|below| take_out(below, span))
        }
        DeValue::String(_)
        | DeValue::Integer(_)
        | DeValue::Float(_)
        | DeValue::Boolean(_)
        | DeValue::Datetime(_) => None,
    }
}

/// serde's words, and what was probably meant where a word is not known.
fn reason(message: &str) -> String {
    let unknown = || {
        let (what, expected) = message.split_once(", expected ")?;
        let word = what.strip_prefix("unknown field `").or_else(|| what.strip_prefix("unknown variant `"))?;
        let meant = closest(word.strip_suffix('`')?, expected.split('`').skip(1).step_by(2))?;
        Some(format!("{what}; did you mean `{meant}`?"))
    };
    unknown().unwrap_or_else(|| message.to_owned())
}

fn closest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .map(|candidate| (strsim::jaro_winkler(word, candidate), candidate))
        .filter(|(likeness, _)| *likeness >= LIKENESS_MIN)
        .max_by(|(one, _), (other, _)| one.total_cmp(other))
        .map(|(_, candidate)| candidate)
}
