//! Who sees whom, and which routes (control.md 8.5, 8.6).

use super::*;

const LAN: &str = "10.0.0.0/16";
const EXIT: &str = "0.0.0.0/0 ::/0";

/// The company with a second router to the same subnet, `spare`, tagged `tag:idle` too.
fn with_spare(sections: &str) -> Network {
    let mut network = company(sections);
    let mut spare = testing::node(20, "spare", "tag:idle tag:router");
    spare.routes = node(&network, "router").routes;
    network.put_node(spare);
    network
}

fn serve(network: &mut Network, name: Option<&str>) {
    let router = name.map(|name| id(network, name));
    network.set_primary(LAN.parse().unwrap(), router);
}

#[test]
fn both_ends_of_a_rule_see_each_other() {
    let network = allow("tag:db", "tag:web");
    assert_eq!(peers(&network, "db"), "web both");
    assert_eq!(peers(&network, "web"), "db both");
    assert_eq!(peers(&network, "both"), "web db");
    assert_eq!(peers(&network, "bobs"), "");
    assert!(!network.sees(id(&network, "both"), id(&network, "both")));
    assert!(!network.sees(id(&network, "web"), NodeId(999)));
}

#[test]
fn capabilities_make_visible_as_ports_do() {
    let network = grant(r#""src": ["tag:db"], "dst": ["srv"], "app": {"example.com/x": []}"#);
    assert_eq!(peers(&network, "web"), "db both");
}

#[test]
fn a_router_stands_for_its_subnets() {
    let to = allow("tag:db", "10.0.3.0/24");
    assert_eq!(peers(&to, "db"), "router");
    assert_eq!(routes(&to, "db", "router"), LAN);
    assert_eq!(peers(&to, "router"), "db both");
    // Answers find their way back.
    let from = allow("lan", "tag:db");
    assert_eq!(peers(&from, "db"), "router");
    assert_eq!(routes(&from, "db", "router"), LAN);
    // To reach the router is not to reach the subnet.
    let router = allow("tag:db", "tag:router");
    assert_eq!(peers(&router, "db"), "router");
    assert_eq!(routes(&router, "db", "router"), "");
    assert_eq!(routes(&allow("tag:db", "*"), "db", "router"), LAN);
}

#[test]
fn a_node_is_told_all_of_its_own_routes() {
    let mut network = with_spare(r#""grants": []"#);
    serve(&mut network, Some("spare"));
    let own = |name| network.own_view(id(&network, name));
    let lan: IpNet = LAN.parse().unwrap();
    assert_eq!(
        (own("router").routes, own("router").primary_routes),
        (vec![lan], vec![])
    );
    assert_eq!(
        (own("spare").routes, own("spare").primary_routes),
        (vec![lan], vec![lan])
    );
    assert_eq!(own("exit").routes.len(), 2);
    assert!(own("exit").primary_routes.is_empty());
}

#[test]
fn of_several_routers_one_serves() {
    let mut network = with_spare(r#""grants": [{"src": ["tag:db"], "dst": ["lan"], "ip": ["*"]}]"#);
    assert_eq!(routes(&network, "db", "router"), "");
    serve(&mut network, Some("spare"));
    assert_eq!(peers(&network, "db"), "router spare");
    assert_eq!(routes(&network, "db", "router"), "");
    assert_eq!(routes(&network, "db", "spare"), LAN);
    serve(&mut network, Some("router"));
    assert_eq!(routes(&network, "db", "router"), LAN);
    serve(&mut network, None);
    assert_eq!(routes(&network, "db", "router"), "");
    // The last one does not have to be told.
    network.remove_node(id(&network, "spare"));
    assert_eq!(routes(&network, "db", "router"), LAN);
}

#[test]
fn routers_of_the_same_subnet_hear_of_its_primary() {
    let rules = r#""grants": [{"src": ["tag:router"], "dst": ["tag:router"], "ip": ["22"]}]"#;
    let mut network = with_spare(rules);
    serve(&mut network, Some("router"));
    assert_eq!(routes(&network, "spare", "router"), LAN);
    assert_eq!(routes(&network, "router", "spare"), "");
}

#[test]
fn exits_are_for_those_who_may_use_the_internet() {
    let network = allow("group:dev", "autogroup:internet");
    assert_eq!(peers(&network, "bobs"), "exit");
    assert_eq!(routes(&network, "bobs", "exit"), EXIT);
    assert_eq!(
        network
            .peer_view(id(&network, "bobs"), id(&network, "exit"))
            .primary_routes,
        []
    );
    let rules = filter(&network, "exit");
    assert_eq!(rules.len(), 1);
    assert!(
        rules[0].starts_with("laptop phone bobs > 1.0.0.0-9.255.255.255 "),
        "{rules:?}"
    );
    assert!(!rules[0].contains("192.168"), "{rules:?}");
    assert!(filter(&network, "web").is_empty());
    assert_eq!(routes(&allow("tag:db", "*"), "db", "exit"), EXIT);
    assert_eq!(routes(&allow("tag:db", "tag:exit"), "db", "exit"), "");
    let unapproved = {
        let mut network = allow("group:dev", "autogroup:internet");
        let mut exit = node(&network, "exit");
        exit.exit = false;
        network.put_node(exit);
        network
    };
    assert_eq!(peers(&unapproved, "bobs"), "");
    assert!(filter(&unapproved, "exit").is_empty());
}

#[test]
fn public_addresses_lie_behind_exits() {
    let network = allow("tag:db", "198.51.100.0/24");
    assert_eq!(filter(&network, "exit"), ["db both > 198.51.100.0/24"]);
    assert_eq!(peers(&network, "db"), "exit");
    assert_eq!(routes(&network, "db", "exit"), EXIT);
}

#[test]
fn via_prescribes_exits() {
    let rules = r#""src": ["tag:db"], "dst": ["autogroup:internet"], "via": ["tag:idle"]"#;
    let mut network = grant(rules);
    let mut other = testing::node(21, "other", "tag:idle");
    other.exit = true;
    network.put_node(other);
    assert_eq!(peers(&network, "db"), "other");
    assert_eq!(routes(&network, "db", "other"), EXIT);
    assert!(filter(&network, "exit").is_empty());
}

#[test]
fn via_prescribes_routers() {
    let rules = r#""grants": [{"src": ["tag:db"], "dst": ["10.0.0.0/8", "192.0.2.0/24"], "ip": ["22"], "via": ["tag:idle"]}]"#;
    let mut network = with_spare(rules);
    serve(&mut network, Some("router"));
    assert_eq!(filter(&network, "spare"), ["db both > 10.0.0.0/8:22"]);
    assert!(filter(&network, "router").is_empty());
    assert_eq!(peers(&network, "db"), "spare");
    assert_eq!(routes(&network, "db", "spare"), LAN);
    let view = network.peer_view(id(&network, "db"), id(&network, "spare"));
    assert_eq!(view.primary_routes, [LAN.parse().unwrap()]);
}

#[test]
fn a_rule_without_via_restores_the_primary() {
    let rules = r#""grants": [
        {"src": ["tag:db"], "dst": ["lan"], "ip": ["22"], "via": ["tag:idle"]},
        {"src": ["tag:db"], "dst": ["lan"], "ip": ["80"]},
    ]"#;
    let mut network = with_spare(rules);
    serve(&mut network, Some("router"));
    assert_eq!(routes(&network, "db", "router"), LAN);
    assert_eq!(routes(&network, "db", "spare"), "");
}

#[test]
fn of_prescribed_routers_the_primary_serves_or_the_first_online() {
    let rules =
        r#""grants": [{"src": ["tag:db"], "dst": ["lan"], "ip": ["22"], "via": ["tag:router"]}]"#;
    let mut network = with_spare(rules);
    assert_eq!(routes(&network, "db", "router"), LAN);
    let mut offline = node(&network, "router");
    offline.online = false;
    network.put_node(offline.clone());
    assert_eq!(routes(&network, "db", "spare"), LAN);
    assert_eq!(routes(&network, "db", "router"), "");
    offline.online = true;
    network.put_node(offline);
    serve(&mut network, Some("spare"));
    assert_eq!(routes(&network, "db", "spare"), LAN);
}

#[test]
fn via_without_ports_is_nothing() {
    let rules = r#""src": ["tag:db"], "dst": ["lan"], "via": ["tag:router"], "app": {"example.com/x": [{}]}"#;
    let network = grant(rules);
    assert!(filter(&network, "router").is_empty());
    assert_eq!(peers(&network, "db"), "");
}

#[test]
fn routes_into_the_overlay_are_not_served() {
    let mut network = company("");
    let mut router = node(&network, "router");
    router.routes = [
        "100.64.0.0/16",
        "127.0.0.0/8",
        "fd7a:115c:a1e0:1::/64",
        "10.9.0.0/16",
    ]
    .map(|net| net.parse().unwrap())
    .into();
    network.put_node(router);
    assert_eq!(routes(&network, "web", "router"), "10.9.0.0/16");
    assert_eq!(filter(&network, "web"), ["nodes 10.9.0.0/16 > *"]);
}

#[test]
fn without_ipv4_neither_side_is_told_of_it() {
    let network = company(r#""nodeAttrs": [{"target": ["tag:web"], "attr": ["disable-ipv4"]}]"#);
    let addresses = |viewer, peer| {
        let view = network.peer_view(id(&network, viewer), id(&network, peer));
        view.addresses
            .iter()
            .map(short)
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(addresses("db", "web"), "fd7a:115c:a1e0::5");
    assert_eq!(addresses("web", "db"), "fd7a:115c:a1e0::6");
    assert_eq!(addresses("db", "bobs"), "100.64.0.3 fd7a:115c:a1e0::3");
    let own = network.own_view(id(&network, "web"));
    assert_eq!(own.addresses.len(), 1);
    assert!(own.attributes.contains_key("disable-ipv4"));
}

#[test]
fn subnets_of_sites_are_served_though_they_lie_in_the_overlay() {
    let site = "fd7a:115c:a1e0:b1a:0:7:a01:0/112";
    let mut network = allow("tag:db", site);
    let mut router = node(&network, "router");
    router.routes = [site, "fd7a:115c:a1e0:1::/64"]
        .map(|net| net.parse().unwrap())
        .into();
    network.put_node(router);
    assert_eq!(routes(&network, "db", "router"), site);
    assert_eq!(filter(&network, "router"), [format!("db both > {site}")]);
}
