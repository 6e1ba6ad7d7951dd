//! What this process uses, under the names that every Prometheus client library gives it.

use std::fmt;
use std::fs;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};
use rustix::process::{Resource, getrlimit};

/// Adds the `process_*` families; they are read when they are asked for.
pub fn register_process(registry: &mut Registry) {
    registry.register_collector(Box::new(ProcessCollector));
}

#[derive(Debug)]
struct ProcessCollector;

/// What `/proc/self/stat` tells.
#[derive(Debug, PartialEq)]
struct Stat {
    cpu_seconds: f64,
    start_ticks: u64,
    virtual_bytes: u64,
    threads: u64,
}

/// Clock ticks a second in `/proc`: a constant of the kernel's interface (`USER_HZ`).
const TICKS: f64 = 100.0;

impl Stat {
    /// Field numbers are those of proc(5), after the command, which may hold spaces and
    /// parentheses itself.
    fn parse(text: &str) -> Option<Self> {
        let (_, rest) = text.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self {
            cpu_seconds: (field(14)? + field(15)?) as f64 / TICKS,
            threads: field(20)?,
            start_ticks: field(22)?,
            virtual_bytes: field(23)?,
        })
    }
}

/// When the machine started, in Unix seconds.
fn boot_time() -> Option<u64> {
    let text = fs::read_to_string("/proc/stat").ok()?;
    text.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

/// Memory in use, which `/proc` tells in KiB whatever the size of a page.
fn resident_bytes() -> Option<u64> {
    let text = fs::read_to_string("/proc/self/status").ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

impl Collector for ProcessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let stat = fs::read_to_string("/proc/self/stat").ok();
        let Some(stat) = stat.as_deref().and_then(Stat::parse) else { return Ok(()) };
        ConstCounter::new(stat.cpu_seconds).encode(encoder.encode_descriptor(
            "process_cpu",
            "Processor time used, in seconds",
            Some(&Unit::Seconds),
            MetricType::Counter,
        )?)?;
        let mut gauge = |name: &str, help: &str, unit: Option<&Unit>, value: f64| {
            ConstGauge::new(value).encode(encoder.encode_descriptor(
                name,
                help,
                unit,
                MetricType::Gauge,
            )?)
        };
        let bytes = Some(&Unit::Bytes);
        if let Some(resident) = resident_bytes() {
            gauge("process_resident_memory", "Memory in use", bytes, resident as f64)?;
        }
        gauge("process_virtual_memory", "Address space in use", bytes, stat.virtual_bytes as f64)?;
        gauge("process_threads", "Threads", None, stat.threads as f64)?;
        if let Some(boot) = boot_time() {
            let started = boot as f64 + stat.start_ticks as f64 / TICKS;
            let help = "When the process started, in Unix seconds";
            gauge("process_start_time", help, Some(&Unit::Seconds), started)?;
        }
        if let Ok(files) = fs::read_dir("/proc/self/fd") {
            gauge("process_open_fds", "Open files and connections", None, files.count() as f64)?;
        }
        if let Some(limit) = getrlimit(Resource::Nofile).current {
            gauge("process_max_fds", "Most open files and connections", None, limit as f64)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_with_parentheses_does_not_shift_the_fields() {
        let text = "7 (a) b) S 1 7 7 0 -1 4194560 1 0 0 0 250 50 0 0 20 0 9 0 123 4096 3 18446744073709551615";
        let stat = Stat::parse(text).unwrap();
        let expected = Stat { cpu_seconds: 3.0, start_ticks: 123, virtual_bytes: 4096, threads: 9 };
        assert_eq!(stat, expected);
        assert_eq!(Stat::parse("7 (a) S 1"), None);
        assert_eq!(Stat::parse(""), None);
    }

    #[test]
    fn the_families_have_the_names_of_every_client_library() {
        let mut registry = Registry::default();
        register_process(&mut registry);
        let text = crate::encode(&registry).unwrap();
        for name in [
            "process_cpu_seconds_total ",
            "process_resident_memory_bytes ",
            "process_virtual_memory_bytes ",
            "process_start_time_seconds ",
            "process_open_fds ",
            "process_max_fds ",
        ] {
            let line = text.lines().find(|line| line.starts_with(name));
            let value: f64 =
                line.unwrap_or_else(|| panic!("{name}: {text}"))[name.len()..].parse().unwrap();
            assert!(value >= 0.0, "{name} {value}");
        }
    }
}
