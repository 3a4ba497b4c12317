//! A fleet whose orders and rosters two of three operators have to sign.

use std::fs;
use std::path::{Path, PathBuf};

use muster_trust::{KeyAlgorithm, SigningKey};

use super::{Fleet, Output, PATIENCE, run, wait_until};

/// The operators beside the one whose context the fleet's folder holds, and who is alice here.
pub(crate) struct Operators<'a> {
    fleet: &'a Fleet,
    /// Bob's context file.
    pub(crate) bob: PathBuf,
    /// The key that bob signs with.
    pub(crate) bobs_key: SigningKey,
}

impl<'a> Operators<'a> {
    /// Gives the fleet a root by which two operators must sign, and a roster that two have signed.
    #[track_caller]
    pub(crate) fn demand_two(fleet: &'a Fleet) -> Self {
        let scratch = fleet.scratch();
        let key = |name: &str| {
            let key = SigningKey::generate(KeyAlgorithm::Ed25519).unwrap();
            let path = scratch.join(format!("{name}.key"));
            key.write_new(&path).unwrap();
            let public = path.with_extension("pub");
            fs::write(&public, key.public().to_string()).unwrap();
            (path, format!("operator={}", text(&public)), key)
        };
        let ((path, add_bob, bobs_key), (_, add_carol, _)) = (key("bob"), key("carol"));
        let (draft, next) = (scratch.join("two.toml"), scratch.join("two.json"));
        let edit = ["root", "edit", "--out", text(&draft), "--threshold", "operator=2"];
        fleet.json(&[&edit[..], &["--add", &add_bob, "--add", &add_carol]].concat()).expect_code(0);
        let root_key = fleet.dir().join("keys/root.key");
        fleet.json(&["root", "sign", text(&draft), "--key", text(&root_key)]).expect_code(0);
        fleet.json(&["root", "apply", text(&next)]).expect_code(0);
        for host in fleet.hosts() {
            wait_until(&format!("{} follows the root", host.name()), PATIENCE, || {
                host.folder().join("roots/2.json").exists().then_some(())
            });
        }
        fleet.json(&["operator", "add", "bob", "--operator-key", text(&path)]).expect_code(0);
        let bob = fleet.dir().join("people/bob/context.toml");
        let operators = Self { fleet, bob, bobs_key };
        operators.renew_roster();
        operators
    }

    /// Puts a roster of the same hosts with the next revision into force, signed by alice and bob.
    #[track_caller]
    pub(crate) fn renew_roster(&self) {
        let (draft, signed) =
            (self.fleet.scratch().join("next.toml"), self.fleet.scratch().join("next.json"));
        for leftover in [&draft, &signed] {
            let _ = fs::remove_file(leftover);
        }
        self.fleet.json(&["roster", "draft", "--out", text(&draft)]).expect_code(0);
        let said = self.fleet.json(&["roster", "sign", text(&draft)]).expect_code(0);
        assert_eq!(said.json()["complete"], false, "{said}");
        self.fleet.json(&["roster", "apply", text(&signed)]).expect_code(12);
        let said = self.bob(&["roster", "sign", text(&signed)]).expect_code(0);
        assert_eq!(said.json()["complete"], true, "{said}");
        self.fleet.json(&["roster", "apply", text(&signed)]).expect_code(0);
    }

    /// Runs `muster` as bob, with JSON on stdout.
    #[track_caller]
    pub(crate) fn bob(&self, arguments: &[&str]) -> Output {
        run(&[arguments, &["--output", "json"]].concat(), &[("MUSTER_CONTEXT", text(&self.bob))])
    }

    /// The only order that waits.
    #[track_caller]
    pub(crate) fn only_order(&self) -> String {
        let listed = self.bob(&["order", "list"]).expect_code(0);
        assert_eq!(listed.json()["orders"].as_array().map(Vec::len), Some(1), "{listed}");
        listed.text_at("/orders/0/id")
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
