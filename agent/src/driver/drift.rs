//! Whether what is served is still what was measured: after a hint, and on a schedule.
//!
//! A tree that has changed shuts the start gate, so that what is served now goes on and nothing that changed is started, and is told
//! to the coordinator as `drifted` until a measurement finds it right again. Where the configuration says `on_drift = "fence"`, the guard
//! stops it as well.

use std::sync::Arc;
use std::time::Duration;

use muster_model::{Blocker, Code, Digest, Epoch, FleetName, Refusal};
use muster_rollout::host::{Event, GuardState, Measured, Purpose};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::input::Input;
use super::{FleetDriver, Session};
use crate::AgentError;
use crate::drift::{DriftSettings, OnDrift, TreeWatch};
use crate::measure::{BrokenSeal, Trees, in_lane};
use crate::{manifests, running};

/// Changes come in bursts.
const CALM: Duration = Duration::from_millis(50);

/// Looks take at most this part of the time, so that endless changes cost little.
const PART_OF_TIME: u32 = 10;
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// So much pause may be owed before it is kept: after one look that took long, as the first one of a tree that was repaired does, the
/// next change is told as soon as any.
const PAUSE_OWED_MAX: Duration = Duration::from_secs(30);

/// While a rollout is under way, which measures by itself.
const NOT_NOW: Duration = Duration::from_secs(1);

/// A manifest that was lost is waited for this long, and asked for again before the next look.
const FETCH_MAX: Duration = Duration::from_secs(10);

/// A tree that has drifted is looked at again this often, whether or not anything is told of it.
const DRIFTED_AGAIN: Duration = Duration::from_secs(5);

/// What is kept of it.
pub(super) struct Drift {
    settings: Option<DriftSettings>,
    changed: Arc<Notify>,
    watched: Option<Watched>,
    look: Look,
    due: Option<Instant>,
    full_due: Option<Instant>,
    /// What an earlier agent may have told the guard is not known yet.
    is_first: bool,
    /// Not before this, whatever is told.
    calm_until: Instant,
    state: State,
    /// What the last look has found, unless that is right.
    found: Option<Refusal>,
    /// What the guard has stopped for that, until something is served again.
    fenced: Option<Digest>,
    /// What tells changes, as the log says it.
    teller: Option<&'static str>,
}

/// What is watched.
struct Watched {
    epoch: Epoch,
    release: Digest,
    /// It is held, and speaks for itself. `None` until the first look, and where changes cannot be told.
    _watch: Option<TreeWatch>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    None,
    UnderWay,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Right,
    Drifted,
}

/// How a look went.
#[derive(Debug)]
pub(crate) struct Looked {
    epoch: Epoch,
    outcome: Result<Option<Measured>, Refusal>,
    watch: Option<TreeWatch>,
    took: Duration,
}

/// How closely it is looked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Depth {
    /// At the metadata, and at the bytes only where that has changed.
    Seal,
    /// At every byte, and at what runs.
    Full,
}

impl Drift {
    pub(super) fn new(settings: Option<DriftSettings>) -> Self {
        Self {
            settings,
            changed: Arc::new(Notify::new()),
            watched: None,
            look: Look::None,
            due: None,
            full_due: None,
            is_first: true,
            calm_until: owing_nothing(Instant::now()),
            state: State::Right,
            found: None,
            fenced: None,
            teller: None,
        }
    }

    /// Says in the log by what changes are told, when that is another than before.
    fn note_teller(&mut self, fleet: &FleetName, watch: Option<&TreeWatch>) {
        let teller = watch.map_or("nothing: they are found on schedule only", TreeWatch::teller);
        if self.teller.replace(teller) != Some(teller) {
            tracing::info!(%fleet, "changes of what is served are told by {teller}");
        }
    }

    /// The guard tells why nothing is served any more.
    pub(super) fn went_dark(&mut self, refusal: &Refusal) {
        if refusal.code() == Some(Code::Drifted) {
            self.fenced = self.watched.as_ref().map(|watched| watched.release);
        }
    }

    /// What a measurement for an admission has found, of a release that was stopped because it had changed.
    pub(super) fn of_admission(&self, release: Digest) -> impl Fn(Refusal) -> Refusal + use<> {
        let is_fenced = self.fenced == Some(release);
        move |refusal| if is_fenced { stopped(drifted(refusal)) } else { refusal }
    }

    /// Told once for any number of changes.
    pub(super) fn changed(&self) -> Arc<Notify> {
        Arc::clone(&self.changed)
    }

    pub(super) fn due(&self) -> Option<Instant> {
        match self.look {
            Look::UnderWay => None,
            Look::None => self.due.map(|due| due.max(self.calm_until)).into_iter().chain(self.full_due).min(),
        }
    }

    /// Something has changed, or what was told before has to be told again.
    fn hint(&mut self) {
        let at = (Instant::now() + CALM).max(self.calm_until);
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }
}

impl FleetDriver {
    /// Watches what is served, and nothing else.
    pub(super) fn follow_serving(&mut self) {
        let Some(settings) = self.drift.settings else { return };
        let serving = match self.host.guard() {
            GuardState::Open(epoch, release) => Some((epoch, release)),
            GuardState::Unknown | GuardState::Dark => None,
        };
        let watched = self.drift.watched.as_ref().map(|watched| (watched.epoch, watched.release));
        if serving == watched {
            return;
        }
        (self.drift.state, self.drift.found) = (State::Right, None);
        self.drift.is_first = true;
        (self.drift.due, self.drift.full_due) = (None, None);
        self.drift.watched = serving.map(|(epoch, release)| Watched { epoch, release, _watch: None });
        if self.drift.watched.is_some() {
            self.drift.fenced = None;
            self.drift.full_due = Some(Instant::now() + settings.every);
            // The first look begins to watch.
            self.drift.hint();
        }
    }

    pub(super) fn drift_hinted(&mut self) {
        if self.drift.watched.is_some() {
            self.drift.hint();
        }
    }

    /// A new session knows nothing of what was told in the one before.
    pub(super) fn tell_drift_again(&mut self) {
        if self.drift.state == State::Drifted {
            self.drift.hint();
        }
    }

    /// The time for a look has come.
    pub(super) fn look_for_drift(&mut self) {
        let now = Instant::now();
        let (Some(settings), Some(watched)) = (self.drift.settings, &self.drift.watched) else { return };
        let (epoch, release) = (watched.epoch, watched.release);
        if !self.host.is_at_rest() || self.session == Session::Joining {
            self.drift.due = Some(now + NOT_NOW);
            self.drift.full_due = self.drift.full_due.map(|due| due.max(now + NOT_NOW));
            return;
        }
        let is_full = self.drift.full_due.is_some_and(|due| due <= now);
        let depth = if is_full || self.drift.state == State::Drifted { Depth::Full } else { Depth::Seal };
        if is_full {
            self.drift.full_due = Some(now + settings.every);
        }
        self.drift.due = None;
        self.drift.look = Look::UnderWay;
        let (trees, guard) = (Arc::clone(&self.tools.trees), self.guard.guard());
        let lane = Arc::clone(match depth {
            Depth::Seal => &self.tools.lanes.hints,
            Depth::Full => &self.tools.lanes.scheduled,
        });
        let (fleet, post, changed) = (self.tools.fleet.clone(), self.post.clone(), self.drift.changed());
        let was = if self.drift.is_first { State::Drifted } else { self.drift.state };
        self.drift.is_first = false;
        let channel = self.uplink.as_ref().map(crate::uplink::Uplink::channel);
        tokio::spawn(async move {
            if let Some(channel) = channel {
                // Whether or not it comes, what can be looked at is.
                let obtained = manifests::obtain_for_tree(&trees, channel, release);
                let _ = tokio::time::timeout(FETCH_MAX, obtained).await;
            }
            let (machine, host) = (trees.machine.clone(), trees.host.clone());
            let looked = in_lane(&lane, &machine, &host, move || {
                let begun = trees.machine.boot_time();
                // Watched anew before each look: a repair puts another folder into the tree's place.
                let manifest = trees.manifest(release).ok();
                let mutable = manifest.as_ref().map_or(&[][..], |manifest| &manifest.rules().mutable);
                let watch = TreeWatch::new(&trees.tree(release), mutable, changed);
                let watch = watch.inspect_err(|error| tracing::warn!(%fleet, %error, "changes are not told"));
                let outcome = look(depth, &trees, release, settings, || {
                    running::check(&guard, &fleet, &trees, release)
                });
                let took = trees.machine.boot_time().since(begun);
                // What was read differently must not be started; what runs wrongly may well be put right by a start.
                let differs = outcome.as_ref().err().filter(|refusal| tells_of_the_tree(refusal));
                let obeyed = match (differs, was) {
                    (Some(refusal), _) => guard.doubt(&fleet, epoch, &refusal.to_string()).err(),
                    (None, State::Drifted) => guard.trust(&fleet, epoch).err(),
                    (None, State::Right) => None,
                };
                if let Some(error) = obeyed {
                    tracing::warn!(%fleet, error = error.chain(), "the start gate stays as it was");
                }
                Ok(Looked { epoch, outcome, watch: watch.ok(), took })
            })
            .await;
            let looked = looked.unwrap_or_else(|refusal| Looked {
                epoch,
                outcome: Err(refusal),
                watch: None,
                took: Duration::ZERO,
            });
            // A driver that has ended has no use for it.
            let _ = post.send(Input::DriftLooked(Box::new(looked))).await;
        });
    }

    pub(super) async fn looked_for_drift(&mut self, looked: Looked) -> Result<(), AgentError> {
        let Looked { epoch, outcome, watch, took } = looked;
        self.drift.look = Look::None;
        self.drift.calm_until = calm_after(self.drift.calm_until, Instant::now(), took);
        self.drift.note_teller(&self.tools.fleet, watch.as_ref());
        let Some(watched) = self.drift.watched.as_mut().filter(|watched| watched.epoch == epoch) else {
            return Ok(());
        };
        watched._watch = watch;
        let purpose = Purpose::Settle(epoch);
        match (outcome, self.drift.state) {
            (Err(refusal), state) => {
                if state == State::Right {
                    tracing::error!(fleet = %self.tools.fleet, %refusal, "what is served is not what was released");
                }
                self.drift.state = State::Drifted;
                self.drift.due = Some(Instant::now() + DRIFTED_AGAIN.max(pause_after(took)));
                let before = self.drift.found.replace(refusal.clone());
                let must = must_fence(self.drift.settings, &refusal, before.as_ref());
                let reason = must.then(|| refusal.to_string());
                // Told first: what follows from it is told by the guard.
                self.step(Event::Measured { purpose, outcome: Err(refusal) }).await?;
                if let Some(reason) = reason {
                    self.fence(epoch, reason);
                }
                Ok(())
            }
            (Ok(Some(measured)), State::Drifted) => {
                tracing::info!(fleet = %self.tools.fleet, "what is served is right again");
                (self.drift.state, self.drift.found) = (State::Right, None);
                // A repair has put another folder there: the seal is made anew, so that a start need not read it all.
                self.drift.hint();
                self.step(Event::Measured { purpose, outcome: Ok(measured) }).await
            }
            (Ok(None), State::Drifted) => {
                self.drift.hint();
                Ok(())
            }
            (Ok(_), State::Right) => Ok(()),
        }
    }
}

impl FleetDriver {
    /// Not in the order of what the guard is asked for rollouts: it refuses while one is under way, and where something else is served.
    fn fence(&self, epoch: Epoch, reason: String) {
        let (guard, fleet, machine) =
            (self.guard.guard(), self.tools.fleet.clone(), self.tools.machine.clone());
        tokio::spawn(async move {
            let of_fleet = fleet.clone();
            let fenced = machine.run_blocking(move || guard.fence(&of_fleet, epoch, &reason)).await;
            match fenced {
                Ok(Ok(_)) => tracing::error!(%fleet, "what has changed is stopped, as `on_drift` says"),
                Ok(Err(error)) => {
                    tracing::warn!(%fleet, error = error.chain(), "what has changed is not stopped");
                }
                Err(error) => tracing::warn!(%fleet, %error, "what has changed is not stopped"),
            }
        });
    }
}

/// The pause that a look costs.
fn pause_after(took: Duration) -> Duration {
    took.saturating_mul(PART_OF_TIME).min(PAUSE_MAX)
}

/// Before when no hint is followed any more, after a look that ended `now`.
fn calm_after(calm_until: Instant, now: Instant, took: Duration) -> Instant {
    calm_until.max(owing_nothing(now)) + pause_after(took)
}

fn owing_nothing(now: Instant) -> Instant {
    now.checked_sub(PAUSE_OWED_MAX).unwrap_or(now)
}

/// One look at the tree, and in full also at what runs.
fn look(
    depth: Depth,
    trees: &Trees,
    release: Digest,
    settings: DriftSettings,
    check_running: impl FnOnce() -> Result<(), Refusal>,
) -> Result<Option<Measured>, Refusal> {
    let looked = match depth {
        Depth::Seal => trees.check_seal(release, BrokenSeal::Measures).map(|()| None),
        Depth::Full => trees
            .measure_slowly(release, settings.bytes_per_second_max)
            .and_then(|measured| check_running().map(|()| Some(measured))),
    };
    looked.map_err(drifted)
}

/// What runs wrongly must be found by two looks, one after the other: a service may be about to be started again.
fn must_fence(settings: Option<DriftSettings>, refusal: &Refusal, before: Option<&Refusal>) -> bool {
    let fences = settings.is_some_and(|settings| settings.on_drift == OnDrift::Fence);
    fences
        && (tells_of_the_tree(refusal)
            || tells_of_processes(refusal) && before.is_some_and(tells_of_processes))
}

fn tells_of_processes(refusal: &Refusal) -> bool {
    refusal.blockers.iter().any(|blocker| blocker.code == Code::WrongProcess)
}

fn tells_of_the_tree(refusal: &Refusal) -> bool {
    let of_tree = |code| matches!(code, Code::Drifted | Code::NotDeployed);
    refusal.blockers.iter().any(|blocker| of_tree(blocker.code))
}

/// What differs from what was admitted has drifted, whatever the difference is called elsewhere.
fn drifted(refusal: Refusal) -> Refusal {
    let renamed = |blocker: Blocker| {
        let differs = matches!(blocker.code, Code::Mismatch | Code::SealBroken);
        if differs { Blocker { code: Code::Drifted, ..blocker } } else { blocker }
    };
    Refusal { blockers: refusal.blockers.into_iter().map(renamed).collect() }
}

fn stopped(mut refusal: Refusal) -> Refusal {
    for blocker in &mut refusal.blockers {
        blocker.detail.push_str("; it was stopped for that, as `on_drift` says on its host");
    }
    refusal
}

#[cfg(test)]
mod tests {
    use muster_model::HostName;

    use super::*;

    fn settings(on_drift: OnDrift) -> Option<DriftSettings> {
        Some(DriftSettings { every: Duration::from_secs(600), bytes_per_second_max: 1, on_drift })
    }

    #[test]
    fn only_what_is_known_to_be_wrong_is_stopped_and_only_where_that_is_wanted() {
        let host = HostName::new("host-1").unwrap();
        let refusal = |code| Refusal::because(Blocker::host(code, &host, "bin/web"));
        let fences = |code, before: Option<Code>| {
            must_fence(settings(OnDrift::Fence), &refusal(code), before.map(refusal).as_ref())
        };
        assert!(fences(Code::Drifted, None) && fences(Code::NotDeployed, None));
        assert!(!fences(Code::WrongProcess, None), "it may be about to be started again");
        assert!(fences(Code::WrongProcess, Some(Code::WrongProcess)));
        for unknown in [Code::Unmeasurable, Code::GuardFailed, Code::NoSpace, Code::StartFailed] {
            assert!(!fences(unknown, Some(Code::WrongProcess)), "{unknown}: nothing was found");
            assert!(!fences(Code::WrongProcess, Some(unknown)), "{unknown}: it was found once");
        }
        for before in [None, Some(refusal(Code::WrongProcess))] {
            assert!(!must_fence(settings(OnDrift::Alarm), &refusal(Code::Drifted), before.as_ref()));
            assert!(!must_fence(None, &refusal(Code::Drifted), before.as_ref()));
        }
    }

    #[test]
    fn one_long_look_does_not_hold_up_the_next_and_endless_ones_take_a_tenth_of_the_time() {
        let start = Instant::now() + PAUSE_OWED_MAX * 2;
        let took = Duration::from_secs(2);
        let after_one = calm_after(owing_nothing(start), start, took);
        assert!(after_one <= start, "what changes next is told at once");

        let (mut now, mut calm_until) = (start, owing_nothing(start));
        for _ in 0..100 {
            now = now.max(calm_until) + took;
            calm_until = calm_after(calm_until, now, took);
        }
        let looked = took * 100;
        let allowed = looked * PART_OF_TIME - PAUSE_OWED_MAX - pause_after(took);
        assert!(now - start >= allowed, "{:?} of looks in {:?}", looked, now - start);

        let endless = calm_after(now, now, Duration::from_secs(3600));
        assert_eq!(endless, now + PAUSE_MAX);
    }
}
