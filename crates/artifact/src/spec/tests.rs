use super::*;

fn parse(text: &str) -> Result<ReleaseSpec, ArtifactError> {
    ReleaseSpec::parse(text, Path::new("muster.toml"))
}

#[test]
fn a_whole_file_is_understood() {
    let digest = Digest::of(b"nginx");
    let text = format!(
        r#"
[tree]
mutable = ["var", "cache.db"]
absent = ["/usr/bin/powerpeg"]
outside_links = "refuse"

[[external]]
path = "/usr/sbin/nginx"
check = "digest"
digest = "{digest}"

[[external]]
path = "/etc/app.conf"
check = "uniform"

[flags.rlp]
type = "boolean"          # boolean, string, number, object, as in OpenFeature
default = false
semantics = "route retail orders through the liquidity program"
expires = 2027-03-31

[flags.limits]
type = "object"
default = {{ orders = 10, rate = 0.5, names = ["a"] }}
semantics = "bounds"
expires = "2027-03-31"

[flags.power_peg]
removed = true
"#
    );
    let spec = parse(&text).expect("a release file");
    assert_eq!(spec.outside_links, OutsideLinks::Refuse);
    assert_eq!((spec.rules.mutable.len(), spec.rules.absent.len()), (2, 1));
    let checks: Vec<_> = spec.rules.external.iter().map(|external| external.check).collect();
    assert_eq!(checks, [ExternalCheck::Digest { digest }, ExternalCheck::Uniform]);
    assert_eq!(spec.flags["rlp"].default, Some(false.into()));
    assert_eq!(spec.flags["rlp"].expires.as_deref(), Some("2027-03-31"));
    assert_eq!(spec.flags["limits"].expires.as_deref(), Some("2027-03-31"));
    let limits = spec.flags["limits"].default.as_ref().map(ToString::to_string);
    assert_eq!(limits.as_deref(), Some(r#"{"names":["a"],"orders":10,"rate":0.5}"#));
    assert!(spec.flags["power_peg"].removed && spec.flags["power_peg"].kind.is_none());
    assert_eq!(parse("").expect("nothing to say"), ReleaseSpec::default());
}

#[test]
fn mistakes_are_refused_with_their_line() {
    let flag = |body: &str| format!("[flags.a]\n{body}\n");
    let cases: &[(String, usize, &str)] = &[
        ("[tree]\nmutabel = []\n".to_owned(), 2, "unknown field `mutabel`"),
        ("[tree\n".to_owned(), 1, ""),
        ("\n\n[tree]\nmutable = [\n  \"a\",\n  \"../b\",\n]\n".to_owned(), 6, "component `.` or `..`"),
        ("[tree]\nabsent = [\"usr/bin\"]\n".to_owned(), 2, "is relative"),
        ("[[variants]]\nclass = \"a\"\n".to_owned(), 1, "`variants`"),
        ("[variants.a]\nx = 1\n".to_owned(), 1, "`variants`"),
        ("[[external]]\npath = \"/a\"\ncheck = \"sometimes\"\n".to_owned(), 3, "the check is"),
        ("[[external]]\npath = \"/a\"\ncheck = \"digest\"\n".to_owned(), 3, "needs `digest"),
        (
            "[[external]]\npath = \"/a\"\ncheck = \"digest\"\ndigest = \"sha256:0\"\n".to_owned(),
            4,
            "64 lower-case",
        ),
        (
            "[[external]]\npath = \"/a\"\ncheck = \"present\"\ndigest = \"x\"\n".to_owned(),
            4,
            "only check `digest`",
        ),
        (flag("type = \"boolean\"\ndefault = false"), 1, "a flag needs"),
        (flag("type = \"boolean\"\ndefault = 1\nsemantics = \"x\""), 3, "not of the flag's type"),
        (flag("type = \"number\"\ndefault = nan\nsemantics = \"x\""), 3, "no NaN"),
        (flag("type = \"bool\"\ndefault = true\nsemantics = \"x\""), 2, "unknown variant"),
        (flag("type = \"boolean\"\ndefault = true\nsemantics = \" \""), 4, "`semantics` says"),
        (
            flag("type = \"boolean\"\ndefault = true\nsemantics = \"x\"\nexpires = 2027-03-31T10:00:00Z"),
            5,
            "a date",
        ),
        (flag("type = \"boolean\"\ndefault = true\nsemantics = \"x\"\nexpires = \"soon\""), 5, "a date"),
        (flag("removed = true\nsemantics = \"x\""), 1, "no other field"),
        ("[flags.\"a b\"]\nremoved = true\n".to_owned(), 1, "a flag's key"),
    ];
    for (text, expected, part) in cases {
        match parse(text) {
            Err(ArtifactError::Spec { line, reason, .. }) => {
                assert_eq!(line, *expected, "{text}: {reason}");
                assert!(reason.contains(part), "{text}: {reason}");
            }
            other => panic!("{text}: {other:?}"),
        }
    }
}
