//! Escaping for the formats that runtimes are configured in. A template states the format of the place in which a value
//! stands, so that a path with a space or a text with a backslash arrives as it is.

use cloudtik_model::Bytes;
use minijinja::{Environment, Error, ErrorKind, Value};

use crate::size::parse_size;

/// Adds the filters `uri`, `properties`, `properties_key`, `shell`, `xml`, `yaml` and `json`, and `mebibytes` for sizes.
pub(super) fn add_filters(environment: &mut Environment<'_>) {
    environment.add_filter("uri", |value: Value| text(&value).map(|t| uri(&t)));
    environment.add_filter("properties", |value: Value| text(&value).map(|t| properties_value(&t)));
    environment.add_filter("properties_key", |value: Value| text(&value).map(|t| properties_key(&t)));
    environment.add_filter("shell", |value: Value| text(&value).and_then(|t| shell(&t)));
    environment.add_filter("xml", |value: Value| text(&value).and_then(|t| xml(&t)));
    environment.add_filter("json", |value: Value| json(&value));
    // YAML's flow style reads every JSON document.
    environment.add_filter("yaml", |value: Value| json(&value));
    environment.add_filter("mebibytes", |value: String| {
        parse_size(&value).map(Bytes::mebibytes).ok_or_else(|| refused(format!("{value:?} is not a size")))
    });
}

fn refused(message: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

/// A value as text: lists and tables have no place in a text.
fn text(value: &Value) -> Result<String, Error> {
    use minijinja::value::ValueKind;
    match value.kind() {
        ValueKind::String | ValueKind::Number | ValueKind::Bool => Ok(value.to_string()),
        ValueKind::Undefined => Err(Error::from(ErrorKind::UndefinedError)),
        other => Err(refused(format!("a {other} cannot be written here"))),
    }
}

/// A path as part of a URI: all but letters, digits, `-._~` and `/` is percent-encoded, as UTF-8 (RFC 3986, section 2).
fn uri(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// The value of a line in a Java properties file (`java.util.Properties.load`).
fn properties_value(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for (place, letter) in text.chars().enumerate() {
        match letter {
            // What stands before the first other character separates key and value.
            ' ' | '=' | ':' if place == 0 => out.extend(['\\', letter]),
            _ => escape_in_properties(&mut out, letter),
        }
    }
    out
}

/// The key of a line in a Java properties file.
fn properties_key(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            ' ' | '=' | ':' | '#' | '!' => out.extend(['\\', letter]),
            _ => escape_in_properties(&mut out, letter),
        }
    }
    out
}

/// Characters that mean the same wherever they stand. Others than ASCII's are written as UTF-16 units: some programs read
/// these files as Latin-1, others as UTF-8.
fn escape_in_properties(out: &mut String, letter: char) {
    match letter {
        '\\' => out.push_str("\\\\"),
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        '\u{c}' => out.push_str("\\f"),
        ' '..='~' => out.push(letter),
        _ => letter.encode_utf16(&mut [0; 2]).iter().for_each(|unit| out.push_str(&format!("\\u{unit:04X}"))),
    }
}

/// One word of a POSIX shell.
fn shell(text: &str) -> Result<String, Error> {
    if text.contains('\0') {
        return Err(refused("a word of a shell cannot hold a zero byte".to_owned()));
    }
    Ok(format!("'{}'", text.replace('\'', "'\\''")))
}

/// Text or the value of an attribute in XML and HTML.
fn xml(text: &str) -> Result<String, Error> {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\t' | '\n' | '\r' => out.push_str(&format!("&#{};", u32::from(letter))),
            // XML 1.0, section 2.2: no reference stands for these either.
            '\0'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => {
                return Err(refused(format!("XML cannot hold the character U+{:04X}", u32::from(letter))));
            }
            _ => out.push(letter),
        }
    }
    Ok(out)
}

/// A JSON value, text in quotes.
fn json(value: &Value) -> Result<String, Error> {
    if value.is_undefined() {
        return Err(Error::from(ErrorKind::UndefinedError));
    }
    let text = serde_json::to_string(value).map_err(|e| refused("this has no form in JSON".to_owned()).with_source(e))?;
    // Allowed in JSON and line breaks in YAML.
    Ok(text.replace('\u{7f}', "\\u007f").replace('\u{85}', "\\u0085").replace('\u{2028}', "\\u2028").replace('\u{2029}', "\\u2029"))
}

#[cfg(test)]
mod tests {
    use minijinja::context;

    use super::super::Templates;

    fn filled(filter: &str, value: &str) -> String {
        Templates::default().render("t", &format!("{{{{ v | {filter} }}}}"), &context! { v => value }).expect("renders")
    }

    #[test]
    fn values_are_escaped_by_the_format_that_they_stand_in() {
        let odd = "/a b'\"%#\\é&<\n";
        assert_eq!(filled("uri", odd), "/a%20b%27%22%25%23%5C%C3%A9%26%3C%0A");
        assert_eq!(filled("properties", odd), "/a b'\"%#\\\\\\u00E9&<\\n");
        assert_eq!(filled("shell", odd), "'/a b'\\''\"%#\\é&<\n'");
        assert_eq!(filled("xml", odd), "/a b&#39;&quot;%#\\é&amp;&lt;&#10;");
        assert_eq!(filled("json", odd), "\"/a b'\\\"%#\\\\é&<\\n\"");
        assert_eq!(filled("yaml", "no"), "\"no\"", "text stays text");
        assert_eq!(filled("properties", " = x "), "\\ = x ");
        assert_eq!(filled("properties_key", "a b:c=d#e!"), "a\\ b\\:c\\=d\\#e\\!");
        assert_eq!(filled("properties", "😀"), "\\uD83D\\uDE00");
        assert_eq!(
            Templates::default().render("t", "{{ 2 | json }} {{ true | yaml }} {{ [1, 'x'] | json }}", &context! {}).expect("renders"),
            "2 true [1,\"x\"]"
        );
    }

    #[test]
    fn what_a_format_cannot_hold_is_refused() {
        for text in
            ["{{ '\u{1}' | xml }}", "{{ [1] | uri }}", "{{ {'a': 1} | properties }}", "{{ nothing | json }}", "{{ nothing | shell }}"]
        {
            assert!(Templates::default().render("t", text, &context! {}).is_err(), "{text}");
        }
    }

    /// What a shell makes of a word is the word.
    #[test]
    fn a_shell_reads_what_was_written() {
        for word in ["a b", "it's", "$HOME `x` \\ \" % # é", "", "-n", "new\nline"] {
            let script = format!("printf %s {}", filled("shell", word));
            let output = std::process::Command::new("sh").args(["-c", &script]).output().expect("there is a shell");
            assert_eq!(String::from_utf8(output.stdout).expect("UTF-8"), word);
        }
    }
}
