//! The admin API: the service layer as HTTP and JSON.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use ::policy::tailnet::UnknownRole;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::serde::rfc3339;

use crate::engine::NodeView;
use crate::model::{AuthKey, AuthKeyId, Node, NodeId, User, UserId};
use crate::service::{AuthKeyRequest, Control, ServiceError, complete, now};

pub(super) mod policy;
pub(super) mod routes;

/// A user, as listed.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct UserJson {
    pub(super) id: UserId,
    pub(super) name: String,
    /// As policies name it after `autogroup:`.
    pub(super) role: String,
    #[serde(with = "rfc3339")]
    pub(super) created: OffsetDateTime,
}

/// An auth key, as listed; `key` only when it was just made.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct AuthKeyJson {
    pub(super) id: AuthKeyId,
    pub(super) user: String,
    pub(super) prefix: String,
    pub(super) reusable: bool,
    pub(super) ephemeral: bool,
    pub(super) tags: Vec<String>,
    /// `valid`, `used`, `expired` or `revoked`.
    pub(super) state: String,
    #[serde(with = "rfc3339")]
    pub(super) created: OffsetDateTime,
    #[serde(with = "rfc3339::option")]
    pub(super) expires: Option<OffsetDateTime>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) key: Option<String>,
}

/// A node, as listed.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct NodeJson {
    pub(super) id: NodeId,
    pub(super) stable_id: String,
    pub(super) name: String,
    pub(super) fqdn: String,
    pub(super) hostname: String,
    pub(super) os: String,
    /// Owner; `None` for tagged nodes.
    pub(super) user: Option<String>,
    pub(super) tags: Vec<String>,
    pub(super) ipv4: Ipv4Addr,
    pub(super) ipv6: Ipv6Addr,
    pub(super) node_key: String,
    pub(super) machine_key: String,
    pub(super) online: bool,
    pub(super) ephemeral: bool,
    pub(super) expired: bool,
    pub(super) home_derp: i32,
    pub(super) endpoints: Vec<String>,
    pub(super) capability_version: u16,
    #[serde(with = "rfc3339")]
    pub(super) created: OffsetDateTime,
    #[serde(with = "rfc3339::option")]
    pub(super) expires: Option<OffsetDateTime>,
    #[serde(with = "rfc3339::option")]
    pub(super) last_seen: Option<OffsetDateTime>,
}

/// A machine that waits for approval.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct LoginJson {
    pub(super) code: String,
    pub(super) hostname: String,
    pub(super) node_key: String,
}

/// All nodes, and who wants to be one.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct NodesJson {
    pub(super) nodes: Vec<NodeJson>,
    pub(super) waiting: Vec<LoginJson>,
}

/// The server at a glance.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct StatusJson {
    pub(super) version: String,
    pub(super) server_url: String,
    pub(super) base_domain: String,
    #[serde(with = "rfc3339")]
    pub(super) started: OffsetDateTime,
    pub(super) change_number: i64,
    pub(super) users: usize,
    pub(super) nodes: usize,
    pub(super) online: usize,
    pub(super) map_streams: usize,
    pub(super) waiting: usize,
    pub(super) policy: policy::StandingJson,
}

/// What went wrong, in one line; with all that is wrong with a policy, if it is that.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct ErrorJson {
    pub(super) error: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) diagnostics: Option<policy::DiagnosticsJson>,
}

#[derive(Debug, Deserialize, Serialize)]
pub(super) struct NewUser {
    pub(super) name: String,
}

#[derive(Debug, Deserialize, Serialize)]
pub(super) struct NewRole {
    pub(super) role: String,
}

#[derive(Debug, Deserialize, Serialize)]
pub(super) struct NewKey {
    pub(super) user: String,
    pub(super) reusable: bool,
    pub(super) ephemeral: bool,
    pub(super) tags: Vec<String>,
    pub(super) expiry_seconds: u64,
}

#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Approve {
    pub(super) code: String,
    pub(super) user: String,
}

#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Rename {
    pub(super) name: String,
}

#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Tag {
    pub(super) tags: Vec<String>,
}

type Shared = State<Arc<Control>>;
type Answer<T> = Result<Json<T>, ServiceError>;

/// The API of `control`.
pub(super) fn router(control: Arc<Control>) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/users", get(users).post(create_user))
        .route("/v1/users/{name}", delete(delete_user))
        .route("/v1/users/{name}/role", post(set_role))
        .route("/v1/keys", get(keys).post(create_key))
        .route("/v1/keys/{id}", delete(revoke_key))
        .route("/v1/nodes", get(nodes))
        .route("/v1/nodes/approve", post(approve))
        .route("/v1/nodes/{node}", delete(delete_node))
        .route("/v1/nodes/{node}/expire", post(expire))
        .route("/v1/nodes/{node}/rename", post(rename))
        .route("/v1/nodes/{node}/tag", post(tag))
        .merge(routes::router())
        .merge(policy::router())
        .layer(from_fn(to_the_end))
        .with_state(control)
}

/// An administrator who hangs up leaves nothing half done.
async fn to_the_end(request: Request, next: Next) -> Response {
    complete(next.run(request)).await
}

async fn status(State(control): Shared) -> Json<StatusJson> {
    let counts = control.engine().counts();
    Json(StatusJson {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        server_url: control.settings().server_url.clone(),
        base_domain: control.engine().settings().base_domain().to_owned(),
        started: control.started(),
        change_number: counts.number.0,
        users: counts.users,
        nodes: counts.nodes,
        online: counts.online,
        map_streams: counts.sessions,
        waiting: control.logins().list().len(),
        policy: policy::standing(&control),
    })
}

async fn users(State(control): Shared) -> Json<Vec<UserJson>> {
    let users = control.engine().users().into_iter();
    Json(users.map(UserJson::from).collect())
}

async fn create_user(State(control): Shared, Json(new): Json<NewUser>) -> Answer<UserJson> {
    Ok(Json(control.create_user(&new.name).await?.into()))
}

/// All users whose role changed.
async fn set_role(
    State(control): Shared,
    Path(name): Path<String>,
    Json(new): Json<NewRole>,
) -> Answer<Vec<UserJson>> {
    let role = new.role.parse();
    let role = role.map_err(|error: UnknownRole| ServiceError::Invalid(error.to_string()))?;
    let changed = control.set_role(&name, role).await?.into_iter();
    Ok(Json(changed.map(UserJson::from).collect()))
}

async fn delete_user(State(control): Shared, Path(name): Path<String>) -> Answer<()> {
    Ok(Json(control.delete_user(&name).await?))
}

async fn keys(State(control): Shared) -> Answer<Vec<AuthKeyJson>> {
    let keys = control.auth_keys().await?;
    Ok(Json(
        keys.into_iter()
            .map(|key| auth_key(&control, key, None))
            .collect(),
    ))
}

async fn create_key(State(control): Shared, Json(new): Json<NewKey>) -> Answer<AuthKeyJson> {
    let issued = control
        .create_auth_key(AuthKeyRequest {
            user: new.user,
            reusable: new.reusable,
            ephemeral: new.ephemeral,
            tags: new.tags,
            valid_for: Duration::from_secs(new.expiry_seconds),
        })
        .await?;
    Ok(Json(auth_key(&control, issued.key, Some(issued.secret))))
}

async fn revoke_key(State(control): Shared, Path(id): Path<i64>) -> Answer<()> {
    Ok(Json(control.revoke_auth_key(AuthKeyId(id)).await?))
}

async fn nodes(State(control): Shared) -> Json<NodesJson> {
    let nodes = control.engine().nodes();
    let waiting = control.logins().list();
    Json(NodesJson {
        nodes: nodes.into_iter().map(|view| node(&control, view)).collect(),
        waiting: waiting
            .iter()
            .map(|login| LoginJson {
                code: login.code.clone(),
                hostname: login
                    .request
                    .hostinfo
                    .as_ref()
                    .map_or_else(String::new, |host| host.hostname.clone()),
                node_key: login.request.node_key.to_string(),
            })
            .collect(),
    })
}

async fn approve(State(control): Shared, Json(ask): Json<Approve>) -> Answer<NodeJson> {
    let approved = control.approve(&ask.code, &ask.user).await?;
    Ok(Json(current(&control, approved)))
}

async fn expire(State(control): Shared, Path(text): Path<String>) -> Answer<NodeJson> {
    let expired = control.expire_node(&text).await?;
    Ok(Json(current(&control, expired)))
}

async fn rename(
    State(control): Shared,
    Path(text): Path<String>,
    Json(ask): Json<Rename>,
) -> Answer<NodeJson> {
    let renamed = control.rename_node(&text, &ask.name).await?;
    Ok(Json(current(&control, renamed)))
}

async fn tag(
    State(control): Shared,
    Path(text): Path<String>,
    Json(ask): Json<Tag>,
) -> Answer<NodeJson> {
    let tagged = control.tag_node(&text, &ask.tags).await?;
    Ok(Json(current(&control, tagged)))
}

async fn delete_node(State(control): Shared, Path(text): Path<String>) -> Answer<NodeJson> {
    let deleted = control.delete_node(&text).await?;
    Ok(Json(node(
        &control,
        NodeView {
            node: deleted,
            online: false,
        },
    )))
}

/// The node as the engine has it now.
fn current(control: &Control, changed: Node) -> NodeJson {
    let view = control.engine().node(changed.id);
    node(
        control,
        view.unwrap_or(NodeView {
            node: changed,
            online: false,
        }),
    )
}

fn node(control: &Control, NodeView { node, online }: NodeView) -> NodeJson {
    let owner = control
        .engine()
        .user(node.user)
        .filter(|_| !node.is_tagged());
    NodeJson {
        id: node.id,
        fqdn: control.engine().settings().fqdn(&node.name),
        hostname: node.hostinfo.hostname.clone(),
        os: node.hostinfo.os.clone(),
        user: owner.map(|user| user.name),
        ipv4: node.addresses.v4,
        ipv6: node.addresses.v6,
        node_key: node.key.to_string(),
        machine_key: node.machine.to_string(),
        online,
        ephemeral: node.ephemeral,
        expired: node.is_expired(now()),
        home_derp: node.home_derp,
        endpoints: node.endpoints.iter().map(ToString::to_string).collect(),
        capability_version: node.capver,
        created: node.created,
        expires: node.expires,
        last_seen: if online { None } else { node.last_seen },
        stable_id: node.stable_id,
        name: node.name,
        tags: node.tags,
    }
}

fn auth_key(control: &Control, key: AuthKey, secret: Option<String>) -> AuthKeyJson {
    use crate::model::KeyRefusal;
    let state = match key.check(now()) {
        Ok(()) => "valid",
        Err(KeyRefusal::Used) => "used",
        Err(KeyRefusal::Expired) => "expired",
        Err(KeyRefusal::Revoked | KeyRefusal::Unknown) => "revoked",
    };
    AuthKeyJson {
        id: key.id,
        user: control
            .engine()
            .user(key.user)
            .map_or_else(String::new, |user| user.name),
        prefix: key.prefix,
        reusable: key.reusable,
        ephemeral: key.ephemeral,
        tags: key.tags,
        state: state.to_owned(),
        created: key.created,
        expires: key.expires,
        key: secret,
    }
}

impl From<User> for UserJson {
    fn from(user: User) -> Self {
        Self {
            id: user.id,
            name: user.name,
            role: user.role.to_string(),
            created: user.created,
        }
    }
}

impl IntoResponse for ServiceError {
    fn into_response(self) -> Response {
        let status = match &self {
            ServiceError::NotFound(_) => StatusCode::NOT_FOUND,
            ServiceError::Conflict(_) => StatusCode::CONFLICT,
            ServiceError::Invalid(_) => StatusCode::BAD_REQUEST,
            ServiceError::Denied(_) => StatusCode::FORBIDDEN,
            ServiceError::Policy(_) => StatusCode::UNPROCESSABLE_ENTITY,
            ServiceError::Store(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let error = self.to_string();
        let diagnostics = match self {
            ServiceError::Policy(list) => Some((&*list).into()),
            _ => None,
        };
        (status, Json(ErrorJson { error, diagnostics })).into_response()
    }
}
