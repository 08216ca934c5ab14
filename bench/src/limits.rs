//! What the parts below Outhook reach alone on this machine: no figure of Outhook can be better.

mod broker;
mod http;
mod life;
mod pgbench;

use crate::phases::Bench;
use crate::report::Report;

/// The section of the report.
const TITLE: &str = "Limits of this machine";

/// Runs that [`run`] announces.
pub(crate) const STEPS: u64 = 6;

/// Keys of the limits, for the figures that are bound by them.
pub(crate) const ONE_A_COMMIT: &str = "limit.pgbench_one_a_commit";
pub(crate) const HUNDRED_A_COMMIT: &str = "limit.pgbench_hundred_a_commit";
pub(crate) const SQL_LIFE: &str = "limit.sql_life";
pub(crate) const CONFIRMS: &str = "limit.confirms";
pub(crate) const POSTS: &str = "limit.posts";
pub(crate) const LOAD: &str = "limit.load";

pub(crate) async fn run(bench: &Bench<'_>, report: &mut Report) -> anyhow::Result<()> {
    pgbench::run(bench, report).await?;
    life::run(bench, report).await?;
    broker::run(bench, report).await?;
    http::run(bench, report).await
}
