//! The firewall table of one instance: what replicas may reach, and who may reach them.
//!
//! Every replica hangs on a pair of devices of its own, and every packet of it passes this table.
//! Only the host itself opens connections to a replica. A replica reaches neither the host (but
//! for the gateway's door) nor another replica, whoever's, nor link-local or metadata addresses,
//! nor anything over IPv6; what is left is decided by the policies of its segment, which all have
//! to agree. Segment and tenant are told by the group of the device that a packet comes from
//! ([`group`]), which a replica cannot change; an unknown segment reaches nothing.
//!
//! What a tenant's replicas send and receive, and how many connections they have open, is bounded
//! for all of them together: the machine's wire and the kernel's table of connections are
//! everybody's.
//!
//! The table is always written whole, in one transaction: there is no moment without it.

use std::net::{IpAddr, Ipv4Addr};

use serde_json::{Value, json};
use updraft_model::{EgressPolicy, EgressRule, EgressTarget, Transport};

use crate::address::Subnet;
use crate::egress::Names;
use crate::network::group::{self, SEGMENT_MASK, TENANT_MASK};
use crate::options::OpenError;

/// Blocks that no policy opens: this host, link-local with the usual metadata address, multicast,
/// what is kept for later, and the metadata addresses of clouds that have others.
const NEVER: [(&str, u8); 8] = [
    ("0.0.0.0", 8),
    ("127.0.0.0", 8),
    ("169.254.0.0", 16),
    ("192.0.0.192", 32),
    ("100.100.100.200", 32),
    ("168.63.129.16", 32),
    ("224.0.0.0", 4),
    ("240.0.0.0", 4),
];

/// Private networks: open only where a policy names them.
pub(crate) const PRIVATE: [(Ipv4Addr, u8); 6] = [
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    (Ipv4Addr::new(198, 18, 0, 0), 15),
];

/// Whether a name may stand for an address: a public one, that no rule closes.
pub(crate) fn is_public(address: Ipv4Addr) -> bool {
    let inside = |(base, prefix): (Ipv4Addr, u8)| {
        Subnet::new(base, prefix).overlaps(Subnet::new(address, 32))
    };
    let never = NEVER.iter().filter_map(|(base, prefix)| Some((base.parse().ok()?, *prefix)));
    !PRIVATE.into_iter().chain(never).any(inside)
}

/// Everything the table follows from.
#[derive(Debug)]
pub(crate) struct Rules<'a> {
    pub(crate) table: &'a str,
    /// The device that holds the host's address, and the replicas of older Updrafts.
    pub(crate) bridge: &'a str,
    /// How the names of the replicas' devices begin.
    pub(crate) devices: &'a str,
    pub(crate) subnet: Subnet,
    /// The port of the gateway's door on the host's address, if it is open.
    pub(crate) gateway: Option<u16>,
    /// Name servers that replicas are told of.
    pub(crate) resolvers: &'a [Ipv4Addr],
    /// Most bytes a second of each tenant, each way; 0 for no limit.
    pub(crate) bandwidth: u64,
    /// Most connections of each tenant; 0 for no limit.
    pub(crate) connections: u32,
    /// Numbers of segments with the policies that a packet from there has to please.
    pub(crate) segments: &'a [(u32, Vec<EgressPolicy>)],
    /// What names stand for now.
    pub(crate) names: &'a Names,
}

/// Puts the table in place, replacing one of the same name, in one transaction.
pub(crate) async fn install(rules: &Rules<'_>) -> Result<(), OpenError> {
    apply("install the firewall table", rules.ruleset()).await
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

fn compare(operator: &str, left: &Value, right: &Value) -> Value {
    json!({ "match": { "op": operator, "left": left, "right": right } })
}

fn is(left: &Value, right: &Value) -> Value {
    compare("==", left, right)
}

fn meta(key: &str) -> Value {
    json!({ "meta": { "key": key } })
}

/// Some bits of a key.
fn part(key: &str, mask: u32) -> Value {
    json!({ "&": [meta(key), mask] })
}

fn payload(protocol: &str, field: &str) -> Value {
    json!({ "payload": { "protocol": protocol, "field": field } })
}

fn block(base: &str, prefix: u8) -> Value {
    if prefix == 32 {
        return json!(base);
    }
    json!({ "prefix": { "addr": base, "len": prefix } })
}

fn set(elements: &[Value]) -> Value {
    json!({ "set": elements })
}

impl Rules<'_> {
    fn chain(&self, name: &str) -> Value {
        json!({ "add": { "chain": { "family": "inet", "table": self.table, "name": name } } })
    }

    fn base_chain(&self, name: &str, kind: &str, hook: &str, priority: i32) -> Value {
        json!({ "add": { "chain": {
            "family": "inet", "table": self.table, "name": name,
            "type": kind, "hook": hook, "prio": priority, "policy": "accept",
        }}})
    }

    fn rule(&self, chain: &str, expression: &[Value]) -> Value {
        json!({ "add": { "rule": {
            "family": "inet", "table": self.table, "chain": chain, "expr": expression,
        }}})
    }

    fn ruleset(&self) -> Value {
        let drop = json!({ "drop": null });
        let accept = json!({ "accept": null });
        let refuse = json!({ "goto": { "target": "updraft_refuse" } });
        let jump = |chain: &str| json!({ "jump": { "target": chain } });
        let ours = block(&self.subnet.base().to_string(), self.subnet.prefix());
        let is_answer = json!({ "match": {
            "op": "in", "left": { "ct": { "key": "state" } }, "right": ["established", "related"],
        }});
        let (source, target) = (payload("ip", "saddr"), payload("ip", "daddr"));
        let is_ipv6 = is(&meta("nfproto"), &json!("ipv6"));
        let forged = compare("!=", &source, &ours);
        let devices = [self.bridge.to_owned(), format!("{}*", self.devices)];

        let mut all = without(self.table);
        all.push(json!({ "add": { "table": { "family": "inet", "name": self.table } } }));
        // Ours come before those of other programs: what is dropped here stays dropped.
        all.push(self.base_chain("updraft_input", "filter", "input", -10));
        all.push(self.base_chain("updraft_forward", "filter", "forward", -10));
        all.push(self.base_chain("updraft_postrouting", "nat", "postrouting", 100));
        for chain in ["updraft_host", "updraft_from", "updraft_to", "updraft_refuse"] {
            all.push(self.chain(chain));
        }
        // Told at once, so that nobody waits for what never comes. The kernel bounds how often it
        // says so by ICMP, and connections would time out after a few.
        let reset = json!({ "reject": { "type": "tcp reset" } });
        let prohibited = json!({ "reject": { "type": "icmpx", "expr": "admin-prohibited" } });
        all.push(self.rule("updraft_refuse", &[is(&meta("l4proto"), &json!("tcp")), reset]));
        all.push(self.rule("updraft_refuse", &[prohibited]));
        for device in &devices {
            let (from, to) =
                (is(&meta("iifname"), &json!(device)), is(&meta("oifname"), &json!(device)));
            all.push(self.rule("updraft_input", &[from.clone(), jump("updraft_host")]));
            all.push(self.rule("updraft_forward", &[from, jump("updraft_from")]));
            all.push(self.rule("updraft_forward", &[to, jump("updraft_to")]));
        }
        for chain in ["updraft_host", "updraft_from"] {
            all.push(self.rule(chain, &[is_ipv6.clone(), drop.clone()]));
            all.push(self.rule(chain, &[forged.clone(), drop.clone()]));
        }
        if self.bandwidth > 0 {
            for (name, chain, key) in [
                ("updraft_sent", "updraft_from", "iifgroup"),
                ("updraft_received", "updraft_to", "oifgroup"),
            ] {
                let over = self.over(name, &part(key, TENANT_MASK));
                all.push(self.rule(chain, &[over, drop.clone()]));
            }
        }
        for chain in ["updraft_host", "updraft_from", "updraft_to"] {
            all.push(self.rule(chain, &[is_answer.clone(), accept.clone()]));
        }
        if self.connections > 0 {
            for chain in ["updraft_host", "updraft_from"] {
                all.push(self.rule(chain, &[self.too_many(chain), refuse.clone()]));
            }
        }

        // To the host: the gateway's door, for those whose policies all open it.
        let groups = self.groups(&EgressTarget::Gateway);
        if let (Some(port), false) = (self.gateway, groups.is_empty()) {
            let expression = vec![
                is(&part("iifgroup", SEGMENT_MASK), &set(&groups)),
                is(&target, &json!(self.subnet.gateway().to_string())),
                is(&payload("tcp", "dport"), &json!(port)),
                accept.clone(),
            ];
            all.push(self.rule("updraft_host", &expression));
        }
        all.push(self.rule("updraft_host", std::slice::from_ref(&refuse)));

        // To the world: name servers, then nothing that is closed to all, then what policies say.
        let groups = self.groups(&EgressTarget::Public);
        if !groups.is_empty() && !self.resolvers.is_empty() {
            let servers: Vec<_> =
                self.resolvers.iter().map(|server| json!(server.to_string())).collect();
            let expression = vec![
                is(&part("iifgroup", SEGMENT_MASK), &set(&groups)),
                is(&target, &set(&servers)),
                is(&meta("l4proto"), &set(&[json!("tcp"), json!("udp")])),
                is(&payload("th", "dport"), &json!(53)),
                accept.clone(),
            ];
            all.push(self.rule("updraft_from", &expression));
        }
        for (base, prefix) in NEVER {
            all.push(
                self.rule("updraft_from", &[is(&target, &block(base, prefix)), refuse.clone()]),
            );
        }
        all.push(self.rule("updraft_from", &[is(&target, &ours), refuse.clone()]));
        let mut policies: Vec<&EgressPolicy> = Vec::new();
        let mut ways = Vec::new();
        for (number, wanted) in self.segments {
            let segment = format!("updraft_segment_{number}");
            all.push(self.chain(&segment));
            for policy in wanted {
                let number = policies.iter().position(|known| *known == policy);
                let number = number.unwrap_or_else(|| {
                    policies.push(policy);
                    let number = policies.len() - 1;
                    let chain = format!("updraft_policy_{number}");
                    all.push(self.chain(&chain));
                    for rule in policy.rules() {
                        all.extend(
                            self.opening(rule).map(|expression| self.rule(&chain, &expression)),
                        );
                    }
                    all.push(self.rule(&chain, std::slice::from_ref(&refuse)));
                    number
                });
                all.push(self.rule(&segment, &[jump(&format!("updraft_policy_{number}"))]));
            }
            all.push(self.rule(&segment, std::slice::from_ref(&accept)));
            ways.push(json!([group::segment_bits(*number), jump(&segment)]));
        }
        // One look, however many segments there are.
        let key = part("iifgroup", SEGMENT_MASK);
        let ways = json!({ "vmap": { "key": key, "data": { "set": ways } } });
        all.push(self.rule("updraft_from", &[ways]));
        all.push(self.rule("updraft_from", &[refuse]));
        all.push(self.rule("updraft_to", &[drop]));

        let leaves = devices.iter().map(|device| compare("!=", &meta("oifname"), &json!(device)));
        let mut expression = vec![is(&source, &ours)];
        expression.extend(leaves);
        expression.push(json!({ "masquerade": null }));
        all.push(self.rule("updraft_postrouting", &expression));
        json!({ "nftables": all })
    }

    /// The segments whose policies all allow a target as a whole, as bits of groups.
    fn groups(&self, target: &EgressTarget) -> Vec<Value> {
        let all = |policies: &[EgressPolicy]| policies.iter().all(|policy| policy.allows(target));
        let open = self.segments.iter().filter(|(_, policies)| all(policies));
        open.map(|(number, _)| json!(group::segment_bits(*number))).collect()
    }

    /// What a packet must be to please one entry of a policy; nothing for an entry that opens
    /// nothing here.
    fn opening(&self, rule: &EgressRule) -> Option<Vec<Value>> {
        let target = payload("ip", "daddr");
        let mut expression = match &rule.target {
            EgressTarget::Public => {
                let private: Vec<_> = PRIVATE
                    .iter()
                    .map(|(base, prefix)| block(&base.to_string(), *prefix))
                    .collect();
                vec![compare("!=", &target, &set(&private))]
            }
            EgressTarget::Network(network) => match network.address() {
                IpAddr::V4(_) if network.prefix() == 0 => Vec::new(),
                IpAddr::V4(base) => vec![is(&target, &block(&base.to_string(), network.prefix()))],
                IpAddr::V6(_) => return None,
            },
            EgressTarget::Name(name) => {
                let addresses: Vec<_> =
                    self.names.of(name).map(|address| json!(address.to_string())).collect();
                if addresses.is_empty() {
                    return None;
                }
                vec![is(&target, &set(&addresses))]
            }
            // The door is on the host, see above.
            EgressTarget::Gateway => return None,
        };
        let transport = match rule.transport {
            Some(Transport::Tcp) => vec![json!("tcp")],
            Some(Transport::Udp) => vec![json!("udp")],
            None => vec![json!("tcp"), json!("udp")],
        };
        if let Some(port) = rule.port {
            expression.push(is(&meta("l4proto"), &set(&transport)));
            expression.push(is(&payload("th", "dport"), &json!(port)));
        }
        expression.push(json!({ "return": null }));
        Some(expression)
    }

    /// Meets packets that begin a connection where their tenant has too many. A flood of packets
    /// to ever new places would otherwise fill the kernel's table of connections for everybody.
    fn too_many(&self, chain: &str) -> Value {
        json!({ "meter": {
            "name": format!("{chain}_connections"), "size": 65_535,
            "key": part("iifgroup", TENANT_MASK),
            "stmt": { "ct count": { "val": self.connections, "inv": true } },
        }})
    }

    /// Meets packets of a tenant that has used up what it may send or receive. There is no table
    /// of tenants to keep: the kernel begins to count each when it first sees it.
    fn over(&self, name: &str, key: &Value) -> Value {
        let limit = json!({ "limit": {
            "rate": self.bandwidth, "rate_unit": "bytes", "per": "second",
            // A tenth of a second's worth, but no less than a few long packets.
            "burst": (self.bandwidth / 10).max(200_000), "burst_unit": "bytes", "inv": true,
        }});
        json!({ "meter": { "name": name, "size": 65_535, "key": key, "stmt": limit } })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_public_addresses_are_public() {
        for inside in [
            "10.1.2.3",
            "172.31.0.1",
            "192.168.1.1",
            "100.64.0.1",
            "127.0.0.1",
            "0.0.0.0",
            "169.254.169.254",
            "224.0.0.1",
            "255.255.255.255",
            "100.100.100.200",
            "168.63.129.16",
        ] {
            assert!(!is_public(inside.parse().unwrap()), "{inside}");
        }
        for outside in ["1.1.1.1", "172.32.0.1", "192.169.0.1", "203.0.113.1"] {
            assert!(is_public(outside.parse().unwrap()), "{outside}");
        }
    }

    fn text(segments: &[(u32, Vec<EgressPolicy>)]) -> String {
        let rules = Rules {
            table: "updraft_test",
            bridge: "updraft00000000",
            devices: "ud00000000",
            subnet: "10.64.0.0/20".parse().unwrap(),
            gateway: Some(8080),
            resolvers: &["192.0.2.53".parse().unwrap()],
            bandwidth: 0,
            connections: 0,
            segments,
            names: &Names::default(),
        };
        rules.ruleset().to_string()
    }

    #[test]
    fn a_closed_segment_gets_neither_names_nor_the_gateway() {
        let open = text(&[(0, vec![EgressPolicy::open()])]);
        assert!(open.contains("192.0.2.53") && open.contains("8080"));
        for policies in [
            vec![EgressPolicy::closed()],
            vec![EgressPolicy::open(), EgressPolicy::closed()],
            vec![EgressPolicy::closed(), EgressPolicy::open()],
        ] {
            let closed = text(&[(0, policies)]);
            assert!(!closed.contains("192.0.2.53") && !closed.contains("8080"), "{closed}");
        }
    }

    #[test]
    fn a_name_that_stands_for_nothing_opens_nothing() {
        let rules = text(&[(0, vec!["api.example.com:443".parse().unwrap()])]);
        assert!(!rules.contains("443"), "{rules}");
    }
}
