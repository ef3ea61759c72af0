//! Values of TOML as JSON, for tables of which somebody else knows the keys.

use serde_json::Value;
use toml::Spanned;
use toml::de::{DeFloat, DeInteger, DeValue};

use super::Problems;

/// The same as JSON; dates become texts. A number that JSON does not have is a problem. `name` is what problems call the value.
pub(super) fn of(name: &str, value: &Spanned<DeValue<'_>>, problems: &Problems) -> Value {
    let number = |number: Option<Value>, text: &str, is_too_large: bool| {
        number.unwrap_or_else(|| {
            let why = if is_too_large { "which is too large" } else { "for which JSON has no number" };
            let message = format!("`{name}` is {text}, {why}");
            problems.note(value.span(), message, Some(format!("leave it out, or write it as text: \"{text}\"")));
            Value::Null
        })
    };
    match value.get_ref() {
        DeValue::String(text) => Value::String(text.to_string()),
        DeValue::Integer(written) => number(integer(written), &written.to_string(), true),
        // `inf` and `nan` have no digits.
        DeValue::Float(written) => number(float(written), written.as_str(), written.as_str().contains(|c: char| c.is_ascii_digit())),
        DeValue::Boolean(truth) => Value::Bool(*truth),
        DeValue::Datetime(date) => Value::String(date.to_string()),
        DeValue::Array(items) => items.iter().enumerate().map(|(at, item)| of(&format!("{name}[{at}]"), item, problems)).collect(),
        DeValue::Table(table) => table
            .iter()
            .map(|(key, value)| {
                let key = key.get_ref();
                (key.to_string(), of(&format!("{name}.{key}"), value, problems))
            })
            .collect(),
    }
}

fn integer(written: &DeInteger<'_>) -> Option<Value> {
    i64::from_str_radix(&written.as_str().replace('_', ""), written.radix()).ok().map(Value::from)
}

fn float(written: &DeFloat<'_>) -> Option<Value> {
    let number: f64 = written.as_str().parse().ok()?;
    serde_json::Number::from_f64(number).map(Value::Number)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::InvalidFile;
    use crate::reader::read_part;

    fn read(text: &str) -> Result<serde_json::Value, InvalidFile> {
        read_part("demo.toml", text, |root, _| root.json("settings")).map(|settings| settings.unwrap_or_default())
    }

    #[test]
    fn every_kind_of_value_becomes_json() {
        let text = r#"
            [settings]
            text = "a\tb"
            whole = -1_000
            hexadecimal = 0xff_ff
            octal = 0o17
            largest = 9223372036854775807
            number = 1_000.5
            small = -2e-3
            truth = true
            moment = 2026-03-02T08:00:00Z
            day = 2026-03-02
            list = [1, "two", [3.0]]
            "a key" = { inner = false }
            [settings.below.further]
            [[settings.tables]]
            n = 1
        "#;
        let expected = json!({
            "text": "a\tb",
            "whole": -1000,
            "hexadecimal": 65535,
            "octal": 15,
            "largest": 9_223_372_036_854_775_807_i64,
            "number": 1000.5,
            "small": -0.002,
            "truth": true,
            "moment": "2026-03-02T08:00:00Z",
            "day": "2026-03-02",
            "list": [1, "two", [3.0]],
            "a key": {"inner": false},
            "below": {"further": {}},
            "tables": [{"n": 1}],
        });
        assert_eq!(read(text).expect("is valid"), expected);
    }

    #[test]
    fn a_number_that_json_does_not_have_is_a_problem_with_its_place() {
        let text = "[settings]\nratio = inf\nlist = [1.5, -nan]\nbelow = { deep = 1e999 }\ncount = 9223372036854775808\nmask = 0xffff_ffff_ffff_ffff_ff\n";
        let problems = read(text).expect_err("they have no place in JSON").problems;
        let found: Vec<_> = problems.iter().map(|p| (&text[p.span.clone()], p.message.as_str(), p.help.as_deref())).collect();
        let help = "leave it out, or write it as text: ";
        let expected = [
            ("inf", "`settings.ratio` is inf, for which JSON has no number", format!("{help}\"inf\"")),
            ("-nan", "`settings.list[1]` is -nan, for which JSON has no number", format!("{help}\"-nan\"")),
            ("1e999", "`settings.below.deep` is 1e999, which is too large", format!("{help}\"1e999\"")),
            (
                "9223372036854775808",
                "`settings.count` is 9223372036854775808, which is too large",
                format!("{help}\"9223372036854775808\""),
            ),
            (
                "0xffff_ffff_ffff_ffff_ff",
                "`settings.mask` is 0xffffffffffffffffff, which is too large",
                format!("{help}\"0xffffffffffffffffff\""),
            ),
        ];
        let mut found = found;
        found.sort_by_key(|(place, ..)| expected.iter().position(|(known, ..)| known == place));
        let expected: Vec<_> = expected.iter().map(|(place, message, help)| (*place, *message, Some(help.as_str()))).collect();
        assert_eq!(found, expected);
    }
}
