//! One row of the table of routes: method, path, who may call it, its request and response types.

use axum::handler::Handler;
use axum::http::Method;
use axum::routing::{MethodFilter, MethodRouter, on};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use super::AppState;
use super::access::Access;
use super::contract::{self, Answer, Content, SchemaOf};

/// One method of one path.
pub struct Route {
    pub method: Method,
    pub path: &'static str,
    pub access: Access,
    pub about: &'static str,
    /// JSON Schema of the request body, without references.
    pub body: Option<Value>,
    /// The body's schema with references to the types in it; `required` is in `body`.
    pub body_type: Option<SchemaOf>,
    /// The body may be missing.
    pub body_optional: bool,
    /// JSON Schema of the query: parameters that it does not name are refused.
    pub query: Option<Value>,
    /// A page or its file: the query is for the page's script.
    pub page: bool,
    /// Takes compressed bodies.
    pub decodes: bool,
    /// The successful responses.
    pub answers: Vec<Answer>,
    /// Whether it runs a model: tokens are charged to the caller's key, and a key without tokens left is refused.
    pub computes: bool,
    pub handler: MethodRouter<AppState>,
}

impl Route {
    pub(super) fn computing(self) -> Self {
        Self { computes: true, ..self }
    }

    /// Declares the JSON body; a handler reads the same type.
    pub(super) fn body<B: JsonSchema>(mut self) -> Self {
        self.body = Some(contract::schema::<B>());
        self.body_type = Some(contract::open::<B>);
        self
    }

    /// Declares a JSON body that may be missing.
    pub(super) fn optional_body<B: JsonSchema>(self) -> Self {
        Self { body_optional: true, ..self.body::<B>() }
    }

    /// Declares the query; a handler reads the same type.
    pub(super) fn query<Q: JsonSchema>(mut self) -> Self {
        self.query = Some(contract::schema::<Q>());
        self
    }

    /// Declares the JSON response of a status; a handler returns the same type.
    pub(super) fn returns<T: Serialize + JsonSchema>(self, status: u16) -> Self {
        let about = match status {
            200 => "done",
            201 => "made",
            202 => "started; it continues in the background",
            _ => "refused",
        };
        self.answers(status, Content::Json(contract::named::<T>), about)
    }

    /// Declares 204.
    pub(super) fn returns_nothing(self) -> Self {
        self.returns_nothing_because(contract::NOTHING)
    }

    /// Declares 204 with a description.
    pub(super) fn returns_nothing_because(self, about: &'static str) -> Self {
        self.answers(204, Content::Empty, about)
    }

    /// Declares a response that is not JSON.
    pub(super) fn returns_other(self, content_type: &'static str) -> Self {
        self.answers(200, Content::Other(content_type), "done")
    }

    /// Declares a stream of server-sent events, each of this type.
    pub(super) fn streams<E: Serialize + JsonSchema>(self) -> Self {
        self.answers(200, Content::Events(contract::named::<E>), "done")
    }

    /// Declares 303, with the address in `Location`.
    pub(super) fn redirects(self, about: &'static str) -> Self {
        self.answers(303, Content::Empty, about)
    }

    fn answers(mut self, status: u16, content: Content, about: &'static str) -> Self {
        self.answers.push(Answer { status, content, about });
        self
    }

    /// Fields that are required although their type has a default.
    pub(super) fn requiring(mut self, fields: &[&str]) -> Self {
        if let Some(body) = &mut self.body {
            body["required"] = fields.iter().copied().map(Value::from).collect();
        }
        self
    }

    pub(super) fn page(self) -> Self {
        Self { page: true, ..self }
    }

    pub(super) fn html(self) -> Self {
        self.returns_other("text/html").unchanged()
    }

    /// Of a file that clients may keep.
    pub(super) fn unchanged(self) -> Self {
        self.answers(304, Content::Empty, "unchanged since the `ETag` in `If-None-Match`")
    }

    /// Names of the query's parameters; `None` = any.
    pub fn query_names(&self) -> Option<Vec<String>> {
        let fields = self.query.as_ref().and_then(|q| q["properties"].as_object());
        (!self.page).then(|| fields.map(|f| f.keys().cloned().collect()).unwrap_or_default())
    }
}

fn route<H, T>(method: Method, path: &'static str, access: Access, about: &'static str, handler: H) -> Route
where
    H: Handler<T, AppState>,
    T: 'static,
{
    let filter = MethodFilter::try_from(method.clone()).unwrap_or(MethodFilter::GET);
    Route {
        method,
        path,
        access,
        about,
        body: None,
        body_type: None,
        body_optional: false,
        query: None,
        page: false,
        decodes: false,
        answers: Vec::new(),
        computes: false,
        handler: on(filter, handler),
    }
}

pub(super) fn get<H: Handler<T, AppState>, T: 'static>(
    path: &'static str,
    access: Access,
    about: &'static str,
    h: H,
) -> Route {
    route(Method::GET, path, access, about, h)
}

pub(super) fn post<H: Handler<T, AppState>, T: 'static>(
    path: &'static str,
    access: Access,
    about: &'static str,
    h: H,
) -> Route {
    route(Method::POST, path, access, about, h)
}

pub(super) fn delete<H: Handler<T, AppState>, T: 'static>(
    path: &'static str,
    access: Access,
    about: &'static str,
    h: H,
) -> Route {
    route(Method::DELETE, path, access, about, h)
}
