//! The upstream servers of the configuration: the options of their client, and the generation of rollouts by it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt};
use serde_json::json;
use tokio::runtime::{Builder, Runtime};

use crate::config::UpstreamConfig;
use crate::domain::{ModelKind, ModelState, ModelVersion, ModelVersionId, STAGE_UPSTREAM};
use crate::engine::model_text::ModelText;
use crate::engine::upstream::Upstream;
use crate::engine::upstream::push::{Loader, PushOptions};
use crate::engine::upstream::tokens::LocalBase;
use crate::engine::upstream::wire::Kind;
use crate::engine::{
    EngineError, FinishReason, GenEvent, GenerateRequest, Generator, ModelFiles, SamplingParams, UpstreamEngine,
    UpstreamOptions,
};
use crate::train::remote::{GenParams, RemoteGenerator, Sample};

/// Further attempts for a response that a server has not completed.
const RETRIES: u32 = 8;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Interval of looking whether the run is to stop.
const STOP_CHECK: Duration = Duration::from_millis(20);
/// Number of versions that stay loaded: the newest, and the one before it, which may still generate.
const KEPT: usize = 2;
/// Difference between the seeds of two responses: an odd number.
const SEED_STEP: u64 = 0x9E37_79B9_7F4A_7C15;

/// The options of the client, without a local model.
///
/// # Errors
/// The setting that is missing or unknown.
pub fn options(upstream: &UpstreamConfig, files: Arc<dyn ModelFiles>, jitter_seed: u64) -> Result<UpstreamOptions> {
    let kind = Kind::parse(&upstream.kind).with_context(|| {
        format!("upstream.kind: '{}' is not a known kind; use one of {}", upstream.kind, Kind::NAMES)
    })?;
    let mut urls = vec![upstream.url.clone().context("upstream.url is missing: set the address of the server")?];
    urls.extend(upstream.replicas.iter().cloned());
    let push = match upstream.push.as_deref() {
        None => None,
        Some(name) => Some(PushOptions {
            loader: Loader::parse(name, &upstream.push_command).with_context(|| {
                format!(
                    "upstream.push: '{name}' is not a known way of loading, or upstream.push_command is empty; \
                     use one of {}",
                    Loader::NAMES
                )
            })?,
            path: upstream.push_path.clone(),
            timeout: Duration::from_secs(upstream.push_timeout_seconds),
            tolerance: upstream.push_tolerance,
        }),
    };
    Ok(UpstreamOptions {
        urls,
        push,
        kind,
        api_key: upstream.api_key.clone(),
        connect_timeout: Duration::from_secs(upstream.connect_timeout_seconds),
        response_timeout: Duration::from_secs(upstream.response_timeout_seconds),
        retries: upstream.retries,
        max_running: upstream.max_running,
        breaker_failures: upstream.breaker_failures,
        breaker_pause: Duration::from_secs(upstream.breaker_pause_seconds),
        health_period: Duration::from_secs(upstream.health_seconds),
        jitter_seed,
        base: None,
        files,
    })
}

/// What the servers' token ids are compared with: tokenizer and chat template of the model at `path`. `None` without a
/// tokenizer.
///
/// # Errors
/// When the files cannot be read.
pub fn local_base(name: &str, path: &Path) -> Result<Option<LocalBase>> {
    let described = crate::model::describe(path)?;
    if described.tokenizer.is_none() {
        return Ok(None);
    }
    let text = ModelText::new(name, described.tokenizer, described.chat_template.as_deref());
    Ok(Some(LocalBase {
        name: name.to_owned(),
        text: Arc::new(text),
        vocab_size: described.config.vocab_size,
        eos_ids: described.config.eos_ids,
        max_context: described.config.max_positions,
    }))
}

/// The client for the servers that generate rollouts, if they are configured. They must run the model at `model`.
///
/// # Errors
/// Those of [`FleetGenerator::connect`].
pub fn generator(config: Option<&UpstreamConfig>, model: &str) -> Result<Option<Arc<dyn RemoteGenerator>>> {
    let Some(config) = config.filter(|config| config.url.is_some()) else { return Ok(None) };
    Ok(Some(Arc::new(FleetGenerator::connect(config, Path::new(model))?)))
}

/// The directories of the adapters that were pushed.
#[derive(Debug, Default)]
struct Adapters(Mutex<HashMap<ModelVersionId, PathBuf>>);

impl Adapters {
    fn paths(&self) -> MutexGuard<'_, HashMap<ModelVersionId, PathBuf>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl ModelFiles for Adapters {
    async fn path(&self, version: &ModelVersion) -> Result<PathBuf, EngineError> {
        let path = self.paths().get(&version.id).cloned();
        path.ok_or_else(|| EngineError::Failed(format!("{} was not pushed by this run", version.name)))
    }
}

/// Generates the rollouts of one run by the upstream servers.
pub struct FleetGenerator {
    runtime: Runtime,
    engine: Arc<UpstreamEngine>,
    adapters: Arc<Adapters>,
    /// The versions that the servers have, oldest first: the run's number of updates, and the id there.
    loaded: Mutex<Vec<(u64, ModelVersionId)>>,
    max_running: usize,
}

impl FleetGenerator {
    /// Connects to the servers, which must run the model at `model` and report its token ids.
    ///
    /// # Errors
    /// A setting that does not fit, servers that do not answer, or whose token ids cannot be used.
    pub fn connect(config: &UpstreamConfig, model: &Path) -> Result<Self> {
        if config.push.as_deref() != Some("vllm") {
            bail!("rollouts are generated by servers that load adapters while they run: set upstream.push = \"vllm\"");
        }
        let name = model.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let base = local_base(&name, model)?;
        let base = base.with_context(|| format!("{name} has no tokenizer"))?;
        let adapters = Arc::new(Adapters::default());
        // The jitter spreads retries; a run's results do not depend on it.
        let options = UpstreamOptions { base: Some(base), ..options(config, adapters.clone(), 0)? };
        let upstream = Upstream::new(options).map_err(|e| anyhow!("upstream: {e}"))?;
        // The health check runs beside the calls, and two batches may be asked for by two threads.
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let discovered = runtime.block_on(upstream.discover(config.model.as_deref()))?;
        let version = version("rollout-base".to_owned(), STAGE_UPSTREAM);
        let engine = runtime.block_on(upstream.serve(version, discovered));
        if let Some(why) = engine.why_no_ids() {
            bail!("the upstream servers cannot generate rollouts: {why}");
        }
        Ok(Self { runtime, engine, adapters, loaded: Mutex::default(), max_running: config.max_running })
    }

    fn loaded(&self) -> MutexGuard<'_, Vec<(u64, ModelVersionId)>> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Response `i` of a batch.
    async fn response(&self, version: &ModelVersionId, i: usize, prompt: &[u32], params: &GenParams) -> Result<Sample> {
        let stream = params.first_stream + i as u64;
        let mut pause = FIRST_PAUSE;
        for attempt in 0..=RETRIES {
            match self.attempt(version, stream, prompt, params).await {
                Ok(sample) => return Ok(sample),
                Err(EngineError::Unavailable { .. } | EngineError::Overloaded { .. }) if attempt < RETRIES => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(5));
                }
                Err(error) => return Err(error).with_context(|| format!("response {i}, attempt {}", attempt + 1)),
            }
        }
        bail!("response {i}: no attempt was made")
    }

    async fn attempt(
        &self,
        version: &ModelVersionId,
        stream: u64,
        prompt: &[u32],
        params: &GenParams,
    ) -> Result<Sample, EngineError> {
        let request = GenerateRequest {
            request_id: format!("rollout-{stream}"),
            version: Some(version.clone()),
            prompt_ids: prompt.to_vec(),
            n: 1,
            params: SamplingParams {
                max_tokens: params.max_new_tokens,
                warpers: params.warpers.clone(),
                // The end tokens of training, which may be others than the server's.
                stop_token_ids: params.eos_ids.clone(),
                ignore_eos: true,
                seed: params.seed.wrapping_add(stream.wrapping_mul(SEED_STEP)),
                logprobs: Some(0),
                ..SamplingParams::default()
            },
            prompt_logprobs: None,
            prompt_from: 0,
            soft_prompt: None,
            background: true,
        };
        let mut generation = self.engine.generate(request).await?;
        let mut sample = Sample::default();
        while let Some(event) = generation.events.recv().await {
            match event {
                GenEvent::Delta { tokens, .. } => {
                    for token in tokens {
                        sample.ids.push(token.id);
                        sample.logprobs.extend(token.logprob);
                    }
                }
                GenEvent::Finish { reason: FinishReason::Abort, .. } => break,
                GenEvent::Finish { .. } if sample.ids.len() == sample.logprobs.len() && !sample.ids.is_empty() => {
                    sample.finished = sample.ids.last().is_some_and(|id| params.eos_ids.contains(id));
                    return Ok(sample);
                }
                GenEvent::Finish { .. } => break,
                GenEvent::Failed { error } => return Err(error),
                GenEvent::Prompt { .. } | GenEvent::Usage { .. } => {}
            }
        }
        let message = "an upstream server ended a response without its tokens".to_owned();
        Err(EngineError::Unavailable { message, retry_after_s: 1 })
    }
}

/// A version that only the servers know.
fn version(name: String, stage: &str) -> ModelVersion {
    ModelVersion {
        id: ModelVersionId::new(),
        kind: ModelKind::Policy,
        artifact_uri: format!("upstream:{name}"),
        name,
        stage: stage.to_owned(),
        parent_id: None,
        job_id: None,
        sha256: String::new(),
        metrics: json!({}),
        state: ModelState::Candidate,
        created: 0,
    }
}

impl RemoteGenerator for FleetGenerator {
    fn load(&self, number: u64, adapter: &Path) -> Result<()> {
        let version = version(format!("rollout-{number}"), "rollout");
        self.adapters.paths().insert(version.id.clone(), adapter.to_owned());
        self.runtime.block_on(self.engine.load_where_possible(&version))?;
        let old = {
            let mut loaded = self.loaded();
            loaded.push((number, version.id));
            let surplus = loaded.len().saturating_sub(KEPT);
            loaded.drain(..surplus).collect::<Vec<_>>()
        };
        for (_, id) in old {
            self.runtime.block_on(self.engine.release(&id));
            self.adapters.paths().remove(&id);
        }
        Ok(())
    }

    fn generate(
        &self,
        number: u64,
        prompts: &[Vec<u32>],
        params: &GenParams,
        stop: &(dyn Fn() -> bool + Sync),
    ) -> Result<Option<Vec<Sample>>> {
        let found = self.loaded().iter().rev().find(|(known, _)| *known == number).map(|(_, id)| id.clone());
        let version = found.with_context(|| format!("version {number} is not at the upstream servers"))?;
        let responses = prompts.iter().enumerate().map(|(i, prompt)| self.response(&version, i, prompt, params));
        self.runtime.block_on(async {
            let stopped = async {
                while !stop() {
                    tokio::time::sleep(STOP_CHECK).await;
                }
            };
            tokio::select! {
                found = futures::stream::iter(responses).buffered(self.max_running).try_collect() => found.map(Some),
                () = stopped => Ok(None),
            }
        })
    }
}

impl Drop for FleetGenerator {
    /// Unloads what the run has loaded.
    fn drop(&mut self) {
        let left = std::mem::take(&mut *self.loaded());
        for (_, id) in left {
            self.runtime.block_on(self.engine.release(&id));
        }
    }
}
