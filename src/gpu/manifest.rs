//! The kernels that were compiled ahead of time by `kernels/build.py`, embedded in this binary.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::LazyLock;

use serde::Deserialize;

use super::GpuError;

#[derive(rust_embed::RustEmbed)]
#[folder = "kernels/aot"]
struct Files;

/// The type of a parameter: a number, or a pointer to numbers on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Kind {
    #[serde(rename = "i32")]
    I32,
    /// A count that is a multiple of 8.
    #[serde(rename = "i32/8")]
    Eights,
    #[serde(rename = "f32")]
    F32,
    #[serde(rename = "*f32")]
    ToF32,
    #[serde(rename = "*f64")]
    ToF64,
    #[serde(rename = "*f16")]
    ToF16,
    #[serde(rename = "*bf16")]
    ToBf16,
    #[serde(rename = "*i32")]
    ToI32,
    #[serde(rename = "*i64")]
    ToI64,
    #[serde(rename = "*i8")]
    ToI8,
}

impl Kind {
    pub fn is_pointer(self) -> bool {
        !matches!(self, Self::I32 | Self::Eights | Self::F32)
    }

    /// Bytes of one number.
    pub fn size(self) -> usize {
        match self {
            Self::I32 | Self::Eights | Self::F32 | Self::ToF32 | Self::ToI32 => 4,
            Self::ToF64 | Self::ToI64 => 8,
            Self::ToF16 | Self::ToBf16 => 2,
            Self::ToI8 => 1,
        }
    }
}

/// One compiled variant of a kernel.
#[derive(Debug, Deserialize)]
pub struct Kernel {
    pub name: String,
    /// Its function in `kernels/*.py`.
    pub kernel: String,
    /// Its name in the PTX.
    pub entry: String,
    pub params: Vec<(String, Kind)>,
    /// Compile-time constants: tile sizes and switches.
    pub constants: BTreeMap<String, usize>,
    pub warps: u32,
    /// Bytes of shared memory of a block.
    pub shared: u32,
    pub sha256: String,
}

#[derive(Deserialize)]
struct Manifest {
    kernels: Vec<Kernel>,
}

static KERNELS: LazyLock<BTreeMap<String, Kernel>> = LazyLock::new(|| {
    let file = Files::get("manifest.json").expect("kernels/aot/manifest.json is compiled in");
    let manifest: Manifest = serde_json::from_slice(&file.data).expect("kernels/aot/manifest.json is valid");
    manifest.kernels.into_iter().map(|k| (k.name.clone(), k)).collect()
});

/// All kernels, by name.
pub fn kernels() -> impl Iterator<Item = &'static Kernel> {
    KERNELS.values()
}

/// The kernel called `name`.
///
/// # Errors
/// When there is no such variant.
pub fn kernel(name: &str) -> Result<&'static Kernel, GpuError> {
    KERNELS.get(name).ok_or_else(|| GpuError::Launch(format!("there is no kernel {name}")))
}

impl Kernel {
    /// Its PTX, for the driver to compile.
    ///
    /// # Errors
    /// When it is missing or damaged.
    pub fn ptx(&self) -> Result<String, GpuError> {
        let missing = || GpuError::Launch(format!("the PTX of {} is missing or damaged", self.name));
        let file = Files::get(&format!("{}.ptx.gz", self.name)).ok_or_else(missing)?;
        let mut text = String::new();
        flate2::read::GzDecoder::new(&*file.data).read_to_string(&mut text).map_err(|_| missing())?;
        Ok(text)
    }

    /// A compile-time constant; 0 when it has none of this name.
    pub fn constant(&self, name: &str) -> usize {
        self.constants.get(name).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;

    /// Parameters of the entry point in PTX, as (type, alignment of what it points at).
    fn ptx_params(ptx: &str) -> Vec<(String, Option<u32>)> {
        let from = ptx.find(".entry").unwrap();
        let list = &ptx[from..from + ptx[from..].find(')').unwrap()];
        list.lines()
            .filter_map(|line| {
                let words: Vec<&str> = line.split_whitespace().collect();
                let kind = words.iter().skip_while(|w| **w != ".param").nth(1)?;
                let align = words.iter().skip_while(|w| **w != ".align").nth(1).and_then(|n| n.parse().ok());
                Some(((*kind).to_owned(), align))
            })
            .collect()
    }

    /// What the driver will read as arguments is what launches pass: the manifest's parameters in order, and behind
    /// them two scratch pointers of Triton's.
    #[test]
    fn parameters_of_the_ptx_are_those_of_the_manifest() {
        assert!(kernels().count() > 100);
        for kernel in kernels() {
            let ptx = kernel.ptx().unwrap();
            assert_eq!(hex::encode(Sha256::digest(ptx.as_bytes())), kernel.sha256, "{}", kernel.name);
            assert!(ptx.contains(&format!(".entry {}(", kernel.entry)), "{}", kernel.name);
            assert!(ptx.contains(".target sm_80") && !ptx.contains("wgmma"), "{}", kernel.name);
            let params = ptx_params(&ptx);
            assert_eq!(params.len(), kernel.params.len() + 2, "{}", kernel.name);
            for ((name, kind), (in_ptx, align)) in kernel.params.iter().zip(&params) {
                let want = match kind {
                    Kind::I32 | Kind::Eights => ".u32",
                    Kind::F32 => ".f32",
                    _ => ".u64",
                };
                assert_eq!(in_ptx, want, "{}: {name}", kernel.name);
                // The alignment that the compiled code relies on is no larger than the one that launches check.
                assert!(align.is_none_or(|align| align as usize <= super::super::ALIGNMENT), "{}: {name}", kernel.name);
            }
            assert!(params[kernel.params.len()..].iter().all(|(kind, _)| kind == ".u64"), "{}", kernel.name);
            assert!(kernel.shared <= 99 * 1024, "{}", kernel.name);
        }
    }
}
