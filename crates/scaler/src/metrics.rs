//! What is known of every function's scaling, under the names of OpenFaaS where it has one.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use updraft_model::FunctionId;

use crate::entry::{Entry, State};
use crate::scaler::Shared;

/// Hands the numbers of all known functions to a registry. Only known functions have any.
#[derive(Debug)]
pub(crate) struct ScalerCollector(pub(crate) Arc<Shared>);

/// The functions by name, so that the text has one order.
type Known<'a> = [(String, &'a Entry)];

impl Collector for ScalerCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let entries = self.0.entries();
        let known = sorted(&entries);
        replicas(&mut encoder, &known)?;
        decisions(&mut encoder, &known)?;
        usage(&mut encoder, &known)
    }
}

fn sorted(entries: &HashMap<FunctionId, Entry>) -> Vec<(String, &Entry)> {
    let mut known: Vec<_> = entries.iter().map(|(id, entry)| (id.to_string(), entry)).collect();
    known.sort_by(|(one, _), (other, _)| one.cmp(other));
    known
}

/// A family of gauges with one row for each item.
fn gauges<Labels: EncodeLabelSet>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    rows: impl IntoIterator<Item = (Labels, f64)>,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (labels, value) in rows {
        ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

fn replicas(encoder: &mut DescriptorEncoder<'_>, known: &Known<'_>) -> fmt::Result {
    let each = |value: fn(&Entry) -> f64| {
        known.iter().map(move |(name, entry)| ([("function_name", name.as_str())], value(entry)))
    };
    gauges(
        encoder,
        "gateway_service_count",
        "Replicas desired",
        each(|entry| entry.current.map_or(entry.ready as f64, f64::from)),
    )?;
    gauges(
        encoder,
        "gateway_service_ready_count",
        "Replicas that are ready",
        each(|entry| entry.ready as f64),
    )?;
    gauges(
        encoder,
        "gateway_service_min",
        "Fewest replicas while awake",
        each(|entry| f64::from(entry.policy.min)),
    )?;
    gauges(
        encoder,
        "gateway_service_max",
        "Most replicas",
        each(|entry| f64::from(entry.policy.max)),
    )?;
    let targets = known
        .iter()
        .filter(|(_, entry)| !entry.policy.is_fixed())
        .flat_map(|(name, entry)| entry.policy.targets.iter().map(move |target| (name, target)));
    gauges(
        encoder,
        "gateway_service_target_load",
        "Load that one replica should carry",
        targets.map(|(name, target)| {
            let kind = ("scaling_type", target.measure.name());
            ([("function_name", name.as_str()), kind], target.load)
        }),
    )?;
    let states = State::ALL.map(|state| {
        let count = known.iter().filter(|(_, entry)| entry.state == state).count();
        ([("state", state.to_string())], count as f64)
    });
    gauges(encoder, "updraft_functions", "Functions by what a request can expect", states)?;
    let current = known.iter().map(|(name, entry)| {
        ([("function_name", name.clone()), ("state", entry.state.to_string())], 1.0)
    });
    gauges(encoder, "updraft_function_state", "What a request can expect of a function", current)
}

fn decisions(encoder: &mut DescriptorEncoder<'_>, known: &Known<'_>) -> fmt::Result {
    let awake = |entry: &&(String, &Entry)| {
        !matches!(entry.1.state, State::Asleep | State::Frozen) && !entry.1.policy.is_fixed()
    };
    gauges(
        encoder,
        "updraft_scaler_wanted_replicas",
        "Replicas that the last decision wants",
        known
            .iter()
            .filter(awake)
            .map(|(name, entry)| ([("function_name", name.as_str())], f64::from(entry.wanted))),
    )?;
    gauges(
        encoder,
        "updraft_scaler_load",
        "Load of all replicas together, in the unit of its type",
        known.iter().filter(awake).flat_map(|(name, entry)| {
            entry.policy.targets.iter().map(move |target| {
                let kind = ("scaling_type", target.measure.name());
                ([("function_name", name.as_str()), kind], entry.load(target))
            })
        }),
    )?;
    let mut family = encoder.encode_descriptor(
        "updraft_scaler_decisions",
        "Decisions that were carried out",
        None,
        MetricType::Counter,
    )?;
    for (name, entry) in known {
        let counts = entry.counts;
        let all = [
            ("up", counts.up),
            ("down", counts.down),
            ("stop", counts.stop),
            ("freeze", counts.freeze),
        ];
        for (decision, count) in all.into_iter().filter(|(_, count)| *count > 0) {
            let labels = [("function_name", name.as_str()), ("decision", decision)];
            ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

fn usage(encoder: &mut DescriptorEncoder<'_>, known: &Known<'_>) -> fmt::Result {
    fn labels(name: &str) -> [(&'static str, &str); 2] {
        let namespace = name.rsplit_once('.').map_or("", |(_, namespace)| namespace);
        [("function_name", name), ("namespace", namespace)]
    }
    let mut family = encoder.encode_descriptor(
        "pod_cpu_usage_seconds",
        "Processor time that a function's replicas used",
        None,
        MetricType::Counter,
    )?;
    let measured = || known.iter().filter(|(_, entry)| entry.usage.is_some());
    for (name, entry) in measured() {
        ConstCounter::new(entry.cpu_seconds).encode(family.encode_family(&labels(name))?)?;
    }
    gauges(
        encoder,
        "pod_memory_working_set_bytes",
        "Memory that a function's replicas use",
        measured()
            .filter_map(|(name, entry)| Some((labels(name), entry.usage?.memory_bytes as f64))),
    )
}
