use serde::Deserialize;

use super::*;

#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    name: String,
    #[serde(default)]
    limits: Limits,
    #[serde(default)]
    hosts: Vec<String>,
    #[serde(default)]
    fleet: Vec<Fleet>,
}

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Limits {
    streams: u32,
    timeout_ms: u32,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fleet {
    name: String,
    port: u16,
    gate: Gate,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Gate {
    None,
    Volatile,
}

fn fragments(texts: &[&str]) -> Fragments {
    let fragment = |(index, text): (usize, &&str)| Fragment {
        path: format!("{index}").into(),
        text: (*text).to_owned(),
    };
    Fragments::new(texts.iter().enumerate().map(fragment).collect()).unwrap()
}

fn error(texts: &[&str]) -> String {
    fragments(texts).merge::<Settings>().unwrap_err().to_string()
}

#[test]
fn later_fragments_win_key_by_key_and_arrays_are_replaced() {
    let merged: Settings = fragments(&[
        "name = 'a'\nhosts = ['x', 'y']\n[limits]\nstreams = 1\ntimeout_ms = 1\n",
        "",
        "name = 'b'\nlimits.streams = 2\n",
        "hosts = ['z']",
    ])
    .merge()
    .unwrap();
    let limits = Limits { streams: 2, timeout_ms: 1 };
    assert_eq!(merged, Settings { name: "b".to_owned(), limits, hosts: vec!["z".to_owned()], fleet: vec![] });
}

#[test]
fn an_error_names_file_line_and_column() {
    let good = "name = 'a'\n[limits]\nstreams = 1\n";
    for (texts, place) in [
        (vec![good, "\n\nnmae = 'b'\n"], "1:3:1: unknown field `nmae`; did you mean `name`?"),
        (vec!["# first\nlimts.streams = 1", good], "0:2:1: unknown field `limts`; did you mean `limits`?"),
        (
            vec![good, "[limits]\n\nstreams = 'many'", ""],
            "1:3:11: invalid type: string \"many\", expected u32",
        ),
        (vec![good, "[limits]\nstreams = -1", "limits.timeout_ms = 5"], "1:2:11: invalid value"),
        (vec![good, "limits = 3"], "1:1:10: invalid type: integer `3`"),
        (vec![good, "name = 'b"], "1:1:"),
        (vec![good, "name = 'b'\nname = 'c'"], "1:2:1: duplicate key"),
        (vec!["'é' = 'ü'\n", good], "0:1:1: unknown field `é`, expected one of `name`"),
        (vec!["hosts = ['é', 3]\n", good], "0:1:15: invalid type"),
        (vec!["[limits]\nstreams = 1", "hosts = []"], "0, 1: missing field `name`"),
        (vec![], "there is no configuration file: missing field `name`"),
    ] {
        let error = error(&texts);
        assert!(error.starts_with(place), "{texts:?} gives {error:?}, not {place:?}");
    }
}

#[test]
fn all_that_is_wrong_is_told_at_once_in_the_order_of_the_files() {
    let first = "nmae = 'a'\nhosts = ['x', 3, 'y', 4]\n[limits]\nstreams = 'many'\nstream = 1\n";
    let second = "limits.timeout_ms = false\n[[fleet]]\nname = 'a'\n[[fleet]]\nname = 7\nport = 70000\ngate = 'volatil'";
    assert_eq!(
        error(&[first, second]),
        "12 things are wrong
  0:1:1: unknown field `nmae`; did you mean `name`?
  0:2:15: invalid type: integer `3`, expected a string
  0:2:23: invalid type: integer `4`, expected a string
  0:4:11: invalid type: string \"many\", expected u32
  0:5:1: unknown field `stream`; did you mean `streams`?
  1:1:21: invalid type: boolean `false`, expected u32
  1:2:1: missing field `port`
  1:2:1: missing field `gate`
  1:5:8: invalid type: integer `7`, expected a string
  1:6:8: invalid value: integer `70000`, expected u16
  1:7:8: unknown variant `volatil`; did you mean `volatile`?
  0, 1: missing field `name`"
    );
    assert!(error(&["name = ", "hosts = ]", "name = 'a'"]).starts_with("2 things are wrong\n  0:1:"));
    let many: String = (0..100).map(|n| format!("x{n} = 1\n")).collect();
    assert_eq!(error(&[&many]).lines().count(), 33, "as many as are read");
}

#[test]
fn what_no_type_refuses_has_its_place_too() {
    let fragments =
        fragments(&["name = 'a'\n[limits]\nstreams = 9\n", "[[fleet]]\nname = 'a'\n\n[[fleet]]\nname = 'b'"]);
    for (key, place) in [
        ("name", "0:1:8: no"),
        ("limits.streams", "0:3:11: no"),
        ("fleet[1].name", "1:5:8: no"),
        ("fleet[1].driver.units", "1:4:1: no"),
        ("hosts", "0, 1: no"),
    ] {
        assert_eq!(fragments.refuse(&[Fault::new(key, "no")]).to_string(), place, "{key}");
    }
    let both = fragments.refuse(&[Fault::new("limits.streams", "too many"), Fault::new("name", "too short")]);
    assert_eq!(both.to_string(), "2 things are wrong\n  0:1:8: too short\n  0:3:11: too many");
}
