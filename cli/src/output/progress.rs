//! Progress on stderr: bars on a terminal, lines elsewhere.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use muster_model::HostName;

use super::{Progress, Ui, printable};

/// More bars than this do not fit on a screen: one bar then stands for all hosts.
const BARS_MAX: usize = 24;

const TICK: Duration = Duration::from_millis(120);

/// One bar for one task; nothing where there is no terminal.
pub(crate) struct Bars {
    bar: ProgressBar,
}

impl Bars {
    /// A bar that counts bytes up to `total`; zero if that is not known.
    pub(crate) fn bytes(ui: &Ui, doing: &'static str, total: u64) -> Self {
        let template = if total > 0 {
            "{msg} [{bar:32}] {bytes}/{total_bytes} {bytes_per_sec} {eta}"
        } else {
            "{spinner} {msg} {bytes} {bytes_per_sec}"
        };
        let bar = ProgressBar::with_draw_target(Some(total), target(ui)).with_style(style(template));
        bar.set_message(doing);
        if ui.progress() == Progress::Bars {
            bar.enable_steady_tick(TICK);
        }
        Self { bar }
    }

    /// So many bytes are done.
    pub(crate) fn set(&self, done: u64) {
        self.bar.set_position(done);
    }

    /// So many more bytes are done.
    pub(crate) fn add(&self, bytes: u64) {
        self.bar.inc(bytes);
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// What is known of each host of a fleet, while it changes.
pub(crate) struct HostBars {
    ui: Ui,
    bars: BTreeMap<HostName, ProgressBar>,
    total: Option<ProgressBar>,
    said: BTreeMap<HostName, Cow<'static, str>>,
}

impl HostBars {
    /// A bar for each host, each up to `total` bytes.
    pub(crate) fn new(ui: &Ui, hosts: &[HostName], total: u64) -> Self {
        let screen = MultiProgress::with_draw_target(target(ui));
        let mut bars = BTreeMap::new();
        let mut summary = None;
        if hosts.len() <= BARS_MAX {
            let width = hosts.iter().map(|host| host.as_str().len()).max().unwrap_or(0);
            for host in hosts {
                let bar = ProgressBar::new(total.max(1)).with_style(style("{prefix} [{bar:24}] {msg}"));
                let bar = screen.add(bar);
                bar.set_prefix(format!("{host:width$}"));
                bar.tick();
                bars.insert(host.clone(), bar);
            }
        } else {
            let bar =
                ProgressBar::new(hosts.len() as u64).with_style(style("[{bar:40}] {pos}/{len} hosts {msg}"));
            summary = Some(screen.add(bar));
        }
        Self { ui: *ui, bars, total: summary, said: BTreeMap::new() }
    }

    /// Bytes that a host has done: drawn, never said.
    pub(crate) fn advance(&self, host: &HostName, done: u64, total: u64) {
        if let Some(bar) = self.bars.get(host) {
            bar.set_length(total.max(1));
            bar.set_position(done);
            bar.set_message(format!("{} of {}", bytes_text(done), bytes_text(total)));
        }
    }

    /// A host has come to a new state: drawn, or said once.
    pub(crate) fn state(&mut self, host: &HostName, text: impl Into<Cow<'static, str>>) {
        let text = text.into();
        if self.said.get(host) == Some(&text) {
            return;
        }
        if let Some(bar) = self.bars.get(host) {
            bar.set_message(printable(&text).into_owned());
        }
        if self.ui.progress() == Progress::Lines {
            self.ui.say(format_args!("{host}: {text}"));
        }
        self.said.insert(host.clone(), text);
    }

    /// A host is through with everything.
    pub(crate) fn end(&mut self, host: &HostName, text: impl Into<Cow<'static, str>>) {
        if let Some(bar) = self.bars.get(host) {
            bar.set_position(bar.length().unwrap_or(1));
        }
        if let Some(total) = &self.total {
            total.inc(1);
        }
        self.state(host, text);
    }
}

impl Drop for HostBars {
    fn drop(&mut self) {
        for bar in self.bars.values().chain(&self.total) {
            bar.abandon();
        }
    }
}

/// One line that says how far a rollout has come.
pub(crate) struct StageLine {
    ui: Ui,
    bar: ProgressBar,
}

impl StageLine {
    /// A line with nothing on it yet.
    pub(crate) fn new(ui: &Ui) -> Self {
        let bar = ProgressBar::with_draw_target(None, target(ui)).with_style(style("{spinner} {msg}"));
        if ui.progress() == Progress::Bars {
            bar.enable_steady_tick(TICK);
        }
        Self { ui: *ui, bar }
    }

    /// Something small has happened: drawn, never said.
    pub(crate) fn draw(&self, text: String) {
        self.bar.set_message(text);
    }

    /// Something that stays to be read.
    pub(crate) fn say(&self, text: &str) {
        self.bar.suspend(|| self.ui.say(text));
    }
}

impl Drop for StageLine {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// A number of bytes for people.
pub(crate) fn bytes_text(bytes: u64) -> String {
    indicatif::HumanBytes(bytes).to_string()
}

fn target(ui: &Ui) -> ProgressDrawTarget {
    match ui.progress() {
        Progress::Bars => ProgressDrawTarget::stderr(),
        Progress::Lines => ProgressDrawTarget::hidden(),
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .expect("the templates are constants of this file")
        .progress_chars("=> ")
}
