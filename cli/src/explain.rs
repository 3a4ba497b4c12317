//! What each code means and what to do about it.

use muster_model::Code;

/// One code in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Explanation {
    /// The code as a short sentence.
    pub(crate) title: &'static str,
    /// What was found, and why that shuts the gate.
    pub(crate) meaning: &'static str,
    /// What to do next, as an imperative.
    pub(crate) action: &'static str,
}

macro_rules! explanations {
    ($($code:ident => $title:literal, $meaning:literal, $action:literal;)*) => {
        /// The explanation of `code`.
        pub(crate) const fn explanation(code: Code) -> Explanation {
            match code {
                $(Code::$code => Explanation { title: $title, meaning: $meaning, action: $action },)*
            }
        }
    };
}

explanations! {
    HostMissing =>
        "A host of the roster is not connected.",
        "The roster lists the host, but no agent speaks for it. Nothing is known of what it serves, and what is not known counts as wrong.",
        "start muster-agent and muster-guard on the host, look into the agent's log, and check the network between the two";
    HostSilent =>
        "A host is connected but did not answer in time.",
        "The agent's stream stands, yet the answer that was needed did not come. The host may be overloaded, or its disk may hang.",
        "look at load, disk and the agent's log on the host, then ask again with a longer --timeout";
    HostDark =>
        "A host serves nothing although it is connected.",
        "Its service or its guard ended, or it was never let in after a boot or a failed start. The other hosts go on serving.",
        "read the log of the service and of the agent on the host; once it measures right and its guard runs, it is let in again";
    HostNotInRoster =>
        "A host speaks that the roster does not list.",
        "Only hosts of the signed roster count. This one has a valid certificate, but the fleet does not know it.",
        "add the host to the roster with `muster roster apply`, or take the fleet out of the host's agent.toml";
    DuplicateHost =>
        "One host identity is connected twice.",
        "Two machines hold the same certificate and both are alive, as after cloning a virtual machine. Neither can be believed.",
        "stop the agent on the copy, issue the copy an identity of its own with `muster host issue`, and then `muster host readmit` the original";
    RolledBackDisk =>
        "A host's journal is older than what it told before.",
        "The host's disk was set back to an earlier state, as by restoring a snapshot. It may have forgotten a promise that it made.",
        "make sure that the host is the only one with its identity, stop its agent, remove the journal folder of the fleet from its state, then `muster host readmit HOST` and start the agent; do not restore snapshots of agent state";
    Unmandated =>
        "No operators have signed that this coordinator leads the fleet.",
        "The coordinator's database began a new life: it is new, was restored from a backup, or is not yours. A host that has obeyed another one obeys it only with a mandate that enough operators have signed. What the host serves it goes on serving.",
        "if the coordinator is yours, have the operators sign: `muster coordinator rebuild --reason TEXT`; if not, find out who has a coordinator's certificate";
    BrokenGlass =>
        "Something was started on a host without a coordinator, and operators have not settled that.",
        "Somebody used a break-glass token on the host while it was dark. Nothing proved then that no other host served another release, so the fleet flips to nothing before operators have looked at what was done and signed that it is in order. The host goes on serving, unless the fleet serves something else: then it has stopped.",
        "find out who used the token and what the host did, then `muster break-glass settle HOST --reason TEXT`";
    GlassTokenRefused =>
        "The break-glass token lets this host start nothing.",
        "It is for another fleet, another host or another release or epoch than the host has served last, has expired, does not hold yet, or was used on this host before. Nothing was started.",
        "look at it with `muster break-glass show FILE`, and take another token, or have operators issue one";
    Rebuilding =>
        "The coordinator is new or was restored, and does not lead the fleet yet.",
        "It leads once the operators have signed a mandate, and every host of the roster was heard under it: only then is it known what was promised. Until then it changes nothing, and hosts go on serving what they serve.",
        "run `muster coordinator rebuild --reason TEXT`, which says whom it waits for; a host whose machine is off for good is named with --fenced";
    AuditRewritten =>
        "The coordinator's audit log does not continue the one that a host has seen.",
        "Each host remembers the last checkpoint of the audit log and asks for proof that the log goes on from there. Entries that the host has seen are gone or are others: somebody cut or rewrote the log, put back an old copy of the coordinator's state, or stands between. The host takes part in no rollout of this coordinator; what it serves it goes on serving.",
        "compare `muster audit export` with an earlier export, and find out who had the coordinator's state and its audit key; then settle it on each of these hosts: `muster-agent audit accept FLEET --reason TEXT`";
    NothingToReconcile =>
        "There is no such override to reconcile.",
        "The entry is no override, was refused when it was asked for, or somebody has reconciled it already.",
        "see `muster status` for the overrides that are open, and `muster audit log` for all entries";
    HistoryLost =>
        "A host lost its journal.",
        "The agent cannot say what it promised, so it keeps its service shut.",
        "find out why the journal is gone (disk error, deleted state folder), then let the host in again with `muster host readmit HOST`";
    AgentTooOld =>
        "A host's agent is too old to take part.",
        "The agent speaks an earlier version of the protocol, and would not understand every step of the flip.",
        "upgrade the agent and the guard on the host; the coordinator is upgraded first";
    NotDeployed =>
        "A host does not have the release's bytes.",
        "The release's tree is not on the host's disk, so it could not be opened there.",
        "run `muster deploy RELEASE` and wait until it says N of N";
    Mismatch =>
        "A host measured something else than the release.",
        "Every byte was read on the host, and an entry is missing, is extra, or differs. This can never be overridden.",
        "find out who changed the named file on the host, then run `muster deploy RELEASE`, which repairs the tree";
    Unmeasurable =>
        "A host could not read what it had to measure.",
        "A file or a folder of the tree cannot be read, or it changed while it was read. What cannot be measured is not proven.",
        "check permissions, the disk and the kernel log on the host, and that nothing writes into the release's folder";
    NotUniform =>
        "Hosts disagree on an external path.",
        "The release names a path outside of its tree that must be the same on all hosts, and it is not.",
        "compare the named path on the hosts and bring it to the same content on all of them";
    StaleAttestation =>
        "An attestation is not of now.",
        "It was made for another rollout, another challenge or another session, or its measurement is too old: it may be replayed.",
        "ask again; if it stays, check the clock of the host and of this machine";
    BadAttestation =>
        "An attestation's signature does not hold.",
        "It was not signed by the key that the roster has for this host. Either the host has a new key, or someone speaks in its name.",
        "if the host was issued anew, put its present key into the roster; otherwise find out who holds its certificate";
    BootGate =>
        "A host's link outlives a reboot.",
        "After a reboot the service could start from the old link before the fleet admits the host. The fleet's policy does not accept that.",
        "put the link into a folder that a reboot empties, such as /run/muster, or accept it with `boot_gate = \"optional\"` in the roster's policy";
    SealBroken =>
        "A tree changed after it was sealed.",
        "Between the measurement and the flip something touched the release's folder.",
        "find out what writes into the release's folder on the host, then run `muster deploy RELEASE` and flip again";
    NoSpace =>
        "A host has no space left.",
        "The release or the journal does not fit. Nothing half-written counts as deployed, and the old release is untouched.",
        "free disk space or inodes on the host, then run the command again: what has arrived is not fetched again";
    ReadOnly =>
        "A host's file system is read-only.",
        "The agent cannot write its state, often because the kernel found the disk damaged.",
        "look at the kernel log of the host, repair the disk and mount it writable";
    StoreFailed =>
        "The coordinator could not write its state.",
        "Its disk or its database failed, so nothing that depended on the write was said or done. A database that failed ends the coordinator.",
        "read the coordinator's log and its machine's kernel log, repair the disk, start the coordinator if it ended, and run the command again";
    BlobDamaged =>
        "A blob in the coordinator's store is damaged.",
        "Its content does not have the digest that it is named by, so no host accepts it.",
        "check the coordinator's disk, then run `muster release push` again: it replaces the damaged blob";
    BlobMissing =>
        "A blob of the release is not in the coordinator's store.",
        "The release is known, but some of its bytes are not there to be fetched.",
        "run `muster release push` with the same tree and version again: it uploads what is missing";
    GuardFailed =>
        "A host's guard does not answer, or refused.",
        "The guard makes every change of the link and of the service. Without it the host can neither open nor close.",
        "start muster-guard on the host and read its log";
    LeaseExpired =>
        "A host was armed, was not heard in time, and has stopped serving by itself.",
        "While a flip is under way the right to serve is a lease. The host could not renew it in time, so its guard stopped the service: had it served on, it might have served beside the new release.",
        "find out what held it up (network, a stopped agent, a busy machine); once it is connected it is let in again or opened by itself, without anyone asking";
    FenceTooSlow =>
        "A host may stop its service too slowly.",
        "The guard tries out how long a fence takes, or could not try. The fleet's roster promises that it takes no longer than `fence_ms`, and the wait for a silent host rests on that.",
        "look at the load of the host and at its hook `on_fence`, whose time-out counts; its agent tries again by itself, after half a minute at first. Or allow more with `fence_ms` in the roster's `[policy.timing]`";
    DrainTooLong =>
        "A service may take longer to stop than its lease lasts.",
        "A host drains under its running lease. A service that may take longer than half of it would be cut off by its own guard in every flip.",
        "shorten the service's `stop_timeout_ms` and its hooks in guard.toml, or lengthen `lease_ms` in the roster's `[policy.timing]`";
    RenewalsSlow =>
        "A host answers too slowly to renew a lease.",
        "Before hosts are armed, each must answer within a third of the lease. One that is slower could be fenced by a flip that goes well otherwise; nothing was armed.",
        "look at load and network of the host and flip again, or lengthen `lease_ms` in the roster's `[policy.timing]`";
    ClockMayPause =>
        "A host's clock may stand still.",
        "A virtual machine that can be paused stops its clock, and its lease with it: it could serve on when its time is long over. The fleet's policy does not accept that.",
        "give the machine a stable clock source, or accept it with `clock = \"any\"` in the roster's policy: then whoever pauses an armed host must switch it off first";
    ClockUncertain =>
        "A host's time of day is not known well enough for fast mode.",
        "In fast mode each host flips by its own clock. This one may be off by more than `clock_error_ms`, or has no time service that says how far.",
        "look at the time service of the host (`chronyc tracking`) and at `chronyc` in its agent.toml, or flip in strict mode, which needs no time of day";
    Halted =>
        "The fleet, or a host of it, was halted.",
        "Somebody stopped it at once. It serves nothing and starts nothing, whatever is restarted or rebooted, until a signed order with a higher number resumes it.",
        "find out why it was halted; then `muster resume`, or `muster flip` to another release";
    NotEnforced =>
        "A host takes part in no flip, by its own configuration.",
        "Its agent.toml has `enforce = \"observe\"` or `\"gate\"` for the fleet: it measures and attests, and refuses every flip. All N hosts flip or none, so the fleet does not flip while that is so.",
        "take `enforce` out of the host's agent.toml and restart its agent, once Muster is to manage the service there; or flip with the tool that manages it, and ask `muster check` before";
    NotAssured =>
        "A release is not sealed by a host's kernel, and has to be.",
        "The host's agent.toml has `verity = \"require\"`: a release is installed and attested there only if every file of it is sealed with fs-verity, which the host says it is not, and why.",
        "give the host a file system with fs-verity for its state folder (ext4 made with `-O verity`, or btrfs) and run `muster deploy` again, which seals what is there; or take `verity` out of its agent.toml";
    HookFailed =>
        "A hook of a host failed or took too long.",
        "The host's own configuration names a command for this step, and it did not end with 0 in its time.",
        "read `hooks.log` in the fleet's state folder on the host, repair the command or its time-out in guard.toml, and run the command again";
    StartFailed =>
        "The service did not start.",
        "The release was opened, and its service ended at once or could not be started. The host serves nothing now.",
        "read the service's log on the host (`service.log` beside the releases of the fleet) and repair what it needs, or flip to a release that starts: with `muster rollback` to the one before, if there was one";
    Drifted =>
        "What a host serves has changed on its disk.",
        "The host compares what it serves with the release when the kernel tells of a change, and on a schedule. A file has changed, come or gone since the host was admitted. The service goes on, but is not started again while that is so.",
        "find out who changed it; `muster deploy` of the release that is served repairs the tree, and the host takes the alarm back once it measures right";
    WrongProcess =>
        "A process of the service is not of the release.",
        "The release was opened, and then every process of the service was looked at: what it executes, and when it was started. One executes a file that the release does not have, or one that was replaced under it, or was there before the flip. The flip is not settled while that is so.",
        "see what the process is on the host (`ls -l /proc/PID/exe`); one that outlived the flip belongs into the unit's control group, so that stopping the unit ends it (no `KillMode=process`). End it, then run `muster flip` again";
    Unhealthy =>
        "The service runs, but its health check does not pass.",
        "The release was opened and its process lives, yet the check that guard.toml names did not pass in the tries it has. The host serves nothing now.",
        "read the service's log on the host (`service.log` beside the releases of the fleet); repair what it needs or the check itself, or go back with `muster rollback`";
    StopFailed =>
        "The service or the link did not stop.",
        "The host could not prove that it no longer serves the old release, so no other host may open the new one.",
        "look at the service's processes on the host and stop what is left of them";
    FleetUnknown =>
        "There is no such fleet.",
        "The coordinator has no roster for this name.",
        "check the name; a new fleet begins with its first roster (`muster roster apply`), and one whose coordinator has lost its \
         state is rebuilt from its hosts (`muster coordinator rebuild`)";
    ReleaseUnknown =>
        "There is no such release in this fleet.",
        "No release of the fleet has this version or digest.",
        "look at `muster release list`, or add the release with `muster release push`";
    ReleaseExpired =>
        "The release has expired.",
        "Its signed document says until when it may be flipped to, and that time has passed.",
        "push it again under a new version, if it is still wanted";
    ReleaseExists =>
        "The version, or the tree, belongs to another release already.",
        "A version names exactly one digest for ever and a digest has one version, so that nobody can exchange what either means.",
        "push another tree under a version that is free; the same tree keeps the version that it has (`muster release list`)";
    RosterEmpty =>
        "The roster lists no hosts, or there is none.",
        "Nothing can be proven of an empty fleet.",
        "apply a roster with at least one host: `muster roster draft`, then `muster roster apply`";
    RosterChanged =>
        "The roster is not the one that the question was about.",
        "Somebody applied another roster in the meantime, so N is another number or stands for other hosts.",
        "look at `muster roster show` and ask again";
    RemovalNeedsEvidence =>
        "A host cannot leave the roster without proof.",
        "It may still serve the old release, and nobody would notice once it is off the roster.",
        "have it close first: `muster host park HOST --reason TEXT`; if its machine is off or wiped, state that: `muster roster apply FILE --fenced HOST --reason TEXT`";
    NotWithdrawn =>
        "A host that the roster sets aside has not proven by its own word that it has closed.",
        "The others believe nobody else: a coordinator that was taken over could say so of a host that serves.",
        "let it connect once, so that it closes and signs that it has; if its machine is off or wiped, state that: `muster host park HOST --fenced --reason TEXT`, or `muster host retire` for one that has retired";
    SignatureInvalid =>
        "A document's signatures do not hold.",
        "Too few of the keys that the root names have signed it, or the root has expired.",
        "check which keys the context names and that everyone has the same root document";
    OrderInvalid =>
        "The order does not say what it is used for.",
        "Its fleet, release, roster or counter is not what the coordinator or a host holds.",
        "run `muster flip` again: it makes a new order from the present state";
    OrderExpired =>
        "The order is not valid yet, or no longer.",
        "An order holds for a stated time only, by the clock of whoever verifies it.",
        "run `muster flip` again; if it stays, compare the clocks of this machine, the coordinator and the hosts";
    OrderStale =>
        "The order starts from a release that is not being served.",
        "The fleet moved on after the order was made.",
        "look at `muster status`, and run `muster flip` again if it is still wanted";
    ApprovalMissing =>
        "Too few operators have signed the order.",
        "The root demands the signatures of several operators, and no key counts twice. Nothing was begun.",
        "have another operator look at it with `muster order show ID` and sign it with `muster approve ID`; then run the same command again, unless one waits";
    OrderUnknown =>
        "No such order waits for approvals.",
        "It was begun, it expired long ago, or it was never proposed to this fleet.",
        "look at `muster order list`, and at `muster status` for what became of it";
    OrderCancelled =>
        "An operator took the order back.",
        "It stays refused, whoever has signed it.",
        "ask whoever cancelled it (`muster order list` says who), and run `muster flip` again if it is still wanted";
    TooManyOrders =>
        "As many orders wait for approvals as may.",
        "The coordinator keeps a bounded number of them for each fleet.",
        "look at `muster order list`, and take back what nobody wants with `muster order cancel ID`";
    TokenRefused =>
        "The token does not let this host enrol.",
        "It is mistyped, has expired, or was made for another host. Whoever guesses learns nothing more; the coordinator's log and its audit log name the reason.",
        "make a new one with `muster host token NAME`, and enrol with it on the host of that name within its life";
    TokenBoundElsewhere =>
        "Another machine has enrolled with the token.",
        "A token belongs to the first machine that shows it, and this one has another key. Either this machine lost its keys after it enrolled, or somebody else had the token first.",
        "if you did not enrol this host twice yourself, somebody has stolen the token: `muster host evict NAME --reason TEXT`, find out how, then make a new token";
    TooManyTokens =>
        "As many tokens are in use as may.",
        "The coordinator keeps a bounded number of tokens that have not expired.",
        "wait until some have expired; none lives longer than 15 minutes";
    RequestRefused =>
        "The request for a certificate proves nothing.",
        "It must be signed with the key that it is about, an ECDSA key on P-256, and where a host asks also with its attestation key.",
        "use `muster-agent enrol` and `muster certificate renew`, which make such requests; of another program look at what it sends";
    NoIssuer =>
        "The coordinator issues no certificates.",
        "Its configuration names no issuing authority: certificates come from a PKI of your own, and so do their renewal and revocation.",
        "use that PKI, or name a folder with ca.pem and ca.key as `issuer` in coordinator.toml";
    TooManyCertificates =>
        "The host was given as many certificates as it may have.",
        "It asks for new ones although those that it has are still good. Its agent may be unable to keep what it is given.",
        "look into the agent's log and at the disk of its state on the host";
    RecoveryRefused =>
        "The host cannot recover from an expired certificate by itself.",
        "That takes an expired certificate, the attestation key that a roster in force names, a clock that is about right, and can be done a few times only.",
        "see the coordinator's log for the reason; a new token always helps: `muster host token NAME`, then `muster-agent enrol` on the host";
    HostEvicted =>
        "The host was evicted.",
        "An operator has revoked all its certificates: its connections were cut, and it is given no new certificate.",
        "if the host is to come back, make sure of its machine first, then `muster host token NAME` and `muster-agent enrol`";
    CertificateEnding =>
        "A certificate will end soon, or its renewal fails.",
        "Less than a third of its life is left, or two attempts to renew it have failed. Once it has ended, nobody connects with it.",
        "see `muster status --verbose` for whose and why; renew it (`muster certificate renew` for your own), or put the new one where the old one is";
    AlreadyServing =>
        "The fleet serves this release already.",
        "There is nothing to flip.",
        "look at `muster status`; to prove that all hosts still have it, run `muster check`";
    Busy =>
        "Another rollout is under way.",
        "A fleet flips once at a time, and another operator was first.",
        "watch it with `muster status`, and try again when it has ended, or give it up with `muster abort`";
    Superseded =>
        "Another rollout has taken this one's place.",
        "Somebody started a newer rollout of the same fleet.",
        "look at `muster status` to see whose it is";
    StaleRollout =>
        "The message belongs to a rollout that is over.",
        "It arrived late, and was dropped as it should be.",
        "nothing, unless it comes again and again: then look into the host's log";
    StaleEpoch =>
        "The message belongs to an epoch that is over.",
        "It arrived late, and was dropped as it should be. Where the status shows it, the host's journal was set back to an epoch that its fleet has left.",
        "nothing if it came once; if the status keeps showing it, stop the host's agent, remove the journal folder of the fleet from its state, then `muster host readmit HOST` and start the agent";
    StaleTerm =>
        "The message comes from a coordinator that no longer leads.",
        "A newer coordinator has taken over, and hosts follow only the newest.",
        "make sure that only one coordinator runs on this state, and that the context names it";
    StaleSession =>
        "The message does not belong to the host's current session.",
        "The host has connected again since, and the earlier session is void.",
        "try again";
    RolledBackCoordinator =>
        "The coordinator's database is older than what hosts remember.",
        "It was restored from a backup or lost its newest records, and could contradict what it promised.",
        "restore the newest backup with `muster restore`, start the coordinator, and have it rebuilt from its hosts: `muster coordinator rebuild --reason TEXT`";
    ClosingUnproven =>
        "Not all hosts have shown that they stopped.",
        "A host opens only with the closing secrets of all hosts. One is missing or wrong, so some host may still serve the old release.",
        "bring the host that is named back; it closes as soon as it is connected";
    WrongState =>
        "The message does not fit the state it met.",
        "Coordinator and host disagree on the step that they are in.",
        "try again; if it stays, keep the logs of both and report it";
    Decided =>
        "The rollout is decided and can no longer be aborted.",
        "Hosts may already have stopped the old release: from here it only goes forward.",
        "wait for it with `muster status`, then go back with `muster rollback` if needed";
    NothingToAbort =>
        "There is nothing to abort.",
        "No rollout is under way, or the one that was named is over.",
        "look at `muster status`";
    AbortedByOperator =>
        "An operator gave the rollout up.",
        "It was not decided yet: every host goes on serving what it served.",
        "nothing; run `muster flip` again when it is wanted";
    CoordinatorRestarted =>
        "The coordinator was restarted before the rollout was decided.",
        "It gave the rollout up: every host goes on serving what it served.",
        "run `muster flip` again";
    SessionLost =>
        "A host's connection ended while the rollout needed it.",
        "What the host had proven is void once its session is over.",
        "check the network and the agent's log on the host, wait until `muster status` shows it connected, and flip again";
    TimedOut =>
        "A step took longer than it may.",
        "The time that was allowed passed before all hosts had answered.",
        "look at `muster status` for the hosts that are slow, and allow more time with --timeout";
    NotAllowed =>
        "Your role may not do this.",
        "The certificate says who you are, and the coordinator's table says what that role may do.",
        "use a context with the right certificate: an operator's for changes, a pipeline's for `check` and `release push`";
    Unsupported =>
        "This version cannot do that.",
        "The wish is understood, but not built into this program, or a peer is older.",
        "upgrade, or leave the option out";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_explained_in_whole_sentences() {
        for code in Code::ALL {
            let Explanation { title, meaning, action } = explanation(*code);
            assert!(title.len() > 10 && title.ends_with('.'), "{code}: {title}");
            assert!(meaning.len() > 20 && meaning.ends_with('.'), "{code}: {meaning}");
            assert!(action.len() > 6 && !action.ends_with('.'), "{code}: {action}");
        }
    }

    #[test]
    fn no_two_codes_share_a_title() {
        let mut titles: Vec<_> = Code::ALL.iter().map(|code| explanation(*code).title).collect();
        titles.sort_unstable();
        titles.dedup();
        assert_eq!(titles.len(), Code::ALL.len());
    }
}
