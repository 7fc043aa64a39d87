//! The versions that the upstream servers hold, and the switch from one to another: the whole fleet follows, or none.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use super::fleet::{Fleet, Replica};
use super::push::{PushOptions, Target};
use super::rollout::Rollout;
use crate::domain::ModelVersionId;
use crate::engine::{EngineError, ServedModel};

/// A version that was loaded at a server, or is to be.
#[derive(Clone)]
pub struct Known {
    pub served: Arc<ServedModel>,
    pub target: Target,
}

struct Versions {
    known: Vec<Known>,
    active: Known,
}

/// The fleet with its versions.
pub struct Switch {
    pub fleet: Fleet,
    push: Option<PushOptions>,
    versions: Mutex<Versions>,
    /// One change of the replicas at a time.
    changing: tokio::sync::Mutex<()>,
}

impl Switch {
    /// A fleet whose servers were started with `base`. Those that say that they serve something else get no requests
    /// before `base` or another version has been loaded there.
    pub async fn new(fleet: Fleet, push: Option<PushOptions>, base: Known) -> Self {
        for replica in &fleet.replicas {
            replica.assign(vec![base.target.version.clone()]);
            if let Some(push) = &push
                && let Ok(Some(false)) = push.serves(&replica.http, &base.target).await
            {
                replica.holds().clear();
            }
        }
        let versions = Mutex::new(Versions { known: vec![base.clone()], active: base });
        Self { fleet, push, versions, changing: tokio::sync::Mutex::default() }
    }

    fn versions(&self) -> MutexGuard<'_, Versions> {
        self.versions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn push(&self) -> Option<&PushOptions> {
        self.push.as_ref()
    }

    pub fn active(&self) -> Known {
        self.versions().active.clone()
    }

    pub fn known(&self, version: &ModelVersionId) -> Option<Known> {
        self.versions().known.iter().find(|known| known.target.version == *version).cloned()
    }

    /// The versions that a replica holds.
    pub fn loaded(&self) -> Vec<Arc<ServedModel>> {
        let known = self.versions().known.clone();
        known.into_iter().filter(|k| self.fleet.holders(&k.target.version) > 0).map(|k| k.served).collect()
    }

    /// Makes the version available for requests that name it: at every replica where versions stay beside each other,
    /// else at one of several replicas. A single replica is not touched before the version becomes active.
    ///
    /// # Errors
    /// `Failed` with the replica and its reason; then the replicas serve what they did before.
    pub async fn load(&self, wanted: Known) -> Result<Arc<ServedModel>, EngineError> {
        let Some(push) = &self.push else { return Err(EngineError::UnknownModel(wanted.target.version_name)) };
        let _one_at_a_time = self.changing.lock().await;
        let rollout = Rollout { fleet: &self.fleet, push };
        if push.loader.keeps_others() {
            rollout.add(&wanted.target).await.map_err(EngineError::Failed)?;
        } else if self.fleet.holders(&wanted.target.version) == 0
            && let [_, .., last] = self.fleet.replicas.as_slice()
        {
            let active = self.active().target;
            rollout.replace(last, &active, &wanted.target).await.map_err(EngineError::Failed)?;
        }
        self.remember(&wanted);
        Ok(wanted.served)
    }

    /// Makes the version available at every replica that takes it. Only where versions stay beside each other.
    ///
    /// # Errors
    /// `Failed` with the reasons of all replicas, if none takes it.
    pub async fn load_where_possible(&self, wanted: Known) -> Result<(), EngineError> {
        let push = self.push.as_ref().filter(|push| push.loader.keeps_others());
        let Some(push) = push else { return Err(EngineError::UnknownModel(wanted.target.version_name)) };
        let _one_at_a_time = self.changing.lock().await;
        let rollout = Rollout { fleet: &self.fleet, push };
        rollout.add_where_possible(&wanted.target).await.map_err(EngineError::Failed)?;
        self.remember(&wanted);
        Ok(())
    }

    fn remember(&self, wanted: &Known) {
        let mut versions = self.versions();
        if !versions.known.iter().any(|known| known.target.version == wanted.target.version) {
            versions.known.push(wanted.clone());
        }
    }

    /// Makes a loaded version the active one. Where a replica serves one version at a time, they follow one after the
    /// other. Requests without a named version go to the former version until one replica is left with it.
    ///
    /// # Errors
    /// `UnknownModel` for versions that were not loaded; `Failed` with the replica and its reason. Then the former
    /// version stays active, and the replicas that had followed are set back.
    pub async fn activate(&self, version: &ModelVersionId) -> Result<(), EngineError> {
        let _one_at_a_time = self.changing.lock().await;
        let to = self.known(version).ok_or_else(|| EngineError::UnknownModel(version.to_string()))?;
        match &self.push {
            Some(push) if !push.loader.keeps_others() => {
                let rollout = Rollout { fleet: &self.fleet, push };
                self.follow(&rollout, &to).await.map_err(EngineError::Failed)
            }
            _ => {
                self.versions().active = to;
                Ok(())
            }
        }
    }

    /// Replaces the version of every replica that does not hold `to`.
    async fn follow(&self, rollout: &Rollout<'_>, to: &Known) -> Result<(), String> {
        let from = self.active();
        let behind: Vec<&Arc<Replica>> = self.fleet.replicas.iter().filter(|r| !r.has(&to.target.version)).collect();
        for (i, replica) in behind.iter().enumerate() {
            // The last one stops serving the former version: requests go to those that have followed.
            if i + 1 == behind.len() && self.fleet.holders(&to.target.version) > 0 {
                self.versions().active = to.clone();
            }
            if let Err(why) = rollout.replace(replica, &from.target, &to.target).await {
                self.versions().active = from.clone();
                for followed in &behind[..i] {
                    if let Err(error) = rollout.replace(followed, &from.target, &from.target).await {
                        tracing::error!(%error, "an upstream replica cannot be set back");
                    }
                }
                return Err(format!("{why}; {} stays active", from.target.version_name));
            }
        }
        self.versions().active = to.clone();
        Ok(())
    }

    /// Gives up a version that is not active: a replica that held it alone serves the active one again.
    pub async fn release(&self, version: &ModelVersionId) {
        let _one_at_a_time = self.changing.lock().await;
        let active = self.active().target;
        let (Some(push), Some(known)) = (&self.push, self.known(version)) else { return };
        if active.version == *version || known.target.is_base && push.loader.keeps_others() {
            return;
        }
        let rollout = Rollout { fleet: &self.fleet, push };
        for replica in self.fleet.replicas.iter().filter(|replica| replica.assigned().contains(version)) {
            if push.loader.keeps_others() {
                rollout.remove_at(replica, &known.target).await;
            } else if let Err(error) = rollout.replace(replica, &active, &active).await {
                tracing::warn!(%error, "an upstream replica does not serve the active version again");
            }
        }
    }

    /// Checks the replicas every `period` as long as the fleet is in use: whether they list `model`, and whether they
    /// serve the versions that were loaded there.
    pub async fn watch(switch: Weak<Self>, model: String, period: Duration) {
        loop {
            let Some(alive) = switch.upgrade() else { return };
            alive.fleet.check(&model, period).await;
            alive.repair().await;
            drop(alive);
            tokio::time::sleep(period).await;
        }
    }

    async fn repair(&self) {
        // A change under way checks its replicas itself.
        let (Some(push), Ok(_one_at_a_time)) = (&self.push, self.changing.try_lock()) else { return };
        let targets: Vec<Target> = self.versions().known.iter().map(|known| known.target.clone()).collect();
        let rollout = Rollout { fleet: &self.fleet, push };
        let repairs = self.fleet.replicas.iter().map(|replica| rollout.repair(replica, &targets));
        futures::future::join_all(repairs).await;
    }
}
