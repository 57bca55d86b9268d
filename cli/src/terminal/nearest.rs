//! Suggestions for mistyped names.

use strsim::osa_distance;

/// The candidate that differs least from `typed`; `None` if all differ much, or if two are equally near. The difference is the optimal string
/// alignment distance: it counts insertions, deletions, replacements and swaps of neighbours. At most a third of the
/// letters may differ, and at most four.
pub(crate) fn nearest<'a>(typed: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (typed.chars().count() / 3).clamp(1, 4);
    let ranked = candidates.into_iter().map(|candidate| (osa_distance(typed, candidate), candidate));
    let mut ranked: Vec<_> = ranked.filter(|(distance, _)| *distance <= limit).collect();
    ranked.sort_unstable();
    match ranked[..] {
        [(first, _), (second, _), ..] if first == second => None,
        _ => ranked.first().map(|(_, candidate)| *candidate),
    }
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
        assert_eq!(nearest("n3", names), None, "n1 or n2");
        assert_eq!(nearest("payroll", names), None);
        assert_eq!(nearest("", names), None);
    }
}
