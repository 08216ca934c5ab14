//! A disk that can be filled: a file system in memory, which needs the right to mount.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Large enough for the tables of a test, small enough to be filled in a moment.
const SIZE: &str = "64m";

/// A mounted file system of Postgres' own user. Unmounted when dropped.
pub struct SmallDisk {
    directory: PathBuf,
}

impl SmallDisk {
    /// Mounts one; `None` where that is not allowed.
    #[must_use]
    pub fn mount(name: &str) -> Option<Self> {
        let directory = std::env::temp_dir().join(format!("outhook-disk-{}-{name}", std::process::id()));
        std::fs::create_dir(&directory).expect("the directory for temporary files can be written to");
        let options = format!("size={SIZE},uid=postgres,gid=postgres,mode=0700");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&directory).status();
        if mounted.is_ok_and(|status| status.success()) {
            return Some(Self { directory });
        }
        let _ = std::fs::remove_dir(&directory);
        None
    }

    /// Where it is mounted.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Takes all the space that is left.
    pub fn fill(&self) {
        let mut ballast = std::fs::File::create(self.ballast()).expect("a file of no length needs no space");
        let full = std::iter::repeat_with(|| ballast.write_all(&[0; 4_096])).find_map(Result::err);
        assert_eq!(full.map(|error| error.kind()), Some(std::io::ErrorKind::StorageFull));
    }

    /// Gives the space back.
    pub fn make_room(&self) {
        std::fs::remove_file(self.ballast()).expect("it was filled before");
    }

    fn ballast(&self) -> PathBuf {
        self.directory.join("ballast")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: whoever still has it open keeps it until the end.
        let _ = Command::new("umount").arg("--lazy").arg(&self.directory).status();
        let _ = std::fs::remove_dir(&self.directory);
    }
}
