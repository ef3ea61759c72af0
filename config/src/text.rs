//! From the bytes of a file to its text: UTF-8, or one problem with its line and what to do.

use crate::diagnostics::{InvalidFile, Problem};

/// What a file that is not UTF-8 probably is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Encoding {
    Utf16LittleEndian,
    Utf16BigEndian,
    Utf32,
    /// One byte a character: ISO 8859-1, or Windows' kin of it.
    Latin1,
    Binary,
}

/// The text of a file. `name` is what problems call it; a byte order mark of UTF-8 is left out.
///
/// # Errors
/// The file is not UTF-8: one problem, at the first byte that is not.
pub fn decode(name: &str, bytes: &[u8]) -> Result<String, InvalidFile> {
    let encoding = match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => return Ok(text.strip_prefix('\u{feff}').unwrap_or(text).to_owned()),
        _ => guess(bytes),
    };
    let first = std::str::from_utf8(bytes).map_or_else(|error| error.valid_up_to(), |text| text.find('\0').unwrap_or(0));
    let file = shlex::try_quote(name).unwrap_or(name.into());
    let convert = |from: &str| format!("save it as UTF-8, for example with: iconv -f {from} -t UTF-8 {file} > new.toml");
    let problem = |span, message: &str, help: String| Problem { span, message: message.to_owned(), help: Some(help) };
    let (text, problem) = match encoding {
        Encoding::Utf16LittleEndian | Encoding::Utf16BigEndian => {
            let read = if encoding == Encoding::Utf16LittleEndian { u16::from_le_bytes } else { u16::from_be_bytes };
            let units: Vec<u16> = bytes.as_chunks().0.iter().map(|pair| read(*pair)).collect();
            let text = String::from_utf16_lossy(&units);
            let text = text.strip_prefix('\u{feff}').unwrap_or(&text).to_owned();
            let end = text.find(['\r', '\n']).unwrap_or(text.len());
            let kind = if encoding == Encoding::Utf16LittleEndian { "UTF-16LE" } else { "UTF-16BE" };
            (text, problem(0..end, "the file is UTF-16, not UTF-8", convert(kind)))
        }
        // Its mark says which byte comes first.
        Encoding::Utf32 => (String::new(), problem(0..0, "the file is UTF-32, not UTF-8", convert("UTF-32"))),
        Encoding::Latin1 => {
            // One character a byte, so that the line is shown as it was meant.
            let text: String = bytes.iter().map(|byte| char::from(*byte)).collect();
            let start: usize = bytes[..first].iter().map(|byte| char::from(*byte).len_utf8()).sum();
            let message = format!("byte 0x{:02x} is not UTF-8; the file is probably Latin-1 (ISO 8859-1)", bytes[first]);
            let span = start..start + char::from(bytes[first]).len_utf8();
            (text, problem(span, &message, convert("ISO-8859-1")))
        }
        Encoding::Binary => {
            let text = String::new();
            (text, problem(0..0, "the file is binary, not text", "is it the right file? it must be TOML, in UTF-8".to_owned()))
        }
    };
    Err(InvalidFile::new(name, text, vec![problem]))
}

fn guess(bytes: &[u8]) -> Encoding {
    match bytes {
        [0xff, 0xfe, 0, 0, ..] | [0, 0, 0xfe, 0xff, ..] => return Encoding::Utf32,
        [0xff, 0xfe, ..] => return Encoding::Utf16LittleEndian,
        [0xfe, 0xff, ..] => return Encoding::Utf16BigEndian,
        _ => {}
    }
    let pairs = bytes.as_chunks::<2>().0;
    // Without a mark: text in a Latin script has a zero in most pairs, always on the same side.
    let zeros = |side: usize| pairs.iter().filter(|pair| pair[side] == 0).count();
    let (high, low) = (zeros(0), zeros(1));
    if low * 2 > pairs.len() && high == 0 {
        Encoding::Utf16LittleEndian
    } else if high * 2 > pairs.len() && low == 0 {
        Encoding::Utf16BigEndian
    } else if bytes.iter().any(|byte| *byte < 0x20 && !b"\t\n\r\x0c\x1b".contains(byte)) {
        Encoding::Binary
    } else {
        Encoding::Latin1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "[cluster]\nname = \"demo\"\n# für alle\n";

    fn place(bytes: &[u8]) -> (usize, usize, String, String) {
        let error = decode("c.toml", bytes).expect_err("not UTF-8");
        let places = error.places();
        assert_eq!(places.len(), 1, "{places:?}");
        // It can be shown.
        assert!(error.render(false, 80).contains(&places[0].message[..20]), "{}", error.render(false, 80));
        (places[0].line, places[0].column, places[0].message.clone(), places[0].help.clone().unwrap_or_default())
    }

    #[test]
    fn utf_8_is_taken_with_and_without_a_byte_order_mark() {
        assert_eq!(decode("c.toml", TEXT.as_bytes()).ok().as_deref(), Some(TEXT));
        assert_eq!(decode("c.toml", format!("\u{feff}{TEXT}").as_bytes()).ok().as_deref(), Some(TEXT));
        assert_eq!(decode("c.toml", b"").ok().as_deref(), Some(""));
    }

    #[test]
    fn utf_16_is_one_problem_with_a_line_and_what_to_do() {
        let units: Vec<u16> = TEXT.encode_utf16().collect();
        let little: Vec<u8> = units.iter().flat_map(|unit| unit.to_le_bytes()).collect();
        let big: Vec<u8> = units.iter().flat_map(|unit| unit.to_be_bytes()).collect();
        for (bytes, mark, kind) in [(&little, [0xff, 0xfe], "UTF-16LE"), (&big, [0xfe, 0xff], "UTF-16BE")] {
            for bytes in [bytes.clone(), [&mark, bytes.as_slice()].concat()] {
                let (line, column, message, help) = place(&bytes);
                assert_eq!((line, column, message.as_str()), (1, 1, "the file is UTF-16, not UTF-8"));
                assert!(help.contains(&format!("iconv -f {kind} -t UTF-8 c.toml")), "{help}");
            }
        }
    }

    #[test]
    fn utf_32_is_not_taken_for_utf_16_and_commands_are_quoted() {
        let bytes: Vec<u8> = "\u{feff}[c]".chars().flat_map(|c| u32::from(c).to_le_bytes()).collect();
        let error = decode("my file.toml", &bytes).expect_err("not UTF-8");
        let place = error.places().remove(0);
        assert_eq!((place.line, place.message.as_str()), (1, "the file is UTF-32, not UTF-8"));
        assert!(place.help.is_some_and(|help| help.contains("iconv -f UTF-32 -t UTF-8 'my file.toml'")));
    }

    #[test]
    fn latin_1_is_one_problem_at_its_line_and_column() {
        let bytes: Vec<u8> = TEXT.chars().map(|c| u8::try_from(u32::from(c)).expect("Latin-1")).collect();
        let (line, column, message, help) = place(&bytes);
        assert_eq!((line, column), (3, 4));
        assert!(message.contains("0xfc") && message.contains("Latin-1") && help.contains("iconv -f ISO-8859-1"), "{message} {help}");
        assert!(decode("c.toml", &bytes).expect_err("broken").render(false, 80).contains("# für alle"));
    }

    #[test]
    fn a_program_is_no_file_to_read() {
        let (line, _, message, _) = place(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x03\0\x3e\0\xff\xff");
        assert_eq!((line, message.as_str()), (1, "the file is binary, not text"));
    }
}
