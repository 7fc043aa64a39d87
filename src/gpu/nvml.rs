//! Utilisation and memory of GPUs from NVML, NVIDIA's library for monitoring, which is opened at run time and comes with
//! the driver. Without it there are no figures.

use std::sync::{Arc, LazyLock};

use nvml_wrapper::Nvml;

/// Figures of one GPU. A figure that the GPU or the driver does not report is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Reading {
    /// Share of the driver's last sampling period (a second or less) in which a kernel ran, 0 to 1.
    pub utilization: Option<f64>,
    /// Bytes that all programs use, and bytes in total.
    pub memory: Option<(u64, u64)>,
}

/// A source of readings.
pub trait Meter: std::fmt::Debug + Send + Sync {
    /// Reads the figures of the GPU at a PCI address, `domain:bus:device.function` (hexadecimal). May take some
    /// milliseconds.
    fn read(&self, bus_id: &str) -> Reading;
}

/// NVML, opened at the first reading. `None` if it is not installed or does not start.
static NVML: LazyLock<Option<Nvml>> = LazyLock::new(|| {
    let opened = Nvml::init();
    if let Err(error) = &opened {
        tracing::debug!(%error, "NVML is not used");
    }
    opened.ok()
});

#[derive(Debug)]
struct Library;

impl Meter for Library {
    fn read(&self, bus_id: &str) -> Reading {
        let device = NVML.as_ref().and_then(|nvml| nvml.device_by_pci_bus_id(bus_id).ok());
        let Some(device) = device else { return Reading::default() };
        Reading {
            utilization: device.utilization_rates().ok().map(|rates| f64::from(rates.gpu) / 100.0),
            memory: device.memory_info().ok().map(|memory| (memory.used, memory.total)),
        }
    }
}

/// NVML. Its readings are empty where it is not installed.
pub fn meter() -> Arc<dyn Meter> {
    Arc::new(Library)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_library_or_gpu_gives_no_figures() {
        // Whether NVML is installed here or not: no GPU has this address.
        assert_eq!(meter().read("0000ffff:ff:1f.0"), Reading::default());
    }
}
