//! Who may open SSH sessions on this node, and how (lower camel case, control.md 5.6).

use std::{collections::BTreeMap, net::SocketAddr};

use serde::{Deserialize, Serialize};

use super::{StableNodeId, is_default};
use crate::Timestamp;

/// Rules in order; the first that matches decides, none means deny.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct SshPolicy {
    /// Empty and null deny everything.
    #[serde(rename = "rules")]
    pub rules: Vec<SshRule>,
}

/// One rule.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct SshRule {
    /// Skipped after this instant.
    #[serde(rename = "ruleExpires", skip_serializing_if = "Option::is_none")]
    pub rule_expires: Option<Timestamp>,
    /// Any match suffices.
    #[serde(rename = "principals")]
    pub principals: Vec<SshPrincipal>,
    /// Requested user to local user; `=` keeps it, `*` is any other, empty refuses.
    #[serde(rename = "sshUsers")]
    pub ssh_users: BTreeMap<String, String>,
    /// Absent means deny.
    #[serde(rename = "action", skip_serializing_if = "Option::is_none")]
    pub action: Option<SshAction>,
    /// Environment variables that may be set, as globs.
    #[serde(rename = "acceptEnv", skip_serializing_if = "is_default")]
    pub accept_env: Vec<String>,
}

/// Whom a rule is about; any one field that matches suffices.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct SshPrincipal {
    /// A node by stable id.
    #[serde(rename = "node", skip_serializing_if = "is_default")]
    pub node: StableNodeId,
    /// A node by address.
    #[serde(rename = "nodeIP", skip_serializing_if = "is_default")]
    pub node_ip: String,
    /// A user by login name.
    #[serde(rename = "userLogin", skip_serializing_if = "is_default")]
    pub user_login: String,
    /// Everybody.
    #[serde(rename = "any", skip_serializing_if = "is_default")]
    pub any: bool,
}

/// What happens to a session.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct SshAction {
    /// Shown to the person, may be empty.
    #[serde(rename = "message", skip_serializing_if = "is_default")]
    pub message: String,
    /// Close it.
    #[serde(rename = "reject", skip_serializing_if = "is_default")]
    pub reject: bool,
    /// Let it in.
    #[serde(rename = "accept", skip_serializing_if = "is_default")]
    pub accept: bool,
    /// Longest session, nanoseconds; 0 is unlimited.
    #[serde(rename = "sessionDuration", skip_serializing_if = "is_default")]
    pub session_duration_nanos: i64,
    /// Agent forwarding allowed.
    #[serde(rename = "allowAgentForwarding", skip_serializing_if = "is_default")]
    pub allow_agent_forwarding: bool,
    /// Ask this URL over Noise for the next action.
    #[serde(rename = "holdAndDelegate", skip_serializing_if = "is_default")]
    pub hold_and_delegate: String,
    /// Local port forwarding allowed.
    #[serde(
        rename = "allowLocalPortForwarding",
        skip_serializing_if = "is_default"
    )]
    pub allow_local_port_forwarding: bool,
    /// Remote port forwarding allowed.
    #[serde(
        rename = "allowRemotePortForwarding",
        skip_serializing_if = "is_default"
    )]
    pub allow_remote_port_forwarding: bool,
    /// Where recordings go.
    #[serde(rename = "recorders", skip_serializing_if = "is_default")]
    pub recorders: Vec<SocketAddr>,
    /// What to do when recording fails.
    #[serde(rename = "onRecordingFailure", skip_serializing_if = "Option::is_none")]
    pub on_recording_failure: Option<SshRecorderFailureAction>,
}

/// What to do when recording fails.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct SshRecorderFailureAction {
    /// Non-empty: refuse new sessions with this text.
    #[serde(
        rename = "RejectSessionWithMessage",
        skip_serializing_if = "is_default"
    )]
    pub reject_session_with_message: String,
    /// Non-empty: end running sessions with this text.
    #[serde(
        rename = "TerminateSessionWithMessage",
        skip_serializing_if = "is_default"
    )]
    pub terminate_session_with_message: String,
    /// Tell this URL over Noise.
    #[serde(rename = "NotifyURL", skip_serializing_if = "is_default")]
    pub notify_url: String,
}
