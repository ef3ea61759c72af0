//! Secrets that are written in files: where they are, by the parsed document, and the files without them.

use std::ops::Range;

use cloudtik_model::secret;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Tables whose names are not a person's own: below them, what has a secret name is a secret with all that it contains.
const PROPERTIES: &str = "properties";

/// The file with `"[secret]"` in place of every secret value.
pub fn redacted(text: &str) -> String {
    let (mut out, mut end) = (String::with_capacity(text.len()), 0);
    for span in spans(text) {
        out.push_str(&text[end..span.start]);
        // A value as the document has it keeps being one.
        let is_value = text[span.clone()].starts_with(['"', '\'']) || text[span.clone()].starts_with(|c: char| c.is_ascii_digit());
        out.push_str(&if is_value { format!("\"{}\"", secret::LEFT_OUT) } else { secret::LEFT_OUT.to_owned() });
        end = span.end;
    }
    out.push_str(&text[end..]);
    out
}

/// The file with an asterisk for every byte of a secret: what else is in it stays where it was.
pub fn masked(text: &str) -> String {
    let mut out = text.to_owned();
    for span in spans(text) {
        let stars: String = text[span.clone()].bytes().map(|b| if b == b'\n' { '\n' } else { '*' }).collect();
        out.replace_range(span, &stars);
    }
    out
}

/// Where secrets are: by the document as far as it can be read, by the text for comments and the rest. In order, apart.
fn spans(text: &str) -> Vec<Range<usize>> {
    let mut found = secret::spans(text);
    let (document, _) = DeTable::parse_recoverable(text);
    of_table(document.get_ref(), false, text, &mut found);
    found.retain(|span| text.get(span.clone()).is_some_and(|value| !value.is_empty()));
    found.sort_by_key(|span| (span.start, std::cmp::Reverse(span.end)));
    let mut apart: Vec<Range<usize>> = Vec::new();
    for span in found {
        match apart.last_mut() {
            Some(last) if span.start < last.end => last.end = last.end.max(span.end),
            _ => apart.push(span),
        }
    }
    apart
}

fn of_table(table: &DeTable<'_>, in_properties: bool, text: &str, found: &mut Vec<Range<usize>>) {
    for (name, value) in table {
        let name = name.get_ref();
        let is_secret = secret::is_secret_name(name);
        let in_properties = in_properties || name == PROPERTIES;
        match value.get_ref() {
            DeValue::Table(_) | DeValue::Array(_) if is_secret && in_properties => all_of(value, found),
            _ => of_value(value, is_secret, in_properties, text, found),
        }
    }
}

fn of_value(value: &Spanned<DeValue<'_>>, is_secret: bool, in_properties: bool, text: &str, found: &mut Vec<Range<usize>>) {
    match value.get_ref() {
        DeValue::Table(table) => of_table(table, in_properties, text, found),
        DeValue::Array(values) => values.iter().for_each(|value| of_value(value, is_secret, in_properties, text, found)),
        DeValue::Boolean(_) => {}
        _ if is_secret => found.push(value.span()),
        _ => {}
    }
}

/// Everything in a value.
fn all_of(value: &Spanned<DeValue<'_>>, found: &mut Vec<Range<usize>>) {
    match value.get_ref() {
        // The declaration of a property: its type is no secret.
        DeValue::Table(table) if table.contains_key("default") => table.get("default").into_iter().for_each(|value| all_of(value, found)),
        DeValue::Table(table) => table.values().for_each(|value| all_of(value, found)),
        DeValue::Array(values) => values.iter().for_each(|value| all_of(value, found)),
        _ => found.push(value.span()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
[cluster]
name = "demo" # password = "planted-1"
[runtimes.batch]
properties = { password = "planted-2", user = "me", "db.secret" = 'planted-3', url = "jdbc://me:planted-4@db/x" }
[runtimes.more.properties]
api_key = """
planted-5
"""
access_keys = ["planted-6", "planted-7"]
secrets = { a = "planted-8", b = 12345 }
pass.word = "plain"
password = 4711
key = "plain"
[workers.token-server]
min = 1
"#;

    #[test]
    fn secrets_are_found_in_the_parsed_document_wherever_they_stand() {
        let redacted = redacted(FILE);
        assert!(!redacted.contains("planted") && !redacted.contains("12345") && !redacted.contains("4711"), "{redacted}");
        for kept in ["name = \"demo\"", "user = \"me\"", "pass.word = \"plain\"", "key = \"plain\"", "min = 1", "jdbc://me:[secret]@db/x"] {
            assert!(redacted.contains(kept), "{kept}: {redacted}");
        }
        redacted.parse::<toml::Table>().unwrap_or_else(|error| panic!("{error}: {redacted}"));
    }

    #[test]
    fn what_is_masked_keeps_every_place() {
        let masked = masked(FILE);
        assert!(!masked.contains("planted") && masked.len() == FILE.len(), "{masked}");
        assert_eq!(masked.find("min = 1"), FILE.find("min = 1"));
        assert_eq!(masked.lines().count(), FILE.lines().count());
        // What cannot be read as a whole is masked as far as it can.
        let broken = super::masked("[runtimes.batch]\nproperties = { password = \"planted-1\", x = }\npassword = 'planted-2\n");
        assert!(!broken.contains("planted"), "{broken}");
    }
}
