//! The policy: who may reach what, as administrators set it.
//!
//! A policy is accepted if the whole file is in order and its tests pass for the tailnet as it is.
//! It is stored as a new version before it is in force; what it approves is stored with it.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, MutexGuard, PoisonError};

use ipnet::IpNet;
use policy::check::{AskError, Difference, Explanation};
use policy::diagnostic::{Diagnostic, Diagnostics};
use policy::file::Context;
use policy::{Network, Policy, check};
use time::OffsetDateTime;

use super::work::off_thread;
use super::{Control, ServiceError, now};
use crate::engine::{Prepared, login_name};
use crate::model::{ChangeNumber, NodeId};
use crate::policy_file::ReadError;
use crate::store::{NewPolicy, PolicyEntry, StoreError, StoredPolicy};

/// A policy that somebody wrote.
#[derive(Clone, Debug)]
pub struct Draft {
    /// What diagnostics call the file.
    pub name: String,
    /// The file.
    pub text: String,
}

/// A draft that is in order.
#[derive(Clone, Debug)]
pub struct Accepted {
    /// Entries of `acls` and `grants`; `None`: neither is there, all is allowed.
    pub rules: Option<usize>,
    /// Tests in it that passed.
    pub tests: usize,
    /// What may surprise its author; `None` = nothing.
    pub warnings: Option<Diagnostics>,
}

/// How the tests of a policy went.
#[derive(Clone, Debug)]
pub struct TestReport {
    /// Entries of `tests` and `sshTests`.
    pub tests: usize,
    /// What failed; `None` = nothing.
    pub failures: Option<Diagnostics>,
}

/// A policy that is in force now.
#[derive(Clone, Debug)]
pub struct Adopted {
    /// Its number.
    pub version: i64,
    /// It was in force before, word for word: nothing was stored.
    pub unchanged: bool,
    /// What it says.
    pub accepted: Accepted,
    /// Who gains and who loses access by it.
    pub difference: Difference,
    /// Routes that it approved.
    pub routes: Vec<(NodeId, IpNet)>,
}

/// The policy in force, and how it stands.
#[derive(Clone, Debug, Default)]
pub struct Standing {
    /// The version; `None`: none was ever set, and every node may reach every node.
    pub version: Option<Version>,
    /// What may surprise its author.
    pub warnings: Option<Diagnostics>,
    /// Why the file of `--policy` is not what is in force.
    pub failure: Option<Failure>,
}

/// Which version is in force, who set it and when.
#[derive(Clone, Debug)]
pub struct Version {
    /// From 1.
    pub number: i64,
    /// A user of the server's host, or a file.
    pub author: String,
    /// When it was set.
    pub created: OffsetDateTime,
}

/// A policy file that could not be put in force.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Since when.
    pub since: OffsetDateTime,
    /// In one line.
    pub reason: String,
    /// With excerpts, if the file could be read.
    pub diagnostics: Option<Diagnostics>,
}

/// A draft, and the tailnet as it would be under it.
struct Candidate {
    network: Network,
    warnings: Option<Diagnostics>,
    failures: Option<Diagnostics>,
}

impl Candidate {
    /// Reads a draft for a tailnet, and runs its tests.
    fn new(draft: Draft, context: &Context, mut network: Network) -> Result<Self, Diagnostics> {
        let parsed = Policy::parse(&draft.name, &draft.text, context)?;
        let policy = Arc::new(parsed.policy);
        network.set_policy(Arc::clone(&policy));
        let listed = |list: Vec<Diagnostic>| {
            let some = !list.is_empty();
            some.then(|| Diagnostics::new(&draft.name, Arc::clone(&policy.text), list))
        };
        Ok(Self {
            warnings: listed(parsed.warnings),
            failures: listed(check::run_tests(&network)),
            network,
        })
    }

    fn policy(&self) -> &Arc<Policy> {
        self.network.policy()
    }

    fn tests(&self) -> usize {
        self.policy().tests.len() + self.policy().ssh_tests.len()
    }

    /// Its tests must have passed.
    fn accepted(&self) -> Result<Accepted, ServiceError> {
        match &self.failures {
            Some(failures) => Err(failures.clone().into()),
            None => Ok(Accepted {
                rules: self.policy().rules.as_ref().map(Vec::len),
                tests: self.tests(),
                warnings: self.warnings.clone(),
            }),
        }
    }
}

impl Control {
    /// How the policy in force stands.
    #[must_use]
    pub fn policy_standing(&self) -> Standing {
        self.standing().clone()
    }

    /// The versions of the policy that are kept, newest first; the first is in force.
    ///
    /// # Errors
    ///
    /// What the database says.
    pub async fn policies(&self) -> Result<Vec<PolicyEntry>, ServiceError> {
        Ok(self.store.policies().await?)
    }

    /// A version of the policy with its text, if it is kept; `None` = the one in force.
    ///
    /// # Errors
    ///
    /// What the database says.
    pub async fn policy_version(
        &self,
        version: Option<i64>,
    ) -> Result<Option<StoredPolicy>, ServiceError> {
        Ok(self.store.policy(version).await?)
    }

    /// Reads a draft and runs its tests; changes nothing.
    ///
    /// # Errors
    ///
    /// [`ServiceError::Policy`] with all that is wrong with it.
    pub async fn check_policy(&self, draft: Draft) -> Result<Accepted, ServiceError> {
        self.candidate(draft).await?.accepted()
    }

    /// Runs the tests of a draft, or of the policy in force.
    ///
    /// # Errors
    ///
    /// The draft cannot be read.
    pub async fn test_policy(&self, draft: Option<Draft>) -> Result<TestReport, ServiceError> {
        if let Some(draft) = draft {
            let candidate = self.candidate(draft).await?;
            return Ok(TestReport {
                tests: candidate.tests(),
                failures: candidate.failures,
            });
        }
        let network = self.engine.with_network(Network::clone);
        let policy = Arc::clone(network.policy());
        let testing = move || check::run_tests(&network);
        let failures = self.long_questions.run(testing).await;
        let listed = || Diagnostics::new("policy", Arc::clone(&policy.text), failures.clone());
        Ok(TestReport {
            tests: policy.tests.len() + policy.ssh_tests.len(),
            failures: (!failures.is_empty()).then(listed),
        })
    }

    /// What a draft would change; its tests need not pass.
    ///
    /// # Errors
    ///
    /// The draft cannot be read.
    pub async fn diff_policy(&self, draft: Draft) -> Result<Difference, ServiceError> {
        let candidate = self.candidate(draft).await?;
        let before = self.engine.with_network(Network::clone);
        let comparing = move || check::diff(&before, &candidate.network);
        Ok(self.long_questions.run(comparing).await)
    }

    /// Why a source may reach a destination, or why not.
    ///
    /// # Errors
    ///
    /// They name nobody.
    pub async fn why(&self, source: &str, destination: &str) -> Result<Explanation, ServiceError> {
        let network = self.engine.with_network(Network::clone);
        let (source, destination) = (source.to_owned(), destination.to_owned());
        let asking = move || check::why(&network, &source, &destination);
        let answer = self.long_questions.run(asking).await;
        answer.map_err(|error: AskError| ServiceError::Invalid(error.to_string()))
    }

    /// Puts a draft in force, if it is in order. With `replaces`, only in place of that version
    /// (0 = of none).
    ///
    /// # Errors
    ///
    /// All that is wrong with it; another version is in force; the policy comes from a file.
    pub async fn set_policy(
        &self,
        draft: Draft,
        author: &str,
        replaces: Option<i64>,
    ) -> Result<Adopted, ServiceError> {
        if let Some(file) = &self.settings.policy_file {
            return Err(ServiceError::Conflict(format!(
                "the policy comes from the file {} (serve --policy): change that file, the server \
                 reads it again by itself",
                file.display()
            )));
        }
        let before = self.engine.with_network(Network::clone);
        let (mut adopted, after) = self.adopt(draft, author, replaces).await?;
        if !adopted.unchanged {
            let comparing = move || check::diff(&before, &after);
            adopted.difference = self.long_questions.run(comparing).await;
        }
        Ok(adopted)
    }

    /// Puts what is in the policy file in force. If that cannot be, the policy in force stays, and
    /// status, health and log say so.
    pub async fn reload_policy(&self, path: &Path, read: Result<String, ReadError>) {
        let name = path.display().to_string();
        if let Ok(text) = &read
            && self.in_force(text, None).is_some()
        {
            // Its tests passed when it was accepted; what has changed in the tailnet since is no
            // fault of the file.
            self.metrics.policy_stale.set(0);
            if self.standing().failure.take().is_some() {
                tracing::info!(file = %name, "the policy file is what is in force again");
            }
            return;
        }
        let outcome = match read {
            Ok(text) => {
                let draft = Draft {
                    name: name.clone(),
                    text,
                };
                self.adopt(draft, &name, None).await
            }
            Err(error) => Err(ServiceError::Invalid(error.to_string())),
        };
        match outcome {
            Ok(_) => {
                self.standing().failure = None;
                self.metrics.policy_stale.set(0);
            }
            Err(error) => self.reload_failed(&name, error),
        }
    }

    fn reload_failed(&self, name: &str, error: ServiceError) {
        let reason = error.to_string();
        let (excerpts, diagnostics) = match error {
            ServiceError::Policy(list) => (list.render(), Some(*list)),
            _ => (String::new(), None),
        };
        if !self.has_failed_so(&reason, &excerpts) {
            tracing::error!(file = %name, "{excerpts}{reason}; the policy in force stays");
            self.metrics.policy_reload_failures.inc();
        }
        self.metrics.policy_stale.set(1);
        let mut standing = self.standing();
        let since = standing.failure.as_ref().map_or_else(now, |it| it.since);
        standing.failure = Some(Failure {
            since,
            reason,
            diagnostics,
        });
    }

    /// Is this how the policy file failed the last time? It is tried again and again.
    fn has_failed_so(&self, reason: &str, excerpts: &str) -> bool {
        let standing = self.standing();
        standing.failure.as_ref().is_some_and(|last| {
            let rendered = last.diagnostics.as_ref().map(Diagnostics::render);
            last.reason == reason && rendered.unwrap_or_default() == excerpts
        })
    }

    /// Puts the policy that the database holds in force, as it was accepted: its tests are not run
    /// again, since the tailnet may have changed since.
    pub(super) async fn restore_policy(&self, stored: StoredPolicy) -> Result<(), Diagnostics> {
        let mut context = self.policy_context();
        context.domains.extend(stored.context.domains);
        context.known_groups.extend(stored.context.known_groups);
        let name = format!("policy version {}", stored.version);
        let parsed = Policy::parse(&name, &stored.text, &context)?;
        let policy = Arc::new(parsed.policy);
        let warnings = (!parsed.warnings.is_empty())
            .then(|| Diagnostics::new(&name, Arc::clone(&policy.text), parsed.warnings));
        let prepared = self.prepare(policy).await;
        self.enforce(self.engine.counts().number, prepared).await;
        self.metrics.policy_version.set(stored.version);
        *self.standing() = Standing {
            version: Some(Version {
                number: stored.version,
                author: stored.author,
                created: stored.created,
            }),
            warnings,
            failure: None,
        };
        Ok(())
    }

    /// Checks a draft, stores it with what it approves, and puts it in force.
    pub(super) async fn adopt(
        &self,
        draft: Draft,
        author: &str,
        replaces: Option<i64>,
    ) -> Result<(Adopted, Network), ServiceError> {
        let context = self.policy_context();
        let text = draft.text.clone();
        let candidate = self.candidate(draft).await?;
        let accepted = candidate.accepted()?;
        let _writer = self.writer().await;
        if let Some(current) = self.in_force(&text, replaces) {
            let adopted = Adopted {
                version: current,
                unchanged: true,
                accepted,
                difference: Difference::default(),
                routes: Vec::new(),
            };
            return Ok((adopted, candidate.network));
        }
        // Nodes and users change only by those who have the writer; what routers offer from here on
        // is judged when this one has it no more, so by the new policy.
        let prepared = self.prepare(Arc::clone(candidate.policy())).await;
        let approved = self.newly_approved(prepared.network());
        let new = NewPolicy {
            text,
            context,
            author: author.to_owned(),
            created: now(),
            replaces,
            approvals: approved
                .iter()
                .map(|(node, _)| (node.id, node.approved_routes.clone()))
                .collect(),
        };
        let committed = self.store.set_policy(&new).await?;
        let stored = committed.value;
        self.enforce(committed.number, prepared).await;
        let mut routes = Vec::new();
        for (node, new) in approved {
            routes.extend(new.into_iter().map(|route| (node.id, route)));
            self.engine.put_node(committed.number, node, now());
        }
        tracing::info!(version = stored.version, %author, "new policy in force");
        self.metrics.policy_version.set(stored.version);
        let mut standing = self.standing();
        standing.version = Some(Version {
            number: stored.version,
            author: stored.author,
            created: stored.created,
        });
        standing.warnings.clone_from(&accepted.warnings);
        let adopted = Adopted {
            version: stored.version,
            unchanged: false,
            accepted,
            difference: Difference::default(),
            routes,
        };
        Ok((adopted, candidate.network))
    }

    /// Is this text in force, under the version that the caller expects, if any? Which version is it?
    fn in_force(&self, text: &str, replaces: Option<i64>) -> Option<i64> {
        let current = self.standing().version.as_ref()?.number;
        let same = *self.engine.policy().text == *text;
        (same && replaces.is_none_or(|expected| expected == current)).then_some(current)
    }

    async fn prepare(&self, policy: Arc<Policy>) -> Prepared {
        let engine = Arc::clone(&self.engine);
        off_thread(move || engine.prepare_policy(policy)).await
    }

    async fn enforce(&self, number: ChangeNumber, prepared: Prepared) {
        let engine = Arc::clone(&self.engine);
        off_thread(move || engine.put_policy(number, prepared)).await;
    }

    async fn candidate(&self, draft: Draft) -> Result<Candidate, ServiceError> {
        let context = self.policy_context();
        let network = self.engine.with_network(Network::clone);
        let reading = move || Candidate::new(draft, &context, network);
        Ok(self.long_questions.run(reading).await?)
    }

    /// What the server knows of domains and groups.
    fn policy_context(&self) -> Context {
        let settings = self.engine.settings();
        let users = self.engine.users();
        let logins = users.iter().map(|user| login_name(settings, user));
        let own = settings.base_domain().to_owned();
        let mut others: BTreeSet<String> = logins
            .filter_map(|login| Some(login.rsplit_once('@')?.1.to_owned()))
            .collect();
        others.remove(&own);
        let groups: BTreeSet<String> = users.into_iter().flat_map(|user| user.groups).collect();
        Context {
            domains: std::iter::once(own).chain(others).collect(),
            known_groups: groups.into_iter().collect(),
            // See `Control::ssh_action`.
            ssh_check: false,
        }
    }

    fn standing(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl From<Diagnostics> for ServiceError {
    fn from(diagnostics: Diagnostics) -> Self {
        Self::Policy(Box::new(diagnostics))
    }
}

impl From<StoreError> for ServiceError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Superseded { .. } => Self::Conflict(error.to_string()),
            other => Self::Store(other),
        }
    }
}
