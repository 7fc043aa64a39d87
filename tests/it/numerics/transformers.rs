//! Saved directories of every family load in transformers with the same values; where `INSTRUCTD_TEST_TRANSFORMERS` names
//! a Python that has torch and transformers.

use candle_core::{Device, Tensor};
use instructd::model::{Decoder, Encoder, PackedBatch, Purpose, load, save_dir};
use serde_json::{Map, json};

use crate::support::{DECODERS, ENCODERS, fixture};

#[test]
fn saved_directories_load_in_transformers() {
    let Some(python) = std::env::var_os("INSTRUCTD_TEST_TRANSFORMERS") else {
        eprintln!("skipped: INSTRUCTD_TEST_TRANSFORMERS names no Python with torch and transformers");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let ids: Vec<u32> = (0..14).map(|i| (i * 17 + 5) % 96).collect();
    let mut expected = Map::new();
    // transformers' BertForMaskedLM has no pooler, which the fixture keeps.
    for name in DECODERS.into_iter().chain(ENCODERS.into_iter().filter(|name| *name != "bert-tiny")) {
        let loaded = load(&fixture(name), &Device::Cpu).unwrap();
        let plain = name.replace('/', "-");
        let (c, h, w) = (&loaded.config, &loaded.hf_config, &loaded.weights);
        save_dir(&dir.path().join(&plain), c, h, w, None, None, None).unwrap();
        let batch = PackedBatch::new(&[&ids[..]]);
        let logits: Tensor = if c.is_encoder() {
            let encoder = Encoder::new(c, w, Purpose::Serve).unwrap();
            encoder.mlm_logits(&encoder.forward(&batch, &vec![0; ids.len()]).unwrap()).unwrap()
        } else {
            let decoder = Decoder::new(c, w, Purpose::Serve).unwrap();
            decoder.logits(&decoder.forward(&batch).unwrap()).unwrap()
        };
        let logits = logits.to_vec2::<f32>().unwrap();
        expected.insert(plain, json!({"ids": ids, "logits": logits, "encoder": c.is_encoder()}));
    }
    std::fs::write(dir.path().join("expected.json"), serde_json::Value::from(expected).to_string()).unwrap();
    let script = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/saved_families.py");
    let run = std::process::Command::new(python).arg(script).arg(dir.path()).output().unwrap();
    println!("{}", String::from_utf8_lossy(&run.stdout));
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
}
