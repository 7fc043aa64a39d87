//! Composition root: builds store, engine, jobs and router from the configuration, runs them, and shuts them down in
//! order.

pub mod connections;
mod environment;
pub mod model;
mod progress;
pub mod pull;
mod slots;
pub mod upstream;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::net::TcpListener;

use crate::artifacts::Artifacts;
use crate::config::{Config, SHORTEST_OPEN_ADMIN_KEY};
use crate::http::batches::Handlers;
use crate::jobs::{Launch, Supervisor, SupervisorConfig};
use crate::service::{Random, Services, access, batch_runner, random, system_clock};
use crate::store::{self, Store, private};

/// Longest time that a shutdown waits for webhooks in flight.
const WEBHOOKS_DRAIN: Duration = Duration::from_secs(1);

/// Runs the server until SIGTERM or ctrl-c, or until the model cannot be loaded.
///
/// # Errors
/// A data directory, database, address or model that cannot be used.
pub async fn serve(config: Config) -> Result<()> {
    size_compute_pool(config.engine.threads);
    private::make_data_dir(&config.data_dir)?;
    let store = store::connect(&config.database_url()).await.context("opening the database")?;
    let (services, generated_key) = services(config.clone(), store.clone()).await?;
    let listener = TcpListener::bind(config.listen).await.with_context(|| format!("listening on {}", config.listen))?;
    announce(&listener, generated_key.as_deref(), &config)?;
    warn_if_open(&config);
    connections::make_room(config.server.max_connections);
    let state = crate::http::state(services.clone());
    let router = crate::http::router_of(state.clone());
    let batches = tokio::spawn(batch_runner::follow(services.clone(), Arc::new(Handlers(state))));
    let jobs = config.jobs.enabled.then(|| tokio::spawn(run_jobs(services.clone())));
    tokio::spawn(crate::service::retention::follow(services.clone()));
    let webhooks = tokio::spawn(crate::service::webhooks::follow(services.clone()));

    let loading = {
        let services = services.clone();
        tokio::spawn(async move {
            // Subscribed before the active version is read, so that no activation is missed.
            let activations = services.store.models().activations();
            let engine = model::start(&services).await?;
            services.set_engine(engine);
            crate::service::overview::prepare(&services);
            tokio::spawn(crate::service::live::follow(services.clone()));
            tokio::spawn(crate::service::publish::follow(services, activations));
            anyhow::Ok(())
        })
    };
    let stop = services.shutdown.clone();
    let watcher = tokio::spawn(async move {
        // The server listens while the model loads; a model that cannot be loaded ends it.
        let failed = tokio::select! {
            loaded = loading => match loaded {
                Ok(Ok(())) => None,
                Ok(Err(e)) => Some(e),
                Err(e) => Some(anyhow::Error::new(e)),
            },
            () = stop.cancelled() => None,
        };
        if failed.is_none() {
            tokio::select! {
                () = signalled() => tracing::info!("shutting down"),
                () = stop.cancelled() => {}
            }
        }
        stop.cancel();
        failed
    });
    tokio::spawn({
        // A signal ends the server also while the model loads.
        let stop = services.shutdown.clone();
        async move {
            signalled().await;
            stop.cancel();
        }
    });
    connections::serve(listener, router, &config.server, services.clone()).await;
    if let Some(jobs) = jobs
        && let Err(error) = jobs.await
    {
        tracing::error!(%error, "the job runner failed");
    }
    if let Err(error) = batches.await {
        tracing::error!(%error, "the batch runner failed");
    }
    // Deliveries in flight are stored as sent; one that takes longer is sent again later.
    if tokio::time::timeout(WEBHOOKS_DRAIN, webhooks).await.is_err() {
        tracing::warn!("webhooks were being sent at the end; they will be sent again");
    }
    store.close().await;
    match watcher.await? {
        Some(failed) => Err(failed),
        None => Ok(()),
    }
}

/// Services over an open store, and the admin key if it was made just now.
pub async fn services(config: Config, store: Arc<Store>) -> Result<(Arc<Services>, Option<String>)> {
    crate::jobs::executors::check(&config.executors, crate::train::job_kinds())?;
    let (clock, random) = (system_clock(), Random::from_os()?);
    if config.admin_key.as_ref().is_some_and(|key| key.len() < SHORTEST_OPEN_ADMIN_KEY) {
        tracing::warn!(
            "the admin key has fewer than 16 characters and can be guessed by anybody who reaches this machine's loopback address; use a longer one"
        );
    }
    let variables = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    for (name, meant) in environment::misspelt(variables) {
        tracing::warn!("the environment variable {name} is not a setting and is ignored; did you mean {meant}?");
    }
    let generated = access::generate_admin_key(&config, store.as_ref(), &random, clock()).await?;
    let hash = config.admin_key.as_deref().map(random::secret_hash);
    let services = Services::new(config, store, clock, random, hash, crate::train::job_kinds());
    Ok((Arc::new(services), generated))
}

/// Services over the configured database, for commands that nobody signs in to: no admin key is made.
pub async fn keyless_services(config: Config) -> Result<Arc<Services>> {
    let store = open_store(&config).await?;
    let (clock, random) = (system_clock(), Random::from_os()?);
    Ok(Arc::new(Services::new(config, store, clock, random, None, crate::train::job_kinds())))
}

/// Opens the configured database, for the commands that need nothing else.
pub async fn open_store(config: &Config) -> Result<Arc<Store>> {
    private::make_data_dir(&config.data_dir)?;
    store::connect(&config.database_url()).await.context("opening the database")
}

/// Runs training jobs of the store until shutdown (`instructd worker`).
pub async fn worker(config: Config) -> Result<()> {
    let store = open_store(&config).await?;
    let (services, generated_key) = services(config, store.clone()).await?;
    if let Some(key) = generated_key {
        // The first program on a new database generates the key, server or worker.
        println!("admin key, shown this once: {key}");
    }
    let stop = services.shutdown.clone();
    tokio::spawn(async move {
        signalled().await;
        stop.cancel();
    });
    tokio::spawn(crate::service::retention::follow(services.clone()));
    tracing::info!("waiting for jobs");
    run_jobs(services).await;
    store.close().await;
    Ok(())
}

/// Claims and runs jobs until shutdown; running ones then checkpoint and go back to the queue.
async fn run_jobs(services: Arc<Services>) {
    let launch = match Launch::this_program() {
        Ok(launch) => launch,
        Err(error) => return tracing::error!(%error, "jobs cannot run: the path of the running program is not known"),
    };
    let artifacts = match Artifacts::open(&services.config, services.store.clone()) {
        Ok(artifacts) => artifacts,
        Err(error) => return tracing::error!(%error, "jobs cannot run: the artifact store cannot be opened"),
    };
    let jobs = &services.config.jobs;
    let config = SupervisorConfig {
        slots: jobs.slots,
        lease_seconds: jobs.lease_seconds,
        max_crashes: jobs.max_crashes,
        threads: jobs.threads,
        // Request to stop, SIGTERM, SIGKILL: all within the drain timeout.
        grace: services.config.drain_timeout() / 2,
        cancel_grace: Duration::from_secs(jobs.cancel_grace_seconds),
        reward_hosts: jobs.reward_hosts.clone(),
        judges: services.config.judges.clone(),
        trainers: services.config.trainers.clone(),
        upstream: Some(services.config.upstream.clone()).filter(|upstream| upstream.url.is_some()),
        executors: services.config.executors.clone(),
        learn_from_requests: services.config.privacy.learn_from_requests,
        ..SupervisorConfig::new(services.config.data_dir.clone(), launch)
    };
    let supervisor = Supervisor::sharing(services.store.clone(), artifacts, services.recipes, config);
    supervisor.run(services.shutdown.clone()).await;
}

/// Prints which model runs, the addresses of the pages, and which key to use.
fn announce(listener: &TcpListener, generated_key: Option<&str>, config: &Config) -> Result<()> {
    let at = listener.local_addr()?;
    println!("instructd on http://{at}  (pages: /  /label  /chat  /admin  /docs)");
    if let Some(key) = generated_key {
        println!("admin key, shown this once: {key}");
    }
    let model = match &config.upstream.url {
        Some(url) => format!("the server at {url}"),
        None => config.model.clone(),
    };
    let key = match (generated_key, &config.admin_key) {
        (Some(_), _) => "the admin key above; keep it",
        (None, Some(_)) => "the admin key of your configuration (admin_key, INSTRUCTD_ADMIN_KEY)",
        (None, None) => {
            "the admin key that the first start printed; lost? set INSTRUCTD_ADMIN_KEY to one of your own and start again"
        }
    };
    println!("  model    {model} (loading; http://{at}/ready says when it answers)");
    println!("  start    open http://{at}/admin and sign in with {key}");
    println!("  chat     http://{at}/chat    API documentation: http://{at}/docs");
    println!("  data     {}    stop with Ctrl-C; more commands: instructd --help", config.data_dir.display());
    Ok(())
}

/// Warns when anybody on the network may use the inference routes.
fn warn_if_open(config: &Config) {
    if !config.listen.ip().to_canonical().is_loopback() && !config.require_inference_key {
        tracing::warn!(
            listen = %config.listen,
            "others can reach this server, and its inference routes need no key: anybody can use its compute, and \
             what they send is stored. Set require_inference_key = true, or listen on 127.0.0.1"
        );
    }
}

fn size_compute_pool(threads: usize) {
    if threads > 0
        && let Err(error) = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()
    {
        tracing::warn!(%error, "the size of the compute pool cannot be changed");
    }
}

/// Resolves at SIGTERM or ctrl-c.
async fn signalled() {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut terminate) = signal(SignalKind::terminate()) else {
        let _ = tokio::signal::ctrl_c().await;
        return;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}
