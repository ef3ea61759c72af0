//! A log of the node, for people: its last lines, then what is written to it, from file to file as it is rotated. Whoever follows
//! it is told where what they get stands, so that they can go on from there in another session.

use std::fs::{File, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use cloudtik_protocol::wire;
use cloudtik_protocol::wire::session_frame::Frame;
use tokio::sync::mpsc;
use tonic::Streaming;

use super::{BLOCK, frame};

/// Between two looks at a log to which nothing was written.
const LOOK: Duration = Duration::from_millis(100);
/// More files of one log than are ever kept.
const MAX_FILES: u32 = 1_000;
/// The exit status for a log that is not there.
const MISSING: i32 = 1;

/// Sends a log until its end; one that is followed has none. Whatever the other end says means that it has enough.
pub async fn send(
    path: PathBuf,
    wanted: wire::ReadLog,
    outgoing: &mpsc::Sender<wire::SessionFrame>,
    incoming: &mut Streaming<wire::SessionFrame>,
) -> anyhow::Result<()> {
    let follow = wanted.follow;
    let mut reader = LogReader::new(path, wanted);
    let mut said = None;
    let exit = loop {
        // On a thread that may block: the disk may hang.
        let (back, piece) = tokio::task::spawn_blocking(move || {
            let piece = reader.next();
            (reader, piece)
        })
        .await?;
        reader = back;
        let piece = match piece {
            Ok(piece) => piece,
            Err(error) => break wire::Exit { code: MISSING, error: format!("cannot read {}: {error}", reader.path.display()) },
        };
        let Some(Piece { position, bytes }) = piece else {
            if !follow {
                break wire::Exit { code: if reader.current.is_some() { 0 } else { MISSING }, error: String::new() };
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK) => continue,
                _ = incoming.message() => break wire::Exit::default(),
            }
        };
        let end = position.offset + bytes.len() as u64;
        let mut frames = Vec::new();
        if said.as_ref() != Some(&position) {
            frames.push(Frame::Position(position.clone()));
        }
        frames.push(Frame::Stdout(bytes.into()));
        said = Some(wire::LogPosition { offset: end, ..position });
        let sending = async {
            for one in frames {
                outgoing.send(frame(one)).await?;
            }
            Ok::<_, mpsc::error::SendError<_>>(())
        };
        tokio::select! {
            sent = sending => sent?,
            _ = incoming.message() => break wire::Exit::default(),
        }
    };
    outgoing.send(frame(Frame::Exit(exit))).await?;
    Ok(())
}

/// Bytes of a log, and where they stand.
#[derive(Debug)]
struct Piece {
    position: wire::LogPosition,
    bytes: Vec<u8>,
}

/// The file that is read just now.
#[derive(Debug)]
struct Current {
    file: File,
    id: String,
    offset: u64,
}

/// Reads `log` and what it was renamed to when it was rotated: `log.1`, and `log.2` before that.
#[derive(Debug)]
struct LogReader {
    path: PathBuf,
    /// Where it starts; taken once it has.
    start: Option<wire::ReadLog>,
    current: Option<Current>,
    /// Where a log that is not followed ends, whatever is written meanwhile: in which file, and at which byte.
    end: Option<(String, u64)>,
}

impl LogReader {
    fn new(path: PathBuf, wanted: wire::ReadLog) -> Self {
        Self { path, start: Some(wanted), current: None, end: None }
    }

    /// What comes next; nothing if nothing more was written yet, or the log is not there.
    fn next(&mut self) -> io::Result<Option<Piece>> {
        if self.current.is_none() && !self.begin()? {
            return Ok(None);
        }
        loop {
            if let Some(piece) = self.read()? {
                return Ok(Some(piece));
            }
            // Only a file that is not written any more has been read to its end: so it is read again after that is known.
            let Some(next) = self.successor()? else { return Ok(None) };
            let rest = self.read()?;
            if rest.is_some() {
                return Ok(rest);
            }
            self.current = Some(next);
        }
    }

    fn read(&mut self) -> io::Result<Option<Piece>> {
        let Some(current) = &mut self.current else { return Ok(None) };
        if current.file.metadata()?.len() < current.offset {
            // It was emptied in place.
            current.offset = 0;
        }
        let room = match &self.end {
            Some((file, end)) if *file == current.id => usize::try_from(end.saturating_sub(current.offset)).unwrap_or(BLOCK).min(BLOCK),
            _ => BLOCK,
        };
        let mut bytes = vec![0; room];
        let read = loop {
            match current.file.read_at(&mut bytes, current.offset) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                result => break result?,
            }
        };
        if read == 0 {
            return Ok(None);
        }
        bytes.truncate(read);
        let position = wire::LogPosition { file: current.id.clone(), offset: current.offset };
        current.offset += read as u64;
        Ok(Some(Piece { position, bytes }))
    }

    /// Opens the file that reading starts in; false if there is none yet.
    fn begin(&mut self) -> io::Result<bool> {
        let Some(wanted) = &self.start else { return Ok(false) };
        let files = self.files()?;
        let known = wanted.after.as_ref().and_then(|after| Some((files.iter().find(|file| file.id == after.file)?, after.offset)));
        let begun = match (known, &wanted.after) {
            (Some((file, offset)), _) => Some((file, offset)),
            // That file is not kept any more: all that there are are newer.
            (None, Some(_)) => files.first().map(|file| (file, 0)),
            (None, None) if wanted.lines == u32::MAX => files.first().map(|file| (file, 0)),
            (None, None) => match files.last() {
                Some(file) => Some((file, start_of_lines(&file.file, wanted.lines)?)),
                None => None,
            },
        };
        let Some((file, offset)) = begun else {
            // One that appears is read from its beginning, whatever was asked for of what there was.
            if let Some(start) = &mut self.start {
                start.lines = u32::MAX;
            }
            return Ok(false);
        };
        if !wanted.follow
            && let Some(last) = files.last()
        {
            self.end = Some((last.id.clone(), last.file.metadata()?.len()));
        }
        self.current = Some(Current { file: file.file.try_clone()?, id: file.id.clone(), offset });
        self.start = None;
        Ok(true)
    }

    /// The file after the current one; nothing while that is still written.
    fn successor(&self) -> io::Result<Option<Current>> {
        let Some(current) = &self.current else { return Ok(None) };
        if self.end.as_ref().is_some_and(|(file, _)| *file == current.id) {
            return Ok(None);
        }
        let mut files = self.files()?;
        let next = match files.iter().position(|file| file.id == current.id) {
            Some(place) => place + 1,
            // It was removed: all others are newer.
            None => 0,
        };
        Ok((next < files.len()).then(|| files.swap_remove(next)))
    }

    /// The files of the log, oldest first. They are opened, so that a rotation meanwhile does not change which they are.
    fn files(&self) -> io::Result<Vec<Current>> {
        let mut found = Vec::new();
        for number in 0..MAX_FILES {
            let path = if number == 0 { self.path.clone() } else { PathBuf::from(format!("{}.{number}", self.path.display())) };
            match open(&path)? {
                Some(file) => found.push(file),
                // Between two steps of a rotation, the first is missing.
                None if number > 0 => break,
                None => {}
            }
        }
        // One that was renamed between two looks was seen twice.
        found.reverse();
        found.dedup_by(|one, other| one.id == other.id);
        Ok(found)
    }
}

fn open(path: &Path) -> io::Result<Option<Current>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let id = id_of(&file.metadata()?);
    Ok(Some(Current { file, id, offset: 0 }))
}

/// What a file is known by, whatever its name: its inode, and when it was made, since inodes are used again.
fn id_of(metadata: &Metadata) -> String {
    let made = metadata.created().ok().and_then(|made| made.duration_since(UNIX_EPOCH).ok());
    format!("{}-{}", metadata.ino(), made.map_or(0, |made| made.as_nanos()))
}

/// Where the last lines of a file begin.
fn start_of_lines(file: &File, lines: u32) -> io::Result<u64> {
    let length = file.metadata()?.len();
    if lines == 0 {
        return Ok(length);
    }
    let (mut end, mut left) = (length, lines);
    let mut block = vec![0; BLOCK];
    while end > 0 {
        let begin = end.saturating_sub(BLOCK as u64);
        let part = &mut block[..(end - begin) as usize];
        if let Err(error) = file.read_exact_at(part, begin) {
            // It was emptied meanwhile.
            return if error.kind() == ErrorKind::UnexpectedEof { Ok(0) } else { Err(error) };
        }
        for at in (0..part.len()).rev().filter(|at| part[*at] == b'\n') {
            let after = begin + at as u64 + 1;
            // The newline that the file ends with begins no line.
            if after == length {
                continue;
            }
            left = left.saturating_sub(1);
            if left == 0 {
                return Ok(after);
            }
        }
        end = begin;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use cloudtik_model::JobId;
    use cloudtik_model::job::{JobStream, layout};

    use super::*;

    struct Log {
        folder: tempfile::TempDir,
        file: File,
    }

    impl Log {
        fn new() -> Self {
            let folder = tempfile::tempdir().expect("makes");
            let file = File::create(folder.path().join("log")).expect("creates");
            Self { folder, file }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        fn write(&mut self, text: &str) {
            self.file.write_all(text.as_bytes()).expect("writes");
        }

        /// As the shim does it, which keeps two.
        fn rotate(&mut self) {
            let _ = fs::rename(self.path("log.1"), self.path("log.2"));
            fs::rename(self.path("log"), self.path("log.1")).expect("renames");
            self.file = File::create(self.path("log")).expect("creates");
        }

        fn reader(&self, lines: u32, after: Option<wire::LogPosition>) -> LogReader {
            LogReader::new(self.path("log"), wire::ReadLog { path: String::new(), lines, follow: true, after })
        }
    }

    /// All that there is, and where it ends.
    fn rest(reader: &mut LogReader) -> (String, Option<wire::LogPosition>) {
        let (mut text, mut end) = (String::new(), None);
        while let Some(piece) = reader.next().expect("reads") {
            end = Some(wire::LogPosition { offset: piece.position.offset + piece.bytes.len() as u64, ..piece.position });
            text.push_str(&String::from_utf8(piece.bytes).expect("text"));
        }
        (text, end)
    }

    #[test]
    fn the_last_lines_are_as_many_as_are_wanted() {
        let mut log = Log::new();
        log.write("one\ntwo\nthree\n");
        let last = |lines| rest(&mut log.reader(lines, None)).0;
        assert_eq!([last(0), last(1), last(2)], ["", "three\n", "two\nthree\n"]);
        assert_eq!([last(3), last(9), last(u32::MAX)], ["one\ntwo\nthree\n"; 3]);
        log.write("begun");
        assert_eq!(rest(&mut log.reader(1, None)).0, "begun");
        assert_eq!(rest(&mut log.reader(2, None)).0, "three\nbegun");
        log.rotate();
        let many: String = (0..20_000).map(|n| format!("line {n}\n")).collect();
        log.write(&many);
        let wanted = many.lines().skip(5_000).map(|line| format!("{line}\n")).collect::<String>();
        assert_eq!(rest(&mut log.reader(15_000, None)).0, wanted);
    }

    #[test]
    fn a_reader_goes_on_through_rotations_and_another_one_where_it_stopped() {
        let mut log = Log::new();
        log.write("a1\na2\n");
        let mut reader = log.reader(1, None);
        let (text, stopped) = rest(&mut reader);
        assert_eq!(text, "a2\n");
        log.write("a3\n");
        log.rotate();
        log.write("b1\n");
        log.rotate();
        log.write("c1\n");
        assert_eq!(rest(&mut reader).0, "a3\nb1\nc1\n");
        let (text, end) = rest(&mut log.reader(1, stopped.clone()));
        assert_eq!(text, "a3\nb1\nc1\n", "nothing is lost or doubled");
        assert_eq!(rest(&mut log.reader(9, end.clone())).0, "");
        log.write("c2\n");
        assert_eq!(rest(&mut log.reader(9, end)).0, "c2\n");
        // The first file is not kept any more: what is left is newer than where it stopped.
        log.rotate();
        log.write("d1\n");
        assert_eq!(rest(&mut log.reader(9, stopped)).0, "b1\nc1\nc2\nd1\n");
        assert_eq!(rest(&mut reader).0, "c2\nd1\n");
    }

    #[test]
    fn a_log_that_is_not_followed_ends_where_it_ended_at_the_start() {
        let mut log = Log::new();
        log.write("one\n");
        log.rotate();
        log.write("two\n");
        let wanted = wire::ReadLog { lines: u32::MAX, ..Default::default() };
        let mut reader = LogReader::new(log.path("log"), wanted);
        let first = reader.next().expect("reads").expect("something");
        assert_eq!(first.bytes, b"one\n");
        log.write("three\n");
        log.rotate();
        log.write("four\n");
        assert_eq!(rest(&mut reader).0, "two\n");
    }

    #[test]
    fn the_output_of_a_job_is_followed_as_its_shim_writes_it() {
        let folder = tempfile::tempdir().expect("makes");
        let path = folder.path().join(layout::log(JobId(7), JobStream::Stdout));
        fs::create_dir_all(path.parent().expect("in a directory")).expect("makes");
        let reader = |after| LogReader::new(path.clone(), wire::ReadLog { lines: u32::MAX, follow: true, after, ..Default::default() });
        let mut follower = reader(None);
        assert_eq!(rest(&mut follower).0, "", "it has not begun");
        let mut log = crate::shim::Log::open(path.clone(), 4096, 1).expect("opens");
        let lines = |from: u32, to: u32| (from..to).map(|n| format!("line {n:04}\n")).collect::<String>();
        // A part has 409 lines.
        log.write(lines(0, 300).as_bytes());
        let (text, stopped) = rest(&mut follower);
        assert_eq!(text, lines(0, 300));
        log.write(lines(300, 600).as_bytes());
        assert_eq!(rest(&mut follower).0, lines(300, 600), "across the end of a part");
        assert_eq!(rest(&mut reader(stopped.clone())).0, lines(300, 600), "from where another one stopped");
        log.write(lines(600, 1000).as_bytes());
        assert_eq!(rest(&mut follower).0, lines(600, 1000));
        assert_eq!(rest(&mut reader(stopped)).0, lines(409, 1000), "what is left after where it stopped");
    }

    #[test]
    fn a_log_that_appears_or_is_emptied_is_read_from_its_beginning() {
        let mut log = Log::new();
        fs::remove_file(log.path("log")).expect("removes");
        let mut reader = log.reader(1, None);
        assert_eq!(rest(&mut reader).0, "");
        assert!(reader.current.is_none(), "it is not there");
        log.file = File::create(log.path("log")).expect("creates");
        log.write("one\ntwo\n");
        assert_eq!(rest(&mut reader).0, "one\ntwo\n");
        fs::write(log.path("log"), "new\n").expect("writes");
        assert_eq!(rest(&mut reader).0, "new\n");
        fs::remove_file(log.path("log")).expect("removes");
        assert_eq!(rest(&mut reader).0, "");
        fs::write(log.path("log"), "again\n").expect("writes");
        assert_eq!(rest(&mut reader).0, "again\n");
    }
}
