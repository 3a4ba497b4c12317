//! Each exit code that can arise, from the command that gives it; and what is written besides.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::harness::{Artifact, Caller, Fleet, Output, PATIENCE, artifact, program, run, wait_until};

/// Runs a command in both formats. The exit code is the same; JSON is one document on stdout that states the code and
/// the reason, text names the reason as well, and neither writes of a panic.
#[track_caller]
fn expect(fleet: &Fleet, arguments: &[&str], code: i32, reason: &str) -> Value {
    let text = fleet.muster(arguments).expect_code(code);
    let json = fleet.json(arguments).expect_code(code);
    assert_honest(&json, code, reason);
    let said = format!("{}{}", text.stdout, text.stderr);
    assert!(said.contains(reason) && !said.contains("panicked"), "no `{reason}`: {text}");
    if code != 0 && !reason.is_empty() {
        assert!(said.contains("next"), "it does not say how to go on: {text}");
    }
    json.json()
}

/// `reason` is a code among the blockers; none for commands that have no reason to give.
#[track_caller]
fn assert_honest(output: &Output, code: i32, reason: &str) {
    let document = output.json();
    assert!(document["schema"].as_str().is_some_and(|schema| schema.starts_with("muster.")), "{output}");
    assert!(output.stdout.trim_end().ends_with('}') && output.stdout.starts_with('{'), "{output}");
    if let Some(stated) = document.get("exit_code") {
        assert_eq!(*stated, code, "{output}");
    }
    if !reason.is_empty() {
        let named = output.blockers().iter().any(|blocker| blocker.code.as_str() == reason);
        assert!(named, "no blocker {reason}: {output}");
    }
}

/// A command that runs beside the test.
struct Running {
    child: Child,
}

impl Running {
    fn begin(fleet: &Fleet, arguments: &[&str]) -> Self {
        let child = Command::new(program("muster"))
            .args(arguments)
            .args(["--output", "json"])
            .env("MUSTER_CONTEXT", fleet.context())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { child }
    }

    #[track_caller]
    fn end(self) -> (i32, Value) {
        let output = self.child.wait_with_output().unwrap();
        (output.status.code().unwrap_or(-1), serde_json::from_slice(&output.stdout).unwrap())
    }
}

/// A fleet of two that serves 1.0, with 2.0 deployed.
fn deployed() -> (Fleet, Artifact, String) {
    deployed_to(Fleet::up(2))
}

/// The same of a fleet that is up.
fn deployed_to(fleet: Fleet) -> (Fleet, Artifact, String) {
    let tree = artifact(&[("lib/a", "a")]);
    let one = fleet.release(&tree, "1.0");
    tree.write("lib/a", "b");
    fleet.push(&tree, "2.0");
    fleet.json(&["deploy", "2.0"]).expect_code(0);
    (fleet, tree, one)
}

#[track_caller]
fn wait_for_phase(fleet: &Fleet, phase: &str) {
    wait_until(&format!("the phase is {phase}"), PATIENCE, || {
        (fleet.json(&["status"]).json()["phase"] == phase).then_some(())
    });
}

#[test]
fn codes_of_a_fleet_at_rest() {
    let (fleet, tree, one) = deployed();
    // 0: proven for N of N.
    for arguments in
        [&["status", "--check"][..], &["check", "--release", "2.0"], &["deploy", "2.0"], &["release", "list"]]
    {
        expect(&fleet, arguments, 0, "");
    }
    // 10: a host measured something else, or does not have it.
    tree.write("lib/a", "c");
    fleet.push(&tree, "3.0");
    expect(&fleet, &["check", "--release", "3.0"], 10, "not-deployed");
    let flip = expect(&fleet, &["flip", "3.0"], 10, "not-deployed");
    assert_eq!((&flip["outcome"], &flip["dark_window"]), (&"unchanged".into(), &Value::Null));
    // 11: not found.
    expect(&fleet, &["status", "--fleet", "unheard"], 11, "fleet-unknown");
    for arguments in [&["flip", "9.9"][..], &["deploy", "9.9"], &["check", "--release", "9.9"]] {
        let unknown = fleet.json(arguments).expect_code(11);
        assert!(unknown.stderr.contains("9.9"), "{unknown}");
        fleet.muster(arguments).expect_code(11);
    }
    // 12: a signature or policy does not hold.
    expect(&fleet, &["release", "push", tree.argument(), "--version", "1.0"], 12, "release-exists");
    // 13: stale or expired.
    let flip = expect(&fleet, &["flip", "1.0"], 13, "already-serving");
    assert_eq!(flip["outcome"], "unchanged");
    expect(&fleet, &["flip", "2.0", "--valid-for", "1ms"], 13, "order-expired");
    tree.write("lib/a", "d");
    let push = ["release", "push", tree.argument(), "--version", "4.0", "--expires", "1ms"];
    fleet.json(&push).expect_code(0);
    fleet.json(&["deploy", "4.0"]).expect_code(0);
    expect(&fleet, &["flip", "4.0"], 13, "release-expired");
    // 17: nothing to abort.
    expect(&fleet, &["abort"], 17, "nothing-to-abort");
    fleet.assert_all_serve(&one);
}

#[test]
fn codes_of_missing_hosts_and_coordinators() {
    let (fleet, _tree, one) = deployed();
    // 2: the command line does not say what to do.
    for arguments in [
        &["flip"][..],
        &["chekc"],
        &["deploy", "2.0", "--timeout", "0s"],
        &["flip", "2.0", "--mode", "slow"],
        &["flip", "2.0", "--max-lapsed", "2"],
        &["halt", "demo"],
        &["halt", "demo", "--reason", "there is no terminal to ask on"],
    ] {
        let usage = fleet.muster(arguments).expect_code(2);
        assert!(usage.stdout.is_empty() && !usage.stderr.is_empty(), "{usage}");
    }
    // 11: a host is missing.
    fleet.host(2).agent.kill();
    fleet.wait_connected(1);
    for arguments in [
        &["check", "--release", "2.0"][..],
        &["flip", "2.0"],
        &["deploy", "2.0", "--timeout", "1s"],
        &["status", "--check"],
    ] {
        let missed = expect(&fleet, arguments, 11, "host-missing");
        assert_eq!(missed["blockers"][0]["host"], "host-2", "{missed}");
    }
    let waited = fleet.muster(&["deploy", "2.0", "--timeout", "1s"]).expect_code(11);
    assert!(waited.stderr.contains("host-2: not connected, waiting for it until 20"), "{waited}");
    // 1: nobody answers, or no context says whom to ask.
    fleet.coordinator().kill();
    for format in ["json", "text"] {
        let refused = fleet.muster(&["status", "--output", format]).expect_code(1);
        assert!(refused.stderr.contains("muster-coordinator run"), "{refused}");
        let nowhere = fleet.scratch().to_str().unwrap();
        let lost = run(&["status", "--output", format], &[("XDG_CONFIG_HOME", nowhere)]).expect_code(1);
        assert!(lost.stderr.contains("muster init"), "{lost}");
        if format == "json" {
            assert_honest(&refused, 1, "");
            assert_honest(&lost, 1, "");
        }
    }
    fleet.assert_all_serve(&one);
}

#[test]
fn codes_of_rollouts_that_are_given_up() {
    let (fleet, _tree, one) = deployed();
    let silent = fleet.host(2).agent;
    silent.stop();

    // 16: it could not be decided in the time it had.
    let (code, ended) = Running::begin(&fleet, &["flip", "2.0", "--timeout", "1s"]).end();
    assert_eq!(
        (code, &ended["outcome"], &ended["exit_code"]),
        (16, &"unchanged".into(), &16.into()),
        "{ended}"
    );
    assert_eq!(ended["blockers"][0]["code"], "timed-out", "{ended}");
    fleet.assert_all_serve(&one);

    // 14: another one is under way. 17: given up by an operator.
    let first = Running::begin(&fleet, &["flip", "2.0"]);
    wait_for_phase(&fleet, "preparing");
    let second = expect(&fleet, &["flip", "2.0"], 14, "busy");
    assert_eq!(second["outcome"], "unchanged");
    assert!(second["blockers"][0]["detail"].as_str().unwrap().contains("rollout"), "{second}");
    fleet.json(&["abort"]).expect_code(0);
    let (code, ended) = first.end();
    assert_eq!((code, &ended["outcome"]), (17, &"unchanged".into()), "{ended}");
    assert_eq!(ended["blockers"][0]["code"], "aborted-by-operator", "{ended}");
    fleet.assert_all_serve(&one);

    silent.cont();
    // On a busy machine its connection may have been given up meanwhile, and is made again.
    wait_until("a flip succeeds", PATIENCE, || (fleet.json(&["flip", "2.0"]).code == 0).then_some(()));
    // 17: the coordinator was restarted. Nobody tells whoever waited; who asks again is told.
    silent.stop();
    let waiting = Running::begin(&fleet, &["flip", "1.0"]);
    wait_for_phase(&fleet, "preparing");
    fleet.coordinator().kill();
    assert_eq!(waiting.end().0, 1);
    silent.cont();
    fleet.coordinator().start(&[]);
    fleet.wait_connected(2);
    let last = fleet.json(&["status"]).expect_code(0).json()["last_end"].clone();
    assert_eq!(
        (&last["outcome"], &last["blockers"][0]["code"]),
        (&"unchanged".into(), &"coordinator-restarted".into())
    );
    let two = fleet.json(&["status"]).text_at("/serving/digest");
    fleet.assert_all_serve(&two);
}

#[test]
fn codes_of_rosters() {
    let (fleet, _tree, one) = deployed_to(Fleet::patient(2));
    let draft = fleet.scratch().join("roster.toml");
    let path = draft.to_str().unwrap();
    fleet.json(&["roster", "draft", "--fleet", "demo", "--out", path]).expect_code(0);
    let text = fs::read_to_string(&draft).unwrap();
    for kept in ["boot_gate = \"optional\"", "clock = \"any\"", "lease_ms = 60000", "wait_ms = 91700"] {
        assert!(text.contains(kept), "the draft does not keep `{kept}`: {text}");
    }
    // 15: an empty roster proves nothing.
    let (head, _) = text.split_once("[[host]]").unwrap();
    fs::write(&draft, head).unwrap();
    expect(&fleet, &["roster", "apply", path], 15, "roster-empty");
    // 15: the roster that somebody else has applied meanwhile.
    let shown = fleet.json(&["roster", "show"]).expect_code(0);
    assert_eq!(shown.json()["revision"], 1, "{shown}");
    assert_eq!(
        (&shown.json()["clock"], &shown.json()["timing"]["lease_ms"]),
        (&"any".into(), &60_000.into())
    );
    let signed = fleet.scratch().join("roster.json");
    let envelope = Caller::operator(&fleet).roster();
    fs::write(&signed, envelope).unwrap();
    expect(&fleet, &["roster", "apply", signed.to_str().unwrap()], 15, "roster-changed");
    fleet.assert_all_serve(&one);
    fleet.json(&["flip", "2.0"]).expect_code(0);
}

#[test]
fn codes_of_a_halt_and_of_resuming() {
    let (fleet, _tree, one) = deployed();
    let serve = || fleet.hosts().iter().filter(|host| host.serves().is_some()).count();
    // 13: nobody has halted it.
    expect(&fleet, &["resume"], 13, "already-serving");
    let halt = ["halt", "demo", "--reason", "orders twice", "--yes"];
    // 0: every host has said that it serves nothing.
    let halted = fleet.json(&halt).expect_code(0);
    assert_honest(&halted, 0, "");
    assert_eq!(halted.json()["dark"], serde_json::json!(["host-1", "host-2"]), "{halted}");
    assert_eq!(serve(), 0);
    // 18: halted.
    let status = expect(&fleet, &["status", "--check"], 18, "halted");
    assert!(status["halted_since_rollout"].is_u64(), "{status}");
    // 13: what was halted is resumed, not flipped to.
    let again = fleet.json(&["flip", "1.0"]).expect_code(13);
    assert!(again.expect_blocker("already-serving", "", "").detail.contains("muster resume"), "{again}");
    // Whatever is restarted, nothing is served.
    fleet.host(1).agent.kill();
    fleet.coordinator().kill();
    fleet.coordinator().start(&[]);
    fleet.host(1).agent.start(&[]);
    fleet.wait_connected(2);
    assert_eq!(serve(), 0);
    let resumed = fleet.json(&["resume"]).expect_code(0);
    assert_eq!(resumed.json()["outcome"], "flipped");
    fleet.assert_all_serve(&one);
    // 11: a host that is not connected may serve on, and is named.
    fleet.host(2).agent.kill();
    fleet.wait_connected(1);
    let missed = fleet.json(&halt).expect_code(11);
    missed.expect_blocker("host-missing", "host-2", "");
    assert_eq!(missed.json()["dark"], serde_json::json!(["host-1"]), "{missed}");
    expect(&fleet, &["resume"], 11, "host-missing");
    // It hears of the halt when it returns; another release ends a halt as well.
    fleet.host(2).agent.start(&[]);
    fleet.wait_connected(2);
    wait_until("all have stopped", PATIENCE, || (serve() == 0).then_some(()));
    fleet.json(&["flip", "2.0"]).expect_code(0);
    assert_eq!(serve(), 2);
    fleet.json(&["status", "--check"]).expect_code(0);
}

/// Runs a command that fails, and makes sure that what it says has all of these words.
#[track_caller]
fn say(fleet: &Fleet, arguments: &[&str], code: i32, words: &[&str]) {
    let said = fleet.muster(arguments).expect_code(code);
    for word in words {
        assert!(said.stderr.contains(word), "no `{word}`: {said}");
    }
}

#[test]
fn slips_of_a_newcomer_are_answered_with_the_next_step() {
    let fleet = Fleet::up(1);
    let tree = artifact(&[("lib/a", "a")]);
    say(&fleet, &["receipt", "show"], 11, &["nothing was flipped in demo yet", "next: flip a release"]);
    say(&fleet, &["flip", "410"], 11, &["no release `410`", "next: demo has no release yet"]);
    say(&fleet, &["rollback"], 2, &["next: go forward instead"]);
    say(&fleet, &["resume"], 2, &["nothing to resume", "next: deploy a release"]);
    let digest = fleet.push(&tree, "1.0");
    let first = ["flip", "1.0", "--on-failure", "rollback"];
    say(&fleet, &first, 2, &["nothing that it could be rolled back to", "next: use --on-failure hold"]);
    let short = digest.trim_start_matches("sha256:").get(..7).unwrap();
    say(&fleet, &["flip", short], 11, &["did you mean", "which is 1.0?", "at least 8 hex digits"]);
    say(&fleet, &["flip", "zzz"], 11, &["next: there are 1.0;"]);
    let again = ["release", "push", tree.argument(), "--version", "1.1"];
    say(&fleet, &again, 12, &["are 1.0 already", "next: use 1.0: `muster deploy 1.0`"]);
    say(&fleet, &["receipt", "show", "--epoch", "4"], 11, &["nothing was flipped"]);

    let nowhere = fleet.scratch().join("nowhere").to_str().unwrap().to_owned();
    say(&fleet, &["release", "push", &nowhere, "--version", "2"], 1, &["next: name the folder"]);
    say(&fleet, &["status", "--context", &nowhere], 1, &["cannot read the context", "operator/context.toml"]);
    let (dir, context) = (fleet.dir().to_str().unwrap().to_owned(), fleet.context());
    let named = format!("--context {}", context.to_str().unwrap());
    say(&fleet, &["status", "--context", &dir], 1, &["cannot read the context", &named]);
    say(&fleet, &["backup", "--out", context.to_str().unwrap()], 1, &["next: name another file"]);

    say(&fleet, &["explain", "mismach"], 2, &["did you mean `mismatch`?"]);
    let usage = fleet.muster(&["deploy"]).expect_code(2);
    assert!(usage.stderr.contains("Usage: muster deploy <RELEASE>\n"), "{usage}");
    let draft = fleet.muster(&["roster", "draft"]).expect_code(0);
    assert!(draft.stdout.starts_with("fleet = \"demo\"\n"), "{draft}");
    let quoted = ["dev", "up", "--dir", &nowhere, "--driver", "supervise", "--command", "sleep 100"];
    say(&fleet, &quoted, 2, &["no shell reads --command", "`--command sleep 100`"]);
}

#[test]
fn a_connection_that_breaks_is_one_line_and_its_chain_on_demand() {
    let fleet = Fleet::up(1);
    let tree = artifact(&[("lib/a", "a")]);
    fleet.push(&tree, "1.0");
    fleet.json(&["deploy", "1.0"]).expect_code(0);
    let silent = fleet.host(1).agent;
    for (arguments, causes) in [(&["flip", "1.0"][..], 1..=1), (&["flip", "1.0", "-v"], 2..=9)] {
        silent.stop();
        let flip = Command::new(program("muster"))
            .args(arguments)
            .env("MUSTER_CONTEXT", fleet.context())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        wait_for_phase(&fleet, "preparing");
        fleet.coordinator().kill();
        let output = flip.wait_with_output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        let because = said.lines().filter(|line| line.starts_with("  because ")).count();
        assert!(causes.contains(&because), "{said}");
        assert!(said.contains("error: the connection broke off"), "{said}");
        assert!(said.contains("  next: look at `muster status`"), "{said}");
        silent.cont();
        fleet.coordinator().start(&[]);
        fleet.wait_connected(1);
    }
    fleet.coordinator().kill();
    let refused = fleet.muster(&["status"]).expect_code(1);
    let lines: Vec<&str> = refused.stderr.lines().collect();
    assert_eq!(lines.len(), 3, "what, why and next: {refused}");
    assert_eq!(lines[1], "  because nobody listens there");
}

#[test]
fn a_service_that_does_not_start_leaves_its_host_dark() {
    // The second release has forgotten its service, whatever the machine is busy with.
    let fleet = Fleet::up_with(2, &["--driver", "supervise", "--command", "./bin/run"]);
    let one = fleet.release(&artifact(&[("bin/run", "#!/bin/sh\nexec sleep 600\n")]), "1.0");
    fleet.push(&artifact(&[("bin/other", "#!/bin/sh\n")]), "2.0");
    fleet.json(&["deploy", "2.0"]).expect_code(0);
    let dark = fleet.json(&["flip", "2.0"]).expect_code(18);
    assert_eq!(dark.text_at("/outcome"), "dark");
    assert_honest(&dark, 18, "start-failed");
    expect(&fleet, &["status", "--check"], 18, "start-failed");
    // The way back leads through the same gate.
    let back = fleet.json(&["rollback"]).expect_code(0);
    assert_eq!(back.text_at("/outcome"), "rolled_back");
    fleet.assert_all_serve(&one);
    fleet.json(&["status", "--check"]).expect_code(0);
}

#[test]
fn a_release_that_starts_nowhere_is_rolled_back_by_itself_if_that_was_ordered() {
    let fleet = Fleet::up_with(2, &["--driver", "supervise", "--command", "./bin/run"]);
    let one = fleet.release(&artifact(&[("bin/run", "#!/bin/sh\nexec sleep 600\n")]), "1.0");
    fleet.push(&artifact(&[("bin/other", "#!/bin/sh\n")]), "2.0");
    fleet.json(&["deploy", "2.0"]).expect_code(0);
    // 17: it went back; what was asked for did not come about.
    let back = fleet.json(&["flip", "2.0", "--on-failure", "rollback"]).expect_code(17);
    assert_eq!(back.text_at("/outcome"), "rolled_back");
    fleet.assert_all_serve(&one);
    fleet.json(&["status", "--check"]).expect_code(0);
}

#[test]
fn a_reader_that_has_gone_is_no_failure() {
    let (fleet, _tree, _one) = deployed();
    for (arguments, code) in [
        (&["status"][..], 0),
        (&["status", "--output", "json"], 0),
        (&["release", "list"], 0),
        (&["check", "--release", "2.0"], 0),
        (&["explain"], 0),
        (&["--help"], 0),
        (&["completions", "bash"], 0),
        (&["abort", "--output", "json"], 17),
    ] {
        let mut child = Command::new(program("muster"))
            .args(arguments)
            .env("MUSTER_CONTEXT", fleet.context())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let lines: Vec<String> =
            BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok).collect();
        let ended = child.wait().unwrap();
        assert!(!lines.iter().any(|line| line.contains("panicked")), "{arguments:?}: {lines:?}");
        assert_eq!(ended.code(), Some(code), "{arguments:?}: {lines:?}");
    }
}

#[test]
fn every_command_writes_one_document_and_nothing_else_to_stdout() {
    let (fleet, tree, _one) = deployed_to(Fleet::patient(2));
    fleet.json(&["flip", "2.0"]).expect_code(0);
    let file = |name: &str| fleet.scratch().join(name).to_str().unwrap().to_owned();
    let (backup, receipt, man) = (file("backup"), file("receipt.json"), file("man"));
    let commands: &[(&[&str], &str)] = &[
        (&["status"], "muster.status/1"),
        (&["status", "--verbose"], "muster.status/1"),
        (&["check", "--release", "2.0"], "muster.check/1"),
        (&["check", "--release", "1.0", "--max-age", "1h"], "muster.check/1"),
        (&["deploy", "1.0"], "muster.deploy/1"),
        (&["rollback"], "muster.flip/1"),
        (&["rollback", "--to", "2.0"], "muster.flip/1"),
        (&["halt", "demo", "--reason", "a drill", "--yes"], "muster.halt/1"),
        (&["resume"], "muster.flip/1"),
        (&["release", "pack", tree.argument(), "--fleet", "demo", "--version", "2.0"], "muster."),
        (&["release", "push", tree.argument(), "--version", "2.0"], "muster.push/1"),
        (&["release", "list"], "muster."),
        (&["release", "show", "2.0"], "muster."),
        (&["release", "diff", "1.0", "2.0"], "muster."),
        (&["roster", "show"], "muster."),
        (&["roster", "draft"], "muster."),
        (&["host", "list"], "muster."),
        (&["host", "issue", "host-7", "--fleet", "demo"], "muster."),
        (&["host", "readmit", "host-1"], "muster."),
        (&["find", "--path", "lib/*"], "muster."),
        (&["receipt", "show", "--out", &receipt], "muster."),
        (&["receipt", "verify", &receipt], "muster."),
        (&["backup", "--out", &backup], "muster."),
        (&["explain"], "muster."),
        (&["dev", "ps"], "muster.dev-ps/1"),
        (&["dev", "stop", "host-2", "--only", "agent"], "muster.dev-stop/1"),
        (&["dev", "start", "host-2"], "muster.dev-start/1"),
        (&["man", "--out", &man], "muster."),
    ];
    for (arguments, schema) in commands {
        let output = fleet.json(arguments).expect_code(0);
        assert!(output.text_at("/schema").starts_with(schema), "{output}");
        assert_honest(&output, 0, "");
    }
}
