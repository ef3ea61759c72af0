//! Charts for terminals: columns of blocks, each in eighths of a line.

/// What one column shows: a full part, and a pale one on top of it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Column {
    pub full: f64,
    pub pale: f64,
}

const EIGHTHS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
const PALE: char = '░';

/// The largest of each of `width` even groups, so that no peak is lost.
pub fn squeeze(values: &[Column], width: usize) -> Vec<Column> {
    let width = width.clamp(1, values.len().max(1));
    let larger = |a: Column, b: &Column| if b.full + b.pale > a.full + a.pale { *b } else { a };
    (0..width)
        .map(|column| {
            let (from, to) = (column * values.len() / width, (column + 1) * values.len() / width);
            values.get(from..to.max(from + 1)).unwrap_or_default().iter().fold(Column::default(), larger)
        })
        .collect()
}

/// Lines of a chart, the highest first; `most` is what its height stands for.
pub fn columns(values: &[Column], height: usize, most: f64) -> Vec<String> {
    let eighths = |value: f64| if most > 0.0 { (value / most * (height * 8) as f64).round() as usize } else { 0 };
    let cell = |column: &Column, row: usize| {
        let (full, all) = (eighths(column.full), eighths(column.full + column.pale));
        // Something that is there shows, however little it is.
        let full = if column.full > 0.0 { full.max(1) } else { full };
        match full.saturating_sub(row * 8) {
            0 if all > row * 8 + 3 => PALE,
            part => EIGHTHS[part.min(8)],
        }
    };
    (0..height).rev().map(|row| values.iter().map(|column| cell(column, row)).collect()).collect()
}

/// One line.
pub fn spark(values: &[f64], width: usize) -> String {
    let most = values.iter().copied().fold(0.0, f64::max);
    let values: Vec<Column> = values.iter().map(|value| Column { full: *value, pale: 0.0 }).collect();
    columns(&squeeze(&values, width), 1, most).concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[(f64, f64)]) -> Vec<Column> {
        values.iter().map(|(full, pale)| Column { full: *full, pale: *pale }).collect()
    }

    #[test]
    fn columns_are_as_high_as_their_values() {
        let lines = columns(&of(&[(0.0, 0.0), (1.0, 0.0), (8.0, 0.0), (4.0, 4.0), (0.01, 0.0)]), 2, 8.0);
        assert_eq!(lines, ["  █░ ", " ▂██▁"]);
    }

    #[test]
    fn peaks_are_not_lost() {
        let mut values = vec![(0.0, 0.0); 100];
        values[57] = (9.0, 0.0);
        assert!(squeeze(&of(&values), 7).iter().any(|column| column.full == 9.0));
        assert_eq!(spark(&[0.0, 1.0, 2.0], 3), " ▄█");
        assert_eq!(spark(&[], 5), " ");
    }
}
