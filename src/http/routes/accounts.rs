//! The rows of people, keys, guidelines, rubrics and webhooks.

use super::{Admin, List, Paged, Route, delete, get, label, post, rubrics};
use crate::domain::{Delivery, Labeler, Webhook};
use crate::http::admin::{people, webhooks};
use crate::service::people::{Erasure, PersonalExport};
use crate::service::webhooks::{CreatedWebhook, NewWebhook};

/// The administrators' routes of people, keys, guidelines and rubrics.
pub(super) fn table() -> Vec<Route> {
    vec![
        get(
            "/admin/guidelines",
            Admin,
            "Guidelines of every language and their earlier versions",
            label::all_guidelines,
        )
        .query::<label::ProjectQuery>()
        .returns::<label::AllGuidelines>(200),
        post("/admin/guidelines", Admin, "Change the guidelines of a language", label::change_guidelines)
            .body::<label::GuidelinesChange>()
            .returns::<label::ShownGuidelines>(200),
        get("/admin/rubrics", Admin, "Versions of rubrics, and presets", rubrics::all)
            .query::<label::ProjectQuery>()
            .returns::<rubrics::AllRubrics>(200),
        post("/admin/rubrics", Admin, "Store a version of a rubric", rubrics::put)
            .body::<rubrics::NewRubric>()
            .returns::<rubrics::StoredRubric>(201),
        post("/admin/rubrics/active", Admin, "Activate a version of a rubric, or none", rubrics::activate)
            .body::<rubrics::Activation>()
            .returns::<rubrics::ActiveRubric>(200),
        get("/admin/audit", Admin, "Audit trail, newest first", people::audit)
            .query::<people::AuditQuery>()
            .returns::<people::AuditPage>(200),
        get("/admin/labelers", Admin, "People who rank", people::labelers)
            .returns::<List<people::LabelerWithLink>>(200),
        post("/admin/labelers", Admin, "Add a labeler", people::add_labeler)
            .body::<people::NewLabeler>()
            .returns::<people::CreatedLabeler>(201),
        post(
            "/admin/labelers/{id}/link",
            Admin,
            "Create a sign-in link for a person; the former one stops working",
            people::make_link,
        )
        .body::<people::NewLink>()
        .returns::<people::CreatedLink>(201),
        delete(
            "/admin/labelers/{id}/link",
            Admin,
            "Revoke a person's sign-in link; its sessions end",
            people::revoke_link,
        )
        .returns_nothing(),
        post("/admin/labelers/{id}/active", Admin, "Allow or refuse a labeler's sign-in", people::set_active)
            .body::<people::SetActive>()
            .returns_nothing(),
        post("/admin/labelers/{id}", Admin, "Change role, quota or activity of a labeler", people::change_labeler)
            .body::<people::LabelerChange>()
            .returns::<Labeler>(200),
        get("/admin/labelers/{id}/data", Admin, "Everything stored about a person", people::personal_data)
            .returns::<PersonalExport>(200),
        post("/admin/labelers/{id}/erase", Admin, "Erase a person's data on request", people::erase)
            .body::<people::EraseRequest>()
            .returns::<Erasure>(200),
        delete("/admin/invites/{id}", Admin, "Revoke an unused invite", people::revoke_invite).returns_nothing(),
        get("/admin/invites", Admin, "Invites", people::invites).returns::<List<people::InviteView>>(200),
        post("/admin/invites", Admin, "Create a one-use invite", people::invite)
            .body::<people::NewInvite>()
            .returns::<people::CreatedInvite>(201),
        get("/admin/keys", Admin, "API keys", people::keys).returns::<List<people::KeyView>>(200),
        post("/admin/keys", Admin, "Create an API key", people::create_key)
            .body::<people::NewKey>()
            .returns::<people::CreatedKey>(201),
        delete("/admin/keys/{id}", Admin, "Revoke an API key", people::revoke_key).returns_nothing(),
    ]
}

/// The administrators' routes of webhooks.
pub(super) fn webhooks() -> Vec<Route> {
    vec![
        get("/admin/webhooks", Admin, "Webhooks: addresses that are told of events", webhooks::list)
            .returns::<List<Webhook>>(200),
        post("/admin/webhooks", Admin, "Create a webhook", webhooks::create)
            .body::<NewWebhook>()
            .returns::<CreatedWebhook>(201),
        delete("/admin/webhooks/{id}", Admin, "Delete a webhook and its deliveries", webhooks::delete)
            .returns_nothing(),
        post("/admin/webhooks/{id}/test", Admin, "Send `webhook.test` to a webhook", webhooks::test)
            .returns::<Delivery>(202),
        get("/admin/webhook-deliveries", Admin, "Deliveries to webhooks, newest first", webhooks::deliveries)
            .query::<webhooks::DeliveriesQuery>()
            .returns::<Paged<Delivery>>(200),
        post("/admin/webhook-deliveries/{id}/resend", Admin, "Send a delivery again", webhooks::resend)
            .returns::<Delivery>(202),
    ]
}
