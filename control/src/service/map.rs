//! `POST /machine/map`: streams, and what nodes report about themselves.

use std::sync::Arc;

use control_proto::tailcfg::{Hostinfo, MapRequest};
use keys::MachinePublic;

use super::{Control, ServiceError, complete, now};
use crate::engine::Report;
use crate::model::{Node, NodeId};
use crate::names;
use crate::store::{StoreError, Unique};

/// Endpoints kept of one node; clients send a dozen at most.
const MAX_ENDPOINTS: usize = 64;

/// A map request that gets an HTTP error.
#[derive(Debug, thiserror::Error)]
pub enum MapRefusal {
    /// No node has that key, or it is another machine's.
    #[error("node not found: no node of this machine has that key; log in again")]
    UnknownNode,
    /// The database failed.
    #[error(transparent)]
    Service(#[from] ServiceError),
}

impl Control {
    /// The node that asks: its key must belong to the machine that the handshake authenticated.
    ///
    /// # Errors
    ///
    /// It does not.
    pub fn identify(
        &self,
        machine: MachinePublic,
        request: &MapRequest,
    ) -> Result<NodeId, MapRefusal> {
        match self.engine.identity(&request.node_key) {
            Some((id, owner)) if owner == machine => Ok(id),
            Some(_) | None => Err(MapRefusal::UnknownNode),
        }
    }

    /// Takes in a lite update.
    ///
    /// # Errors
    ///
    /// The node is gone, or the database failed.
    pub async fn lite_update(
        self: &Arc<Self>,
        id: NodeId,
        request: MapRequest,
    ) -> Result<(), MapRefusal> {
        let mut endpoints = request.endpoints;
        endpoints.truncate(MAX_ENDPOINTS);
        let report = Report {
            capver: request.version.0,
            hostinfo: request.hostinfo,
            endpoints: Some(endpoints),
            disco: Some(request.disco_key).filter(|key| !key.is_zero()),
        };
        self.heard(id, report).await
    }

    /// Takes in what opens a stream, if the server may have lost the node's last lite update.
    ///
    /// Official clients send none after a stream that broke, only this request. It counts as far
    /// as it says something: at a client's start it may come before endpoints and home are known.
    ///
    /// # Errors
    ///
    /// The node is gone, or the database failed.
    pub async fn catch_up(
        self: &Arc<Self>,
        id: NodeId,
        request: &MapRequest,
    ) -> Result<(), MapRefusal> {
        if !self.engine.is_unheard(id) {
            return Ok(());
        }
        let mut endpoints = request.endpoints.clone();
        endpoints.truncate(MAX_ENDPOINTS);
        let report = Report {
            capver: request.version.0,
            hostinfo: request.hostinfo.clone(),
            endpoints: Some(endpoints).filter(|known| !known.is_empty()),
            disco: Some(request.disco_key).filter(|key| !key.is_zero()),
        };
        self.heard(id, report).await
    }

    async fn heard(self: &Arc<Self>, id: NodeId, report: Report) -> Result<(), MapRefusal> {
        let node = self.engine.node(id).ok_or(MapRefusal::UnknownNode)?.node;
        let control = Arc::clone(self);
        Ok(complete(async move { control.take_report(&node, report).await }).await?)
    }

    /// Takes in a report, approves what the policy approves of the routes that it offers anew, and
    /// follows a changed host name unless an administrator chose the name.
    pub(super) async fn take_report(
        &self,
        node: &Node,
        report: Report,
    ) -> Result<(), ServiceError> {
        let label = |hostname: &str| names::label(hostname);
        let renamed = report.hostinfo.as_ref().is_some_and(|new| {
            !node.renamed && label(&new.hostname) != label(&node.hostinfo.hostname)
        });
        let hostname = report.hostinfo.as_ref().filter(|_| renamed);
        let hostname = hostname.map(|new| new.hostname.clone());
        let offers = |new: &&Hostinfo| new.routable_ips != node.hostinfo.routable_ips;
        let offer = report.hostinfo.as_ref().filter(offers).cloned();
        // First, so that no stop of the server comes between an offer that is stored and its
        // approval: who repeats an offer offers nothing anew.
        if let Some(offer) = &offer {
            self.auto_approve(node.id, Some(offer)).await?;
        }
        self.engine.report(node.id, report);
        // Without these a node is out of reach, and its peers drop their tunnel to it: what is
        // acknowledged is stored, even if the server dies the next moment.
        if let Some(after) = self.engine.node(node.id)
            && (after.node.disco, after.node.home_derp) != (node.disco, node.home_derp)
        {
            self.save_reports().await;
        }
        if offer.is_some() {
            // A policy may have come in force that did not see the offer.
            self.auto_approve(node.id, None).await?;
        }
        if let Some(hostname) = hostname {
            self.follow_hostname(node.id, &hostname).await?;
        }
        Ok(())
    }

    async fn follow_hostname(&self, id: NodeId, hostname: &str) -> Result<(), ServiceError> {
        let _writer = self.writer().await;
        let Some(view) = self.engine.node(id) else {
            return Ok(());
        };
        let mut node = view.node;
        let (mut taken, _) = self.engine.taken();
        taken.remove(&node.name);
        node.name = names::unique(&names::label(hostname), |name| taken.contains(name));
        match self.store.update_node(&node, None, now()).await {
            Ok(committed) => self.engine.put_node(committed.number, node, now()),
            // A replica gave the name away: the node keeps the one it has.
            Err(StoreError::Taken(Unique::NodeName)) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}
