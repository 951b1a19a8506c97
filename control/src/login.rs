//! Logins that wait for an administrator: bounded, since anybody can start one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use control_proto::tailcfg::RegisterRequest;
use keys::MachinePublic;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::service::random_text;

/// Logins that may wait at once.
const MAX_WAITING: usize = 4096;
/// Characters of a code: 128 bits.
const CODE_LEN: usize = 26;

/// A machine that waits to be let in.
#[derive(Debug)]
pub struct Login {
    /// What the administrator is given.
    pub code: String,
    /// Who waits; nobody else may use the code.
    pub machine: MachinePublic,
    /// What it asked for.
    pub request: RegisterRequest,
    deadline: Instant,
    approved: watch::Sender<bool>,
}

impl Login {
    /// Waits for the approval, at most until `hold` is over. Was it given?
    pub async fn wait(&self, hold: Duration) -> bool {
        let deadline = self.deadline.min(Instant::now() + hold);
        let mut approved = self.approved.subscribe();
        let waited = tokio::time::timeout_at(deadline, approved.wait_for(|yes| *yes)).await;
        matches!(waited, Ok(Ok(_)))
    }

    /// Has it waited too long?
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.deadline <= Instant::now()
    }
}

/// All logins that wait.
#[derive(Debug)]
pub struct Logins {
    timeout: Duration,
    waiting: Mutex<HashMap<String, Arc<Login>>>,
}

/// Too many wait already.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("too many logins wait for approval; try again in a few minutes, or use an auth key")]
pub struct TooManyLogins;

impl Logins {
    /// Each login waits for at most `timeout`.
    #[must_use]
    pub fn new(timeout: Duration) -> Self {
        Self {
            timeout,
            waiting: Mutex::default(),
        }
    }

    /// Starts a login, or returns the one that this machine started for the same node key.
    ///
    /// # Errors
    ///
    /// Too many wait.
    pub fn start(
        &self,
        machine: MachinePublic,
        request: RegisterRequest,
    ) -> Result<Arc<Login>, TooManyLogins> {
        let mut waiting = self.waiting();
        waiting.retain(|_, login| !login.is_over());
        let same = |login: &&Arc<Login>| {
            login.machine == machine && login.request.node_key == request.node_key
        };
        if let Some(login) = waiting.values().find(same) {
            return Ok(Arc::clone(login));
        }
        if waiting.len() >= MAX_WAITING {
            return Err(TooManyLogins);
        }
        let login = Arc::new(Login {
            code: random_text(CODE_LEN),
            machine,
            request,
            deadline: Instant::now() + self.timeout,
            approved: watch::Sender::new(false),
        });
        waiting.insert(login.code.clone(), Arc::clone(&login));
        Ok(login)
    }

    /// The login with this code, unless it timed out.
    #[must_use]
    pub fn get(&self, code: &str) -> Option<Arc<Login>> {
        self.waiting()
            .get(code)
            .filter(|login| !login.is_over())
            .cloned()
    }

    /// Takes an approved login off the list and wakes those who wait for it. `false` if somebody
    /// else did before.
    pub fn finish(&self, login: &Login) -> bool {
        let waited = self.waiting().remove(&login.code).is_some();
        login.approved.send_replace(true);
        waited
    }

    /// All that wait, for lists.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<Login>> {
        let mut list: Vec<_> = self
            .waiting()
            .values()
            .filter(|login| !login.is_over())
            .cloned()
            .collect();
        list.sort_by_key(|login| login.deadline);
        list
    }

    /// Forgets what timed out.
    pub fn sweep(&self) {
        self.waiting().retain(|_, login| !login.is_over());
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<String, Arc<Login>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
