//! Sample data for a first pass through the loop: real rankings to train on, and pairs of real answers to rank.

use std::sync::Arc;

use super::draw::{self, DrawRequest, SelectionPolicy};
use super::imports::{self, Imported};
use super::{Result, Services};
use crate::data::Format;
use crate::domain::{ProjectId, SetDraw};
use crate::service::people::Actor;
use crate::store::PromptFilter;

/// 151 rankings of English Open-Assistant answers (Apache-2.0), one a line, in the format `comparisons`.
const RANKINGS: &[u8] = include_bytes!("../../tests/fixtures/oasst-en-ranked.jsonl");
/// Names the source of the imported prompts: `import:sample`.
const NAME: &str = "sample";
/// Number of pairs to rank.
const PAIRS: usize = 20;

/// The sample rankings as a file of the format `comparisons`.
pub fn rankings() -> &'static [u8] {
    RANKINGS
}

/// Result of loading the sample.
#[derive(Debug, serde::Serialize, schemars::JsonSchema)]
#[schemars(rename = "SampleReport")]
pub struct Sample {
    #[serde(flatten)]
    pub imported: Imported,
    /// The pairs being made for the queue; `None` when the sample had been loaded before.
    pub draw: Option<SetDraw>,
}

/// Imports the sample rankings and begins to make pairs of their answers for the queue. Loading it twice changes
/// nothing the second time.
///
/// # Errors
/// `Conflict` while another draw runs.
pub async fn load(services: &Arc<Services>, by: &Actor) -> Result<Sample> {
    let body = bytes::Bytes::from_static(RANKINGS);
    let imported =
        imports::read_in(services, by, Format::Comparisons, NAME, Some(&ProjectId::first()), None, body).await?;
    if imported.imported == 0 {
        return Ok(Sample { imported, draw: None });
    }
    let request = DrawRequest {
        policy: SelectionPolicy::Stored,
        count: PAIRS,
        n: Some(2),
        overlap: None,
        prompts: PromptFilter {
            source: Some(format!("import:{NAME}")),
            with_sets: true,
            min_completions: 2,
            ..PromptFilter::default()
        },
        versions: None,
        certainty: None,
        candidates: None,
        max_tokens: None,
        temperature: None,
        top_p: None,
        seed: None,
    };
    let draw = draw::start(services, by, request).await?;
    Ok(Sample { imported, draw: Some(draw) })
}
