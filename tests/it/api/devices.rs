//! Devices in the metrics and in the overview.

use instructd::engine::EngineOptions;
use instructd::gpu::nvml::{Meter, Reading};
use serde_json::json;

use super::client::{Server, admin};
use crate::support::devices::{self, Control};

/// A monitoring library that knows the second device.
#[derive(Debug)]
struct OfTheSecond;

impl Meter for OfTheSecond {
    fn read(&self, bus_id: &str) -> Reading {
        match bus_id {
            "sim:1" => Reading { utilization: Some(0.25), memory: Some((3 << 30, 80 << 30)) },
            _ => Reading::default(),
        }
    }
}

#[tokio::test]
async fn figures_of_each_device_are_in_the_metrics_and_in_the_overview() {
    static CONTROLS: [Control; 2] = [Control::new(), Control::new()];
    let options = EngineOptions {
        devices: vec!["sim".to_owned(); 2],
        open: |name| devices::open(name, &CONTROLS),
        meter: std::sync::Arc::new(OfTheSecond),
        ..EngineOptions::default()
    };
    let server = Server::serving_with("llama-tiny", options).await;
    let ask = json!({"prompt": [5, 6, 7], "max_tokens": 4, "temperature": 0});
    server.open_post("/v1/completions", ask).await.expect(200);
    let overview = server.call("GET", "/admin/api/overview", &[admin()], None).await.expect(200).json();
    let text = server.call("GET", "/metrics", &[admin()], None).await.expect(200).text;
    let metric = |name: &str, device: &str| {
        let line = format!("instructd_device_{name}{{device=\"{device}\"}} ");
        text.lines().find_map(|found| found.strip_prefix(&line)?.parse::<f64>().ok())
    };
    assert_eq!(overview["devices"].as_array().unwrap().len(), 2, "{overview}");
    for (i, name) in ["sim:0", "sim:1"].into_iter().enumerate() {
        let device = &overview["devices"][i];
        assert_eq!(device["device"], name);
        assert_eq!(device["works"], true);
        let [used, total] = ["used", "total"].map(|figure| device["models"][figure].as_f64().unwrap());
        assert!(used > 0.0 && used < total, "{device}");
        assert_eq!((metric("bytes_used", name), metric("bytes_total", name)), (Some(used), Some(total)));
        // 64 contexts of 64 tokens.
        assert_eq!((metric("kv_pages_used", name), metric("kv_pages_total", name)), (Some(0.0), Some(256.0)));
        assert_eq!((metric("up", name), metric("requests_running", name)), (Some(1.0), Some(0.0)));
    }
    let [first, second] = [&overview["devices"][0], &overview["devices"][1]];
    assert!(first.get("utilization").is_none() && first.get("all_programs").is_none(), "{first}");
    assert_eq!(second["utilization"], 0.25);
    assert_eq!(second["all_programs"]["total"], json!(80u64 << 30));
    assert_eq!((metric("utilization", "sim:0"), metric("utilization", "sim:1")), (None, Some(0.25)));
    assert_eq!(metric("driver_bytes_used", "sim:1"), Some(f64::from(3u32) * f64::from(1u32 << 30)));
    assert_eq!(metric("driver_bytes_used", "sim:0"), None);
}

#[tokio::test]
async fn the_cpu_is_no_device() {
    let server = Server::serving_on("llama-tiny", "cpu").await;
    let overview = server.call("GET", "/admin/api/overview", &[admin()], None).await.expect(200).json();
    assert_eq!(overview.get("devices"), None, "{overview}");
}
