//! The background task of a server that derives deliveries from stored events and sends those that are due. Every
//! server runs it; a delivery is sent by the one that holds it.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::time::Duration;

use futures::future::join_all;
use tokio::task::JoinSet;

use super::sender::{Answer, Message, Sender};
use super::{body, notices};
use crate::domain::time::{DAY, HOUR, MINUTE, SECOND, before};
use crate::domain::{DeliveryState, Micros, new_id};
use crate::service::{Result, Services};
use crate::store::{DeliveryEnd, DueDelivery, StoreError, Subscription};

/// Interval between two rounds.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// How far before the last derivation events are looked for again: clocks of servers differ by up to five minutes, and
/// a transaction may commit later than its rows' times.
const MARGIN: Micros = 6 * MINUTE;
/// Events that are read at once.
const EVENTS: i64 = 200;
/// A server that does not answer for this long (µs) loses what it sends.
const HOLD: Micros = MINUTE;
/// Deliveries to one webhook that one server sends at the same time.
const AT_ONCE: i64 = 8;
/// Time (µs) that one webhook may take of a round, so that a slow receiver does not delay the others.
const TURN: Micros = 5 * SECOND;
/// Longest wait between two attempts.
const LONGEST_WAIT: Micros = 6 * HOUR;
/// Each wait is this many times as long as the one before it.
const GROWTH: i64 = 4;
/// A wait is prolonged by up to this share of it, so that deliveries that failed together are not sent together again.
const JITTER: f64 = 0.1;

/// Derives and sends deliveries until shutdown.
pub async fn follow(services: Arc<Services>) {
    let runner = match Runner::new(services.clone()) {
        Ok(runner) => runner,
        Err(error) => return tracing::error!(%error, "webhooks cannot be sent: there is no HTTP client"),
    };
    loop {
        if let Err(error) = runner.round().await {
            tracing::warn!(%error, "webhooks wait: the database cannot be read or written");
        }
        tokio::select! {
            () = tokio::time::sleep(POLL_INTERVAL) => {}
            () = services.shutdown.cancelled() => return,
        }
    }
}

/// One server's sender of webhooks.
pub struct Runner {
    services: Arc<Services>,
    sender: Arc<Sender>,
    /// Names this server among those that hold deliveries.
    me: String,
    /// When notices were checked, and old deliveries removed.
    checked: AtomicI64,
    removed: AtomicI64,
}

impl Runner {
    /// # Errors
    /// When no HTTP client can be made.
    pub fn new(services: Arc<Services>) -> anyhow::Result<Self> {
        let sender = Arc::new(Sender::new(&services.config.webhooks)?);
        Ok(Self { services, sender, me: new_id(), checked: AtomicI64::new(0), removed: AtomicI64::new(0) })
    }

    /// Derives deliveries, checks notices, and sends what is due.
    ///
    /// # Errors
    /// What the store says; the next round goes on from there.
    pub async fn round(&self) -> Result<()> {
        let store = self.services.store.webhooks();
        let subscriptions = store.list().await?;
        if subscriptions.is_empty() {
            return Ok(());
        }
        let now = self.services.now();
        for subscription in &subscriptions {
            self.derive(subscription, now).await?;
        }
        if is_due(&self.checked, now, MINUTE) {
            notices::check(&self.services, &subscriptions).await?;
        }
        if is_due(&self.removed, now, HOUR) {
            let keep_days = self.services.config.webhooks.keep_days;
            store.expire(before(now, keep_days, DAY), MARGIN).await?;
        }
        let mut sending = JoinSet::new();
        for subscription in subscriptions {
            let (services, sender, me) = (self.services.clone(), self.sender.clone(), self.me.clone());
            sending.spawn(async move { drain(&services, &sender, &me, &subscription).await });
        }
        while let Some(sent) = sending.join_next().await {
            match sent {
                Ok(sent) => sent?,
                Err(error) => tracing::error!(%error, "the task that sends webhooks failed"),
            }
        }
        Ok(())
    }

    /// Stores deliveries of events that have none.
    async fn derive(&self, subscription: &Subscription, now: Micros) -> Result<()> {
        let Subscription { webhook, derived_until, .. } = subscription;
        let store = self.services.store.webhooks();
        // A time in the future was stored by a clock that was ahead.
        let since = webhook.created.max((*derived_until).min(now) - MARGIN);
        for event in &webhook.events {
            loop {
                let found = store.undelivered(&webhook.id, *event, since, EVENTS).await?;
                if found.is_empty() {
                    break;
                }
                let new = found.iter().map(|o| body::delivery(&webhook.id, o, now)).collect::<Result<Vec<_>>>()?;
                store.enqueue(&webhook.id, new, None).await?;
                if (found.len() as i64) < EVENTS {
                    break;
                }
            }
        }
        if *derived_until > now || now - *derived_until >= MINUTE {
            store.enqueue(&webhook.id, Vec::new(), Some(now)).await?;
        }
        Ok(())
    }
}

/// Whether `period` has passed since the last time that this was true.
fn is_due(last: &AtomicI64, now: Micros, period: Micros) -> bool {
    let former = last.load(Relaxed);
    let due = former > now || now - former >= period;
    if due {
        last.store(now, Relaxed);
    }
    due
}

/// Sends what is due to one webhook.
async fn drain(services: &Services, sender: &Sender, me: &str, subscription: &Subscription) -> Result<()> {
    let began = services.now();
    loop {
        let now = services.now();
        if services.shutdown.is_cancelled() || now - began > TURN {
            return Ok(());
        }
        let id = &subscription.webhook.id;
        let due = services.store.webhooks().claim(id, me, now, now + HOLD, AT_ONCE).await?;
        if due.is_empty() {
            return Ok(());
        }
        let attempts = due.iter().map(|delivery| attempt(services, sender, me, subscription, delivery));
        join_all(attempts).await.into_iter().collect::<Result<()>>()?;
    }
}

/// One attempt at a delivery, with its result stored.
async fn attempt(
    services: &Services,
    sender: &Sender,
    me: &str,
    subscription: &Subscription,
    delivery: &DueDelivery,
) -> Result<()> {
    let Subscription { webhook, secret, .. } = subscription;
    let DueDelivery { id, body, attempts } = delivery;
    let timestamp = services.now().div_euclid(SECOND);
    let answer = sender.send(&Message { url: &webhook.url, secret, id, body, timestamp }).await;
    let (config, now) = (&services.config.webhooks, services.now());
    let made = attempts + 1;
    let (code, error) = match answer {
        Answer::Status(code @ 200..300) => (Some(code), None),
        Answer::Status(code) => (Some(code), Some(format!("the receiver answered {code}"))),
        Answer::None(why) => (None, Some(why)),
    };
    let state = match &error {
        None => DeliveryState::Delivered,
        Some(_) if made >= i64::from(config.attempts) => DeliveryState::Failed,
        Some(_) => DeliveryState::Pending,
    };
    let outcome = if error.is_none() { "delivered" } else { "failed" };
    metrics::counter!("instructd_webhook_attempts_total", "outcome" => outcome).increment(1);
    if let Some(error) = &error {
        tracing::debug!(delivery = %id, webhook = %webhook.id, attempt = made, %error, "a webhook was not delivered");
    }
    let wait = wait(config.first_retry_seconds, made, services.random.fraction());
    let end = DeliveryEnd { state, code: code.map(Into::into), error, next_attempt: now.saturating_add(wait), now };
    match services.store.webhooks().finish(id, me, end).await {
        // Removed, or taken over while this server was paused.
        Err(StoreError::LeaseLost(_)) => Ok(()),
        other => Ok(other?),
    }
}

/// The wait (µs) after the attempt number `made` failed; `random` is in [0, 1).
fn wait(first_seconds: u32, made: i64, random: f64) -> Micros {
    let growth = GROWTH.saturating_pow(u32::try_from(made - 1).unwrap_or(u32::MAX));
    let wait = (i64::from(first_seconds) * SECOND).saturating_mul(growth).min(LONGEST_WAIT);
    wait + (wait as f64 * JITTER * random) as Micros
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_limit() {
        let seconds = |made| wait(10, made, 0.0) / SECOND;
        assert_eq!([1, 2, 3, 4].map(seconds), [10, 40, 160, 640]);
        assert_eq!(seconds(50), 6 * 3600);
        assert!(wait(10, 1, 0.99) < 11 * SECOND && wait(10, 1, 0.99) > 10 * SECOND);
        let all: Micros = (1..10).map(|made| wait(10, made, 0.0)).sum();
        assert!((20 * HOUR..24 * HOUR).contains(&all), "ten attempts take about a day");
    }
}
