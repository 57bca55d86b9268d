//! The forms of results: tables for people, JSON for programs.

use std::time::{SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use quorate_client::NodeName;
pub(crate) use quorate_client::error::printable;
use quorate_client::wire::{Alarm, KeyInfo, KeySummary, NodeInfo, NodeState, OldCopies, VersionInfo};
use serde_json::{Value, json};

/// A table. Each column is as wide as its longest cell, with two spaces between columns.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = head.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: Vec<&str>| {
        let padded: Vec<_> = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        format!("{}\n", padded.join("  ").trim_end())
    };
    let mut text = line(head.to_vec());
    for row in rows {
        text += &line(row.iter().map(String::as_str).collect());
    }
    text
}

/// A time in milliseconds since 1970, as RFC 3339 in UTC, to the second. A time after the latest [`Timestamp`] (the end
/// of December 9999) is shown as the latest.
pub(crate) fn time(ms: u64) -> String {
    let second = i64::try_from(ms / 1000).unwrap_or(i64::MAX).min(Timestamp::MAX.as_second());
    Timestamp::from_second(second).expect("not later than the latest").to_string()
}

/// A time span of `ms` milliseconds before now, in one unit.
pub(crate) fn age(ms: u64) -> String {
    match ms / 1000 {
        0..2 => "now".to_owned(),
        _ => format!("{} ago", span(ms)),
    }
}

/// A time span, in one unit.
pub(crate) fn span(ms: u64) -> String {
    match ms / 1000 {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds @ 7200..172_800 => format!("{} h", seconds / 3600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

/// The time span between now and a time in milliseconds since 1970.
pub(crate) fn age_since(ms: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_millis());
    age(u64::try_from(now).unwrap_or(u64::MAX).saturating_sub(ms))
}

pub(crate) fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

/// Adds a mark to the state of a key version if one disk alone once opened it.
pub(crate) fn marked(text: &str, one_disk: bool) -> String {
    if one_disk { format!("{text}, once on one disk") } else { text.to_owned() }
}

pub(crate) fn key(info: &KeyInfo) -> Value {
    let version = |version: &VersionInfo| {
        json!({
            "version": version.version.0,
            "created": time(version.created_ms),
            "ready": version.ready,
            "one_disk": version.one_disk,
        })
    };
    json!({
        "name": info.name.as_str(),
        "uid": info.uid.to_string(),
        "created": time(info.created_ms),
        "tags": info.tags,
        "versions": info.versions.iter().map(version).collect::<Vec<_>>(),
    })
}

pub(crate) fn key_summary(key: &KeySummary) -> Value {
    json!({
        "name": key.name.as_str(),
        "uid": key.uid.to_string(),
        "created": time(key.created_ms),
        "tags": key.tags,
        "version": key.newest.0,
        "one_disk": key.one_disk,
    })
}

pub(crate) fn node(node: &NodeInfo) -> Value {
    let state = node.state.as_ref();
    let old_copies = state.and_then(|state| state.old_copies);
    json!({
        "name": node.name.as_str(),
        "id": node.id.0,
        "addresses": node.addresses,
        "role": node.role.as_str(),
        "phase": state.map(|state| state.phase.as_str()),
        "lag": state.map(|state| state.lag),
        "epoch": state.map(|state| state.epoch.0),
        "lock_generation": state.map(|state| state.lock_generation),
        "old_copies_erased": old_copies.map(|copies| copies.erased),
        "old_copies_needed": old_copies.map(|copies| copies.needed),
        "last_seen_ms": state.map(|state| state.last_seen_ms),
        "away_ms": node.away_ms,
        "unreached": state.map(|state| state.unreached.iter().map(NodeName::as_str).collect::<Vec<_>>()),
    })
}

pub(crate) fn alarm(alarm: &Alarm) -> Value {
    json!({
        "code": alarm.code,
        "message": alarm.message,
        "node": alarm.node.as_ref().map(NodeName::as_str),
        "since": time(alarm.since_ms),
    })
}

pub(crate) fn nodes(nodes: &[NodeInfo]) -> String {
    let row = |node: &NodeInfo| {
        let known = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
        let state = node.state.as_ref();
        vec![
            node.name.to_string(),
            node.id.to_string(),
            printable(&node.addresses.join(",")),
            node.role.to_string(),
            known(state.map(phase)),
            known(state.map(|state| state.lag.to_string())),
            known(state.map(|state| state.epoch.to_string())),
            known(state.map(|state| state.lock_generation.to_string())),
            known(state.and_then(|state| state.old_copies).map(old_copies)),
            state.map_or_else(|| "never".to_owned(), last_seen),
        ]
    };
    let head = ["NAME", "ID", "ADDRESS", "ROLE", "PHASE", "LAG", "EPOCH", "LOCK", "OLD COPIES", "LAST SEEN"];
    table(&head, &nodes.iter().map(row).collect::<Vec<_>>())
}

/// The phase, or in brackets the last one that was heard of a node that does not answer.
fn phase(state: &NodeState) -> String {
    if state.last_seen_ms == 0 { state.phase.to_string() } else { format!("({})", state.phase) }
}

/// When a node was heard. One that answers is there now, and one that does not was there before.
fn last_seen(state: &NodeState) -> String {
    match state.last_seen_ms {
        0 => "now".to_owned(),
        ms => format!("{} ago", span(ms)),
    }
}

fn old_copies(copies: OldCopies) -> String {
    if copies.are_dead() { "dead".to_owned() } else { format!("{} of {} erased", copies.erased, copies.needed) }
}

/// The tags of a key on one line.
pub(crate) fn tags(tags: &std::collections::BTreeMap<String, String>) -> String {
    let pairs: Vec<_> = tags.iter().map(|(name, value)| format!("{}={}", printable(name), printable(value))).collect();
    if pairs.is_empty() { "-".to_owned() } else { pairs.join(" ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_as_rfc_3339() {
        assert_eq!(time(0), "1970-01-01T00:00:00Z");
        // From coreutils: date -u -d @951827696 and @4102444799.
        assert_eq!(time(951_827_696_000), "2000-02-29T12:34:56Z");
        assert_eq!(time(4_102_444_799_999), "2099-12-31T23:59:59Z");
        assert_eq!(time(u64::MAX), "9999-12-30T22:00:00Z");
    }

    #[test]
    fn a_table_is_as_wide_as_its_cells() {
        let rows = vec![vec!["a".to_owned(), "x".to_owned()], vec!["long".to_owned(), "y".to_owned()]];
        assert_eq!(table(&["N", "V"], &rows), "N     V\na     x\nlong  y\n");
        assert_eq!(age(1500), "now");
        assert_eq!(age(90_000), "90 s ago");
        assert_eq!(age(3 * 86_400_000), "3 days ago");
        assert_eq!(printable("a\x1b[2Jb\n"), "a[2Jb");
    }
}
