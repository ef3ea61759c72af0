//! The order of names as people expect it: `w2` before `w10`.

use std::cmp::Ordering;

/// Compares two texts by their parts: runs of digits as numbers, everything else byte by byte. Texts that differ are never
/// equal: of two equal numbers the one with fewer leading zeros comes first.
pub fn compare(a: &str, b: &str) -> Ordering {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let common = a.iter().zip(b).take_while(|(x, y)| x == y).count();
    // The first difference may be in the middle of a number.
    let start = common - a[..common].iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
    let (number_a, number_b) = (digits(&a[start..]), digits(&b[start..]));
    if number_a.is_empty() || number_b.is_empty() {
        return a[common..].cmp(&b[common..]);
    }
    let (value_a, value_b) = (value(number_a), value(number_b));
    let by_value = value_a.len().cmp(&value_b.len()).then_with(|| value_a.cmp(value_b));
    by_value.then(number_a.len().cmp(&number_b.len())).then_with(|| a[common..].cmp(&b[common..]))
}

fn digits(text: &[u8]) -> &[u8] {
    &text[..text.iter().take_while(|byte| byte.is_ascii_digit()).count()]
}

fn value(digits: &[u8]) -> &[u8] {
    &digits[digits.iter().take_while(|byte| **byte == b'0').count()..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_names_are_compared_as_numbers() {
        let sorted = [
            "",
            "9",
            "10",
            "a",
            "gpu-1",
            "gpu-2",
            "gpu-10",
            "gpu-10-a",
            "gpu-a",
            "head",
            "w",
            "w0",
            "w00",
            "w1",
            "w1.2",
            "w1.10",
            "w1a",
            "w01",
            "w2",
            "w10",
            "w10b",
            "w11",
            "w99999999999999999999",
            "w100000000000000000000",
        ];
        // Every pair, so that the order is total and the same from both sides.
        for (i, a) in sorted.iter().enumerate() {
            for (j, b) in sorted.iter().enumerate() {
                assert_eq!(compare(a, b), i.cmp(&j), "{a:?} and {b:?}");
            }
        }
    }
}
