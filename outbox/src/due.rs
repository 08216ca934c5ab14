//! What the relay does with the outbox: finds what is due, marks what was published.
//!
//! The rows stay locked from [`claim_due`] or [`claim_chosen`] to the commit of the same transaction. A relay that dies
//! in between frees them at once, and the next one publishes the same message ids again. What somebody else holds is
//! stepped over, and found again because it stays due.

mod claim;
mod count;
mod held;
mod mark;
pub mod missing;
mod next;
pub mod ordering;
mod published;
mod rewind;
mod row;
mod statements;

pub use self::claim::{Position, age, claim_chosen, claim_due, scan_due};
pub use self::count::{Counted, count};
pub use self::held::{Checked, make_due_again};
pub use self::mark::{mark_published, postpone};
pub use self::next::{Next, next_due};
pub use self::published::sift_published;
pub use self::rewind::rewind;
pub use self::row::DueRow;
pub use self::statements::Statements;
