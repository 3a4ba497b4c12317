//! N hosts and a coordinator in one deterministic world, on the code that runs in production.
//!
//! `world` is the simulator: `clock`, `disk` and `link` are what its machines are made of, `machine` and `agent` the hosts,
//! `guard`, `warden` and `ledger` a guard's requests, duties and disk around the lease of the real one, `coordinator` and `store` those who lead, `operator` the people. `invariants` is what must always hold in it,
//! `history` random histories with their `faults`, `rebuild` those in which the coordinator is lost for good, `mistakes` the proof that these find what they look for, which
//! `provoke` brings to light, and `scenarios` readable examples.

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

mod agent;
mod clock;
mod coordinator;
mod dead;
mod disk;
mod faults;
mod guard;
mod history;
mod invariants;
mod ledger;
mod link;
mod machine;
mod mistakes;
mod model;
mod operator;
mod papers;
mod provoke;
mod random;
mod rebuild;
mod scenarios;
mod store;
mod warden;
mod withdrawals;
mod world;
