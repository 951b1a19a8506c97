//! What is served outside Noise: keys, login pages, relay admission, health, metrics.

use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router, extract::Query};
use bytes::Bytes;
use control_proto::json;
use control_proto::tailcfg::{DerpAdmitRequest, DerpAdmitResponse, ServerKeys};
use keys::MachinePublic;
use serde::Deserialize;

use crate::service::Control;

/// Oldest capability version that asks for the Noise key (protocol digest 2.1).
const FIRST_NOISE_CAPVER: u32 = 39;
/// Longest body of a plain request, bytes.
const MAX_BODY: usize = 64 << 10;

#[derive(Clone)]
struct Shared {
    control: Arc<Control>,
    noise_key: MachinePublic,
}

/// The pages of `control`, whose Noise key is `noise_key`.
pub(super) fn router(control: Arc<Control>, noise_key: MachinePublic) -> Router {
    Router::new()
        .route("/key", get(key))
        .route("/verify", post(verify))
        .route("/register/{code}", get(register))
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(Shared { control, noise_key })
}

#[derive(Deserialize)]
struct KeyQuery {
    v: Option<String>,
}

async fn key(State(shared): State<Shared>, Query(query): Query<KeyQuery>) -> Response {
    let version = query.v.and_then(|text| text.parse::<u32>().ok());
    if version.is_none_or(|version| version < FIRST_NOISE_CAPVER) {
        let text = "this client is too old, or ?v= is missing\n";
        return (StatusCode::BAD_REQUEST, text).into_response();
    }
    Json(ServerKeys {
        public_key: shared.noise_key,
        ..ServerKeys::default()
    })
    .into_response()
}

/// May a node use a relay? Asked by relays, with the node's key.
async fn verify(State(shared): State<Shared>, body: Bytes) -> Response {
    match json::from_slice::<DerpAdmitRequest>(&body) {
        Ok(request) => {
            let allow = shared.control.admits(&request.node_public);
            Json(DerpAdmitResponse { allow }).into_response()
        }
        Err(error) => (StatusCode::BAD_REQUEST, format!("{error}\n")).into_response(),
    }
}

/// Where a login URL leads: tells what the administrator has to do.
async fn register(State(shared): State<Shared>, Path(code): Path<String>) -> Response {
    let Some(login) = shared.control.logins().get(&code) else {
        let text = "This login timed out, or it was approved already. If the machine is not in, \
                    start the login again there.";
        return (
            StatusCode::NOT_FOUND,
            page("Login not found", &escape(text)),
        )
            .into_response();
    };
    let hostname = login
        .request
        .hostinfo
        .as_ref()
        .map_or("", |host| host.hostname.as_str());
    let body = format!(
        "<p>The machine <b>{}</b> with the node key <code>{}</code> wants to join.</p>\
         <p>If you started this login, an administrator lets the machine in by</p>\
         <pre>tailrace-control nodes approve {} --user NAME</pre>",
        escape(hostname),
        login.request.node_key,
        escape(&login.code),
    );
    page("Join the tailnet", &body).into_response()
}

async fn health(State(shared): State<Shared>) -> Response {
    match shared.control.check().await {
        // Nodes are served as before, so the server must stay in service. Anybody may ask: what is
        // in the policy is for administrators.
        Ok(()) if shared.control.policy_standing().failure.is_some() => {
            let warning = "the policy file is not in force, the policy before it is: see \
                           `tailrace-control status`";
            Json(serde_json::json!({"status": "degraded", "warning": warning})).into_response()
        }
        Ok(()) => Json(serde_json::json!({"status": "ok"})).into_response(),
        Err(error) => {
            let body = serde_json::json!({"status": "failing", "error": error.to_string()});
            (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response()
        }
    }
}

async fn metrics(State(shared): State<Shared>) -> Response {
    match shared.control.metrics_text().await {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

fn page(title: &str, body: &str) -> Response {
    let html = format!(
        "<!doctype html><html lang=en><meta charset=utf-8>\
         <meta name=viewport content=\"width=device-width\"><title>{title}</title>\
         <style>body{{font:1.1rem/1.5 system-ui;max-width:44rem;margin:4rem auto;padding:0 1rem}}\
         pre{{background:#eee;padding:1rem;overflow-x:auto}}code{{overflow-wrap:anywhere}}</style>\
         <h1>{title}</h1>{body}</html>"
    );
    let policy = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'";
    ([(header::CONTENT_SECURITY_POLICY, policy)], Html(html)).into_response()
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}
