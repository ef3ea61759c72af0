//! A log that is bounded: when a part of it is full, the next one begins, and the oldest goes.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;

/// No part of a log is smaller.
const MIN_PART: u64 = 4096;

/// `log` is written; `log.1` is the part before, and so on.
pub struct Log {
    path: PathBuf,
    file: File,
    size: u64,
    /// Of each part.
    max: u64,
    /// Parts besides the one that is written.
    keep: usize,
    /// Bytes of output in the part that is written, since the log was opened; then those in the older ones, the newest first.
    own: u64,
    older: VecDeque<u64>,
    lost: u64,
}

impl Log {
    /// Goes on with what is there.
    pub fn open(path: PathBuf, max: u64, keep: u32) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&path)?;
        let size = file.metadata()?.len();
        Ok(Self { path, file, size, max: max.max(MIN_PART), keep: keep as usize, own: 0, older: VecDeque::new(), lost: 0 })
    }

    /// Bytes of what was written since it was opened that are in no part of it.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// Appends output. What there is no room for on the disk is lost.
    pub fn write(&mut self, mut bytes: &[u8]) {
        loop {
            let room = usize::try_from(self.max.saturating_sub(self.size)).unwrap_or(usize::MAX);
            if bytes.len() <= room {
                return self.append(bytes);
            }
            // Whole lines, where there are lines.
            let line_end = bytes[..room].iter().rposition(|b| *b == b'\n').map(|at| at + 1);
            let fits_next = bytes.len() as u64 <= self.max;
            let (now, rest) = bytes.split_at(line_end.unwrap_or(if fits_next { 0 } else { room }));
            self.append(now);
            if self.rotate().is_err() {
                self.lost += rest.len() as u64;
                return;
            }
            bytes = rest;
        }
    }

    /// Appends a line that is no output, on a line of its own.
    pub fn mark(&mut self, line: &str) {
        let mut last = [b'\n'];
        let is_within_line =
            self.size > 0 && File::open(&self.path).and_then(|file| file.read_exact_at(&mut last, self.size - 1)).is_ok() && last != *b"\n";
        let before = (self.own, self.lost);
        self.append(format!("{}{line}\n", if is_within_line { "\n" } else { "" }).as_bytes());
        (self.own, self.lost) = before;
    }

    fn append(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            match self.file.write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A full disk costs log lines, never what prints them.
                Ok(0) | Err(_) => {
                    self.lost += bytes.len() as u64;
                    return;
                }
                Ok(written) => {
                    self.size += written as u64;
                    self.own += written as u64;
                    bytes = &bytes[written..];
                }
            }
        }
    }

    /// `log` becomes `log.1`, which becomes `log.2`, up to the number that is kept.
    fn rotate(&mut self) -> io::Result<()> {
        let numbered = |n: usize| PathBuf::from(format!("{}.{n}", self.path.display()));
        // Made first: without it, nothing is moved.
        let fresh = PathBuf::from(format!("{}.new", self.path.display()));
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&fresh)?;
        for n in (1..self.keep).rev() {
            let _ = fs::rename(numbered(n), numbered(n + 1));
        }
        if self.keep > 0 {
            fs::rename(&self.path, numbered(1))?;
        }
        fs::rename(&fresh, &self.path)?;
        self.older.push_front(self.own);
        self.lost += self.older.drain(self.keep.min(self.older.len())..).sum::<u64>();
        (self.file, self.size, self.own) = (file, 0, 0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_rotate_and_old_ones_go() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let mut log = Log::open(directory.path().join("log"), 4096, 2).expect("opens");
        for i in 0..10u8 {
            log.write(&[b'a' + i; 3000]);
        }
        let mut names: Vec<_> = fs::read_dir(directory.path()).expect("lists").map(|e| e.expect("entry").file_name()).collect();
        names.sort();
        assert_eq!(names, ["log", "log.1", "log.2"]);
        assert_eq!(fs::read(directory.path().join("log")).expect("there"), vec![b'j'; 3000]);
        assert_eq!(fs::read(directory.path().join("log.1")).expect("there"), vec![b'i'; 3000]);
        assert_eq!(log.lost(), 7 * 3000);
    }

    #[test]
    fn parts_end_with_lines_and_every_byte_is_kept_or_counted() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("stdout");
        fs::write(&path, "from before").expect("writes");
        let mut log = Log::open(path.clone(), 5000, 1).expect("opens");
        log.mark("--- attempt 2 ---");
        let text: String = (0..3_000).map(|n| format!("line {n}\n")).collect();
        for block in text.as_bytes().chunks(12_345) {
            log.write(block);
        }
        let (older, newer) = (fs::read_to_string(directory.path().join("stdout.1")), fs::read_to_string(&path));
        let kept = older.expect("there") + &newer.expect("there");
        assert!(text.ends_with(&kept) && kept.starts_with("line "), "the end of the output, from a line's beginning");
        assert!(kept.len() > 5000 && kept.len() <= 10_000, "{} bytes", kept.len());
        assert_eq!(log.lost(), (text.len() - kept.len()) as u64, "what was there before is not counted");
        // One line that is longer than a part.
        log.write(&[b'x'; 20_000]);
        assert_eq!(fs::metadata(directory.path().join("stdout.1")).expect("there").len(), 5000);
    }

    #[test]
    fn a_mark_stands_on_a_line_of_its_own() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("stderr");
        let open = || Log::open(path.clone(), 5000, 1).expect("opens");
        open().mark("first");
        open().write(b"no newline");
        open().mark("second");
        assert_eq!(fs::read_to_string(&path).expect("there"), "first\nno newline\nsecond\n");
    }
}
