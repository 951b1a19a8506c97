//! Routes of nodes.

use std::sync::Arc;

use axum::extract::{Path, Query, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Answer, Shared};
use crate::engine::NodeView;
use crate::model::NodeId;
use crate::service::{Control, Route, ServiceError};

/// The routes of a node.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(in crate::admin) struct NodeRoutesJson {
    pub(in crate::admin) id: NodeId,
    pub(in crate::admin) name: String,
    pub(in crate::admin) online: bool,
    pub(in crate::admin) routes: Vec<RouteJson>,
}

/// A route, offered or approved or both.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(in crate::admin) struct RouteJson {
    pub(in crate::admin) prefix: IpNet,
    pub(in crate::admin) advertised: bool,
    pub(in crate::admin) approved: bool,
    /// Both, and no other node is in its place.
    pub(in crate::admin) serving: bool,
}

/// A route to approve or to remove.
#[derive(Debug, Deserialize, Serialize)]
pub(in crate::admin) struct PrefixJson {
    pub(in crate::admin) prefix: String,
}

#[derive(Debug, Deserialize)]
struct OfNode {
    node: Option<String>,
}

pub(super) fn router() -> Router<Arc<Control>> {
    Router::new()
        .route("/v1/routes", get(list))
        .route("/v1/nodes/{node}/routes/approve", post(approve))
        .route("/v1/nodes/{node}/routes/remove", post(remove))
}

async fn list(State(control): Shared, Query(of): Query<OfNode>) -> Answer<Vec<NodeRoutesJson>> {
    let nodes = control.routes(of.node.as_deref())?.into_iter();
    Ok(Json(nodes.map(node_routes).collect()))
}

async fn approve(
    State(control): Shared,
    Path(text): Path<String>,
    Json(ask): Json<PrefixJson>,
) -> Answer<NodeRoutesJson> {
    let node = control.approve_route(&text, &ask.prefix).await?;
    current(&control, node.id)
}

async fn remove(
    State(control): Shared,
    Path(text): Path<String>,
    Json(ask): Json<PrefixJson>,
) -> Answer<NodeRoutesJson> {
    let node = control.remove_route(&text, &ask.prefix).await?;
    current(&control, node.id)
}

/// The routes of a node as they are now.
fn current(control: &Control, id: NodeId) -> Answer<NodeRoutesJson> {
    let gone = || ServiceError::NotFound(format!("node {id} was deleted meanwhile"));
    let view = control.engine().node(id).ok_or_else(gone)?;
    let routes = control.routes_of(&view.node);
    Ok(Json(node_routes((view, routes))))
}

fn node_routes((view, routes): (NodeView, Vec<Route>)) -> NodeRoutesJson {
    NodeRoutesJson {
        id: view.node.id,
        name: view.node.name,
        online: view.online,
        routes: routes.into_iter().map(RouteJson::from).collect(),
    }
}

impl From<Route> for RouteJson {
    fn from(route: Route) -> Self {
        Self {
            prefix: route.prefix,
            advertised: route.advertised,
            approved: route.approved,
            serving: route.serving,
        }
    }
}
