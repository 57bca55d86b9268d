//! `alarm list` and `alarm disarm`.

use quorate_client::NodeName;
use quorate_client::wire::Alarm;
use serde_json::{Value, json};

use crate::args::{Disarm, Format};
use crate::failure::Failure;
use crate::reach::cluster::Cluster;
use crate::terminal::output;
use crate::{Session, exit};

pub(crate) async fn list(session: &mut Session<'_>) -> Result<u8, Failure> {
    let cluster = Cluster::open(session).await?;
    let answer = cluster.client.alarms().await;
    cluster.close(session).await;
    let alarms = answer?;
    let result = match session.common.output {
        Format::Json => output::pretty(&Value::Array(alarms.iter().map(output::alarm).collect())),
        Format::Text => table(&alarms),
    };
    session.result(result.as_bytes())?;
    Ok(exit::DONE)
}

fn table(alarms: &[Alarm]) -> String {
    let row = |alarm: &Alarm| {
        let about = alarm.node.as_ref().map_or("-", NodeName::as_str).to_owned();
        vec![
            output::printable(&alarm.code),
            about,
            output::age_since(alarm.since_ms),
            output::printable(&alarm.message),
        ]
    };
    output::table(&["CODE", "NODE", "SINCE", "MESSAGE"], &alarms.iter().map(row).collect::<Vec<_>>())
}

pub(crate) async fn disarm(session: &mut Session<'_>, options: Disarm) -> Result<u8, Failure> {
    let codes = (!options.all).then(|| options.codes.into_iter().collect());
    let cluster = Cluster::open(session).await?;
    let answer = cluster.client.disarm_alarms(codes).await;
    cluster.close(session).await;
    let (alarms, silent) = answer?;
    let silent: Vec<_> = silent.iter().map(NodeName::as_str).collect();
    let result = match session.common.output {
        Format::Json => output::pretty(&json!({
            "disarmed": alarms.iter().map(output::alarm).collect::<Vec<_>>(),
            "silent": silent,
        })),
        Format::Text => {
            let line = |alarm: &Alarm| {
                let about = alarm.node.as_ref().map_or_else(String::new, |node| format!(" about {node}"));
                format!("disarmed {}{about}\n", output::printable(&alarm.code))
            };
            alarms.iter().map(line).collect()
        }
    };
    session.result(result.as_bytes())?;
    if !silent.is_empty() {
        session.note(&format!("not told: {}", silent.join(", ")));
        session.note("hint: their alarms stay; repeat the command when they are up");
    }
    // Nothing was closed, and there may be alarms at the nodes that did not answer.
    Ok(if alarms.is_empty() && !silent.is_empty() { exit::FAILED } else { exit::DONE })
}
