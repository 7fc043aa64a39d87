//! Memory of a model that is served as its file holds it.

use instructd::ops::blocks::BlockType;

use super::place;
use crate::crash::server::Server;
use crate::numerics::formats::{Sizes, llama};

/// As f32 the model would take 3.8 times its file. Compared with a server of a tiny model, one that is ready holds less
/// than 1.6 times the file. While it loads, the pages of the file that it has read count too, which the kernel can take
/// back.
#[tokio::test]
async fn a_quantised_model_is_never_in_memory_as_f32() {
    let dir = tempfile::tempdir().unwrap();
    let (mut held, mut peaks) = (Vec::new(), Vec::new());
    let sizes = [
        Sizes { d: 256, inner: 256, vocab: 96, blocks: 1, untied: false },
        Sizes { d: 512, inner: 2048, vocab: 16_000, blocks: 10, untied: false },
    ];
    let mut bytes = 0;
    for (i, sizes) in sizes.into_iter().enumerate() {
        let file = dir.path().join(format!("model-{i}.gguf"));
        let data = llama(sizes, BlockType::Q8_0, "");
        bytes = data.len();
        std::fs::write(&file, data).unwrap();
        let mut place = place(&dir.path().join(i.to_string())).with("INSTRUCTD_WEIGHTS", "file");
        place.model = file;
        let server = Server::start(&place).await;
        let (now, peak) = server.memory();
        held.push(now);
        peaks.push(peak);
    }
    assert!(bytes > 40 << 20, "a model of {bytes} bytes is too small to tell");
    assert!(held[1].saturating_sub(held[0]) < bytes * 8 / 5, "{held:?} bytes are held for a file of {bytes}");
    assert!(peaks[1].saturating_sub(peaks[0]) < bytes * 5 / 2, "peaks of {peaks:?} bytes for a file of {bytes}");
}
