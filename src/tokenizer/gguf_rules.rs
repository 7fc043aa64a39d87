//! The rules that split a text before BPE, by the names in `tokenizer.ggml.pre`: one row of a table for each name.
//!
//! The publisher's expression is used where it is known, so that ids equal those of the published tokenizer.

use serde_json::{Value, json};

/// The splitting before the merges.
#[derive(Clone, Copy, Debug)]
enum Cut {
    /// GPT-2's expression, which is built into the byte-level step.
    Gpt2,
    /// Single digits, then GPT-2's expression.
    Digits,
    /// These expressions in order, each splitting the remaining text.
    By(&'static [&'static str]),
    /// These expressions in order, without byte-level characters: spaces become U+2581, unknown characters bytes.
    Plain(&'static [&'static str]),
    /// Splits at white space, which is dropped.
    Words,
}

/// The rules behind one or more names.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rule {
    names: &'static [&'static str],
    cut: Cut,
    /// Whether a piece that is a token becomes that token, independent of the merges.
    pub ignore_merges: bool,
    /// Whether a begin token is added before a text where the file does not specify it.
    pub add_bos: bool,
    /// Whether texts are normalised to Unicode's form C, as in the publisher's tokenizer.
    nfc: bool,
}

const fn rule(names: &'static [&'static str], cut: Cut) -> Rule {
    Rule { names, cut, ignore_merges: false, add_bos: false, nfc: false }
}

/// Llama 3's expression; Qwen2's is the same with single digits.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const JAIS2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}";
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// GPT-4o's: words by case, the contraction with its word.
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const YOUTU: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// DeepSeek V3's third expression; digits and Chinese are split before it.
const DEEPSEEK3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;
const SPARK: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+|[\r\n]|\s+(?!\S)|\s+"##;
const CJK: &str = r"[\x{4e00}-\x{9fa5}\x{3040}-\x{309f}\x{30a0}-\x{30ff}]+";
const DEEPSEEK_CJK: &str = r"[\x{4e00}-\x{9fa5}\x{800}-\x{4e00}\x{ac00}-\x{d7ff}]+";
/// The letters of words in DeepSeek LLM.
const DEEPSEEK_LETTERS: &str = concat!(
    r"\s?[A-Za-z\x{b5}\x{c0}-\x{d6}\x{d8}-\x{f6}\x{f8}-\x{1ba}\x{1bc}-\x{1bf}\x{1c4}-\x{293}\x{295}-\x{2af}",
    r"\x{370}-\x{373}\x{376}\x{377}\x{37b}-\x{37d}\x{37f}\x{386}\x{388}-\x{38a}\x{38c}\x{38e}-\x{3a1}",
    r"\x{3a3}-\x{3f5}\x{3f7}-\x{481}\x{48a}-\x{52f}\x{531}-\x{556}\x{10a0}-\x{10c5}\x{13a0}-\x{13f5}",
    r"\x{13f8}-\x{13fd}\x{1c90}-\x{1cba}\x{1cbd}-\x{1cbf}\x{1d00}-\x{1d2b}\x{1d6b}-\x{1d77}\x{1d79}-\x{1d9a}",
    r"\x{1e00}-\x{1f15}\x{1f18}-\x{1f1d}\x{1f20}-\x{1f45}\x{1f48}-\x{1f4d}\x{1f50}-\x{1f57}\x{1f59}\x{1f5b}",
    r"\x{1f5d}\x{1f5f}-\x{1f7d}\x{1f80}-\x{1fb4}\x{1fb6}-\x{1fbc}\x{1fbe}\x{1fc2}-\x{1fc4}\x{1fc6}-\x{1fcc}",
    r"\x{1fd0}-\x{1fd3}\x{1fd6}-\x{1fdb}\x{1fe0}-\x{1fec}\x{1ff2}-\x{1ff4}\x{1ff6}-\x{1ffc}\x{2102}\x{2107}",
    r"\x{210a}-\x{2113}\x{2115}\x{2119}-\x{211d}\x{2124}\x{2126}\x{2128}\x{212a}-\x{212d}\x{212f}-\x{2134}\x{2139}",
    r"\x{213c}-\x{213f}\x{2145}-\x{2149}\x{214e}\x{2183}\x{2184}\x{2c00}-\x{2c7b}\x{2c7e}-\x{2ce4}",
    r"\x{2ceb}-\x{2cee}\x{2cf2}\x{2cf3}\x{a640}-\x{a66d}\x{a680}-\x{a69b}\x{a722}-\x{a76f}\x{a771}-\x{a787}",
    r"\x{a78b}-\x{a78e}\x{ab70}-\x{abbf}\x{fb00}-\x{fb06}\x{fb13}-\x{fb17}\x{ff21}-\x{ff3a}\x{ff41}-\x{ff5a}",
    r"\x{10400}-\x{1044f}\x{104b0}-\x{104d3}\x{104d8}-\x{104fb}\x{10c80}-\x{10cb2}\x{10cc0}-\x{10cf2}",
    r"\x{118a0}-\x{118df}\x{1e900}-\x{1e943}]+",
);
const KIMI: &str = r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GRANITE_MULTI: &str = r"[^\r\n\p{L}\p{N}]?((?=[\p{L}\p{M}])([^a-z]))*((?=[\p{L}\p{M}])([^A-Z]))+(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?|[^\r\n\p{L}\p{N}]?((?=[\p{L}\p{M}])([^a-z]))+((?=[\p{L}\p{M}])([^A-Z]))*(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const BAILING: &str =
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";
const SEED: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+";
const EXAONE_MOE: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+";
const MINICPM5: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const UFAKZEKA: &str = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const BLOOM: &str = r" ?[^(\s|.,!?\x{2026}\x{3002}\x{ff0c}\x{3001}\x{964}\x{6d4}\x{60c})]+";
const AFMOE_SCRIPTS: &str = r"[\x{4e00}-\x{9fff}\x{3400}-\x{4dbf}\x{f900}-\x{faff}\x{3040}-\x{309f}\x{30a0}-\x{30ff}\x{ff65}-\x{ff9f}\x{2f00}-\x{2fdf}\x{e40}-\x{e7f}\x{e80}-\x{eff}\x{1780}-\x{17ff}\x{1000}-\x{109f}\x{aa60}-\x{aa7f}\x{a9e0}-\x{a9ff}\x{ac00}-\x{d7af}\x{1100}-\x{11ff}]+";
const LINES: &str = r"[^\n]+|[\n]+";

const RULES: &[Rule] = &[
    rule(&["default"], Cut::By(&[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"])),
    Rule {
        ignore_merges: true,
        add_bos: true,
        ..rule(
            &["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"],
            Cut::By(&[LLAMA3]),
        )
    },
    Rule { ignore_merges: true, ..rule(&["minicpm5"], Cut::By(&[r"\p{N}{1,3}", MINICPM5])) },
    rule(&["dbrx", "smaug-bpe", "glm4", "chatglm-bpe"], Cut::By(&[LLAMA3])),
    rule(&["jais-2"], Cut::By(&[JAIS2])),
    Rule { nfc: true, ..rule(&["qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez"], Cut::By(&[QWEN2])) },
    rule(&["stablelm2", "hunyuan", "solar-open", "grok-2"], Cut::By(&[QWEN2])),
    rule(&["qwen35"], Cut::By(&[QWEN35])),
    rule(&["laguna"], Cut::By(&[LINES, QWEN2])),
    rule(&["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"], Cut::Digits),
    rule(
        &[
            "gpt-2",
            "gpt2",
            "phi-2",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "granite-docling",
            "exaone4",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "jina-es",
            "jina-de",
            "jina-v2-es",
            "jina-v2-de",
            "jina-v1-en",
            "jina-v2-code",
            "roberta-bpe",
        ],
        Cut::Gpt2,
    ),
    rule(&["falcon"], Cut::By(&[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"])),
    rule(
        &["deepseek-llm"],
        Cut::By(&[
            r"[\r\n]",
            DEEPSEEK_LETTERS,
            r"\s?[!-/:-~\x{ff01}-\x{ff0f}\x{ff1a}-\x{ff5e}\x{2018}-\x{201f}\x{3000}-\x{3002}]+",
            r"\s+$",
            DEEPSEEK_CJK,
            r"\p{N}+",
        ]),
    ),
    rule(&["deepseek-coder"], Cut::By(&[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", DEEPSEEK_CJK, r"\p{N}"])),
    rule(&["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"], Cut::By(&[r"\p{N}{1,3}", CJK, DEEPSEEK3])),
    rule(&["spark2_5"], Cut::By(&[r"\p{N}{1,3}", CJK, SPARK, r"\p{N}"])),
    Rule {
        ignore_merges: true,
        ..rule(
            &["youtu"],
            Cut::By(&[
                r"[\x{ac00}-\x{d7a3}\x{3131}-\x{318e}]+|[\x{ff01}\x{2026}\x{201c}\x{201d}\x{2018}\x{2019}\x{2014}\x{ff1a}\x{ff1b}\x{ff0c}\x{3001}-\x{303f}\x{fe30}-\x{fe4f}]+|[\x{3105}-\x{312f}]+|[\x{4e00}-\x{9fa5}\x{3040}-\x{309f}\x{30a0}-\x{30ff}]+",
                YOUTU,
            ]),
        )
    },
    rule(&["poro-chat", "bloom", "gpt3-finnish"], Cut::By(&[BLOOM])),
    rule(&["viking"], Cut::By(&[BLOOM, r"\p{N}"])),
    Rule { ignore_merges: true, add_bos: true, ..rule(&["tekken"], Cut::By(&[TEKKEN])) },
    Rule {
        add_bos: true,
        ..rule(
            &["chameleon"],
            Cut::By(&[
                "<sentinel:[0-9]+>",
                "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
                r"([\t\n]|    |  )",
                r"\p{N}",
                r"[\p{P}!-/:-@\[-`{-~]",
                GPT2,
            ]),
        )
    },
    rule(&["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"], Cut::By(&[GPT4O])),
    Rule { ignore_merges: true, ..rule(&["granite-embed-multi-97m"], Cut::By(&[GRANITE_MULTI])) },
    rule(&["tiny_aya", "cohere2moe"], Cut::By(&[r"\d{1,3}(?=(?:\d{3})*\b)", GPT4O])),
    rule(&["superbpe"], Cut::By(&[r"\p{N}+", r"(?=(\d{3})+(?!\d))"])),
    rule(&["bailingmoe", "bailingmoe2", "llada-moe"], Cut::By(&[BAILING])),
    rule(&["seed-coder"], Cut::By(&[SEED])),
    rule(&["kimi-k2"], Cut::By(&[KIMI])),
    rule(&["ufakzeka"], Cut::By(&[UFAKZEKA])),
    rule(&["afmoe"], Cut::By(&[r"\p{Nd}{1,3}(?=(?:\p{Nd}{3})*(?!\p{Nd}))", AFMOE_SCRIPTS, DEEPSEEK3])),
    rule(&["exaone-moe"], Cut::By(&[EXAONE_MOE])),
    Rule { add_bos: true, ..rule(&["gemma4", "granite-embed-multi-311m"], Cut::Plain(&[LINES])) },
    rule(&["sarvam-moe"], Cut::Plain(&[LINES])),
    rule(&["whitespace"], Cut::Words),
];

/// The parts of tokenizer.json that a rule determines.
pub(super) struct Steps {
    pub pre_tokenizer: Value,
    pub normalizer: Value,
    pub decoder: Value,
    pub byte_fallback: bool,
}

impl Rule {
    /// The rule of this name.
    ///
    /// # Errors
    /// When the name is not known, because a wrong rule would silently give wrong ids; the message lists the known
    /// names.
    pub fn named(name: &str) -> Result<Self, String> {
        RULES.iter().find(|rule| rule.names.contains(&name)).copied().ok_or_else(|| {
            let known: Vec<&str> = RULES.iter().flat_map(|rule| rule.names).copied().collect();
            format!("pre-tokenizer {name:?} is not supported (known: {})", known.join(", "))
        })
    }

    /// The name of the rule that is equal to `pre_tokenizer`.
    pub fn of(pre_tokenizer: &Value, ignore_merges: bool) -> Option<&'static str> {
        let same = |rule: &&Rule| {
            rule.ignore_merges == ignore_merges && essence(&rule.steps().pre_tokenizer) == essence(pre_tokenizer)
        };
        RULES.iter().find(same).and_then(|rule| rule.names.first()).copied()
    }

    pub fn steps(self) -> Steps {
        let nfc = if self.nfc { json!({"type": "NFC"}) } else { Value::Null };
        let bytes = |pre_tokenizer| Steps {
            pre_tokenizer,
            normalizer: nfc.clone(),
            decoder: byte_level(true),
            byte_fallback: false,
        };
        let digits = json!({"type": "Digits", "individual_digits": true});
        match self.cut {
            Cut::Gpt2 => bytes(byte_level(true)),
            Cut::Digits => bytes(sequence(vec![digits, byte_level(true)])),
            Cut::By(expressions) => {
                let mut steps: Vec<Value> = expressions.iter().map(|regex| split(regex)).collect();
                steps.push(byte_level(false));
                bytes(sequence(steps))
            }
            Cut::Plain(expressions) => Steps {
                pre_tokenizer: sequence(expressions.iter().map(|regex| split(regex)).collect()),
                normalizer: json!({"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"}),
                decoder: plain_decoder(false),
                byte_fallback: true,
            },
            Cut::Words => Steps {
                pre_tokenizer: json!({"type": "WhitespaceSplit"}),
                normalizer: Value::Null,
                decoder: Value::Null,
                byte_fallback: false,
            },
        }
    }
}

pub(super) fn byte_level(regex: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex})
}

/// The steps of a pre-tokenizer that determine its splits; nested sequences are flattened.
fn essence(step: &Value) -> Vec<Value> {
    if let Some(steps) = step["pretokenizers"].as_array() {
        return steps.iter().flat_map(essence).collect();
    }
    let mut step = step.clone();
    if let Some(map) = step.as_object_mut() {
        map.remove("trim_offsets");
        let default = json!(true);
        if map.get("type") == Some(&json!("ByteLevel")) {
            map.entry("use_regex").or_insert(default);
        }
    }
    vec![step]
}

fn split(regex: &str) -> Value {
    json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false})
}

fn sequence(steps: Vec<Value>) -> Value {
    json!({"type": "Sequence", "pretokenizers": steps})
}

/// Tokens of characters and bytes → text. `prefix`: a space was added before the text.
pub(super) fn plain_decoder(prefix: bool) -> Value {
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    json!({"type": "Sequence", "decoders": decoders})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_stands_in_one_row_and_every_expression_compiles() {
        let mut names: Vec<&str> = RULES.iter().flat_map(|rule| rule.names).copied().collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
        for rule in RULES {
            if let Cut::By(expressions) | Cut::Plain(expressions) = rule.cut {
                for regex in expressions {
                    assert!(serde_json::from_value::<tokenizers::PreTokenizerWrapper>(split(regex)).is_ok(), "{regex}");
                }
            }
        }
        assert!(Rule::named("gpt-5").unwrap_err().contains("llama-bpe, llama3"));
    }
}
