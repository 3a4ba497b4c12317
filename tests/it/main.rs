//! Integration tests: the real programs, real files and real processes.

mod certificates;
mod demo;
mod exit_codes;
mod guard;
mod harness;
mod hostile;
mod impostor;
mod roles;
mod smoke;
mod tamper;
