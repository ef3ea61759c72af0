//! What a program needs to be started: the interpreter of a script, the loader of a binary. Of a program that lacks it, the
//! system says only that there is no such file.

use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Bytes of a script's first line that the system looks at.
const FIRST_LINE: usize = 256;
/// The longest path of a loader that is read.
const LONGEST_PATH: usize = 4096;
/// The type of the program header that names a binary's loader; see elf(5).
const PT_INTERP: u64 = 3;

/// What a program needs and the node does not have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Missing {
    /// What the first line of a script names.
    Interpreter(PathBuf),
    /// What a binary is loaded by.
    Loader(PathBuf),
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Interpreter(path) if path.as_os_str().as_bytes().ends_with(b"\r") => {
                let path = path.to_string_lossy();
                write!(f, "its lines end as on Windows, so its first line names the interpreter {:?}; convert it, as with `dos2unix`", path)
            }
            Self::Interpreter(path) => write!(f, "its first line names the interpreter {}, which is not on the node", path.display()),
            Self::Loader(path) => {
                write!(f, "it was built for other systems: its loader {} is not on the node", path.display())
            }
        }
    }
}

/// What a program that is there and executable lacks; nothing if it lacks nothing, or cannot be read.
pub fn missing(program: &Path, directory: &Path) -> Option<Missing> {
    let file = File::open(program).ok()?;
    let mut start = vec![0; FIRST_LINE];
    let length = read_at(&file, &mut start, 0).ok()?;
    start.truncate(length);
    let is_there = |path: &Path| directory.join(path).exists();
    if let Some(line) = start.strip_prefix(b"#!") {
        let line = line.split(|b| *b == b'\n').next()?;
        let mut words = line.split(|b| *b == b' ' || *b == b'\t').filter(|word| !word.is_empty());
        let path = PathBuf::from(OsStr::from_bytes(words.next()?));
        return (!is_there(&path)).then_some(Missing::Interpreter(path));
    }
    let path = loader(&file, &start)?;
    (!is_there(&path)).then_some(Missing::Loader(path))
}

/// The loader that an ELF file names, whose first bytes are `start`.
fn loader(file: &File, start: &[u8]) -> Option<PathBuf> {
    let is_64_bit = match start.get(..6)? {
        [0x7f, b'E', b'L', b'F', class, 1] => *class == 2,
        _ => return None,
    };
    // Offset of the program headers, the length of one, and their number; then, in a header, offset and length of what it is of.
    let (offset, length, number) = if is_64_bit {
        (number_at(start, 32, 8)?, number_at(start, 54, 2)?, number_at(start, 56, 2)?)
    } else {
        (number_at(start, 28, 4)?, number_at(start, 42, 2)?, number_at(start, 44, 2)?)
    };
    for n in 0..number {
        let mut header = vec![0; usize::try_from(length).ok()?];
        let read = read_at(file, &mut header, offset.checked_add(n * length)?).ok()?;
        header.truncate(read);
        if number_at(&header, 0, 4)? != PT_INTERP {
            continue;
        }
        let (at, size) = if is_64_bit {
            (number_at(&header, 8, 8)?, number_at(&header, 32, 8)?)
        } else {
            (number_at(&header, 4, 4)?, number_at(&header, 16, 4)?)
        };
        let mut path = vec![0; usize::try_from(size).ok()?.min(LONGEST_PATH)];
        let read = read_at(file, &mut path, at).ok()?;
        let path = path[..read].split(|b| *b == 0).next()?;
        return (!path.is_empty()).then(|| PathBuf::from(OsStr::from_bytes(path)));
    }
    None
}

/// A little-endian number of so many bytes.
fn number_at(bytes: &[u8], at: usize, length: usize) -> Option<u64> {
    Some(bytes.get(at..at + length)?.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

/// Reads what there is at a place; returns how much it was.
fn read_at(file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let mut read = 0;
    while read < buffer.len() {
        match file.read_at(&mut buffer[read..], at + read as u64) {
            Ok(0) => break,
            Ok(n) => read += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(read)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_missing_interpreter_or_loader_is_named() {
        let folder = tempfile::tempdir().expect("makes");
        let missing_of = |content: &[u8]| {
            let program = folder.path().join("program");
            fs::write(&program, content).expect("writes");
            missing(&program, folder.path()).map(|missing| missing.to_string())
        };
        let named = "its first line names the interpreter /no/such/python, which is not on the node";
        assert_eq!(missing_of(b"#! /no/such/python -u\nprint(1)\n").as_deref(), Some(named));
        let windows = missing_of(b"#!/bin/sh\r\necho\r\n").expect("there is no such interpreter");
        assert!(windows.contains("\"/bin/sh\\r\"") && windows.contains("as on Windows"), "{windows}");
        for fine in [&b"#!/bin/sh\necho\n"[..], b"echo\n", b"", b"#!", b"\x7fELF\x02\x01"] {
            assert_eq!(missing_of(fine), None);
        }
        // This test's own program, with another loader.
        let own = fs::read(std::env::current_exe().expect("it is known")).expect("reads");
        assert_eq!(missing_of(&own), None);
        let at = own.windows(8).position(|bytes| bytes == b"/lib64/l" || bytes == b"/lib/ld-").expect("it has a loader");
        let mut other = own;
        other[at..at + 8].copy_from_slice(b"/no/such");
        let said = missing_of(&other).expect("there is no such loader");
        assert!(said.contains("its loader /no/such"), "{said}");
    }
}
