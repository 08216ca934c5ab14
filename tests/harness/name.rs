//! What a test's own things are called: after the test.

use std::thread;

/// The test that runs on this thread, by the last part of its path.
///
/// The test runner names a test's thread by the test's path, and `tokio::test` runs the body there, but not what that
/// spawns.
pub(crate) fn of_this_test() -> String {
    let thread = thread::current();
    let path = thread.name().and_then(|path| path.rsplit_once("::"));
    let (_, test) = path.unwrap_or_else(|| {
        panic!("{:?} is no test's own thread: what starts here needs a name, by `named`", thread.name())
    });
    test.to_owned()
}
