//! The queue's numbers under the names that OpenFaaS dashboards ask for, and some of ours.
//!
//! Only functions that have calls get a label, and calls are taken for known functions only.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::lanes::LaneView;
use crate::shared::{Shared, now};

/// The label that upstream's dashboards join by; there is one worker here, the server.
const WORKER: &str = "updraft";

const USUAL_QUEUE: &str = "faas-request";

/// Reads the numbers when they are asked for.
#[derive(Debug)]
pub(crate) struct QueueCollector(Arc<Shared>);

impl QueueCollector {
    pub(crate) const fn new(shared: Arc<Shared>) -> Self {
        Self(shared)
    }
}

impl Collector for QueueCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let lanes = self.0.lanes().view();
        let by_lane = |value: fn(&LaneView) -> f64| {
            lanes
                .iter()
                .map(move |lane| (lane.queue.as_str(), lane.function.to_string(), value(lane)))
        };
        gauges(
            &mut encoder,
            "queue_worker_pending_messages",
            "Asynchronous calls that wait",
            by_lane(|lane| lane.waiting as f64),
        )?;
        gauges(
            &mut encoder,
            "queue_worker_function_invocation_inflight",
            "Asynchronous calls under way",
            by_lane(|lane| lane.running as f64),
        )?;
        gauges(
            &mut encoder,
            "queue_worker_oldest_pending_seconds",
            "Age of the asynchronous call whose turn is next",
            by_lane(|lane| {
                lane.oldest
                    .map_or(0.0, |oldest| now().saturating_sub(oldest).max(0) as f64 / 1000.0)
            }),
        )?;
        let queues: HashMap<String, String> =
            lanes.iter().map(|lane| (lane.function.to_string(), lane.queue.clone())).collect();
        let dead = self.0.dead();
        let dead: Vec<(String, u64)> =
            dead.into_iter().map(|(function, count)| (function.to_string(), count)).collect();
        gauges(
            &mut encoder,
            "queue_worker_dead_letters",
            "Asynchronous calls that were given up and are kept",
            dead.iter().map(|(function, count)| {
                let queue = queues.get(function).map_or(USUAL_QUEUE, String::as_str);
                (queue, function.clone(), *count as f64)
            }),
        )?;
        let counts = &self.0.counts;
        let counters: [(&str, &str, &AtomicU64); 6] = [
            ("submitted", "Asynchronous calls accepted", &counts.submitted),
            ("processed", "Attempts at asynchronous calls that were answered", &counts.processed),
            ("retried", "Asynchronous calls put back for another attempt", &counts.retried),
            ("buried", "Asynchronous calls given up", &counts.buried),
            ("callbacks_delivered", "Callbacks that were taken", &counts.told),
            ("callbacks_failed", "Callbacks that were given up", &counts.untold),
        ];
        for (name, help, counter) in counters {
            let name = if name.starts_with("callbacks") {
                format!("queue_worker_{name}")
            } else {
                format!("queue_worker_messages_{name}")
            };
            let mut family = encoder.encode_descriptor(&name, help, None, MetricType::Counter)?;
            let labels = [("queue_name", USUAL_QUEUE), ("kubernetes_pod_name", WORKER)];
            let counter = ConstCounter::new(counter.load(Ordering::Relaxed));
            counter.encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

fn gauges<'a>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    values: impl Iterator<Item = (&'a str, String, f64)>,
) -> Result<(), fmt::Error> {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (queue, function, value) in values {
        let labels = [("queue_name", queue), ("function_name", function.as_str())];
        ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}
