//! The ends of copies on nodes: scripts for `sh`, and what their failures mean.
//!
//! Paths are handed over byte for byte, whatever they are made of. What fails is told by exit statuses; of what programs print,
//! only the cause is taken.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use cloudtik_protocol::files::unescape_octal;
use cloudtik_protocol::logging::plain;
use cloudtik_protocol::wire;
use cloudtik_protocol::wire::open_request::What;

use super::pack::TOP;
use crate::failure::{FAILED, Failure, NOT_FOUND};

/// Puts an archive of one entry, `data`, where `$1` says, and prints where that is. `$2` is the name of what is uploaded, `$3` says
/// whether it is a file or a folder. Beside its place first: what breaks off on the way leaves nothing that looks whole.
const PLACE: &str = r#"
unset LC_ALL LANGUAGE; LC_MESSAGES=C; export LC_MESSAGES
to=$(printf '%b.' "$1"); to=${to%.}
name=$(printf '%b.' "$2"); name=${name%.}
case $to in
*/) target=$to$name ;;
*) if [ -d "$to" ]; then target=$to/$name; else target=$to; fi ;;
esac
if [ -L "$target" ] && real=$(readlink -f -- "$target" && printf .); then target=${real%?.}; fi
printf %s "$target"
if [ "$3" = folder ] && [ -e "$target" ] && ! [ -d "$target" ]; then exit 60; fi
if [ "$3" = file ] && [ -d "$target" ]; then exit 61; fi
case $target in
/*) ;;
*) target=./$target ;;
esac
parent=${target%/*}/
missing=; above=${parent%/}
while [ -n "$above" ] && ! [ -e "$above" ]; do missing=$above; above=${above%/*}; done
t=
leave() {
  [ -z "$t" ] || { chmod -R u+rwX -- "$t"; rm -rf -- "$t"; }
  [ -z "$missing" ] || find "$missing" -depth -type d -exec rmdir -- {} +
} 2>/dev/null
trap leave EXIT
trap 'exit 1' TERM INT HUP
mkdir -p -- "$parent" || exit 62
t=$(mktemp -d -- "$parent.cloudtik-XXXXXX") || exit 63
tar -xf - -C "$t" --no-same-owner || exit 64
if [ -d "$target" ]; then
  { tar -cf - -C "$t/data" . || : > "$t/torn"; } | tar -xf - -C "$target" --no-same-owner --no-overwrite-dir || exit 65
  [ ! -e "$t/torn" ] || exit 65
else
  mode=
  if [ "$3" = folder ]; then
    # A folder that may not be written cannot be moved to another one.
    mode=$(stat -c %a -- "$t/data") && chmod u+rwx -- "$t/data" || exit 66
  fi
  mv -fT -- "$t/data" "$target" || exit 66
  [ -z "$mode" ] || chmod "$mode" -- "$target"
fi
missing=
"#;

/// Exit statuses of [`PLACE`].
const IS_FILE: i32 = 60;
const IS_FOLDER: i32 = 61;
const NO_PARENT: i32 = 62;
const NOT_INTO_PARENT: i32 = 63;
const NOT_UNPACKED: i32 = 64;
const NOT_MERGED: i32 = 65;
const NOT_MOVED: i32 = 66;

/// Prints an archive of the file or of the folder `$1`, which has a slash.
const FETCH: &str = r#"
unset LC_ALL LANGUAGE; LC_MESSAGES=C; export LC_MESSAGES
from=$(printf '%b.' "$1"); from=${from%.}
if [ -d "$from" ]; then exec tar -cf - --no-unquote --warning=no-file-changed -C "$from" .; fi
stat -L -- "$from" > /dev/null || exit 44
[ -f "$from" ] || exit 45
exec tar -chf - --no-unquote --warning=no-file-changed -C "${from%/*}/" -- "${from##*/}"
"#;

/// Exit statuses of [`FETCH`] beside those of GNU tar, for which 1 means that a file changed while it was read.
const UNREACHABLE: i32 = 44;
const IS_SPECIAL: i32 = 45;
pub const CHANGED: i32 = 1;

/// What puts an archive at its place on a node. It prints the place.
pub fn place(to: &OsStr, name: &OsStr, is_folder: bool) -> What {
    script(PLACE, [escaped(to), escaped(name), if is_folder { "folder" } else { "file" }.to_owned()])
}

/// What prints an archive of a file or folder on a node.
pub fn fetch(from: &OsStr) -> What {
    // Nothing in front of it is taken for an option.
    let before = if from.as_bytes().starts_with(b"/") { "" } else { "./" };
    script(FETCH, [format!("{before}{}", escaped(from)), String::new(), String::new()])
}

fn script(script: &str, arguments: [String; 3]) -> What {
    let command = ["sh", "-c", script, "sh"].into_iter().map(str::to_owned).chain(arguments).collect();
    What::Execute(wire::Execute { command, ..Default::default() })
}

/// Bytes as `printf %b` takes them.
fn escaped(text: &OsStr) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-".contains(&byte);
    text.as_bytes().iter().map(|byte| if is_plain(*byte) { char::from(*byte).to_string() } else { format!("\\0{byte:03o}") }).collect()
}

/// Why something could not be put at its place, `target`.
pub fn not_placed(node: &str, exit: &wire::Exit, target: &str, complaint: &str) -> Failure {
    let Complaint { entry, cause } = Complaint::of(complaint);
    let below = |top: &str| {
        let inner = entry.as_deref().and_then(|entry| entry.strip_prefix(top)).unwrap_or_default();
        format!("{target}{}", inner.trim_end_matches('/'))
    };
    let parent = target.rsplit_once('/').map_or(".", |(parent, _)| if parent.is_empty() { "/" } else { parent });
    let why = match exit.code {
        IS_FILE => format!("cannot replace the file {target} by a folder"),
        IS_FOLDER => format!("cannot replace the folder {target} by a file"),
        NO_PARENT => format!("cannot create the folder {parent}: {cause}"),
        NOT_INTO_PARENT => format!("cannot write into the folder {parent}: {cause}"),
        NOT_UNPACKED => format!("cannot write {}: {cause}", below(TOP)),
        NOT_MERGED => format!("cannot write {}: {cause}", below(".")),
        NOT_MOVED => format!("cannot write {target}: {cause}"),
        _ => other(exit, &cause),
    };
    Failure::failed(format!("{node}: {why}"))
}

/// Why something could not be read.
pub fn not_fetched(node: &str, exit: &wire::Exit, from: &OsStr, complaint: &str) -> Failure {
    let Complaint { entry, cause } = Complaint::of(complaint);
    let from = from.display();
    let (code, why) = match exit.code {
        UNREACHABLE if is_missing(&cause) => (NOT_FOUND, format!("there is no file or folder {from}")),
        UNREACHABLE => (FAILED, format!("cannot read {from}: {cause}")),
        IS_SPECIAL => (FAILED, format!("{from} is neither a file nor a folder")),
        _ if exit.error.is_empty() && !cause.is_empty() => {
            // Of a folder's content; a file's is the file.
            let inner = entry.as_deref().and_then(|entry| entry.strip_prefix("./")).filter(|inner| !inner.is_empty());
            let slash = if from.to_string().ends_with('/') { "" } else { "/" };
            let path = inner.map_or_else(|| from.to_string(), |inner| format!("{from}{slash}{}", inner.trim_end_matches('/')));
            (FAILED, format!("cannot read {path}: {cause}"))
        }
        _ => (FAILED, other(exit, &cause)),
    };
    Failure::new(code, format!("{node}: {why}"))
}

fn other(exit: &wire::Exit, cause: &str) -> String {
    match (exit.error.as_str(), cause) {
        ("", "") => format!("the copy ended with status {}", exit.code),
        ("", cause) => cause.to_owned(),
        (error, _) => error.to_owned(),
    }
}

/// What the C library says of what does not exist.
fn is_missing(cause: &str) -> bool {
    ["no such file or directory", "not a directory"].contains(&cause)
}

/// What a program of the GNU tools complained about.
#[derive(Debug, Default, PartialEq, Eq)]
struct Complaint {
    /// The entry of the archive, if it is about one.
    entry: Option<String>,
    /// What the C library says, as the end of a sentence.
    cause: String,
}

impl Complaint {
    /// The first complaint: what follows comes of it. Lines are as `tar: data/a: Cannot open: Permission denied`.
    fn of(complaint: &str) -> Self {
        let is_first = |line: &&str| line.contains(": ") && !line.contains("Exiting with failure status");
        let Some(line) = complaint.lines().find(is_first) else { return Self::default() };
        let cause = line.rsplit(": ").next().unwrap_or_default().trim();
        let said = line
            .strip_prefix("tar: ")
            .and_then(|line| Some((line.split_once(": Cannot ").or_else(|| line.split_once(": Wrote "))?.0, line)));
        let entry = said.map(|(entry, _)| unescaped(entry));
        // GNU tar does not say why less was written than it had.
        let cause = if cause.starts_with("Wrote only") { "No space left on device" } else { cause };
        let cause = plain(cause);
        let mut letters = cause.chars();
        let cause = letters.next().map_or_else(String::new, |first| first.to_lowercase().chain(letters).collect());
        Self { entry, cause }
    }
}

/// A name as GNU tar shows it, where bytes that are not printable stand as `\303`.
fn unescaped(name: &str) -> String {
    String::from_utf8_lossy(&unescape_octal(name.as_bytes())).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_of_tools_become_sentences_with_their_cause() {
        let placed = |code, complaint: &str| not_placed("w1", &wire::Exit { code, error: String::new() }, "/data/new", complaint).message;
        let denied = "tar: data/caf\\303\\251/x: Cannot open: Permission denied\ntar: Exiting with failure status due to previous errors\n";
        assert_eq!(placed(NOT_UNPACKED, denied), "w1: cannot write /data/new/café/x: permission denied");
        let full = "tar: data/big: Wrote only 4096 of 10240 bytes\ntar: Exiting with failure status due to previous errors\n";
        assert_eq!(placed(NOT_UNPACKED, full), "w1: cannot write /data/new/big: the disk is full");
        assert_eq!(
            placed(NOT_UNPACKED, "tar: data: Cannot write: No space left on device\n"),
            "w1: cannot write /data/new: the disk is full"
        );
        let no_parent = "mkdir: cannot create directory '/data': Read-only file system\n";
        assert_eq!(placed(NO_PARENT, no_parent), "w1: cannot create the folder /data: read-only file system");
        let fetched = |code, complaint: &str| not_fetched("head", &wire::Exit { code, error: String::new() }, "logs".as_ref(), complaint);
        let secret = fetched(2, "tar: ./a: b/secret: Cannot open: Permission denied\ntar: Exiting with failure status");
        assert_eq!((secret.code, secret.message.as_str()), (FAILED, "head: cannot read logs/a: b/secret: permission denied"));
        let missing = fetched(UNREACHABLE, "stat: cannot statx './logs': No such file or directory\n");
        assert_eq!((missing.code, missing.message.as_str()), (NOT_FOUND, "head: there is no file or folder logs"));
        assert_eq!(fetched(137, "").message, "head: the copy ended with status 137");
    }

    #[test]
    fn paths_are_handed_over_byte_for_byte() {
        assert_eq!(escaped(OsStr::from_bytes(b"/a b/caf\xe9\n")), "/a\\0040b/caf\\0351\\0012");
    }
}
