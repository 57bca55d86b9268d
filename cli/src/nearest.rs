//! The name that was probably meant.

/// The candidate that differs least from `typed`, if it differs little.
pub(crate) fn nearest<'a>(typed: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (typed.chars().count() / 3).clamp(1, 4);
    let ranked = candidates.into_iter().map(|candidate| (distance(typed, candidate), candidate));
    ranked.filter(|(distance, _)| *distance <= limit).min().map(|(_, candidate)| candidate)
}

/// Insertions, deletions, replacements and swaps of neighbours between two words (Damerau 1964, restricted).
fn distance(one: &str, other: &str) -> usize {
    let (one, other): (Vec<char>, Vec<char>) = (one.chars().collect(), other.chars().collect());
    let mut rows = vec![(0..=other.len()).collect::<Vec<_>>()];
    for (i, a) in one.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, b) in other.iter().enumerate() {
            let mut best = (rows[i][j] + usize::from(a != b)).min(rows[i][j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *a == other[j - 1] && one[i - 1] == *b {
                best = best.min(rows[i - 1][j - 1] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[one.len()][other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistyped_name_finds_the_one_that_was_meant() {
        let names = ["billing/cards", "billing/carts", "disks/db1", "n1", "n2"];
        assert_eq!(nearest("billing/crads", names), Some("billing/cards"));
        assert_eq!(nearest("biling/carts", names), Some("billing/carts"));
        assert_eq!(nearest("disks/db", names), Some("disks/db1"));
        assert_eq!(nearest("n3", names), Some("n1"));
        assert_eq!(nearest("payroll", names), None);
        assert_eq!(nearest("", names), None);
    }
}
