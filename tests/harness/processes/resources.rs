//! What the kernel says of a process, and what it lets it have.

use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, prlimit};

use super::Process;

/// The unit of the times in /proc on Linux, whatever the kernel's own is (`getconf CLK_TCK`).
const TICKS_PER_SECOND: u32 = 100;

/// The processor time that a process of this machine has used so far.
#[must_use]
pub fn processor_time_of(pid: i32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    // After the name in brackets: the 12th and the 13th field, user and system time (proc(5)).
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
    let ticks: u32 = fields.map(|field| field.parse::<u32>().expect("a number of ticks")).sum();
    Duration::from_secs(1) * ticks / TICKS_PER_SECOND
}

impl Process {
    /// The processor time that it has used so far.
    #[must_use]
    pub fn processor_time(&self) -> Duration {
        processor_time_of(self.pid.as_raw_nonzero().get())
    }

    /// The most memory that it has had so far, in bytes.
    #[must_use]
    pub fn peak_memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid.as_raw_nonzero())).expect("it runs");
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
        peak.and_then(|peak| peak.parse::<u64>().ok()).expect("Linux says it in kB (proc(5))") * 1_024
    }

    /// Lets it open only so many files more than it has open now: sockets are files too. Lifted by
    /// [`Self::lift_file_limit`].
    pub fn limit_files_to_open(&self, more: u64) {
        self.limit_files(self.open_files() + more);
    }

    /// Files that it has open, sockets among them.
    #[must_use]
    pub fn open_files(&self) -> u64 {
        let open = std::fs::read_dir(format!("/proc/{}/fd", self.pid.as_raw_nonzero())).expect("the process runs");
        open.count() as u64
    }

    /// Lets it open as many files as usual again.
    pub fn lift_file_limit(&self) {
        self.limit_files(1_024);
    }

    fn limit_files(&self, files: u64) {
        let maximum = getrlimit(Resource::Nofile).maximum;
        let limit = Rlimit { current: Some(files), maximum };
        prlimit(Some(self.pid), Resource::Nofile, limit).expect("one's own child can be limited");
    }

    /// Whether it stands still after SIGSTOP.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid.as_raw_nonzero())).expect("it runs");
        // After the name in brackets: its state (proc(5)).
        stat.rsplit(')').next().unwrap_or_default().trim_start().starts_with('T')
    }
}
