//! The firewall table of one instance: what replicas may reach, and who may reach them.
//!
//! The base policy, which a later network policy narrows per tenant: a replica reaches the world
//! outside, translated to the host's address, and nothing else: no other replica, no service of
//! the host, no link-local (metadata) address, nothing over IPv6. Only the host itself opens
//! connections to a replica. The bridge's ports are isolated from each other besides, because
//! frames between them never pass this table.

use serde_json::{Value, json};

use crate::address::Subnet;
use crate::options::OpenError;

/// Puts the table in place, replacing one of the same name, in one transaction.
pub(crate) async fn install(table: &str, bridge: &str, subnet: Subnet) -> Result<(), OpenError> {
    apply("install the firewall table", ruleset(table, bridge, subnet)).await
}

/// Removes the table, if it is there.
pub(crate) async fn remove(table: &str) -> Result<(), OpenError> {
    apply("remove the firewall table", json!({ "nftables": without(table) })).await
}

async fn apply(doing: &str, ruleset: Value) -> Result<(), OpenError> {
    let failed = |reason: String| OpenError::Network { doing: doing.to_owned(), reason };
    let applied = tokio::task::spawn_blocking(move || {
        let nft = nftables::helper::DEFAULT_NFT;
        nftables::helper::apply_ruleset_raw(
            &ruleset.to_string(),
            nft,
            nftables::helper::DEFAULT_ARGS.iter().copied(),
        )
    });
    match applied.await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(failed(format!(
            "`nft` did not accept it ({error}); is nftables installed and does the kernel have it?"
        ))),
        Err(error) => Err(failed(error.to_string())),
    }
}

/// Deletes the table whether or not it is there: a delete needs one, so one is added first.
fn without(table: &str) -> Vec<Value> {
    let table = json!({ "table": { "family": "inet", "name": table } });
    vec![json!({ "add": table }), json!({ "delete": table })]
}

fn ruleset(table: &str, bridge: &str, subnet: Subnet) -> Value {
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
    let is =
        |left: Value, right: Value| json!({ "match": { "op": "==", "left": left, "right": right }});
    let not =
        |left: Value, right: Value| json!({ "match": { "op": "!=", "left": left, "right": right }});
    let meta = |key: &str| json!({ "meta": { "key": key } });
    let ip = |field: &str| json!({ "payload": { "protocol": "ip", "field": field } });
    let block = |base: &str, prefix: u8| json!({ "prefix": { "addr": base, "len": prefix } });
    let ours = block(&subnet.base().to_string(), subnet.prefix());
    let from_replica = is(meta("iifname"), json!(bridge));
    let to_replica = is(meta("oifname"), json!(bridge));
    let is_ipv6 = is(meta("nfproto"), json!("ipv6"));
    let is_answer = json!({ "match": {
        "op": "in", "left": { "ct": { "key": "state" } }, "right": ["established", "related"],
    }});
    let drop = json!({ "drop": null });
    let accept = json!({ "accept": null });

    let mut all = without(table);
    all.push(json!({ "add": { "table": { "family": "inet", "name": table } } }));
    // Ours come before those of other programs: what is dropped here stays dropped.
    all.push(chain("updraft_input", "filter", "input", -10));
    all.push(chain("updraft_forward", "filter", "forward", -10));
    all.push(chain("updraft_postrouting", "nat", "postrouting", 100));
    for hook in ["updraft_input", "updraft_forward"] {
        all.push(rule(hook, vec![from_replica.clone(), is_ipv6.clone(), drop.clone()]));
        let forged = not(ip("saddr"), ours.clone());
        all.push(rule(hook, vec![from_replica.clone(), forged, drop.clone()]));
    }
    all.push(rule("updraft_input", vec![from_replica.clone(), is_answer.clone(), accept.clone()]));
    all.push(rule("updraft_input", vec![from_replica.clone(), drop.clone()]));
    for (base, prefix) in [("169.254.0.0", 16), ("127.0.0.0", 8), ("224.0.0.0", 4)] {
        let to_block = is(ip("daddr"), block(base, prefix));
        all.push(rule("updraft_forward", vec![from_replica.clone(), to_block, drop.clone()]));
    }
    // Between two replicas, and from outside to a replica: only answers.
    let between = vec![from_replica.clone(), to_replica.clone(), drop.clone()];
    all.push(rule("updraft_forward", between));
    all.push(rule("updraft_forward", vec![to_replica.clone(), is_answer, accept]));
    all.push(rule("updraft_forward", vec![to_replica, drop]));
    let leaves = not(meta("oifname"), json!(bridge));
    let masquerade = json!({ "masquerade": null });
    all.push(rule("updraft_postrouting", vec![is(ip("saddr"), ours), leaves, masquerade]));
    json!({ "nftables": all })
}
