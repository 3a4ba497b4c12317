//! Two operators: one alone moves nothing, the second approves; and the receipt proves it to somebody who has nothing but the
//! root document.

use std::fs;
use std::path::{Path, PathBuf};

use muster_proto::v1;
use muster_trust::{KeyAlgorithm, SigningKey};

use super::cut_off::until;
use super::releases::{NEXT, OLD};
use super::stage::Stage;
use super::story::{DONE, HOSTS, all_serve, progress, report};
use super::typed::Hand;
use crate::error::CliError;
use crate::files::{Existing, write};
use crate::provision::ROOT_FILE;

/// Where somebody else has the receipt and the root document.
const ELSEWHERE: &str = "elsewhere";
const RECEIPT: &str = "flip.receipt";

/// The first root is what `muster init` made.
const ROOT_OF_TWO: u64 = 2;

/// Has a second operator sign, and shows what one alone can do: nothing.
pub(super) async fn approve(stage: &mut Stage, digests: (&str, &str)) -> Result<(), CliError> {
    let (next, old) = digests;
    stage.begin("One operator alone is not enough: the root document demands two");
    let bob = Box::pin(demand_two(stage)).await?;
    Box::pin(renew_roster(stage, &bob)).await?;

    stage.say("One operator alone wants to go back. The order is signed, and worth nothing to any host yet:");
    let asked = stage.types(&["rollback"], &report(12, &["approval-missing"])).await?;
    all_serve(stage, NEXT, next)?;
    let Some(order) = order_in(&asked.text) else {
        return stage.failed("the rollback did not say which order waits");
    };
    stage.say("bob sees what it says, verified by his own root, and adds his signature. Then it is done:");
    stage.types_by(&bob, &["approve", order, "--yes"], &report(0, &["2 of 2 approvals"])).await?;
    stage.types(&["rollback"], &progress(0, &["8 of 8", old])).await?;
    all_serve(stage, OLD, old)?;
    stage.types(&["audit", "verify", "--live"], &report(0, &["proven"])).await?;
    Ok(())
}

/// Verifies the receipt in another folder, whole and with one flipped bit. Gives what was named.
pub(super) async fn prove(stage: &mut Stage) -> Result<String, CliError> {
    stage.begin("Somebody else, with the receipt and the root document and nothing else");
    let folder = stage.fleet().dir.join(ELSEWHERE);
    fs::create_dir(&folder).map_err(CliError::file("make the folder", folder.as_path()))?;
    let out = format!("{ELSEWHERE}/{RECEIPT}");
    stage.types(&["receipt", "show", "--out", &out], &DONE).await?;
    let root = folder.join(ROOT_FILE);
    fs::copy(stage.operator_folder().join(ROOT_FILE), &root).map_err(CliError::file("copy to", root))?;
    let auditor = Hand { prompt: ELSEWHERE, folder: folder.clone(), context: None };
    let verify = ["receipt", "verify", RECEIPT, "--root", ROOT_FILE];
    let all = format!("all {HOSTS} hosts");
    stage.types_by(&auditor, &verify, &report(0, &[&all])).await?;

    let (host, path) = (stage.host(usize::from(HOSTS)), folder.join(RECEIPT));
    flip_one_bit(&path, &format!("/attestations/{}/signatures/0/sig", HOSTS - 1), stage)?;
    stage.say("One bit of one signature in it is flipped:");
    let named = format!("attestation of {host}");
    stage.types_by(&auditor, &verify, &progress(12, &[&named])).await?;
    Ok(named)
}

/// Bob makes a key, of which nobody else ever has more than the public half, and the next root names it.
async fn demand_two(stage: &Stage) -> Result<Hand<'static>, CliError> {
    let dir = stage.fleet().dir.clone();
    let doing = "make the key of the second operator";
    let key = SigningKey::generate(KeyAlgorithm::Ed25519).map_err(CliError::trust(doing))?;
    let public = format!("{}\n", key.public());
    write(&dir.join("bob.pub"), public.as_bytes(), 0o644, Existing::Keep)?;
    stage.say("bob has made a key of his own; bob.pub is its public half.");
    let edit =
        ["root", "edit", "--add", "operator=bob.pub", "--threshold", "operator=2", "--out", "two.toml"];
    stage.types(&edit, &DONE).await?;
    stage.types(&["root", "sign", "two.toml", "--key", "keys/root.key"], &DONE).await?;
    stage.types(&["root", "apply", "two.json"], &report(0, &["operator"])).await?;
    let follow =
        |status: &v1::FleetStatus| status.hosts.iter().all(|host| host.root_version == Some(ROOT_OF_TWO));
    let all_follow = || async { stage.status().await.map(|status| follow(&status)) };
    if !until(all_follow).await? {
        return stage.failed("not all hosts follow the next root");
    }
    stage.good(format_args!("all {HOSTS} follow root version {ROOT_OF_TWO}"));
    stage.types(&["operator", "add", "bob", "--operator-key", "bob.key"], &DONE).await?;
    let folder = dir.join("people/bob");
    key.write_new(&folder.join("bob.key")).map_err(CliError::trust(doing))?;
    Ok(Hand { prompt: "bob", context: Some(folder.join("context.toml")), folder: dir })
}

/// What one operator has signed before counts no more: both sign who belongs to the fleet.
async fn renew_roster(stage: &Stage, bob: &Hand<'_>) -> Result<(), CliError> {
    stage.types(&["roster", "draft", "--out", "roster.toml"], &DONE).await?;
    stage.types(&["roster", "sign", "roster.toml"], &DONE).await?;
    stage.types_by(bob, &["roster", "sign", "roster.json"], &DONE).await?;
    stage.types(&["roster", "apply", "roster.json"], &DONE).await?;
    Ok(())
}

/// The order that a command says another operator may approve.
fn order_in(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once("`muster approve ")?;
    rest.split_once('`').map(|(order, _)| order)
}

/// Makes another digit of one digit of the text that stands there, so that it stays what it is: JSON, and base64.
fn flip_one_bit(path: &Path, pointer: &str, stage: &Stage) -> Result<(), CliError> {
    let file = |doing| CliError::file(doing, PathBuf::from(path));
    let mut receipt = fs::read(path).map_err(file("read"))?;
    let Some(at) = digit_in(&receipt, pointer) else {
        return stage.failed(format!("the receipt has no digit at {pointer}"));
    };
    receipt[at] ^= 1;
    fs::write(path, receipt).map_err(file("write"))
}

fn digit_in(json: &[u8], pointer: &str) -> Option<usize> {
    let value: serde_json::Value = serde_json::from_slice(json).ok()?;
    let text = value.pointer(pointer)?.as_str()?.as_bytes();
    let digit = text.iter().position(u8::is_ascii_digit)?;
    let at = json.windows(text.len()).rposition(|window| window == text)?;
    Some(at + digit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_and_the_bit_are_found() {
        assert_eq!(order_in("runs `muster order show 5f0c`, then `muster approve 5f0c`\n"), Some("5f0c"));
        assert_eq!(order_in("nothing waits"), None);
        let json = br#"{"keys":["ab1d"],"sigs":[{"sig":"xy7z"}]}"#;
        assert_eq!(json[digit_in(json, "/sigs/0/sig").unwrap()], b'7');
        assert_eq!(digit_in(json, "/sigs/1/sig"), None);
    }
}
