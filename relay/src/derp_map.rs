//! The DERP map that lets nodes use this relay: printed at start, taken by control.

use std::net::IpAddr;

use serde_json::{Value, json};

/// Region id that operators' own regions begin at.
pub const DEFAULT_REGION: u16 = 900;

/// Where a relay is found.
#[derive(Clone, Debug)]
pub struct Location {
    /// Host name or IP address that clients dial and check the certificate for.
    pub host: String,
    /// TCP port of DERP.
    pub derp_port: u16,
    /// UDP port of STUN; `None` if there is none.
    pub stun_port: Option<u16>,
    /// `sha256-raw:…` pin, if the certificate is of the relay's own making.
    pub cert_name: Option<String>,
}

impl Location {
    /// The DERP map with this relay as its only region (derp.md section 12).
    #[must_use]
    pub fn derp_map(&self) -> Value {
        let mut node = json!({
            "Name": format!("{DEFAULT_REGION}a"),
            "RegionID": DEFAULT_REGION,
            "HostName": self.host,
            "DERPPort": self.derp_port,
            "STUNPort": self.stun_port.map_or(-1, i32::from),
        });
        match self.host.parse() {
            Ok(IpAddr::V4(ip)) => {
                node["IPv4"] = json!(ip);
                node["IPv6"] = json!("none");
            }
            Ok(IpAddr::V6(ip)) => {
                node["IPv4"] = json!("none");
                node["IPv6"] = json!(ip);
            }
            Err(_) => {}
        }
        if let Some(pin) = &self.cert_name {
            node["CertName"] = json!(pin);
        }
        json!({"Regions": {DEFAULT_REGION.to_string(): {
            "RegionID": DEFAULT_REGION,
            "RegionCode": "tailrace",
            "RegionName": "Tailrace",
            "Nodes": [node],
        }}})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relay_by_address_pins_its_certificate_and_one_family() {
        let location = Location {
            host: "192.0.2.1".into(),
            derp_port: 3340,
            stun_port: None,
            cert_name: Some("sha256-raw:ab".into()),
        };

        let map = location.derp_map();

        let node = &map["Regions"]["900"]["Nodes"][0];
        assert_eq!(node["HostName"], "192.0.2.1");
        assert_eq!(node["IPv4"], "192.0.2.1");
        assert_eq!(node["IPv6"], "none");
        assert_eq!(node["STUNPort"], -1);
        assert_eq!(node["CertName"], "sha256-raw:ab");
    }
}
