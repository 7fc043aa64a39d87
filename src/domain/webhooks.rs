//! Webhooks: addresses that are told of events, and what is sent to them.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Micros;

name_enum!(
    /// What a webhook is told of.
    WebhookEvent {
        /// A judgment was stored, by the labeling page or the API; imported rankings do not count.
        JudgmentCreated = "judgment.created",
        /// A job has succeeded.
        JobSucceeded = "job.succeeded",
        /// A job has failed.
        JobFailed = "job.failed",
        /// A model version became the active one, by a promotion or a roll-back.
        ModelPromoted = "model.promoted",
        /// The last open ordinary set was done or retired.
        QueueEmpty = "queue.empty",
        /// Recent answers to sets with known answers are worse than earlier ones.
        GoldDrift = "gold.drift",
        /// An administrator tried the webhook; every webhook gets it.
        Test = "webhook.test",
    }
);

/// An address that is told of events.
#[derive(Clone, Debug, PartialEq, Serialize, schemars::JsonSchema)]
pub struct Webhook {
    pub id: String,
    pub url: String,
    pub events: Vec<WebhookEvent>,
    /// Events from before this time are not sent.
    pub created: Micros,
}

name_enum!(
    /// How far a delivery is.
    DeliveryState {
        /// To be sent, for the first time or again.
        Pending = "pending",
        /// Answered with a status from 200 to 299.
        Delivered = "delivered",
        /// Given up after the last attempt.
        Failed = "failed",
    }
);

/// One event for one webhook.
#[derive(Clone, Debug, PartialEq, Serialize, schemars::JsonSchema)]
#[schemars(rename = "WebhookDelivery")]
pub struct Delivery {
    /// The header `webhook-id` of every attempt.
    pub id: String,
    pub webhook_id: String,
    pub event: WebhookEvent,
    /// The JSON text that is sent.
    pub body: String,
    pub state: DeliveryState,
    pub attempts: i64,
    /// When it is sent next; of an ended delivery, when the last attempt was due.
    pub next_attempt: Micros,
    /// Status of the last response; `None` before the first one, and when the last attempt got none.
    pub last_code: Option<i64>,
    /// Why the last attempt failed.
    pub last_error: Option<String>,
    pub created: Micros,
    /// When it was delivered or given up.
    pub ended: Option<Micros>,
}

/// An event as it was found in the rows that it is about.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Occurrence {
    pub event: WebhookEvent,
    /// Distinguishes it from others of its kind.
    pub source: String,
    pub at: Micros,
    /// Ids, names of jobs and models, and numbers.
    pub data: serde_json::Value,
}
