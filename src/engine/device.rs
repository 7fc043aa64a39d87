//! The devices that serve: the CPU, which has fused kernels and quantised formats, or some that run the kernels of `gpu`.

use std::cmp::Reverse;

use super::queue::MAX_REPLICAS;
use crate::gpu::cuda::Cuda;
use crate::gpu::device::Device;
use crate::gpu::sim::{self, Sim};

/// Opens a device by its name; `None` for the CPU. See [`open`].
pub type Open = fn(&str) -> Result<Option<Box<dyn Device>>, String>;

/// An open device with its name.
pub type NamedDevice = (String, Box<dyn Device>);

/// Opens the device `cuda:N`, GPU N counted from 0, or `sim:N`, a simulated device, which is slow and meant for tests.
/// `cuda` and `sim` are `cuda:0` and `sim:0`. `None` for `cpu`.
///
/// # Errors
/// If the name is another one, or the device or its driver is missing.
pub fn open(name: &str) -> Result<Option<Box<dyn Device>>, String> {
    match parse(name)? {
        Kind::Cpu => Ok(None),
        Kind::Sim => Ok(Some(Box::new(Sim::new(sim::BYTES)))),
        Kind::Cuda(index) => match Cuda::open(index, None) {
            Ok(gpu) => Ok(Some(Box::new(gpu))),
            Err(e) => Err(format!("the device {name} cannot be used: {e}")),
        },
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Cpu,
    Sim,
    Cuda(usize),
}

fn parse(name: &str) -> Result<Kind, String> {
    let (kind, index) = name.split_once(':').unwrap_or((name, "0"));
    match (kind, index.parse()) {
        ("cpu", _) if name == kind => Ok(Kind::Cpu),
        ("sim", Ok(_)) => Ok(Kind::Sim),
        ("cuda", Ok(index)) => Ok(Kind::Cuda(index)),
        _ => Err(format!("unknown device '{name}'; use cpu, cuda, cuda:N, or a list of cuda:N")),
    }
}

/// The devices of an engine. Each holds a replica of every loaded version.
#[derive(Clone, Debug)]
pub struct Devices {
    names: Vec<String>,
    open: Open,
}

impl Devices {
    /// `cpu` alone, or one or several of `cuda:N`, or of `sim`. Simulated devices are numbered in their order.
    ///
    /// # Errors
    /// Other names, no name or too many, devices of different kinds, a GPU that is named twice.
    pub fn new(names: &[String], open: Open) -> Result<Self, String> {
        let kinds = names.iter().map(|name| parse(name)).collect::<Result<Vec<_>, _>>()?;
        if kinds.is_empty() || kinds.len() > MAX_REPLICAS {
            return Err(format!("{} devices are named; use 1 to {MAX_REPLICAS}", kinds.len()));
        }
        let list = names.join(", ");
        if kinds.len() > 1 && kinds.contains(&Kind::Cpu) {
            return Err(format!("'{list}': the CPU serves alone; name cpu, or GPUs without it"));
        }
        if kinds.contains(&Kind::Sim) && kinds.iter().any(|kind| *kind != Kind::Sim) {
            return Err(format!("'{list}': simulated devices and GPUs do not serve together"));
        }
        let name = |(i, kind): (usize, &Kind)| match kind {
            Kind::Cpu => "cpu".to_owned(),
            Kind::Sim => format!("sim:{i}"),
            Kind::Cuda(index) => format!("cuda:{index}"),
        };
        let unique: Vec<String> = kinds.iter().enumerate().map(name).collect();
        if let Some((i, twice)) = unique.iter().enumerate().find(|(i, name)| unique[..*i].contains(name)) {
            return Err(format!("'{list}': {twice} is named twice (again as number {})", i + 1));
        }
        Ok(Self { names: unique, open })
    }

    /// `cpu`, or `cuda:N` and `sim:N`.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    pub fn is_cpu(&self) -> bool {
        self.names == ["cpu"]
    }

    /// Opens the device with the most free memory, the first of several; `None` for the CPU.
    ///
    /// # Errors
    /// If one of them cannot be used.
    pub fn open_emptiest(&self) -> Result<Option<NamedDevice>, String> {
        let used = |(_, device): &NamedDevice| {
            let (used, total) = device.memory();
            Reverse(total - used)
        };
        Ok(self.open()?.into_iter().min_by_key(used))
    }

    /// Opens all devices, with their names. None for the CPU.
    ///
    /// # Errors
    /// If one of them cannot be used.
    pub fn open(&self) -> Result<Vec<NamedDevice>, String> {
        let opened = self.names.iter().map(|name| Ok((self.open)(name)?.map(|device| (name.clone(), device))));
        opened.filter_map(Result::transpose).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_device_names_are_refused() {
        assert!(open("cpu").is_ok_and(|device| device.is_none()));
        assert!(open("sim").is_ok_and(|device| device.is_some()));
        for name in ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "metal", "cpu:0", "sim:x"] {
            assert!(open(name).is_err(), "{name}");
        }
        // The error names what is missing.
        if crate::gpu::cuda::driver().is_err() {
            let Err(error) = open("cuda:1") else { panic!("a GPU without a driver") };
            assert_eq!(error, "the device cuda:1 cannot be used: NVIDIA's driver (libcuda.so.1) is not installed here");
        }
    }

    #[test]
    fn a_list_names_different_devices_of_one_kind() {
        let devices =
            |names: &[&str]| Devices::new(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>(), open);
        assert!(devices(&["cpu"]).is_ok_and(|devices| devices.is_cpu() && devices.open().is_ok_and(|d| d.is_empty())));
        assert_eq!(devices(&["cuda"]).unwrap().names(), ["cuda:0"]);
        assert_eq!(devices(&["cuda:3", "cuda:1"]).unwrap().names(), ["cuda:3", "cuda:1"]);
        assert_eq!(devices(&["sim", "sim"]).unwrap().names(), ["sim:0", "sim:1"]);
        for (names, why) in [
            (&["cpu", "cuda"][..], "the CPU serves alone"),
            (&["cpu", "cpu"], "the CPU serves alone"),
            (&["sim", "cuda:1"], "do not serve together"),
            (&["cuda", "cuda:1", "cuda:0"], "cuda:0 is named twice (again as number 3)"),
            (&["cuda", "metal"], "unknown device 'metal'"),
            (&[], "0 devices are named"),
            (&["sim"; 65], "65 devices are named"),
        ] {
            let error = devices(names).unwrap_err();
            assert!(error.contains(why), "{names:?}: {error}");
        }
    }
}
