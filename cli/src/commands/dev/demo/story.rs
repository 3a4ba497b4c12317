//! The story, in the order in which it happened, and then as it should have.

use super::cut_off::{self, CutOff};
use super::releases::{self, FORGOTTEN, NEW, OLD};
use super::stage::Stage;
use super::two;
use super::typed::{Ending, Played, Shown};
use crate::error::CliError;

/// The servers of that day.
pub(super) const HOSTS: u16 = 8;
/// The service that ran on them.
pub(super) const FLEET: &str = "smars";
/// The steps of the story.
pub(super) const STEPS: usize = 9;

/// The server that was missed.
const MISSED: usize = 8;

pub(super) const DEPLOYED: Ending<'_> = report(0, &["deployed 8 of 8"]);
pub(super) const DONE: Ending<'_> = report(0, &[]);

/// How long a deployment waits for a host that is not there.
const SHORT: &str = "2s";

/// What the story needs to know of its releases.
struct Digests {
    old: String,
    new: String,
}

/// What was measured on the way.
pub(super) struct Figures {
    /// What the flips said of their dark windows.
    pub(super) flips: Vec<String>,
    pub(super) cut_off: CutOff,
    /// What of a receipt was named in which one bit was flipped.
    pub(super) flipped_bit: String,
}

/// Tells the story.
pub(super) async fn tell(stage: &mut Stage) -> Result<Figures, CliError> {
    stage.say("1 August 2012, Knight Capital: eight servers route orders. A release is copied to them by hand; one is");
    stage.say(
        "missed. This is that day again, with eight hosts of this machine: real processes, real mutual TLS.",
    );
    stage.pause().await;
    Box::pin(stage.open()).await?;
    releases::write(&stage.build_folder())?;

    let old = Box::pin(first_release(stage)).await?;
    let new = Box::pin(one_is_missed(stage, &old)).await?;
    let digests = Digests { old, new };
    Box::pin(copied_by_hand(stage, &digests)).await?;
    Box::pin(repaired(stage)).await?;
    let flipped = Box::pin(flipped(stage, &digests)).await?;
    let rolled_back = Box::pin(rolled_back(stage, &digests)).await?;
    let (next, cut_off) = Box::pin(cut_off::tell(stage)).await?;
    Box::pin(two::approve(stage, (&next, &digests.old))).await?;
    let flipped_bit = Box::pin(two::prove(stage)).await?;
    compared(stage, &flipped);
    Ok(Figures { flips: vec![flipped, rolled_back], cut_off, flipped_bit })
}

async fn first_release(stage: &mut Stage) -> Result<String, CliError> {
    stage.begin("The release of July goes live on all eight");
    let pushed = push(stage, OLD).await?;
    let digest = digest_in(stage, &pushed)?;
    stage.types(&["deploy", OLD], &DEPLOYED).await?;
    stage.types(&["flip", OLD], &progress(0, &["8 of 8", &digest])).await?;
    all_serve(stage, OLD, &digest)?;
    Ok(digest)
}

async fn one_is_missed(stage: &mut Stage, old: &str) -> Result<String, CliError> {
    stage.begin("The RLP release is deployed, and one host is missed");
    let host = stage.host(MISSED);
    let pid = stage.cut_off(&host)?;
    stage.say(format_args!(
        "{host} is cut off: its agent (process {pid}) was ended. The technician does not notice."
    ));
    let pushed = push(stage, NEW).await?;
    let new = digest_in(stage, &pushed)?;
    let missing = format!("host-missing at {host}");
    let names: &[&str] = &[&missing];
    stage.types(&["deploy", NEW, "--timeout", SHORT], &report(11, names)).await?;
    stage.say("In 2012 nobody looked. Here the gate looks, and it counts to eight:");
    stage.types(&["check", "--release", NEW], &report(11, names)).await?;
    stage.types(&["flip", NEW], &progress(11, names)).await?;
    all_serve(stage, OLD, old)?;
    Ok(new)
}

async fn copied_by_hand(stage: &mut Stage, digests: &Digests) -> Result<(), CliError> {
    stage.begin("Somebody copies the bytes by hand, and forgets a file");
    let host = stage.host(MISSED);
    let target = stage.fleet_folder(&host).join("releases").join(digests.new.trim_start_matches("sha256:"));
    let copied = releases::copy_by_hand(&stage.build_folder().join(NEW), &target)?;
    stage.say(format_args!("copied {copied} files to {host}, into {}", target.display()));
    let pid = stage.reconnect(&host).await?;
    stage.say(format_args!(
        "{host} is back: its agent is process {pid}. All eight are there now, and it looks done."
    ));
    let missing = format!("mismatch at {host}, {FORGOTTEN}");
    let names: &[&str] = &[&missing];
    stage.types(&["check", "--release", NEW], &report(10, names)).await?;
    stage.types(&["flip", NEW], &progress(10, names)).await?;
    all_serve(stage, OLD, &digests.old)
}

async fn repaired(stage: &mut Stage) -> Result<(), CliError> {
    stage.begin("The host is repaired, and all eight prove that they have the same bytes");
    if sabotage() == Some(Sabotage::SkipRepair) {
        stage.say("(the repair is left out, as this test asks for)");
    } else {
        stage.types(&["deploy", NEW], &DEPLOYED).await?;
    }
    stage.types(&["check", "--release", NEW], &report(0, &["8 of 8"])).await?;
    Ok(())
}

async fn flipped(stage: &mut Stage, digests: &Digests) -> Result<String, CliError> {
    stage.begin("The flip: all eight, or none");
    let names: &[&str] = &["8 of 8", "dark window", &digests.new];
    let played = stage.types(&["flip", NEW], &progress(0, names)).await?;
    all_serve(stage, NEW, &digests.new)?;
    Ok(dark_window(&played))
}

async fn rolled_back(stage: &mut Stage, digests: &Digests) -> Result<String, CliError> {
    stage.begin("An emergency: back to July, through the same gate");
    stage.say(
        "The order names the digest to go back to, and each host measures that it has exactly those bytes.",
    );
    let names: &[&str] = &["8 of 8", "dark window", &digests.old];
    let played = stage.types(&["rollback"], &progress(0, names)).await?;
    all_serve(stage, OLD, &digests.old)?;
    stage.types(&["receipt", "show"], &report(0, &[&digests.old])).await?;
    Ok(dark_window(&played))
}

fn compared(stage: &Stage, flipped: &str) {
    stage.say("");
    stage.say("1 August 2012  7 of 8 servers ran the new code, the eighth ran Power Peg, unused since 2003. From 09:30");
    stage.say("               on, for about 45 minutes: over 4 million executions in 154 stocks, 440 to 460 million dollars");
    stage.say("               lost. The rollback removed the new code from the seven good servers and made it worse.");
    stage.good(
        "today          7 of 8 was not enough: nothing flipped, and the missing host and file were named.",
    );
    stage.good(format_args!("               Then all eight moved together; {flipped}."));
    stage.good("               And a host that was lost in the middle of a flip stopped by itself before the others went on.");
    stage.good("               One operator alone moved nothing, and whoever has the root document can verify what two have done.");
}

pub(super) async fn push(stage: &Stage, version: &str) -> Result<Played, CliError> {
    let tree = format!("build/{version}");
    stage.types(&["release", "push", &tree, "--version", version], &DONE).await
}

pub(super) const fn report<'a>(code: i32, names: &'a [&'a str]) -> Ending<'a> {
    Ending { code, names, shown: Shown::Report }
}

pub(super) const fn progress<'a>(code: i32, names: &'a [&'a str]) -> Ending<'a> {
    Ending { code, names, shown: Shown::Progress }
}

/// The digest that a command wrote.
pub(super) fn digest_in(stage: &Stage, played: &Played) -> Result<String, CliError> {
    let is_part = |c: char| c == ':' || c.is_ascii_alphanumeric();
    let found =
        played.text.split(|c| !is_part(c)).find(|word| word.starts_with("sha256:") && word.len() == 71);
    found.map_or_else(
        || stage.failed("the command did not say the release's digest"),
        |digest| Ok(digest.to_owned()),
    )
}

/// What a flip said of its dark window.
fn dark_window(played: &Played) -> String {
    let line = played.text.lines().find(|line| line.contains("dark window"));
    line.unwrap_or_default().trim().to_owned()
}

/// Looks at the links of all hosts, past every program of ours.
pub(super) fn all_serve(stage: &Stage, version: &str, digest: &str) -> Result<(), CliError> {
    let hex = digest.trim_start_matches("sha256:");
    let links = stage.links()?;
    for (release, hosts) in &links {
        let names: Vec<&str> = hosts.iter().map(muster_model::HostName::as_str).collect();
        let release = release.as_deref().unwrap_or("nothing");
        let named = if release == hex { format!(" ({version})") } else { String::new() };
        let short = release.get(..12).unwrap_or(release);
        stage.say(format_args!("  current → releases/{short}…{named}: {}", names.join(" ")));
    }
    let serves = links.get(&Some(hex.to_owned())).map_or(0, Vec::len);
    if serves != usize::from(HOSTS) || links.len() != 1 {
        return stage.failed(format!("{serves} of {HOSTS} hosts serve {version}"));
    }
    stage.good(format_args!("all {HOSTS} serve {version}"));
    Ok(())
}

/// What a test of the demo itself makes go wrong. A release build has none of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sabotage {
    /// The host that was copied to by hand is not repaired.
    SkipRepair,
}

fn sabotage() -> Option<Sabotage> {
    if !cfg!(debug_assertions) {
        return None;
    }
    let wanted = std::env::var_os("MUSTER_DEMO_SABOTAGE")?;
    (wanted == "skip-repair").then_some(Sabotage::SkipRepair)
}
