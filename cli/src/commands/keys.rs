//! `key create`, `list`, `show` and `rotate`.

use std::collections::BTreeMap;

use quorate_client::KeyName;
use quorate_client::wire::{KeyInfo, TAG_BYTES_MAX, TAGS_MAX};
use serde_json::Value;

use crate::args::{Create, Format, Rotate};
use crate::commands::crypt::with_similar_key;
use crate::failure::Failure;
use crate::reach::cluster::Cluster;
use crate::terminal::output;
use crate::{Session, exit};

pub(crate) async fn create(session: &mut Session<'_>, options: Create) -> Result<u8, Failure> {
    let mut tags = BTreeMap::new();
    for (name, value) in options.tags {
        if name.len() > TAG_BYTES_MAX || value.len() > TAG_BYTES_MAX || tags.len() == TAGS_MAX {
            return Err(Failure::new(exit::USAGE, format!("--tag: at most {TAGS_MAX}, each of {TAG_BYTES_MAX} bytes")));
        }
        if tags.insert(name.clone(), value).is_some() {
            return Err(Failure::new(exit::USAGE, format!("--tag: {name} is given twice")));
        }
    }
    let cluster = Cluster::open(session).await?;
    let answer = cluster.client.create_key(&options.name, tags).await;
    cluster.close(session).await;
    show_change(session, "created", &answer?)
}

pub(crate) async fn rotate(session: &mut Session<'_>, options: Rotate) -> Result<u8, Failure> {
    let cluster = Cluster::open(session).await?;
    match cluster.client.rotate_key(&options.name, options.expect).await {
        Ok(info) => {
            cluster.close(session).await;
            show_change(session, "rotated", &info)
        }
        Err(error) => Err(with_similar_key(session, cluster, &options.name, error).await),
    }
}

pub(crate) async fn show(session: &mut Session<'_>, name: KeyName) -> Result<u8, Failure> {
    let cluster = Cluster::open(session).await?;
    let info = match cluster.client.show_key(&name).await {
        Ok(info) => info,
        Err(error) => return Err(with_similar_key(session, cluster, &name, error).await),
    };
    cluster.close(session).await;
    let result = match session.common.output {
        Format::Json => output::pretty(&output::key(&info)),
        Format::Text => {
            let row = |version: &quorate_client::wire::VersionInfo| {
                let ready = if version.ready { "ready" } else { "being checked" };
                let ready = output::marked(ready, version.one_disk);
                vec![version.version.to_string(), output::time(version.created_ms), ready]
            };
            let versions: Vec<_> = info.versions.iter().map(row).collect();
            format!(
                "name: {}\nuid: {}\ncreated: {}\ntags: {}\n\n{}",
                info.name,
                info.uid,
                output::time(info.created_ms),
                output::tags(&info.tags),
                output::table(&["VERSION", "CREATED", "STATE"], &versions)
            )
        }
    };
    session.result(result.as_bytes())?;
    Ok(exit::DONE)
}

pub(crate) async fn list(session: &mut Session<'_>) -> Result<u8, Failure> {
    let cluster = Cluster::open(session).await?;
    let answer = cluster.client.list_keys().await;
    cluster.close(session).await;
    let keys = answer?;
    let result = match session.common.output {
        Format::Json => output::pretty(&Value::Array(keys.iter().map(output::key_summary).collect())),
        Format::Text => {
            let row = |key: &quorate_client::wire::KeySummary| {
                let created = output::time(key.created_ms);
                let version = output::marked(&key.newest.to_string(), key.one_disk);
                vec![key.name.to_string(), version, created, output::tags(&key.tags)]
            };
            output::table(&["NAME", "VERSION", "CREATED", "TAGS"], &keys.iter().map(row).collect::<Vec<_>>())
        }
    };
    session.result(result.as_bytes())?;
    Ok(exit::DONE)
}

fn show_change(session: &mut Session<'_>, verb: &str, info: &KeyInfo) -> Result<u8, Failure> {
    let result = match session.common.output {
        Format::Json => output::pretty(&output::key(info)),
        Format::Text => {
            let version = info.newest().map_or(0, |newest| newest.version.0);
            format!("{verb} {}, version {version}\n", info.name)
        }
    };
    session.result(result.as_bytes())?;
    Ok(exit::DONE)
}
