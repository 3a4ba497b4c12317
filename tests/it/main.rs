//! Integration tests: the real programs, real files and real processes.

#![allow(clippy::unwrap_used, reason = "whatever fails here fails its test, and says where")]

mod adoption;
mod approvals;
mod audit;
mod certificates;
mod chrony;
mod concurrency;
mod configuration;
mod demo;
mod deploy;
mod drift;
mod durability;
mod enrolment;
mod exit_codes;
mod fences;
mod guard;
mod halts;
mod harness;
mod hostile;
mod hosts;
mod impostor;
mod joiners;
mod keys;
mod membership;
mod monitoring;
mod nemesis;
mod parking;
mod phases;
mod rebuild;
mod receipts;
mod recovery;
mod rehearsals;
mod roles;
mod rollouts;
mod roots;
mod secrets;
mod service_manager;
mod services;
mod smoke;
mod storage;
mod tamper;
mod threats;
mod tidy;
mod uploads;
mod usurper;
