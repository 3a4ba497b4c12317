use std::os::unix::fs::{PermissionsExt as _, symlink};

use super::*;

struct Folders {
    dir: tempfile::TempDir,
    folders: Vec<PathBuf>,
}

impl Folders {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let folders = ["usr", "run", "etc"].map(|name| dir.path().join(name)).into();
        Self { dir, folders }
    }

    fn path(&self, path: &str) -> PathBuf {
        let path = self.dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    }

    fn write(&self, path: &str, text: impl AsRef<[u8]>) {
        fs::write(self.path(path), text).unwrap();
    }

    fn read(&self) -> Result<Fragments, Error> {
        Fragments::from_folders(&self.folders, "agent.toml")
    }

    #[track_caller]
    fn names(&self) -> Vec<String> {
        let found = self.read().unwrap();
        let relative = |path: &Path| path.strip_prefix(self.dir.path()).unwrap().to_str().unwrap().to_owned();
        found.paths().map(relative).collect()
    }
}

#[test]
fn the_precedence_is_systemds() {
    let it = Folders::new();
    it.write("usr/agent.toml", "name = 'usr'");
    assert_eq!(it.names(), ["usr/agent.toml"]);
    it.write("run/agent.toml", "name = 'run'");
    assert_eq!(it.names(), ["run/agent.toml"], "one main file, the strongest");
    it.write("etc/agent.toml", "name = 'etc'");
    it.write("usr/agent.toml.d/20-name.toml", "");
    it.write("usr/agent.toml.d/30-off.toml", "name = 'turned off'");
    it.write("usr/agent.toml.d/40-null.toml", "name = 'turned off'");
    it.write("run/agent.toml.d/50-run.toml", "");
    it.write("usr/agent.toml.d/50-run.toml", "name = 'weaker than that of this boot'");
    it.write("etc/agent.toml.d/10-hosts.toml", "");
    it.write("etc/agent.toml.d/30-off.toml", "");
    symlink("/dev/null", it.path("etc/agent.toml.d/40-null.toml")).unwrap();
    it.write("etc/agent.toml.d/.60-editor.toml", "not TOML");
    it.write("etc/agent.toml.d/README", "not TOML");
    it.write("etc/coordinator.toml", "not TOML");
    assert_eq!(
        it.names(),
        [
            "etc/agent.toml",
            "etc/agent.toml.d/10-hosts.toml",
            "usr/agent.toml.d/20-name.toml",
            "etc/agent.toml.d/30-off.toml",
            "etc/agent.toml.d/40-null.toml",
            "run/agent.toml.d/50-run.toml",
        ]
    );
    assert!(it.read().unwrap().0.iter().all(|fragment| !fragment.text.contains("turned off")));
    fs::remove_file(it.path("etc/agent.toml")).unwrap();
    symlink("/dev/null", it.path("etc/agent.toml")).unwrap();
    assert_eq!(it.read().unwrap().0[0].text, "", "a masked main file is not looked for elsewhere");
}

#[test]
fn a_file_that_was_asked_for_must_be_there() {
    let it = Folders::new();
    let path = it.path("my.toml");
    let Err(Error::Read { path: missing, .. }) = Fragments::from_file(&path) else { panic!("it is missing") };
    assert_eq!(missing, path);
    it.write("my.toml", "name = 'a'");
    it.write("my.toml.d/1.toml", "hosts = ['x']");
    assert_eq!(Fragments::from_file(&path).unwrap().paths().count(), 2);
    assert_eq!(it.read().unwrap().paths().count(), 0);
    let below_etc = Path::new("/etc/muster-that-nobody-has/agent.toml");
    assert!(matches!(Fragments::from_file(below_etc), Err(Error::Read { path, .. }) if path == below_etc));
}

#[test]
fn what_is_no_file_of_configuration_is_refused_and_never_waited_for() {
    let refused = |make: &dyn Fn(&Folders)| {
        let it = Folders::new();
        make(&it);
        let error = it.read().unwrap_err();
        let source = std::error::Error::source(&error).map_or(String::new(), |source| format!(": {source}"));
        format!("{error}{source}")
    };
    let chmod = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    for (make, words) in [
        (
            &(|it: &Folders| fs::create_dir(it.path("etc/agent.toml")).unwrap()) as &dyn Fn(&Folders),
            "it is a folder",
        ),
        (&|it| fs::create_dir_all(it.path("etc/agent.toml.d/a.toml")).unwrap(), "it is a folder"),
        (&|it| it.write("etc/agent.toml.d", ""), "cannot read"),
        (&|it| symlink("agent.toml", it.path("etc/agent.toml")).unwrap(), "oo many levels of symbolic links"),
        (&|it| symlink("nowhere", it.path("etc/agent.toml")).unwrap(), "No such file"),
        (&|it| symlink("nowhere", it.path("etc/agent.toml.d/a.toml")).unwrap(), "No such file"),
        (&|it| symlink("/dev/zero", it.path("etc/agent.toml")).unwrap(), "it is no regular file"),
        (
            &|it| {
                let mode = rustix::fs::Mode::from_raw_mode(0o600);
                rustix::fs::mknodat(
                    rustix::fs::CWD,
                    it.path("etc/agent.toml"),
                    rustix::fs::FileType::Fifo,
                    mode,
                    0,
                )
                .unwrap();
            },
            "it is no regular file",
        ),
        (&|it| it.write("etc/agent.toml", b"a = 1\nb = '\xff'"), "agent.toml:2:6: this is not UTF-8"),
        (&|it| it.write("etc/agent.toml", vec![b'#'; TOTAL_BYTES_MAX + 1]), "more than 1048576 bytes"),
        (
            &|it| {
                it.write("etc/agent.toml", "");
                chmod(&it.path("etc/agent.toml"), 0o646);
            },
            "everybody may write to it (mode 0646)",
        ),
        (
            &|it| {
                it.write("usr/agent.toml.d/a.toml", "");
                chmod(&it.path("usr/agent.toml.d"), 0o1777);
            },
            "everybody may write to it (mode 1777)",
        ),
        (
            &|it| (0..=FRAGMENTS_MAX).for_each(|n| it.write(&format!("etc/agent.toml.d/{n}.toml"), "")),
            "more than 64 files",
        ),
    ] {
        let error = refused(make);
        assert!(error.contains(words), "{error:?} does not say {words:?}");
    }
}

#[test]
fn the_whole_is_bounded() {
    let fragment = |text: &str| Fragment { path: "f".into(), text: text.to_owned() };
    let many = vec![fragment(""); FRAGMENTS_MAX + 1];
    assert!(matches!(Fragments::new(many), Err(Error::TooMuch { unit: "files", .. })));
    let long = vec![fragment(&"#".repeat(TOTAL_BYTES_MAX)), fragment("#")];
    assert!(matches!(Fragments::new(long), Err(Error::TooMuch { unit: "bytes", .. })));
}

#[test]
fn what_others_than_root_and_oneself_may_change_is_foreign() {
    let own = (7, 7);
    for fine in [(0, 0, 0o664), (7, 7, 0o664), (0, 5, 0o644), (7, 5, 0o640)] {
        assert_eq!(foreign(fine, own), None, "{fine:?}");
    }
    assert!(foreign((5, 0, 0o600), own).unwrap().contains("belongs to user 5"));
    assert!(foreign((0, 5, 0o664), own).unwrap().contains("group 5 may write to it (mode 0664)"));

    let it = Folders::new();
    it.write("etc/agent.toml", "name = 'etc'");
    it.write("etc/agent.toml.d/10-hosts.toml", "");
    it.read().unwrap().refuse_foreign().unwrap();
    if geteuid().is_root() {
        let folder = it.path("etc/agent.toml.d/10-hosts.toml").parent().unwrap().to_owned();
        std::os::unix::fs::chown(&folder, Some(5), None).unwrap();
        let error = it.read().unwrap().refuse_foreign().unwrap_err().to_string();
        assert!(error.contains("agent.toml.d") && error.contains("belongs to user 5"), "{error}");
    }
}
