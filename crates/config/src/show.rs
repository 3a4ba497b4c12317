//! What all fragments say together.

use std::fmt::Write as _;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::error::Error;
use crate::files::Fragments;

impl Fragments {
    /// The merged configuration as TOML, each value with the place that it comes from behind it. It can be read again.
    pub fn show(&self) -> Result<String, Error> {
        self.merged(|table| {
            let mut text = String::new();
            for path in self.paths() {
                text.push_str(&format!("# {}\n", path.display()));
            }
            self.show_table(&mut text, "", &table);
            text
        })
    }

    /// Values come before tables: what follows a table's header is in that table.
    fn show_table(&self, text: &mut String, name: &str, table: &DeTable<'_>) {
        for (key, value) in table {
            if !is_shown_as_table(value.get_ref()) {
                let (key, place) = (shown_key(key.get_ref()), self.place(Some(&value.span())));
                put(text, format_args!("{key} = {}  # {place}\n", inline(value.get_ref())));
            }
        }
        for (key, value) in table {
            let name = if name.is_empty() {
                shown_key(key.get_ref())
            } else {
                format!("{name}.{}", shown_key(key.get_ref()))
            };
            match value.get_ref() {
                DeValue::Table(below) => {
                    put(text, format_args!("\n[{name}]\n"));
                    self.show_table(text, &name, below);
                }
                DeValue::Array(elements) if is_shown_as_table(value.get_ref()) => {
                    for element in elements {
                        let DeValue::Table(below) = element.get_ref() else { continue };
                        put(text, format_args!("\n[[{name}]]  # {}\n", self.place(Some(&element.span()))));
                        self.show_table(text, &name, below);
                    }
                }
                DeValue::Array(_)
                | DeValue::String(_)
                | DeValue::Integer(_)
                | DeValue::Float(_)
                | DeValue::Boolean(_)
                | DeValue::Datetime(_) => {}
            }
        }
    }
}

fn put(text: &mut String, line: std::fmt::Arguments<'_>) {
    text.write_fmt(line).expect("a string takes all that is written");
}

fn is_shown_as_table(value: &DeValue<'_>) -> bool {
    match value {
        DeValue::Table(_) => true,
        DeValue::Array(elements) => {
            !elements.is_empty() && elements.iter().all(|element| element.get_ref().is_table())
        }
        DeValue::String(_)
        | DeValue::Integer(_)
        | DeValue::Float(_)
        | DeValue::Boolean(_)
        | DeValue::Datetime(_) => false,
    }
}

fn shown_key(key: &str) -> String {
    let is_bare = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    if !key.is_empty() && key.bytes().all(is_bare) { key.to_owned() } else { quoted(key) }
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

fn inline(value: &DeValue<'_>) -> String {
    let all = |values: &[Spanned<DeValue<'_>>]| {
        values.iter().map(|value| inline(value.get_ref())).collect::<Vec<_>>().join(", ")
    };
    match value {
        DeValue::String(text) => quoted_on_one_line(text),
        DeValue::Integer(number) => number.to_string(),
        DeValue::Float(number) => number.to_string(),
        DeValue::Boolean(flag) => flag.to_string(),
        DeValue::Datetime(time) => time.to_string(),
        DeValue::Array(elements) => format!("[{}]", all(elements)),
        DeValue::Table(table) => {
            let pair = |(key, value): (&Spanned<std::borrow::Cow<'_, str>>, &Spanned<DeValue<'_>>)| {
                format!("{} = {}", shown_key(key.get_ref()), inline(value.get_ref()))
            };
            format!("{{ {} }}", table.iter().map(pair).collect::<Vec<_>>().join(", "))
        }
    }
}

/// A text of several lines would be shown as such, and what follows it would not be behind it.
fn quoted_on_one_line(text: &str) -> String {
    if !text.contains('\n') {
        return quoted(text);
    }
    // A string of JSON is one of TOML, but for the one control character that JSON lets through.
    serde_json::Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}

#[cfg(test)]
mod tests;
