//! The model inside the program: small, whole, and able to answer.

use candle_core::Device;
use instructd::data::PromptInput;
use instructd::domain::Message;
use instructd::generation::{GenParams, Warpers, generate};
use instructd::hub::builtin;
use instructd::model::{Decoder, Purpose, load};
use instructd::prompt::Texts;

#[test]
fn the_built_in_model_unpacks_once_and_answers_in_its_chat_form() {
    let size: usize = builtin::files().map(|(_, bytes)| bytes.len()).sum();
    assert!(size > 1 << 20 && size <= 10 << 20, "{size} bytes");
    let data = tempfile::tempdir().unwrap();
    let dir = builtin::unpack(data.path()).unwrap();
    let weights = dir.join("model.safetensors");
    let written = std::fs::metadata(&weights).unwrap().modified().unwrap();
    // The second time nothing is written; a damaged file is put back.
    builtin::unpack(data.path()).unwrap();
    assert_eq!(std::fs::metadata(&weights).unwrap().modified().unwrap(), written);
    std::fs::write(dir.join("config.json"), "{}").unwrap();
    builtin::unpack(data.path()).unwrap();

    let loaded = load(&dir, &Device::Cpu).unwrap();
    let texts = Texts::new(&loaded).unwrap();
    let decoder = Decoder::new(&loaded.config, &loaded.weights, Purpose::Serve).unwrap();
    let ask = PromptInput::Chat(vec![Message { role: "user".into(), content: "Who are you?".into() }]);
    let params = GenParams {
        max_new_tokens: 48,
        eos_ids: texts.eos_ids().to_vec(),
        warpers: Warpers { temperature: 0.0, ..Warpers::default() },
        ..GenParams::default()
    };
    let prompt = texts.prompt(&ask).unwrap();
    let sample = &generate(&decoder, std::slice::from_ref(&prompt), &params, &|| false).unwrap()[0];
    let answer = texts.text(&prompt, &sample.ids).unwrap();
    println!("Who are you? -> {answer}");
    assert!(sample.ids.iter().any(|id| texts.eos_ids().contains(id)), "it does not end its turn: {answer:?}");
    assert!(answer.contains("very small language model"), "{answer:?}");
}
