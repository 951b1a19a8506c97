//! From facts to the state that people and tools see. Pure.

use crate::localapi::BackendState;

/// What the state depends on.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Facts {
    /// The overlay should be up.
    pub(super) want_running: bool,
    /// The operator logged out.
    pub(super) logged_out: bool,
    /// A server is known.
    pub(super) has_server: bool,
    /// A network map is known, fresh or cached.
    pub(super) has_map: bool,
    /// The own node key expired.
    pub(super) expired: bool,
    /// The administrator approved this device.
    pub(super) machine_authorized: bool,
    /// The server asked for a person, or refused.
    pub(super) needs_person: bool,
    /// The operator asked for a login that is not over.
    pub(super) login_under_way: bool,
    /// The device is configured as the map says.
    pub(super) tunnel_up: bool,
    /// A relay is connected, or there is none to connect to.
    pub(super) relay_ready: bool,
}

/// How far the node is.
pub(super) fn backend_state(facts: Facts) -> BackendState {
    if facts.logged_out || !facts.has_server {
        BackendState::NeedsLogin
    } else if !facts.want_running {
        if facts.has_map {
            BackendState::Stopped
        } else {
            BackendState::NeedsLogin
        }
    } else if facts.needs_person && (facts.login_under_way || !facts.has_map) {
        BackendState::NeedsLogin
    } else if facts.login_under_way || !facts.has_map {
        BackendState::Starting
    } else if facts.expired {
        BackendState::NeedsLogin
    } else if !facts.machine_authorized {
        BackendState::NeedsMachineAuth
    } else if facts.tunnel_up && facts.relay_ready {
        BackendState::Running
    } else {
        BackendState::Starting
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UP: Facts = Facts {
        want_running: true,
        logged_out: false,
        has_server: true,
        has_map: true,
        expired: false,
        machine_authorized: true,
        needs_person: false,
        login_under_way: false,
        tunnel_up: true,
        relay_ready: true,
    };

    #[test]
    fn each_missing_piece_has_its_state() {
        use BackendState::{NeedsLogin, NeedsMachineAuth, Running, Starting, Stopped};
        for (facts, state) in [
            (UP, Running),
            (
                Facts {
                    tunnel_up: false,
                    ..UP
                },
                Starting,
            ),
            (
                Facts {
                    relay_ready: false,
                    ..UP
                },
                Starting,
            ),
            (
                Facts {
                    machine_authorized: false,
                    ..UP
                },
                NeedsMachineAuth,
            ),
            (
                Facts {
                    expired: true,
                    ..UP
                },
                NeedsLogin,
            ),
            (
                Facts {
                    has_map: false,
                    ..UP
                },
                Starting,
            ),
            (
                Facts {
                    has_map: false,
                    needs_person: true,
                    ..UP
                },
                NeedsLogin,
            ),
            (
                Facts {
                    want_running: false,
                    ..UP
                },
                Stopped,
            ),
            (
                Facts {
                    want_running: false,
                    has_map: false,
                    ..UP
                },
                NeedsLogin,
            ),
            (
                Facts {
                    logged_out: true,
                    ..UP
                },
                NeedsLogin,
            ),
            (
                Facts {
                    has_server: false,
                    ..UP
                },
                NeedsLogin,
            ),
        ] {
            assert_eq!(backend_state(facts), state, "{facts:?}");
        }
    }

    #[test]
    fn a_login_that_was_asked_for_is_not_hidden_by_the_old_key_still_working() {
        let renewing = Facts {
            login_under_way: true,
            ..UP
        };
        assert_eq!(backend_state(renewing), BackendState::Starting);
        let waiting = Facts {
            needs_person: true,
            ..renewing
        };
        assert_eq!(backend_state(waiting), BackendState::NeedsLogin);
    }
}
