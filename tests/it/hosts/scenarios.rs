//! What must hold on real hosts.

mod adoption;
mod clock;
mod documents;
mod drift;
mod moving;
mod operation;
mod packages;
mod power;
mod units;

use super::site::Site;

/// Those that the others need: after them each fleet serves.
pub(super) const NEEDED: &[&str] = &[FIRST, BY_SYSTEMD, BY_THE_GUARD];

const FIRST: &str = "the first flip of eight";
const BY_SYSTEMD: &str = "a service that systemd runs";
const BY_THE_GUARD: &str = "a service that the guard runs";

/// A scenario and its name.
type Scenario = (&'static str, fn(&Site<'_>));

/// In the order in which they are run.
pub(super) const ALL: &[Scenario] = &[
    ("the agent is nobody, and its keys are root's", packages::the_agent_is_nobody),
    (FIRST, operation::first_flip),
    ("Knight: a host that a copy by hand has missed shuts the gate", operation::a_missed_host_shuts_the_gate),
    ("eight hosts that run something already, of which one differs", adoption::one_of_eight_differs),
    (BY_SYSTEMD, operation::a_service_of_systemd),
    (BY_THE_GUARD, operation::a_service_of_the_guard),
    ("a host that is rebooted serves nothing before it is admitted", power::reboot),
    ("a host that loses its power comes back", power::power_off),
    ("a host that loses its power in the middle of a flip", power::power_off_in_a_flip),
    ("a host that is rebooted while it is armed", power::reboot_while_armed),
    (
        "a host that loses its power when it has armed, and when it has closed",
        power::power_off_armed_and_closed,
    ),
    ("a host that loses its power while it is dark", power::power_off_dark),
    ("a host whose clock is set an hour back, and an hour forward", clock::an_hour_off),
    ("a unit that crashes is started again", units::crash),
    ("a start by hand of old code", units::old_code),
    ("a program that is replaced under its process", units::replaced_program),
    ("changed bytes that nobody has seen are not started", drift::changed_unseen),
    ("changed bytes stop what runs where the host says so", drift::fenced),
    ("a start gate that cannot tell, and then can", drift::unknown_gate),
    ("a halt of eight hosts, and what is started after it", units::halt),
    ("what hangs is killed and started again", power::watchdog),
    ("an upgrade under a service that goes on", packages::upgrade),
    ("an upgrade leaves the guard that runs a service alone", packages::upgrade_under_the_guards_service),
    ("a removal leaves what is served as it is", packages::removal),
    ("a removal is refused while the host is armed", packages::removal_while_armed),
    ("a full disk", operation::full_disk),
    ("a host that is cloned", operation::clone),
    ("the units are as closed as docs/hardening.md says", documents::hardening),
    ("a new host by the commands of docs/install.md", documents::installation),
    // The last one: the coordinator is another machine afterwards.
    ("a coordinator that moves to a new machine with its backup", moving::coordinator_moves),
];
