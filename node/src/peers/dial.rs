//! Dialling a node at its known addresses.

use std::net::SocketAddr;
use std::time::Duration;

use quorate_client::conn::{Conn, close};
use quorate_client::identity::{self, DialError, Identity, Protocol, PublicKey};

use crate::base::endpoint::misfit;

/// A connection that is closed when this value is dropped.
pub struct Closing(pub Conn);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.close(close::DONE, "done");
    }
}

/// Dials `addresses` in turn, and returns the first connection whose other side proves `key`.
///
/// # Errors
/// The reason of each address, in words.
pub async fn dial(
    endpoint: &quinn::Endpoint,
    addresses: &[String],
    me: &Identity,
    key: PublicKey,
    protocol: Protocol,
    deadline: Duration,
) -> Result<quinn::Connection, String> {
    let mut failures = Vec::new();
    for address in addresses {
        let resolved: Vec<SocketAddr> = match tokio::net::lookup_host(address).await {
            Ok(resolved) => resolved.collect(),
            Err(error) => {
                failures.push(format!("{address}: {error}"));
                continue;
            }
        };
        for target in resolved {
            if let Some(misfit) = endpoint.local_addr().ok().and_then(|local| misfit(local, target)) {
                failures.push(misfit);
                continue;
            }
            match identity::dial(endpoint, target, me, key, protocol, deadline).await {
                Ok(connection) => return Ok(connection),
                Err(DialError::WrongIdentity { presented }) => {
                    failures.push(format!("{address}: presents the identity {presented}, expected {key}"));
                }
                Err(error) => failures.push(format!("{address}: {error}")),
            }
        }
    }
    Err(if failures.is_empty() { "no address".to_owned() } else { failures.join("; ") })
}
