//! `tailrace netcheck`: how the network looks from here.

use std::time::Duration;

use bytes::Bytes;
use http::Method;

use super::CliError;
use super::args::JsonArgs;
use crate::localapi::{Client, NetcheckResult};

pub(super) async fn run(client: &Client, JsonArgs { json }: JsonArgs) -> Result<(), CliError> {
    let result: NetcheckResult = client.json(Method::GET, "netcheck", Bytes::new()).await?;
    if json {
        let text = serde_json::to_string_pretty(&result);
        println!(
            "{}",
            text.map_err(|error| CliError::Other(error.to_string()))?
        );
    } else {
        print!("{}", report(&result));
    }
    Ok(())
}

/// As `tailscale netcheck` prints it.
fn report(result: &NetcheckResult) -> String {
    let family = |works: bool, address: &str, otherwise: &str| match (works, address) {
        (false, _) => otherwise.to_owned(),
        (true, "") => "yes".to_owned(),
        (true, address) => format!("yes, {address}"),
    };
    let without_v6 = if result.os_has_ipv6 {
        "no, but the host has IPv6"
    } else {
        "no, nor has the host"
    };
    let varies = match result.mapping_varies {
        None => "unknown",
        Some(true) => "true",
        Some(false) => "false",
    };
    let services = [
        ("UPnP", result.upnp),
        ("NAT-PMP", result.pmp),
        ("PCP", result.pcp),
    ];
    let mappers = if services.iter().all(|(_, there)| there.is_none()) {
        "not checked".to_owned()
    } else {
        let there = services.iter().filter(|(_, there)| *there == Some(true));
        let names: Vec<&str> = there.map(|(name, _)| *name).collect();
        names.join(", ")
    };
    let name = |region: u16| {
        let names = result.regions.get(&region);
        names.map_or_else(String::new, |(_, name)| name.clone())
    };
    let home = match result.preferred_derp {
        0 => "none".to_owned(),
        region => name(region),
    };
    let mut lines = vec![
        "Report:".to_owned(),
        format!("\t* Time: {}", result.now),
        format!("\t* UDP: {}", result.udp),
        format!("\t* IPv4: {}", family(result.ipv4, &result.global_v4, "no")),
        format!(
            "\t* IPv6: {}",
            family(result.ipv6, &result.global_v6, without_v6)
        ),
        format!("\t* MappingVariesByDestIP: {varies}"),
        format!("\t* PortMapping: {mappers}"),
        format!("\t* Home DERP: {home}"),
        "\t* DERP latency:".to_owned(),
    ];
    if let Some(portal) = result.captive_portal {
        lines.insert(7, format!("\t* CaptivePortal: {portal}"));
    }
    let mut regions: Vec<(Option<u64>, u16)> = result
        .regions
        .keys()
        .map(|region| (result.region_latency.get(region).copied(), *region))
        .collect();
    // The quickest first, those that did not answer last.
    regions.sort_by_key(|(latency, region)| (latency.is_none(), *latency, *region));
    for (latency, region) in regions {
        let latency = latency.map_or_else(String::new, |nanoseconds| {
            let latency = Duration::from_nanos(nanoseconds).as_secs_f64() * 1e3;
            format!("{latency:.1}ms")
        });
        let code = result.regions.get(&region).map_or("", |(code, _)| code);
        lines.push(format!("\t\t- {code:>4}: {latency:<8} ({})", name(region)));
    }
    lines.push(String::new());
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use control_proto::Timestamp;

    use super::*;

    #[test]
    fn regions_stand_in_the_order_of_their_latencies() {
        let result = NetcheckResult {
            now: Timestamp::from_unix_seconds(1_800_000_000),
            udp: true,
            ipv4: true,
            global_v4: "198.51.100.1:41641".into(),
            upnp: Some(true),
            pmp: Some(false),
            pcp: Some(true),
            preferred_derp: 2,
            region_latency: [(1, 20_000_000), (2, 1_500_000)].into(),
            regions: [
                (1, ("fra".into(), "Frankfurt".into())),
                (2, ("ams".into(), "Amsterdam".into())),
                (3, ("syd".into(), "Sydney".into())),
            ]
            .into(),
            ..NetcheckResult::default()
        };
        let expected = "Report:
\t* Time: 2027-01-15T08:00:00Z
\t* UDP: true
\t* IPv4: yes, 198.51.100.1:41641
\t* IPv6: no, nor has the host
\t* MappingVariesByDestIP: unknown
\t* PortMapping: UPnP, PCP
\t* Home DERP: Amsterdam
\t* DERP latency:
\t\t-  ams: 1.5ms    (Amsterdam)
\t\t-  fra: 20.0ms   (Frankfurt)
\t\t-  syd:          (Sydney)
";
        assert_eq!(report(&result), expected);
    }
}
