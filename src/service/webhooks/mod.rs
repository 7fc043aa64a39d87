//! Webhooks: addresses that administrators have told of events. What is sent has ids, kinds, names of models and jobs,
//! and numbers; no text of prompts, completions or people, and no names of people.

mod address;
mod body;
mod notices;
mod runner;
mod sender;

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::people::Actor;
use super::{Result, Services, bad_input, uncancelled};
use crate::domain::{Delivery, DeliveryState, Occurrence, Webhook, WebhookEvent, new_id};
use crate::store::{Page, Subscription};

pub use runner::{Runner, follow};
pub use sender::signature;

/// Most webhooks of one installation.
const MOST: usize = 50;
const LONGEST_URL: usize = 2048;

/// A webhook to be made.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NewWebhook {
    /// `https://…` at a public address, or a URL of a host in `webhooks.hosts`.
    pub url: String,
    /// What it is told of.
    pub events: Vec<WebhookEvent>,
}

/// A webhook with its secret, which is shown once.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct CreatedWebhook {
    #[serde(flatten)]
    pub webhook: Webhook,
    /// `whsec_` and 32 bytes in base64: the key of the signatures.
    pub secret: String,
}

/// All webhooks, oldest first.
pub async fn list(services: &Services) -> Result<Vec<Webhook>> {
    Ok(services.store.webhooks().list().await?.into_iter().map(|s| s.webhook).collect())
}

/// Makes a webhook; events from now on are sent to it.
///
/// # Errors
/// `BadInput` for URLs that may not be called, and without events.
pub async fn create(services: &Arc<Services>, by: &Actor, new: NewWebhook) -> Result<CreatedWebhook> {
    let NewWebhook { url, mut events } = new;
    if url.len() > LONGEST_URL {
        return Err(bad_input("url", format!("has {} bytes; at most {LONGEST_URL} are allowed", url.len())));
    }
    let target = address::check(&url, &services.config.webhooks.hosts).map_err(|why| bad_input("url", why))?;
    events.sort();
    events.dedup();
    if events.is_empty() || events.contains(&WebhookEvent::Test) {
        let others = WebhookEvent::ALL.iter().filter(|e| **e != WebhookEvent::Test);
        let named: Vec<_> = others.map(|e| e.as_str()).collect();
        return Err(bad_input("events", format!("must name one or more of {}", named.join(", "))));
    }
    if services.store.webhooks().list().await?.len() >= MOST {
        return Err(bad_input("url", format!("there are {MOST} webhooks; delete one first")));
    }
    let secret = sender::new_secret(&services.random);
    let webhook = Webhook { id: new_id(), url, events, created: services.now() };
    // A path may hold a secret of the receiver.
    let detail = json!({"host": target.host_str(), "events": webhook.events});
    let (all, actor, created) = (services.clone(), by.signature(), CreatedWebhook { webhook, secret });
    uncancelled(async move {
        let CreatedWebhook { webhook, secret } = &created;
        all.store.webhooks().put(webhook.clone(), secret).await?;
        all.store.audit_log().append(&actor, "create_webhook", &webhook.id, detail, webhook.created).await?;
        Ok(created)
    })
    .await
}

/// Removes a webhook with its deliveries; nothing more is sent to it.
pub async fn delete(services: &Arc<Services>, by: &Actor, id: &str) -> Result<()> {
    let (all, actor, id) = (services.clone(), by.signature(), id.to_owned());
    uncancelled(async move {
        all.store.webhooks().delete(&id).await?;
        all.store.audit_log().append(&actor, "delete_webhook", &id, json!({}), all.now()).await?;
        Ok(())
    })
    .await
}

/// Queues the event `webhook.test` for one webhook.
pub async fn test(services: &Services, id: &str) -> Result<Delivery> {
    let found = services.store.webhooks().list().await?.into_iter().find(|s| s.webhook.id == id);
    let Some(Subscription { webhook, .. }) = found else {
        return Err(super::ServiceError::NotFound { what: "webhook", id: id.to_owned(), param: None });
    };
    let (now, data) = (services.now(), json!({"webhook_id": webhook.id}));
    let tried = Occurrence { event: WebhookEvent::Test, source: new_id(), at: now, data };
    let delivery = body::delivery(&webhook.id, &tried, now)?;
    let id = delivery.id.clone();
    services.store.webhooks().enqueue(&webhook.id, vec![delivery], None).await?;
    Ok(services.store.webhooks().delivery(&id).await?)
}

/// Deliveries, newest first.
pub async fn deliveries(
    services: &Services,
    webhook: Option<&str>,
    state: Option<DeliveryState>,
    page: &Page,
) -> Result<Vec<Delivery>> {
    Ok(services.store.webhooks().deliveries(webhook, state, page).await?)
}

/// Sends a delivery again, with the same id and body.
pub async fn resend(services: &Arc<Services>, by: &Actor, id: &str) -> Result<Delivery> {
    let (all, actor, id) = (services.clone(), by.signature(), id.to_owned());
    uncancelled(async move {
        let now = all.now();
        let delivery = all.store.webhooks().resend(&id, now).await?;
        let detail = json!({"webhook": delivery.webhook_id, "event": delivery.event});
        all.store.audit_log().append(&actor, "resend_delivery", &id, detail, now).await?;
        Ok(delivery)
    })
    .await
}
