//! Notices: states that webhooks are told of when they begin. The queue is empty; recent answers to sets with known
//! answers are worse than earlier ones.

use serde_json::{Value, json};

use super::body;
use crate::domain::{Micros, Occurrence, WebhookEvent};
use crate::service::{Result, Services};
use crate::store::Subscription;

/// Rankings that count as recent, and the most of the earlier ones that they are compared with.
const RECENT: usize = 50;
const EARLIER: usize = 200;
/// Smallest difference of the means that is a drift …
const LEAST_DROP: f64 = 0.05;
/// … if it is also this many standard errors.
const STANDARD_ERRORS: f64 = 3.0;

/// Stores the state of every notice that a webhook is told of, and its deliveries where one begins.
pub async fn check(services: &Services, subscriptions: &[Subscription]) -> Result<()> {
    let store = services.store.webhooks();
    let wanted = |event| subscriptions.iter().any(|s| s.webhook.events.contains(&event));
    if wanted(WebhookEvent::QueueEmpty) {
        let empty = store.queue_is_empty().await?.then(|| json!({"open_sets": 0}));
        announce(services, subscriptions, WebhookEvent::QueueEmpty, empty).await?;
    }
    if wanted(WebhookEvent::GoldDrift) {
        let scores = store.gold_scores((RECENT + EARLIER) as i64).await?;
        announce(services, subscriptions, WebhookEvent::GoldDrift, drift(&scores)).await?;
    }
    Ok(())
}

/// Stores the state of one notice: raised with this data, or lowered.
async fn announce(
    services: &Services,
    subscriptions: &[Subscription],
    event: WebhookEvent,
    data: Option<Value>,
) -> Result<()> {
    let now: Micros = services.now();
    let raised = data.is_some();
    let occurrence = Occurrence { event, source: now.to_string(), at: now, data: data.unwrap_or_default() };
    let told = subscriptions.iter().filter(|s| s.webhook.events.contains(&event));
    let deliveries = told
        .map(|s| Ok((s.webhook.id.clone(), body::delivery(&s.webhook.id, &occurrence, now)?)))
        .collect::<Result<Vec<_>>>()?;
    services.store.webhooks().notice(event, raised, now, deliveries).await?;
    Ok(())
}

/// Means of recent and earlier scores (newest first) when the recent ones are significantly lower.
fn drift(scores: &[f64]) -> Option<Value> {
    let (recent, earlier) = scores.split_at_checked(RECENT)?;
    if earlier.len() < RECENT {
        return None;
    }
    let (recent_mean, recent_variance) = mean_and_variance(recent);
    let (earlier_mean, earlier_variance) = mean_and_variance(earlier);
    let error = (recent_variance / recent.len() as f64 + earlier_variance / earlier.len() as f64).sqrt();
    let drop = earlier_mean - recent_mean;
    (drop >= LEAST_DROP && drop > STANDARD_ERRORS * error).then(|| {
        json!({
            "recent": {"accuracy": recent_mean, "rankings": recent.len()},
            "earlier": {"accuracy": earlier_mean, "rankings": earlier.len()},
        })
    })
}

/// Mean and unbiased variance of at least two numbers.
fn mean_and_variance(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    (mean, values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scores of which `hits` in ten are 1 and the others 0.
    fn scores(n: usize, hits: usize) -> Vec<f64> {
        (0..n).map(|i| f64::from(u8::from(i % 10 < hits))).collect()
    }

    #[test]
    fn a_drop_must_be_large_and_significant() {
        let of = |recent, earlier| drift(&[scores(50, recent), scores(200, earlier)].concat());
        let found = of(5, 9).expect("a drift");
        assert_eq!(found["recent"], json!({"accuracy": 0.5, "rankings": 50}));
        assert_eq!(found["earlier"]["rankings"], 200);
        // 0.8 and 0.9 differ by 0.1, with a standard error of 0.06.
        assert_eq!(of(8, 9), None);
        assert_eq!(of(9, 5), None, "better is no drift");
        assert_eq!(of(9, 9), None);
    }

    #[test]
    fn few_answers_say_nothing() {
        assert_eq!(drift(&[]), None);
        assert_eq!(drift(&[scores(50, 0), scores(49, 10)].concat()), None);
        assert!(drift(&[scores(50, 0), scores(50, 10)].concat()).is_some());
    }
}
