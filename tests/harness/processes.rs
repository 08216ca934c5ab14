//! The real program, as child processes.

mod log;
mod process;
mod program;
mod resources;

pub use self::process::Process;
pub use self::program::{Program, output, path, run, status_into};
pub use self::resources::processor_time_of;
