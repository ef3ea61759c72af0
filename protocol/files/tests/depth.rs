//! Deep trees, with few descriptors. A process of its own: the limit is the process's.

use std::os::fd::OwnedFd;

use cloudtik_files::remove_tree;
use rustix::fs::{Mode, OFlags, mkdirat, open, openat};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

const DEPTH: usize = 10_000;

#[test]
fn a_tree_of_10_000_levels_is_removed_with_few_descriptors() {
    // In memory where that can be: some file systems take milliseconds for a step up at this depth.
    let memory = std::path::Path::new("/dev/shm");
    let directory = tempfile::tempdir_in(memory).or_else(|_| tempfile::tempdir()).expect("temporary directory");
    let top = directory.path().join("top");
    std::fs::create_dir(&top).expect("makes");
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let mut deepest: OwnedFd = open(&top, flags, Mode::empty()).expect("opens");
    for _ in 0..DEPTH {
        mkdirat(&deepest, c"level", Mode::RWXU).expect("makes");
        // A second branch at each level: the way up is taken again and again.
        mkdirat(&deepest, c"beside", Mode::RWXU).expect("makes");
        let below = openat(&deepest, c"level", flags, Mode::empty()).expect("opens");
        deepest = below;
    }
    drop(deepest);
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: Some(24), maximum }).expect("sets");
    let removed = remove_tree(&top);
    setrlimit(Resource::Nofile, Rlimit { current: Some(1024), maximum }).expect("sets");
    removed.expect("removes");
    assert!(!top.exists());
}
