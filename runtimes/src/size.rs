//! Amounts of memory, as people and programs on a JVM write them.

use cloudtik_model::Bytes;

/// An amount of memory as `512MiB`, or as programs on a JVM write it: `512m`, `2g`. A number needs its unit: programs differ
/// in what they take a bare one for.
pub(crate) fn parse_size(text: &str) -> Option<Bytes> {
    let text = text.trim();
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    // On a JVM one letter is a power of 1024, be it small or large.
    let unit: u64 = match unit {
        "k" | "K" => 1 << 10,
        "m" | "M" => 1 << 20,
        "g" | "G" => 1 << 30,
        "t" | "T" => 1 << 40,
        _ => return text.parse().ok(),
    };
    number.parse::<u64>().ok()?.checked_mul(unit).map(Bytes)
}
