//! Webhooks, what is to be sent to them, and the state of notices.

use crate::domain::*;
use crate::store::sql::{read, write};
use crate::store::views::Webhooks;
use crate::store::*;

impl Webhooks<'_> {
    /// Stores a webhook with the secret that signs its deliveries.
    pub async fn put(self, webhook: Webhook, secret: &str) -> Result<()> {
        write!(self.0, secret = secret.to_owned() => |tx| async move { webhooks::put(tx, &webhook, &secret).await })
    }

    /// All webhooks, oldest first.
    pub async fn list(self) -> Result<Vec<Subscription>> {
        read!(self.0, |c| webhooks::list(c))
    }

    /// Removes a webhook and its deliveries.
    pub async fn delete(self, id: &str) -> Result<()> {
        write!(self.0, id = id.to_owned() => |tx| webhooks::delete(tx, &id))
    }

    /// At most `limit` events of one kind that were stored at or after `since` and have no delivery to this webhook,
    /// oldest first.
    pub async fn undelivered(
        self,
        id: &str,
        event: WebhookEvent,
        since: Micros,
        limit: i64,
    ) -> Result<Vec<Occurrence>> {
        read!(self.0, |c| webhooks::undelivered(c, id, event, since, limit))
    }

    /// Stores deliveries to one webhook; an event has one delivery to a webhook, whoever stores it. With
    /// `derived_until`, events from before that time have their deliveries. Nothing for a webhook that was removed.
    pub async fn enqueue(self, id: &str, new: Vec<NewDelivery>, derived_until: Option<Micros>) -> Result<()> {
        write!(self.0, id = id.to_owned() => |tx| async move { webhooks::enqueue(tx, &id, &new, derived_until).await })
    }

    /// Stores whether a notice is raised. A change from lowered to raised stores the deliveries, given as webhook and
    /// delivery, in the same transaction; the first state of a notice is no change. Returns whether the stored state
    /// changed.
    pub async fn notice(
        self,
        event: WebhookEvent,
        raised: bool,
        now: Micros,
        new: Vec<(String, NewDelivery)>,
    ) -> Result<bool> {
        write!(self.0, |tx| async move { webhooks::notice(tx, event, raised, now, &new).await })
    }

    /// Whether no ordinary set is open.
    pub async fn queue_is_empty(self) -> Result<bool> {
        read!(self.0, |c| webhooks::queue_is_empty(c))
    }

    /// Share of the known order of pairs that each of the latest `limit` first rankings of sets with hidden known
    /// answers has met, newest first; a tie counts half.
    pub async fn gold_scores(self, limit: i64) -> Result<Vec<f64>> {
        read!(self.0, |c| webhooks::gold_scores(c, limit))
    }

    /// Takes at most `limit` deliveries of a webhook that are due and that no other server holds, those that have
    /// waited longest first, until `until`.
    pub async fn claim(self, id: &str, me: &str, now: Micros, until: Micros, limit: i64) -> Result<Vec<DueDelivery>> {
        // Mostly nothing is due, and a read does not wait for writers.
        if !read!(self.0, |c| webhooks::is_due(c, id, now))? {
            return Ok(Vec::new());
        }
        write!(self.0, id = id.to_owned(), me = me.to_owned() => |tx| webhooks::claim(tx, &id, &me, now, until, limit))
    }

    /// Stores the result of an attempt and ends the hold. `LeaseLost` when another server has the delivery.
    pub async fn finish(self, delivery: &str, me: &str, end: DeliveryEnd) -> Result<()> {
        write!(self.0, id = delivery.to_owned(), me = me.to_owned() => |tx| async move {
            webhooks::finish(tx, &id, &me, &end).await
        })
    }

    /// Deliveries, newest first, of one webhook and in one state where these are given.
    pub async fn deliveries(
        self,
        webhook: Option<&str>,
        state: Option<DeliveryState>,
        page: &Page,
    ) -> Result<Vec<Delivery>> {
        read!(self.0, |c| webhooks::deliveries(c, webhook, state, page))
    }

    /// One delivery.
    pub async fn delivery(self, id: &str) -> Result<Delivery> {
        read!(self.0, |c| webhooks::get_delivery(c, id))
    }

    /// Makes a delivery due now, with all its attempts ahead.
    pub async fn resend(self, delivery: &str, now: Micros) -> Result<Delivery> {
        write!(self.0, id = delivery.to_owned() => |tx| webhooks::resend(tx, &id, now))
    }

    /// Removes deliveries that ended before `before`, except those of events that are still looked for: stored within
    /// `margin` before their webhook's `derived_until`.
    pub async fn expire(self, before: Micros, margin: Micros) -> Result<u64> {
        write!(self.0, |tx| webhooks::expire(tx, before, margin))
    }
}
