use super::*;
use crate::Fragment;

#[test]
fn what_is_shown_says_where_it_is_from_and_reads_as_the_same() {
    let texts = [
        "name = 'a'\nnote = \"one\\nline\\u007F\"\n[limits]\nstreams = 0x10\nat = 2026-11-23\n[[fleet]]\nname = 'x'\n",
        "name = 'b'\nlist = [1, 2.5, true, 'a']\nlimits.'odd key' = 3\n[[fleet]]\nname = 'y'\nenv = { A = '1' }\n[[fleet]]\nname = 'z'\n",
    ];
    let fragment = |(index, text): (usize, &&str)| Fragment {
        path: format!("{index}.toml").into(),
        text: (*text).to_owned(),
    };
    let fragments = Fragments::new(texts.iter().enumerate().map(fragment).collect()).unwrap();
    let shown = fragments.show().unwrap();
    assert_eq!(
        shown,
        r#"# 0.toml
# 1.toml
list = [1, 2.5, true, "a"]  # 1.toml:2:8
name = "b"  # 1.toml:1:8
note = "one\nline\u007f"  # 0.toml:2:8

[[fleet]]  # 1.toml:4:1
name = "y"  # 1.toml:5:8

[fleet.env]
A = "1"  # 1.toml:6:13

[[fleet]]  # 1.toml:7:1
name = "z"  # 1.toml:8:8

[limits]
at = 2026-11-23  # 0.toml:5:6
"odd key" = 3  # 1.toml:3:20
streams = 0x10  # 0.toml:4:11
"#
    );
    let again = Fragments::new(vec![Fragment { path: "again".into(), text: shown }]).unwrap();
    assert_eq!(again.merge::<toml::Table>().unwrap(), fragments.merge::<toml::Table>().unwrap());
}
