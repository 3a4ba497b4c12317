//! N hosts and a coordinator in one deterministic world, on the code that runs in production.
//!
//! `world` and `machine` are the simulator, `invariants` what must always hold in it, `history` random histories,
//! `mistakes` the proof that these find what they look for, and `scenarios` readable examples.

#![expect(
    clippy::disallowed_methods,
    reason = "the simulator stands for the store and for the verified signatures"
)]

/// Adds a line to a world's log, if it keeps one.
macro_rules! note {
    ($world:expr, $($text:tt)*) => {
        if $world.log.is_some() {
            let line = format!($($text)*);
            $world.log.get_or_insert_default().push(line);
        }
    };
}

mod guard;
mod history;
mod invariants;
mod machine;
mod mistakes;
mod papers;
mod random;
mod scenarios;
mod world;
