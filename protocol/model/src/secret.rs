//! Secrets in texts: which names stand for one, and where the values are, so that they can be left out. Line by line; what
//! a text means is not known here, so that a word too many may be left out, as in `invalid password: expired`.

use std::borrow::Cow;
use std::ops::Range;

/// What stands in place of a secret.
pub const LEFT_OUT: &str = "[secret]";

/// What a word of a name contains where a secret is meant.
const SECRETIVE: [&str; 5] = ["password", "passwd", "passphrase", "secret", "credential"];
/// Words that make a key a secret one. A bare `key` is a name for anything.
const KEYS: [&str; 11] = ["access", "account", "api", "auth", "encryption", "license", "master", "private", "secret", "shared", "signing"];
/// Headers whose whole value is a secret.
const HEADERS: [&str; 4] = ["authorization", "proxy-authorization", "cookie", "set-cookie"];
/// A word after `Bearer` of at least this length is a token even without a digit.
const LONG_TOKEN: usize = 20;

/// Whether what has this name is a secret, such as `DB_PASSWORD`, `apiKey` or `spark.authenticate.secret`.
pub fn is_secret_name(name: &str) -> bool {
    let words = words(name);
    words.iter().enumerate().any(|(n, word)| {
        let is_key = |word: &str| word == "key" || word == "keys";
        SECRETIVE.iter().any(|secretive| word.contains(secretive))
            || word.ends_with("token")
            || is_key(word) && n > 0 && KEYS.contains(&words[n - 1].as_str())
            || KEYS.iter().any(|before| word.strip_prefix(before).is_some_and(is_key))
    })
}

/// The words of a name in lower case: `dbPassword`, `DB_PASSWORD` and `db.password` have the same ones.
fn words(name: &str) -> Vec<String> {
    let (mut words, mut was_lower) = (vec![String::new()], false);
    for letter in name.chars() {
        let begins = !letter.is_alphanumeric() || was_lower && letter.is_uppercase();
        if begins && words.last().is_some_and(|word| !word.is_empty()) {
            words.push(String::new());
        }
        if let Some(word) = words.last_mut().filter(|_| letter.is_alphanumeric()) {
            word.extend(letter.to_lowercase());
        }
        was_lower = letter.is_lowercase() || letter.is_numeric();
    }
    words
}

/// A text without the secrets that can be told in it.
pub fn redact(text: &str) -> String {
    replace(text, &spans(text))
}

/// A text with [`LEFT_OUT`] in place of some of its bytes, which are in order and do not overlap.
pub fn replace(text: &str, spans: &[Range<usize>]) -> String {
    let (mut out, mut end) = (String::with_capacity(text.len()), 0);
    for span in spans {
        out.push_str(&text[end..span.start]);
        out.push_str(LEFT_OUT);
        end = span.end;
    }
    out.push_str(&text[end..]);
    out
}

/// Where the secrets of a text are, in order: values that are assigned to secret names (`password: x`, `"password": "x"`,
/// `--password x`), headers of authorization, passwords in URLs, private keys.
pub fn spans(text: &str) -> Vec<Range<usize>> {
    let (mut found, mut start, mut redactor) = (Vec::new(), 0, Redactor::default());
    for line in text.split_inclusive('\n') {
        let end = line.trim_end_matches(['\n', '\r']).len();
        redactor.scan(&line[..end], |span| found.push(start + span.start..start + span.end));
        start += line.len();
    }
    found
}

/// Leaves secrets out of lines that come one after the other: a private key takes several.
#[derive(Debug, Default)]
pub struct Redactor {
    in_key: bool,
}

impl Redactor {
    /// The next line, without its end, and without the secrets that can be told in it.
    pub fn line<'t>(&mut self, line: &'t str) -> Cow<'t, str> {
        let mut spans = Vec::new();
        self.scan(line, |span| spans.push(span));
        if spans.is_empty() { Cow::Borrowed(line) } else { Cow::Owned(replace(line, &spans)) }
    }

    fn scan(&mut self, line: &str, mut found: impl FnMut(Range<usize>)) {
        let of_key = line.contains("PRIVATE KEY-----");
        if self.in_key && !of_key {
            if !line.is_empty() {
                found(0..line.len());
            }
        } else if may_tell(line) {
            Scanner { text: line, at: 0 }.scan(|span| {
                if !span.is_empty() {
                    found(span);
                }
            });
        }
        self.in_key = if of_key { line.contains("-----BEGIN") } else { self.in_key };
    }
}

/// Whether a line has what stands between a name and its value, or before a token. Most lines of a log have not, and are not
/// looked at word by word.
fn may_tell(line: &str) -> bool {
    let bytes = line.as_bytes();
    bytes.iter().any(|byte| matches!(byte, b'=' | b':')) || bytes.windows(2).any(|two| two == b"--") || {
        bytes.windows(6).any(|word| word.eq_ignore_ascii_case(b"bearer"))
    }
}

struct Scanner<'t> {
    text: &'t str,
    at: usize,
}

impl Scanner<'_> {
    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    fn scan(mut self, mut found: impl FnMut(Range<usize>)) {
        while let Some(letter) = self.rest().chars().next() {
            let span = if self.rest().starts_with("://") {
                self.at += 3;
                self.url()
            } else if is_of_name(letter) {
                self.name()
            } else {
                self.at += letter.len_utf8();
                None
            };
            if let Some(span) = span {
                self.at = span.end;
                found(span);
            }
        }
    }

    /// The password of an authority (`user:password@host`).
    fn url(&self) -> Option<Range<usize>> {
        let authority = self.rest().split(|c: char| c.is_whitespace() || "/?#\"'<>`".contains(c)).next()?;
        let user = &authority[..authority.rfind('@')?];
        Some(self.at + user.find(':')? + 1..self.at + user.len())
    }

    /// Passes a name; the secret that it is for.
    fn name(&mut self) -> Option<Range<usize>> {
        let rest = self.rest();
        let length = rest.find(|c| !is_of_name(c)).unwrap_or(rest.len());
        let name = &self.text[self.at..self.at + length];
        let is_in_path = self.text[..self.at].ends_with('/');
        self.at += length;
        let after = self.rest();
        // The last part of a path, and what is said of that: no value.
        if is_in_path && after.starts_with(": ") {
            return None;
        }
        let lower = name.to_ascii_lowercase();
        if lower == "bearer" {
            let token = after.trim_start().split(|c: char| c.is_whitespace() || "\"',;".contains(c)).next().unwrap_or_default();
            let is_token = token.len() >= LONG_TOKEN || token.len() > 5 && token.contains(|c: char| c.is_ascii_digit());
            let begin = self.at + (after.len() - after.trim_start().len());
            return is_token.then(|| begin..begin + token.len());
        }
        let is_header = HEADERS.contains(&lower.as_str());
        if !is_header && !is_secret_name(name) {
            return None;
        }
        // The quote that ends a name in JSON, be it in a string itself.
        let unquoted = after.strip_prefix("\\\"").or_else(|| after.strip_prefix(['"', '\''])).unwrap_or(after);
        let value = match unquoted.trim_start().strip_prefix(['=', ':']) {
            Some(value) => value.trim_start_matches(['=', ':', '>']).trim_start(),
            None if name.starts_with("--") && after.starts_with(' ') && !after.trim_start().starts_with('-') => after.trim_start(),
            None => return None,
        };
        let begin = self.text.len() - value.len();
        let (begin, end) = match value.chars().next()? {
            quote @ ('"' | '\'') => (begin + 1, begin + 1 + quoted(&value[1..], quote)),
            '\\' if value.starts_with("\\\"") => (begin + 2, begin + 2 + value[2..].find("\\\"").unwrap_or(value.len() - 2)),
            '[' | '{' => return None,
            _ if is_header => (begin, begin + value.find(['"', '\'']).unwrap_or(value.len())),
            _ => (begin, begin + value.find(|c: char| c.is_whitespace() || ",;&)}]\"'<>".contains(c)).unwrap_or(value.len())),
        };
        let is_plain = matches!(&self.text[begin..end], "true" | "false" | "null" | "none" | "None");
        (begin < end && !is_plain).then_some(begin..end)
    }
}

fn is_of_name(letter: char) -> bool {
    letter.is_alphanumeric() || "_.-".contains(letter)
}

/// The length of what stands before an unescaped quote.
fn quoted(text: &str, quote: char) -> usize {
    let mut is_escaped = false;
    for (at, letter) in text.char_indices() {
        if letter == quote && !is_escaped {
            return at;
        }
        is_escaped = letter == '\\' && !is_escaped;
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_told_by_their_names_in_every_notation() {
        let cases = [
            ("password: hunter2", "password: [secret]"),
            (r#"{"user": "u", "password": "hun\"ter2", "n": 1}"#, r#"{"user": "u", "password": "[secret]", "n": 1}"#),
            (r#"body="{\"apiKey\": \"hunter2\", \"a\": 1}""#, r#"body="{\"apiKey\": \"[secret]\", \"a\": 1}""#),
            ("Authorization: Bearer hunter2", "Authorization: [secret]"),
            ("> -H 'authorization: Basic aHVudGVyMg==' -v", "> -H 'authorization: [secret]' -v"),
            ("sent Bearer eyJhbGciOi1 to it", "sent Bearer [secret] to it"),
            ("cannot reach postgres://me:hunter2@db:5432/x?y=1", "cannot reach postgres://me:[secret]@db:5432/x?y=1"),
            ("https://me:hun@ter2@host/ http://host:80/a@b", "https://me:[secret]@host/ http://host:80/a@b"),
            ("GET /x?token=hunter2&page=2", "GET /x?token=[secret]&page=2"),
            ("run --db-password hunter2 --verbose", "run --db-password [secret] --verbose"),
            ("run --password=hunter2 -x", "run --password=[secret] -x"),
            ("AWS_SECRET_ACCESS_KEY=hunter2", "AWS_SECRET_ACCESS_KEY=[secret]"),
            ("spark.authenticate.secret = hunter2", "spark.authenticate.secret = [secret]"),
            ("clientSecret:hunter2, dbPassword='hun ter2'", "clientSecret:[secret], dbPassword='[secret]'"),
            ("api_key => hunter2; x", "api_key => [secret]; x"),
        ];
        for (text, expected) in cases {
            assert_eq!(redact(text), expected);
            assert_eq!(redact(expected), expected, "again");
        }
    }

    #[test]
    fn a_file_whose_name_sounds_secret_is_no_value() {
        for text in ["cannot read /home/x/secret: Permission denied (os error 13)", "/tmp/password.sh: this user may not read it"] {
            assert_eq!(redact(text), text);
        }
        assert_eq!(redact("/etc/app password: hunter2"), "/etc/app password: [secret]");
    }

    #[test]
    fn what_is_no_secret_stays() {
        for text in [
            "key=value pairs, primary_key: id, keyboard: us",
            "partition key: user_id",
            "max_tokens = 4096, tokenizer: fast",
            "password authentication is enabled: true",
            "the bearer authentication of http://host:8080/path",
            "require_password=true",
            "mail to a@b: done; 12:30:45 ok",
            "secret",
            "é: password",
        ] {
            assert_eq!(redact(text), text);
        }
    }

    #[test]
    fn lines_that_come_one_by_one_are_redacted_as_a_text_is() {
        let text = "an ordinary line\nrun --password hunter2\nsent Bearer eyJhbGciOi1\n-----BEGIN PRIVATE KEY-----\nMIIE\n\nabc=\n-----END PRIVATE KEY-----\nafter: it";
        let mut redactor = Redactor::default();
        let lines: Vec<_> = text.lines().map(|line| redactor.line(line)).collect();
        assert_eq!(lines.join("\n"), redact(text));
        assert!(lines.join("").matches(LEFT_OUT).count() == 4 && matches!(lines[0], Cow::Borrowed(_)));
    }

    #[test]
    fn a_private_key_is_left_out_line_by_line() {
        let text = "before\n-----BEGIN RSA PRIVATE KEY-----\nMIIE\nabc=\n-----END RSA PRIVATE KEY-----\nafter\n";
        assert_eq!(redact(text), text.replace("MIIE", LEFT_OUT).replace("abc=", LEFT_OUT));
    }
}
