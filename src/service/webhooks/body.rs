//! The bodies of deliveries, and their ids.

use jiff::Timestamp;
use serde_json::json;

use crate::domain::{Micros, Occurrence, hash};
use crate::service::{Result, ServiceError};
use crate::store::NewDelivery;

/// The delivery of an event to a webhook. Its id follows from both, so that every server makes the same one.
pub fn delivery(webhook: &str, occurrence: &Occurrence, now: Micros) -> Result<NewDelivery> {
    let Occurrence { event, source, at, data } = occurrence;
    let timestamp = Timestamp::from_microsecond(*at).map_err(|e| ServiceError::Internal(e.to_string()))?;
    let body = json!({"type": event, "timestamp": timestamp.to_string(), "data": data}).to_string();
    // Without dots, which separate the parts of the signed text.
    let digest = hash::of_bytes(format!("{webhook}\n{event}\n{source}").as_bytes());
    let id = format!("msg_{}", &digest[..32]);
    Ok(NewDelivery { id, event: *event, source: source.clone(), body, now })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::WebhookEvent;

    #[test]
    fn an_event_has_one_id_at_each_webhook() {
        let event = Occurrence {
            event: WebhookEvent::JobFailed,
            source: "J:3".into(),
            at: 1_674_087_231_250_000,
            data: json!({"job_id": "J"}),
        };
        let one = delivery("W", &event, 5).expect("a delivery");
        assert_eq!(one.body, r#"{"type":"job.failed","timestamp":"2023-01-19T00:13:51.25Z","data":{"job_id":"J"}}"#);
        assert_eq!(delivery("W", &event, 6).expect("a delivery").id, one.id);
        assert_ne!(delivery("V", &event, 5).expect("a delivery").id, one.id);
        assert!(!one.id.contains('.'));
    }
}
