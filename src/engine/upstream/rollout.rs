//! Loading a version at one replica or at all: it is told, asked which version it serves, and probed. What fails is
//! undone.

use super::fleet::{Fleet, Replica};
use super::push::{Probe, PushOptions, Target};

/// Changes of the versions that replicas hold.
pub struct Rollout<'a> {
    pub fleet: &'a Fleet,
    pub push: &'a PushOptions,
}

impl Rollout<'_> {
    /// Loads the version at every replica, beside the versions that it holds.
    ///
    /// # Errors
    /// Which replica failed and why. Then no replica holds the version that did not before.
    pub async fn add(&self, target: &Target) -> Result<(), String> {
        let mut told: Vec<&Replica> = Vec::new();
        let mut first: Option<Probe> = None;
        for replica in &self.fleet.replicas {
            if let Err(why) = self.add_at(replica, target, &mut told, &mut first).await {
                for told in told {
                    self.remove_at(told, target).await;
                }
                return Err(format!("{}: {why}; no upstream server serves it", replica.name));
            }
        }
        for replica in &self.fleet.replicas {
            let others = replica.assigned().into_iter().filter(|version| *version != target.version);
            replica.assign(others.chain([target.version.clone()]).collect());
        }
        Ok(())
    }

    /// Loads the version at every replica that takes it, beside the versions that it holds. The health check loads it at
    /// the others when they are back.
    ///
    /// # Errors
    /// What each replica says, if none takes it.
    pub async fn add_where_possible(&self, target: &Target) -> Result<(), String> {
        let (mut first, mut refusals) = (None, Vec::new());
        for replica in &self.fleet.replicas {
            let added = self.add_at(replica, target, &mut Vec::new(), &mut first).await;
            replica.assign_also(&target.version, added.is_ok());
            refusals.extend(added.err().map(|why| format!("{}: {why}", replica.name)));
        }
        if refusals.len() < self.fleet.replicas.len() {
            for why in refusals {
                tracing::warn!(%why, model.name = %target.version_name, "an upstream replica has not loaded a version");
            }
            return Ok(());
        }
        for replica in &self.fleet.replicas {
            self.remove_at(replica, target).await;
        }
        Err(format!("no upstream server serves it: {}", refusals.join("; ")))
    }

    async fn add_at<'r>(
        &self,
        replica: &'r Replica,
        target: &Target,
        told: &mut Vec<&'r Replica>,
        first: &mut Option<Probe>,
    ) -> Result<(), String> {
        if self.push.serves(&replica.http, target).await? != Some(true) {
            told.push(replica);
            self.push.load(&replica.http, target).await?;
        }
        let probe = self.verify(replica, target).await?;
        match first {
            Some(first) => probe.agrees(first, self.push.tolerance),
            None => {
                *first = Some(probe);
                Ok(())
            }
        }
    }

    /// Makes a replica forget a version that it holds beside others.
    pub async fn remove_at(&self, replica: &Replica, target: &Target) {
        replica.assign(replica.assigned().into_iter().filter(|version| *version != target.version).collect());
        if let Err(error) = self.push.unload(&replica.http, target).await {
            let name = &target.version_name;
            tracing::warn!(replica = %replica.name, model.name = %name, %error, "a version stays loaded");
        }
    }

    /// Replaces what a replica holds by `to`, after its requests have ended.
    ///
    /// # Errors
    /// Which replica failed and why. Then it holds `from` again, if it can be set back.
    pub async fn replace(&self, replica: &Replica, from: &Target, to: &Target) -> Result<(), String> {
        replica.pause(true);
        let done = self.replace_paused(replica, from, to).await;
        replica.pause(false);
        done.map_err(|why| format!("{}: {why}", replica.name))
    }

    async fn replace_paused(&self, replica: &Replica, from: &Target, to: &Target) -> Result<(), String> {
        if let Err(running) = replica.idle(self.push.timeout).await {
            let limit = self.push.timeout.as_secs();
            return Err(format!("{running} samples still run after {limit} s, so no version was loaded"));
        }
        let former = replica.assigned();
        replica.assign(Vec::new());
        let Err(why) = self.load_and_verify(replica, to).await else {
            replica.assign(vec![to.version.clone()]);
            return Ok(());
        };
        match self.load_and_verify(replica, from).await {
            Ok(()) => {
                replica.assign(vec![from.version.clone()]);
                Err(why)
            }
            Err(error) => {
                // It gets no requests until the health check has loaded what it is to serve.
                replica.assign(former);
                replica.holds().clear();
                Err(format!("{why}; it cannot be set back to {}: {error}", from.version_name))
            }
        }
    }

    async fn load_and_verify(&self, replica: &Replica, target: &Target) -> Result<(), String> {
        if self.push.serves(&replica.http, target).await? != Some(true) {
            self.push.load(&replica.http, target).await?;
        }
        let probe = self.verify(replica, target).await?;
        let other = self.fleet.replicas.iter().find(|other| other.has(&target.version));
        let Some(other) = other else { return Ok(()) };
        match self.push.probe(&other.http, target).await {
            Ok(expected) => probe.agrees(&expected, self.push.tolerance),
            // The other one is not what is being checked.
            Err(_) => Ok(()),
        }
    }

    async fn verify(&self, replica: &Replica, target: &Target) -> Result<Probe, String> {
        if self.push.serves(&replica.http, target).await? == Some(false) {
            return Err(format!("it was told to load {} and does not serve it", target.version_name));
        }
        self.push.probe(&replica.http, target).await
    }

    /// Loads the versions again that a replica is to serve and does not (it was started again).
    pub async fn repair(&self, replica: &Replica, targets: &[Target]) {
        let assigned = replica.assigned();
        for target in targets.iter().filter(|target| assigned.contains(&target.version)) {
            let serves = match self.push.serves(&replica.http, target).await {
                Ok(serves) => serves.unwrap_or_else(|| replica.has(&target.version)),
                // It is away; requests find that out by themselves.
                Err(_) => continue,
            };
            if serves && replica.has(&target.version) {
                continue;
            }
            replica.holds().retain(|version| *version != target.version);
            let (host, name) = (&replica.name, &target.version_name);
            match self.load_and_verify(replica, target).await {
                Ok(()) => {
                    tracing::info!(replica = %host, model.name = %name, "loaded a version again");
                    replica.holds().push(target.version.clone());
                }
                Err(error) => {
                    tracing::warn!(replica = %host, model.name = %name, %error, "a version is missing");
                }
            }
        }
    }
}
