//! The way between bare replicas: the connections of the daemons, with their identities, lanes and frames.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use quorate_client::conn::{self, Conn, Handler, Reply};
use quorate_client::identity::{Identity, Protocol, PublicKey, dial, peer_key, server_config};
use quorate_raft::{Link, LinkError, MessageClass, Replica};
use quorate_shares::ids::NodeId;
use tokio::sync::mpsc;

use crate::base::error::Error;
use crate::cluster::PATIENCE;

/// A replica that may not be open yet.
pub(super) type Place = Arc<OnceLock<Replica>>;

/// What one replica reaches the others through.
pub(super) struct Quic {
    from: NodeId,
    conns: BTreeMap<NodeId, Conn>,
    places: BTreeMap<NodeId, Place>,
}

/// Joins every replica with every other one.
pub(super) async fn join(places: &BTreeMap<NodeId, Place>) -> Result<Vec<Quic>, Error> {
    let failed = |error: String| Error::Bench(format!("join the bare replicas: {error}"));
    let keys: BTreeMap<NodeId, Identity> = places.keys().map(|node| (*node, Identity::random())).collect();
    let mut endpoints = BTreeMap::new();
    for (node, place) in places {
        let mine = &keys[node];
        let config = server_config(mine, Some(mine), &[Protocol::Peer]);
        let endpoint = quinn::Endpoint::server(config, SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
        let endpoint = endpoint.map_err(|error| failed(error.to_string()))?;
        let names = keys.iter().map(|(node, key)| (key.public(), *node)).collect();
        tokio::spawn(accept(endpoint.clone(), names, Arc::clone(place)));
        endpoints.insert(*node, endpoint);
    }
    let mut links = Vec::new();
    for (from, endpoint) in &endpoints {
        let mut conns = BTreeMap::new();
        for (to, other) in endpoints.iter().filter(|(to, _)| *to != from) {
            let address = other.local_addr().map_err(|error| failed(error.to_string()))?;
            let dialled = dial(endpoint, address, &keys[from], keys[to].public(), Protocol::Peer, PATIENCE).await;
            conns.insert(*to, Conn::start(dialled.map_err(|error| failed(error.to_string()))?, None));
        }
        links.push(Quic { from: *from, conns, places: places.clone() });
    }
    Ok(links)
}

async fn accept(endpoint: quinn::Endpoint, names: BTreeMap<PublicKey, NodeId>, replica: Place) {
    while let Some(incoming) = endpoint.accept().await {
        let Ok(connection) = incoming.await else { continue };
        if let Some(&from) = peer_key(&connection).as_ref().and_then(|key| names.get(key)) {
            Conn::start(connection, Some(Arc::new(Served { from, replica: Arc::clone(&replica) })));
        }
    }
}

/// The answering side.
struct Served {
    from: NodeId,
    replica: Place,
}

impl Handler for Served {
    fn handle(&self, _: &Conn, body: Bytes) -> Reply {
        let (from, replica) = (self.from, Arc::clone(&self.replica));
        Reply::later(async move {
            let Some(replica) = replica.get() else { return Vec::new() };
            // An empty answer is none to any request.
            replica.serve(from, &body).await.unwrap_or_default()
        })
    }
}

#[async_trait]
impl Link for Quic {
    async fn call(
        &self,
        to: NodeId,
        class: MessageClass,
        request: Vec<u8>,
        limit: Duration,
    ) -> Result<Vec<u8>, LinkError> {
        let lane = match class {
            MessageClass::Log => conn::Lane::Heavy,
            MessageClass::Heartbeat | MessageClass::Vote => conn::Lane::Urgent,
        };
        let conn = self.conns.get(&to).ok_or_else(|| LinkError::Unreachable("it is unknown".to_owned()))?;
        let reply = conn.call(lane, &request, limit).await;
        reply.map(Vec::from).map_err(|error| LinkError::Unreachable(error.to_string()))
    }

    async fn snapshot(&self, to: NodeId, chunks: mpsc::Receiver<Vec<u8>>, _: Duration) -> Result<Vec<u8>, LinkError> {
        // Hardly ever needed, and not what is measured: without a stream.
        let replica = self.places.get(&to).and_then(|place| place.get());
        let replica = replica.ok_or_else(|| LinkError::Unreachable("it is not open yet".to_owned()))?;
        let served = replica.serve_snapshot(self.from, chunks).await;
        served.map_err(|error| LinkError::Refused(error.to_string()))
    }
}
