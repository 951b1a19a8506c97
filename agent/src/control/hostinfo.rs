//! What this host tells the coordination server about itself.

use control_proto::tailcfg::Hostinfo;

/// Describes this host. `hostname` overrides the host's own name if it is not empty.
#[must_use]
pub fn hostinfo(hostname: &str, log_id: &str) -> Hostinfo {
    let system = rustix::system::uname();
    let text = |part: &std::ffi::CStr| part.to_string_lossy().into_owned();
    let hostname = if hostname.is_empty() {
        text(system.nodename())
    } else {
        hostname.to_owned()
    };
    let (distro, distro_version, distro_code_name) = distribution();
    Hostinfo {
        ipn_version: format!("tailrace {}", crate::VERSION),
        backend_log_id: log_id.to_owned(),
        os: "linux".to_owned(),
        os_version: text(system.release()),
        distro,
        distro_version,
        distro_code_name,
        hostname,
        machine: text(system.machine()),
        go_arch: go_arch().to_owned(),
        no_logs_no_support: true,
        userspace: Some(false),
        userspace_router: Some(false),
        ..Hostinfo::default()
    }
}

/// Go's name of this processor family.
fn go_arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "x86" => "386",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Id, version and code name from os-release(5); empty where there is none.
fn distribution() -> (String, String, String) {
    let text = std::fs::read_to_string("/etc/os-release")
        .or_else(|_| std::fs::read_to_string("/usr/lib/os-release"))
        .unwrap_or_default();
    let value = |key: &str| {
        text.lines()
            .filter_map(|line| line.split_once('='))
            .find(|(name, _)| *name == key)
            .map(|(_, value)| value.trim_matches(['"', '\'']).to_owned())
            .unwrap_or_default()
    };
    (value("ID"), value("VERSION_ID"), value("VERSION_CODENAME"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_preferred_name_wins_over_the_hosts() {
        assert_eq!(hostinfo("chosen", "id").hostname, "chosen");
        assert!(!hostinfo("", "id").hostname.is_empty());
        assert_eq!(hostinfo("", "id").backend_log_id, "id");
    }
}
