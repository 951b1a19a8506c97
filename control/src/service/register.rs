//! `POST /machine/register`: who gets in, as whom (protocol digest 3.3).

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;

use control_proto::tailcfg::{
    Hostinfo, Login as WireLogin, RegisterRequest, RegisterResponse, User as WireUser,
};
use keys::{MachinePublic, NodePublic};
use time::OffsetDateTime;

use super::{Control, ServiceError, Writer, complete, now, random_text};
use crate::address::Addresses;
use crate::engine::{Report, TAGGED_DEVICES, home_derp, login_name};
use crate::login::Login;
use crate::model::{AuthKey, AuthKeyId, Node, NodeId, User, UserId, owner};
use crate::names;
use crate::store::StoreError;

/// A request that gets an HTTP error instead of an answer.
#[derive(Debug, thiserror::Error)]
pub enum RegisterRefusal {
    /// The request names no node key.
    #[error("the request has no node key")]
    NoNodeKey,
    /// The node key is another machine's.
    #[error("this node key belongs to another machine")]
    ForeignKey,
    /// The database failed.
    #[error(transparent)]
    Service(#[from] ServiceError),
}

/// Who a node will be, and what admits it.
struct Admission<'a> {
    user: &'a User,
    tags: Vec<String>,
    ephemeral: bool,
    spend: Option<AuthKeyId>,
}

/// How an auth key fared.
enum KeyOutcome {
    Valid(AuthKey, User),
    Refused(String),
}

impl Control {
    /// Answers a registration of `machine`, which the Noise handshake authenticated.
    ///
    /// # Errors
    ///
    /// See [`RegisterRefusal`]; a wrong auth key is an answer, not an error.
    pub async fn register(
        self: &Arc<Self>,
        machine: MachinePublic,
        request: RegisterRequest,
    ) -> Result<RegisterResponse, RegisterRefusal> {
        if request.node_key.is_zero() {
            return Err(RegisterRefusal::NoNodeKey);
        }
        let known = self.engine.node_by_key(&request.node_key);
        if known.as_ref().is_some_and(|node| node.machine != machine) {
            return Err(RegisterRefusal::ForeignKey);
        }
        let control = Arc::clone(self);
        if known.is_none()
            && wanted_expiry(&request).is_none_or(|at| at > now())
            && !request.followup.is_empty()
        {
            // It may wait for long, and changes nothing.
            return Ok(self.follow_up(machine, request).await?);
        }
        complete(async move { control.let_in(machine, known, request).await }).await
    }

    /// Answers a registration that may change something.
    async fn let_in(
        self: &Arc<Self>,
        machine: MachinePublic,
        known: Option<Node>,
        request: RegisterRequest,
    ) -> Result<RegisterResponse, RegisterRefusal> {
        let wanted_expiry = wanted_expiry(&request);
        if wanted_expiry.is_some_and(|at| at <= now()) {
            return Ok(self.log_out(known).await?);
        }
        if let Some(node) = known {
            return Ok(self.register_known(node, request, wanted_expiry).await?);
        }
        match auth_key(&request) {
            Some(secret) => match self.try_auth_key(secret).await? {
                KeyOutcome::Valid(key, user) => {
                    Ok(self.admit_key(machine, &request, &key, &user).await?)
                }
                KeyOutcome::Refused(reason) => Ok(refused(reason)),
            },
            None => Ok(self.start_login(machine, request)),
        }
    }

    /// An expiry in the past is a logout.
    async fn log_out(&self, known: Option<Node>) -> Result<RegisterResponse, ServiceError> {
        let Some(node) = known else {
            return Ok(RegisterResponse::default());
        };
        tracing::info!(node = %node.name, "logged out");
        if node.ephemeral {
            self.remove_node(node.id).await?;
        } else if !node.is_expired(now()) {
            self.change_node(node.id, None, |node| {
                node.expires = Some(now());
                Ok(())
            })
            .await?;
            self.key_gone(node.key);
        }
        Ok(RegisterResponse {
            node_key_expired: true,
            ..RegisterResponse::default()
        })
    }

    /// A restart of a node that is in, or one whose key has expired.
    async fn register_known(
        &self,
        node: Node,
        request: RegisterRequest,
        wanted_expiry: Option<OffsetDateTime>,
    ) -> Result<RegisterResponse, ServiceError> {
        if node.is_expired(now()) {
            return self.renew(node, &request).await;
        }
        let report = Report {
            capver: request.version.0,
            hostinfo: request.hostinfo,
            ..Report::default()
        };
        self.take_report(&node, report).await?;
        // A nearer end than the stored one is a wish to expire sooner; a later one is not granted.
        let sooner = wanted_expiry.filter(|at| node.expires.is_some_and(|stored| *at < stored));
        if let Some(at) = sooner {
            self.change_node(node.id, None, |node| {
                node.expires = Some(at);
                Ok(())
            })
            .await?;
        }
        Ok(self.success(&node))
    }

    /// An expired key lives on if a valid auth key of the same owner vouches for it.
    async fn renew(
        &self,
        node: Node,
        request: &RegisterRequest,
    ) -> Result<RegisterResponse, ServiceError> {
        let expired = || RegisterResponse {
            node_key_expired: true,
            ..RegisterResponse::default()
        };
        let Some(secret) = auth_key(request) else {
            return Ok(expired());
        };
        let KeyOutcome::Valid(key, user) = self.try_auth_key(secret).await? else {
            return Ok(expired());
        };
        let mut is_owners = true;
        let renewing = self.change_node(node.id, Some(key.id), |node| {
            let admission = self.admission_by_key(request, &key, &user)?;
            is_owners = admission.owns(node);
            if !is_owners {
                return Err(ServiceError::Denied(
                    "the key is of another owner".to_owned(),
                ));
            }
            node.expires = self.expiry(&admission, wanted_expiry(request));
            node.tags = admission.tags;
            node.approved_routes.extend(self.approved_now(node));
            Ok(())
        });
        match self.answered(renewing.await) {
            // Another owner is another node, with a node key of its own.
            Ok(_) if !is_owners => Ok(expired()),
            answer => answer,
        }
    }

    /// Holds the request until its login is approved, or answers with the URL to go to.
    async fn follow_up(
        self: &Arc<Self>,
        machine: MachinePublic,
        request: RegisterRequest,
    ) -> Result<RegisterResponse, ServiceError> {
        let code = request.followup.rsplit('/').next().unwrap_or_default();
        let login = self
            .logins
            .get(code)
            .filter(|login| login.machine == machine && login.request.node_key == request.node_key);
        let Some(login) = login else {
            return Ok(self.start_login(machine, request));
        };
        // It is kept while the login waits, which may be long.
        let request = match self.wanted_tags(&request) {
            Ok(tags) => essentials(request, tags),
            Err(reason) => return Ok(refused(reason)),
        };
        if login.wait(self.settings.followup_hold).await
            && let Some(node) = self.engine.node_by_key(&request.node_key)
        {
            return Ok(self.success(&node));
        }
        Ok(if login.is_over() {
            self.start_login(machine, request)
        } else {
            self.login_at(&login)
        })
    }

    fn start_login(&self, machine: MachinePublic, request: RegisterRequest) -> RegisterResponse {
        let request = match self.wanted_tags(&request) {
            Ok(tags) => essentials(request, tags),
            Err(reason) => return refused(reason),
        };
        match self.logins.start(machine, request) {
            Ok(login) => {
                tracing::info!(code = %login.code, "a machine waits for approval");
                self.login_at(&login)
            }
            Err(error) => refused(error.to_string()),
        }
    }

    fn login_at(&self, login: &Login) -> RegisterResponse {
        RegisterResponse {
            auth_url: format!("{}/register/{}", self.settings.server_url, login.code),
            ..RegisterResponse::default()
        }
    }

    /// Lets in the machine that waits, on an administrator's word; the tags that it asks for must
    /// be the user's to give.
    pub(super) async fn admit_login(
        &self,
        login: &Login,
        user: &User,
    ) -> Result<Node, ServiceError> {
        let request = &login.request;
        let admission = || {
            let tags = self.wanted_tags(request);
            let tags = tags.and_then(|tags| self.may_tag(user, &tags).map(|()| tags));
            Ok(Admission {
                user,
                tags: tags.map_err(ServiceError::Conflict)?,
                ephemeral: request.ephemeral,
                spend: None,
            })
        };
        self.admit(login.machine, request, admission).await
    }

    async fn admit_key(
        &self,
        machine: MachinePublic,
        request: &RegisterRequest,
        key: &AuthKey,
        user: &User,
    ) -> Result<RegisterResponse, ServiceError> {
        let admission = || self.admission_by_key(request, key, user);
        self.answered(self.admit(machine, request, admission).await)
    }

    /// That a key does not admit a node is an answer, too.
    fn answered(
        &self,
        admitted: Result<Node, ServiceError>,
    ) -> Result<RegisterResponse, ServiceError> {
        match admitted {
            Ok(node) => Ok(self.success(&node)),
            Err(ServiceError::Denied(reason)) => Ok(refused(reason)),
            Err(ServiceError::Store(StoreError::Refused(reason))) => {
                Ok(refused(reason.to_string()))
            }
            Err(error) => Err(error),
        }
    }

    /// A key that carries tags decides them; with another, a node may ask for tags that the key's
    /// user may give.
    fn admission_by_key<'a>(
        &self,
        request: &RegisterRequest,
        key: &AuthKey,
        user: &'a User,
    ) -> Result<Admission<'a>, ServiceError> {
        let tags = if key.tags.is_empty() {
            let tags = self.wanted_tags(request);
            let tags = tags.and_then(|tags| self.may_tag(user, &tags).map(|()| tags));
            tags.map_err(ServiceError::Denied)?
        } else if let Some(unknown) = self.unknown_tag(&key.tags) {
            return Err(ServiceError::Denied(format!(
                "the auth key carries {unknown}, which the policy does not know (any more): add it \
                 to tagOwners, or use another key"
            )));
        } else {
            key.tags.clone()
        };
        Ok(Admission {
            user,
            tags,
            ephemeral: key.ephemeral,
            spend: Some(key.id),
        })
    }

    /// Adds the node, or gives the owner's node on that machine its new key, if the policy in force
    /// when its turn has come lets `admission` be.
    async fn admit<'a>(
        &self,
        machine: MachinePublic,
        request: &RegisterRequest,
        admission: impl FnOnce() -> Result<Admission<'a>, ServiceError>,
    ) -> Result<Node, ServiceError> {
        let mut writer = self.writer().await;
        // A repetition of the same request may have come first.
        if let Some(node) = self.engine.node_by_key(&request.node_key) {
            if node.machine != machine {
                return Err(ServiceError::Conflict("the node key is taken".to_owned()));
            }
            return Ok(node);
        }
        let admission = &admission()?;
        let now = now();
        let hostinfo = request.hostinfo.clone().unwrap_or_default();
        let expires = self.expiry(admission, wanted_expiry(request));
        if let Some(old) = self.predecessor(machine, &request.old_node_key, admission) {
            let old_key = old.key;
            let mut node = Node {
                key: request.node_key,
                user: admission.user.id,
                tags: admission.tags.clone(),
                ephemeral: admission.ephemeral,
                expires,
                ..old
            };
            node.approved_routes.extend(self.approved_now(&node));
            let committed = self.store.update_node(&node, admission.spend, now).await?;
            self.engine.put_node(committed.number, node.clone(), now);
            self.key_gone(old_key);
            tracing::info!(node = %node.name, "logged in again with a new key");
            self.metrics.rekeyed.inc();
            return Ok(node);
        }

        let (names, addresses) = self.engine.taken();
        let pair = self.next_addresses(&mut writer, admission, &addresses)?;
        let mut node = Node {
            id: NodeId::default(),
            stable_id: format!("n{}", random_text(16)),
            user: admission.user.id,
            machine,
            key: request.node_key,
            disco: None,
            name: names::unique(&names::label(&hostinfo.hostname), |name| {
                names.contains(name)
            }),
            renamed: false,
            addresses: pair,
            tags: admission.tags.clone(),
            approved_routes: BTreeSet::new(),
            ephemeral: admission.ephemeral,
            capver: request.version.0,
            home_derp: home_derp(&hostinfo).unwrap_or_default(),
            hostinfo,
            endpoints: Vec::new(),
            created: now,
            expires,
            last_seen: None,
        };
        node.approved_routes.extend(self.approved_now(&node));
        let committed = self
            .store
            .insert_node(&node, writer.address_cursor, admission.spend, now)
            .await?;
        node.id = committed.value;
        self.engine.put_node(committed.number, node.clone(), now);
        tracing::info!(node = %node.name, address = %node.addresses.v4, "joined");
        self.metrics.joined.inc();
        Ok(node)
    }

    /// Addresses for a new node: from the pools that the policy has for it, if it has any.
    fn next_addresses(
        &self,
        writer: &mut Writer,
        admission: &Admission<'_>,
        taken: &BTreeSet<Ipv4Addr>,
    ) -> Result<Addresses, ServiceError> {
        let owner = owner(admission.user.id, &admission.tags);
        let pools = self.engine.with_network(|network| network.ip_pools(&owner));
        let taken = |v4| taken.contains(&v4);
        if pools.is_empty() {
            let next = Addresses::next(writer.address_cursor, taken);
            let (pair, cursor) = next.ok_or_else(|| {
                ServiceError::Conflict("all overlay addresses are taken: delete nodes".to_owned())
            })?;
            writer.address_cursor = cursor;
            return Ok(pair);
        }
        let next = Addresses::next_in(&pools, writer.pool_cursor, taken);
        let (pair, cursor) = next.ok_or_else(|| {
            ServiceError::Conflict(
                "all addresses of the policy's ipPool for this node are taken: delete nodes, or \
                 give it another prefix"
                    .to_owned(),
            )
        })?;
        writer.pool_cursor = cursor;
        Ok(pair)
    }

    /// The node that a new key replaces: the owner's on that machine, the named one first.
    fn predecessor(
        &self,
        machine: MachinePublic,
        old_key: &NodePublic,
        admission: &Admission<'_>,
    ) -> Option<Node> {
        let mut candidates = self.engine.nodes_of_machine(&machine);
        candidates.retain(|node| admission.owns(node));
        let named = candidates.iter().position(|node| node.key == *old_key);
        match named {
            Some(index) => Some(candidates.swap_remove(index)),
            None => candidates.into_iter().next(),
        }
    }

    async fn try_auth_key(&self, secret: &str) -> Result<KeyOutcome, ServiceError> {
        let key = match self.check_auth_key(secret).await {
            Ok(key) => key,
            Err(StoreError::Refused(reason)) => {
                self.metrics.keys_refused.inc();
                tracing::info!(%reason, "auth key refused");
                return Ok(KeyOutcome::Refused(reason.to_string()));
            }
            Err(error) => return Err(error.into()),
        };
        match self.engine.user(key.user) {
            Some(user) => Ok(KeyOutcome::Valid(key, user)),
            None => Ok(KeyOutcome::Refused(
                "the user of this auth key was deleted".to_owned(),
            )),
        }
    }

    /// Nodes with tags do not expire; others after the default, or sooner if they wish.
    fn expiry(
        &self,
        admission: &Admission<'_>,
        wanted: Option<OffsetDateTime>,
    ) -> Option<OffsetDateTime> {
        if !admission.tags.is_empty() {
            return None;
        }
        let latest = now() + self.settings.key_expiry;
        Some(wanted.map_or(latest, |wanted| wanted.min(latest)))
    }

    fn success(&self, node: &Node) -> RegisterResponse {
        let (id, login, display) = match self.engine.user(node.user).filter(|_| !node.is_tagged()) {
            Some(user) => (
                user.id,
                login_name(self.engine.settings(), &user),
                user.name,
            ),
            None => (
                TAGGED_DEVICES,
                "tagged-devices".to_owned(),
                "Tagged Devices".to_owned(),
            ),
        };
        RegisterResponse {
            user: WireUser {
                id,
                display_name: display.clone(),
                ..WireUser::default()
            },
            login: WireLogin {
                id: user_number(id),
                provider: "tailrace".to_owned(),
                login_name: login,
                display_name: display,
                ..WireLogin::default()
            },
            machine_authorized: true,
            ..RegisterResponse::default()
        }
    }
}

impl Admission<'_> {
    /// Would a node that is admitted like this be the same as `node`?
    fn owns(&self, node: &Node) -> bool {
        if self.tags.is_empty() {
            !node.is_tagged() && node.user == self.user.id
        } else {
            node.is_tagged()
        }
    }
}

fn user_number(id: UserId) -> i64 {
    id.0
}

fn auth_key(request: &RegisterRequest) -> Option<&str> {
    let auth = request.auth.as_ref()?;
    Some(auth.auth_key.as_str()).filter(|key| !key.is_empty())
}

/// The expiry that a request asks for; Go's zero time leaves it to the server.
fn wanted_expiry(request: &RegisterRequest) -> Option<OffsetDateTime> {
    let wanted = request.expiry;
    (!wanted.is_zero())
        .then(|| OffsetDateTime::from_unix_timestamp(wanted.unix_seconds()).ok())
        .flatten()
}

/// What an approval needs of a request; anybody can make the server remember this.
fn essentials(request: RegisterRequest, tags: Vec<String>) -> RegisterRequest {
    let hostinfo = request.hostinfo.unwrap_or_default();
    let hostinfo = Hostinfo {
        hostname: hostinfo.hostname.chars().take(255).collect(),
        os: hostinfo.os.chars().take(64).collect(),
        // All known to the policy, each once.
        request_tags: tags,
        ..Hostinfo::default()
    };
    RegisterRequest {
        version: request.version,
        node_key: request.node_key,
        old_node_key: request.old_node_key,
        expiry: request.expiry,
        ephemeral: request.ephemeral,
        hostinfo: Some(hostinfo),
        ..RegisterRequest::default()
    }
}

fn refused(reason: String) -> RegisterResponse {
    RegisterResponse {
        error: reason,
        ..RegisterResponse::default()
    }
}
