//! Who has used how much processor time.

use std::time::Duration;

use crate::process_time;
use crate::servers::Servers;

/// What is told apart.
pub(crate) const PROCESSES: [&str; 6] = ["api", "relay", "worker", "postgres", "rabbitmq", "bench"];

/// Processor time of each of [`PROCESSES`], and of the whole machine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    ours: [Duration; PROCESSES.len()],
    machine: Duration,
}

impl Usage {
    /// Since each process was started.
    pub(crate) fn now(services: &[Vec<u32>; 3], servers: &Servers) -> anyhow::Result<Self> {
        let mut usage = [Duration::ZERO; PROCESSES.len()];
        for (sum, pids) in usage.iter_mut().zip(services) {
            for &pid in pids {
                *sum += process_time::of_process(pid)?;
            }
        }
        usage[3] = process_time::of_tree(servers.postgres_pid)?;
        usage[4] = process_time::of_tree(servers.rabbitmq_pid)?;
        usage[5] = process_time::of_process(std::process::id())?;
        Ok(Self { ours: usage, machine: process_time::of_machine()? })
    }

    /// What was used between then and now.
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        let mut ours = self.ours;
        for (now, then) in ours.iter_mut().zip(earlier.ours) {
            *now = now.saturating_sub(then);
        }
        Self { ours, machine: self.machine.saturating_sub(earlier.machine) }
    }

    /// Each process's name and time.
    pub(crate) fn by_process(&self) -> impl Iterator<Item = (&'static str, Duration)> {
        PROCESSES.into_iter().zip(self.ours)
    }

    pub(crate) fn total(&self) -> Duration {
        self.ours.iter().sum()
    }

    /// What anything else on this machine used: the kernel's own threads, and whoever disturbs the measurement.
    pub(crate) fn of_others(&self) -> Duration {
        self.machine.saturating_sub(self.total())
    }
}
