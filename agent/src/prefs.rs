//! What the operator wants of this node: [`Prefs`], with the field names of the upstream local API.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The one risk that can be accepted so far: a filter that this version cannot enforce.
pub const RISK_NO_FILTER: &str = "no-filter";
/// Longest host name that the coordination server is asked for.
const MAX_HOSTNAME_LEN: usize = 253;

/// Preferences, stored in the state folder.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Prefs {
    /// URL of the coordination server; empty until the first `up`.
    #[serde(rename = "ControlURL")]
    pub control_url: String,
    /// The overlay should be up.
    pub want_running: bool,
    /// The operator logged out; only a new login brings the node back.
    pub logged_out: bool,
    /// Name to ask for; empty means the host's own.
    pub hostname: String,
    /// User who may change preferences beside root.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub operator_user: String,
    /// Risks the operator accepted by name (ours; upstream has no such field).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub accepted_risks: Vec<String>,
}

/// Why a change of preferences is refused.
#[derive(Debug, thiserror::Error)]
pub enum PrefsError {
    /// Not JSON, or a field has the wrong type.
    #[error("preferences are not understood: {0}")]
    Malformed(#[from] serde_json::Error),
    /// A feature this version does not have.
    #[error("{0} is not supported by this version of tailrace")]
    Unsupported(String),
    /// The server URL cannot be used.
    #[error("{url:?} is not a coordination server URL: {problem}")]
    Url {
        /// What was given.
        url: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The host name cannot be used.
    #[error("{0:?} is not a host name: use letters, digits, '-' and '.', at most 253 of them")]
    Hostname(String),
    /// No such risk.
    #[error("there is no risk named {0:?}; known: no-filter")]
    Risk(String),
}

impl Prefs {
    /// Whether `up --accept-risk=no-filter` was given.
    #[must_use]
    pub fn accepts_no_filter(&self) -> bool {
        self.accepted_risks
            .iter()
            .any(|risk| risk == RISK_NO_FILTER)
    }

    /// Applies upstream's MaskedPrefs: for every `XSet: true`, the value of `X`.
    ///
    /// # Errors
    ///
    /// Any [`PrefsError`]; `self` is then unchanged.
    pub fn patched(&self, masked: &Map<String, Value>) -> Result<Self, PrefsError> {
        let Value::Object(mut merged) = serde_json::to_value(self)? else {
            return Err(PrefsError::Unsupported(
                "an empty preference set".to_owned(),
            ));
        };
        for (key, set) in masked {
            let Some(name) = key.strip_suffix("Set") else {
                continue;
            };
            if set != &Value::Bool(true) {
                continue;
            }
            let value = masked.get(name).cloned().unwrap_or(Value::Null);
            if Self::FIELDS.contains(&name) {
                if value.is_null() {
                    merged.remove(name);
                } else {
                    merged.insert(name.to_owned(), value);
                }
            } else if !is_off(&value) {
                return Err(PrefsError::Unsupported(name.to_owned()));
            }
        }
        let prefs: Self = serde_json::from_value(Value::Object(merged))?;
        prefs.checked()
    }

    /// Returns the preferences if every value is usable.
    ///
    /// # Errors
    ///
    /// The [`PrefsError`] of the first unusable value.
    pub fn checked(self) -> Result<Self, PrefsError> {
        if !self.control_url.is_empty() {
            crate::control::ServerUrl::parse(&self.control_url).map_err(|problem| {
                PrefsError::Url {
                    url: self.control_url.clone(),
                    problem,
                }
            })?;
        }
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'.' || b == b'_';
        if self.hostname.len() > MAX_HOSTNAME_LEN || !self.hostname.bytes().all(plain) {
            return Err(PrefsError::Hostname(self.hostname));
        }
        if let Some(risk) = self
            .accepted_risks
            .iter()
            .find(|risk| *risk != RISK_NO_FILTER)
        {
            return Err(PrefsError::Risk(risk.clone()));
        }
        Ok(self)
    }

    const FIELDS: [&'static str; 6] = [
        "ControlURL",
        "WantRunning",
        "LoggedOut",
        "Hostname",
        "OperatorUser",
        "AcceptedRisks",
    ];
}

/// Whether a value asks for nothing: tools send the zero value of features they do not use.
fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.values().all(is_off),
        Value::Bool(true) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(value: Value) -> Map<String, Value> {
        match value {
            Value::Object(map) => map,
            other => panic!("not an object: {other}"),
        }
    }

    #[test]
    fn only_masked_fields_change() {
        let prefs = Prefs {
            hostname: "old".into(),
            want_running: true,
            ..Prefs::default()
        };
        let patch = object(serde_json::json!({
            "Hostname": "new", "HostnameSet": true, "WantRunning": false,
        }));
        let patched = prefs.patched(&patch).unwrap();
        assert_eq!(patched.hostname, "new");
        assert!(patched.want_running);
    }

    #[test]
    fn a_feature_we_lack_is_refused_unless_it_is_switched_off() {
        let prefs = Prefs::default();
        let on = object(serde_json::json!({"RunSSH": true, "RunSSHSet": true}));
        assert!(
            matches!(prefs.patched(&on), Err(PrefsError::Unsupported(name)) if name == "RunSSH")
        );
        let off = object(serde_json::json!({
            "RunSSH": false, "RunSSHSet": true, "AdvertiseRoutes": null, "AdvertiseRoutesSet": true,
        }));
        assert_eq!(prefs.patched(&off).unwrap(), prefs);
    }

    #[test]
    fn stored_names_are_upstreams() {
        let prefs = Prefs {
            control_url: "http://c:1".into(),
            ..Prefs::default()
        };
        let value = serde_json::to_value(&prefs).unwrap();
        assert_eq!(value["ControlURL"], "http://c:1");
        assert_eq!(value["WantRunning"], false);
        assert_eq!(serde_json::from_value::<Prefs>(value).unwrap(), prefs);
    }

    #[test]
    fn an_unusable_value_leaves_the_reason() {
        for (field, value) in [("ControlURL", "ftp://x"), ("Hostname", "two words")] {
            let mut patch = Map::new();
            patch.insert(field.to_owned(), value.into());
            patch.insert(format!("{field}Set"), true.into());
            let error = Prefs::default().patched(&patch).unwrap_err();
            assert!(error.to_string().contains(value), "{error}");
        }
        let patch =
            object(serde_json::json!({"AcceptedRisks": ["fire"], "AcceptedRisksSet": true}));
        assert!(matches!(
            Prefs::default().patched(&patch),
            Err(PrefsError::Risk(_))
        ));
    }

    #[test]
    fn a_field_can_be_emptied() {
        let prefs = Prefs {
            accepted_risks: vec![RISK_NO_FILTER.into()],
            ..Prefs::default()
        };
        let patch = object(serde_json::json!({"AcceptedRisks": null, "AcceptedRisksSet": true}));
        assert!(!prefs.patched(&patch).unwrap().accepts_no_filter());
    }
}
