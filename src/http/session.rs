//! Signing in and out on the pages: a key or an invite becomes a cookie.

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use super::AppState;
use super::auth::{self, COOKIE, MaybeCaller};
use super::error::{ApiError, ApiResult};
use super::extract::Json;
use super::rates::ClientAddress;
use crate::service::people;

#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LogIn {
    /// An admin or feedback key.
    pub key: Option<String>,
    /// Or: an invite, with the name of the new labeler.
    pub invite: Option<String>,
    pub name: Option<String>,
}

pub async fn log_in(
    State(state): State<AppState>,
    ClientAddress(from): ClientAddress,
    headers: HeaderMap,
    Json(body): Json<LogIn>,
) -> ApiResult<Response> {
    // A foreign page must not sign a visitor in as somebody else.
    auth::same_origin(&headers)?;
    state.rates.login(from)?;
    let services = &state.services;
    let (labeler, token) = match (body.key, body.invite, body.name) {
        (Some(key), None, None) => people::log_in_with_key(services, &key).await?,
        (None, Some(invite), Some(name)) => people::log_in_with_invite(services, &invite, &name).await?,
        (None, Some(_), None) => return Err(ApiError::bad("name", "is missing")),
        _ => return Err(ApiError::bad("key", "give a key, or an invite with a name")),
    };
    if let Some(old) = auth::cookie(&headers) {
        people::log_out(services, old).await?;
    }
    let labeler = json!({"id": labeler.id, "name": labeler.name, "role": labeler.role});
    let mut response = axum::Json(json!({"labeler": labeler})).into_response();
    set_cookie(&state, &mut response, &token, services.live().config.sessions.lifetime_hours * 3600)?;
    Ok(response)
}

pub async fn who(caller: MaybeCaller) -> ApiResult<axum::Json<Value>> {
    let actor = caller.0.ok_or_else(|| ApiError::unauthorized("nobody is signed in"))?;
    Ok(axum::Json(json!({"labeler": {"id": actor.labeler_id, "name": actor.name, "role": actor.role}})))
}

pub async fn log_out(State(state): State<AppState>, headers: HeaderMap) -> ApiResult<Response> {
    if let Some(token) = auth::cookie(&headers) {
        people::log_out(&state.services, token).await?;
    }
    let mut response = StatusCode::NO_CONTENT.into_response();
    set_cookie(&state, &mut response, "", 0)?;
    Ok(response)
}

fn set_cookie(state: &AppState, response: &mut Response, token: &str, seconds: i64) -> ApiResult<()> {
    let secure = if state.services.config.server.secure_cookies { "; Secure" } else { "" };
    let cookie = format!("{COOKIE}={token}; Path=/; HttpOnly; SameSite=Strict; Max-Age={seconds}{secure}");
    let value = HeaderValue::from_str(&cookie).map_err(|_| ApiError::bad("key", "cannot become a cookie"))?;
    response.headers_mut().insert(header::SET_COOKIE, value);
    Ok(())
}
