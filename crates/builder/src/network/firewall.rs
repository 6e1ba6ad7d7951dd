//! The firewall table of a store's builds: what their devices may send, and to whom.

use std::net::Ipv4Addr;

use serde_json::{Value, json};

use super::{BLOCK, Destination, Egress};

/// What no list opens: metadata services of clouds, link-local, loopback and multicast addresses,
/// and the builds themselves.
const NEVER: [(Ipv4Addr, u8); 7] = [
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(168, 63, 129, 16), 32),
    (Ipv4Addr::new(100, 100, 100, 200), 32),
    (Ipv4Addr::new(192, 0, 0, 192), 32),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(224, 0, 0, 0), 4),
    (BLOCK, 15),
];

/// Networks around the machine, reached only when a list names them.
const PRIVATE: [(Ipv4Addr, u8); 6] = [
    (Ipv4Addr::UNSPECIFIED, 8),
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
];

pub(super) async fn apply(ruleset: Value) -> Result<(), String> {
    let applied = tokio::task::spawn_blocking(move || {
        let arguments = nftables::helper::DEFAULT_ARGS.iter().copied();
        let program = nftables::helper::DEFAULT_NFT;
        nftables::helper::apply_ruleset_raw(&ruleset.to_string(), program, arguments)
    });
    match applied.await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(format!(
            "`nft` did not accept the firewall of builds ({error}); is nftables installed?"
        )),
        Err(error) => Err(error.to_string()),
    }
}

/// Deletes the table whether or not it is there: a delete needs one, so one is added first.
pub(super) fn without(table: &str) -> Vec<Value> {
    let table = json!({ "table": { "family": "inet", "name": table } });
    vec![json!({ "add": table }), json!({ "delete": table })]
}

pub(super) fn ruleset(table: &str, device: &str, egress: &Egress, servers: &[Ipv4Addr]) -> Value {
    let chain = |name: &str, kind: &str, hook: &str, priority: i32| {
        json!({ "add": { "chain": {
            "family": "inet", "table": table, "name": name,
            "type": kind, "hook": hook, "prio": priority, "policy": "accept",
        }}})
    };
    let rule = |chain: &str, expression: Vec<Value>| {
        json!({ "add": { "rule": {
            "family": "inet", "table": table, "chain": chain, "expr": expression,
        }}})
    };
    let compare = |op: &str, left: Value, right: Value| json!({ "match": { "op": op, "left": left, "right": right } });
    let is = |left: Value, right: Value| compare("==", left, right);
    let meta = |key: &str| json!({ "meta": { "key": key } });
    let ip = |field: &str| json!({ "payload": { "protocol": "ip", "field": field } });
    let block = |base: Ipv4Addr, prefix: u8| {
        if prefix == 32 {
            return json!(base.to_string());
        }
        json!({ "prefix": { "addr": base.to_string(), "len": prefix } })
    };
    let ours = block(BLOCK, 15);
    let from_build = is(meta("iifname"), json!(format!("{device}*")));
    let to_build = is(meta("oifname"), json!(format!("{device}*")));
    let is_answer = json!({ "match": {
        "op": "in", "left": { "ct": { "key": "state" } }, "right": ["established", "related"],
    }});
    let (drop, accept) = (json!({ "drop": null }), json!({ "accept": null }));
    let mut all = without(table);
    all.push(json!({ "add": { "table": { "family": "inet", "name": table } } }));
    // Ours come before those of other programs: what is dropped here stays dropped.
    all.push(chain("build_input", "filter", "input", -10));
    all.push(chain("build_forward", "filter", "forward", -10));
    all.push(chain("build_postrouting", "nat", "postrouting", 100));
    all.push(rule("build_input", vec![from_build.clone(), drop.clone()]));
    let mut forward = |expression: Vec<Value>| all.push(rule("build_forward", expression));
    let is_ipv6 = is(meta("nfproto"), json!("ipv6"));
    forward(vec![from_build.clone(), is_ipv6, drop.clone()]);
    let forged = compare("!=", ip("saddr"), ours.clone());
    forward(vec![from_build.clone(), forged, drop.clone()]);
    let port = |protocol: &str| json!({ "payload": { "protocol": protocol, "field": "dport" } });
    // Some clouds have their name server where their metadata is.
    let asked = if *egress == Egress::Closed { &[] } else { servers };
    for server in asked {
        for protocol in ["udp", "tcp"] {
            let to_server = is(ip("daddr"), json!(server.to_string()));
            let to_names = is(port(protocol), json!(53));
            forward(vec![from_build.clone(), to_server, to_names, accept.clone()]);
        }
    }
    for (base, prefix) in NEVER {
        forward(vec![from_build.clone(), is(ip("daddr"), block(base, prefix)), drop.clone()]);
    }
    // Bridges of functions, of whatever instance.
    let to_functions = is(meta("oifname"), json!("updraft*"));
    forward(vec![from_build.clone(), to_functions, drop.clone()]);
    let listed: &[Destination] = match egress {
        Egress::Open => &[Destination::Public],
        Egress::Closed => &[],
        Egress::Only(destinations) => destinations,
    };
    for destination in listed {
        let Destination::Network { base, prefix, port: only } = destination else { continue };
        let mut expression = vec![from_build.clone(), is(ip("daddr"), block(*base, *prefix))];
        expression.extend(only.map(|only| is(port("tcp"), json!(only))));
        expression.push(accept.clone());
        forward(expression);
    }
    if listed.contains(&Destination::Public) {
        for (base, prefix) in PRIVATE {
            forward(vec![from_build.clone(), is(ip("daddr"), block(base, prefix)), drop.clone()]);
        }
    } else {
        forward(vec![from_build, drop.clone()]);
    }
    forward(vec![to_build.clone(), is_answer, accept]);
    forward(vec![to_build.clone(), drop]);
    let leaves = compare("!=", meta("oifname"), json!(format!("{device}*")));
    let translated = vec![is(ip("saddr"), ours), leaves, json!({ "masquerade": null })];
    all.push(rule("build_postrouting", translated));
    json!({ "nftables": all })
}
