//! The largest bodies that the limits let in, made from the routes' own schemas: whatever a route takes, one request
//! stays within the memory that is promised, and `/health` answers meanwhile. A new route or field is in the test by
//! being in the table.

use std::io::Write;
use std::time::{Duration, Instant};

use instructd::config::LimitsConfig;
use instructd::http::{examples, routes};
use serde_json::{Value, json};

use super::{PROMISED, place, under, user};
use crate::crash::server::{ADMIN_KEY, Server};
use crate::support::fixture;

/// Bytes of a body, some below the limit.
const BODY: usize = (2 << 20) - (8 << 10);
/// Values tried of one field.
const TRIED: usize = 3;
/// Nesting of values that are made.
const DEEP: usize = 4;

/// What a `$ref` or the alternatives of a schema come to.
fn alternatives<'s>(schema: &'s Value, root: &'s Value) -> Vec<&'s Value> {
    if let Some(name) = schema["$ref"].as_str() {
        let found = name.rsplit('/').next().map(|name| &root["$defs"][name]);
        return found.into_iter().flat_map(|s| alternatives(s, root)).collect();
    }
    for kind in ["anyOf", "oneOf", "allOf"] {
        if let Some(all) = schema[kind].as_array() {
            return all.iter().flat_map(|s| alternatives(s, root)).collect();
        }
    }
    vec![schema]
}

fn types(schema: &Value) -> Vec<&str> {
    match &schema["type"] {
        Value::String(one) => vec![one.as_str()],
        Value::Array(all) => all.iter().filter_map(Value::as_str).collect(),
        _ if schema["enum"].is_array() || schema["const"].is_string() => vec!["enum"],
        _ => vec!["string", "array", "object"],
    }
}

/// The smallest value of a schema.
fn least(schema: &Value, root: &Value, depth: usize) -> Value {
    let Some(schema) = alternatives(schema, root).into_iter().find(|s| s["type"] != "null") else { return json!(0) };
    match types(schema).first() {
        Some(&"string") => json!("a"),
        Some(&"integer" | &"number") => json!(1),
        Some(&"boolean") => json!(true),
        Some(&"enum") => schema["enum"].get(0).unwrap_or(&schema["const"]).clone(),
        Some(&"array") => json!([]),
        _ if depth >= DEEP => json!({}),
        _ => {
            let required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
            required.map(|name| (name.to_owned(), least(&schema["properties"][name], root, depth + 1))).collect()
        }
    }
}

/// Values of a schema that are as large as `bytes` lets them be, one of each kind, and at most `most` of them.
fn largest(schema: &Value, root: &Value, bytes: usize, depth: usize, most: usize) -> Vec<Value> {
    let mut all = Vec::new();
    for schema in alternatives(schema, root) {
        for kind in types(schema) {
            if all.len() >= most {
                break;
            }
            match kind {
                "string" => all.push(json!("x y ".repeat(bytes / 4))),
                "integer" => all.push(json!(i64::MAX)),
                "number" => all.push(json!(1e308)),
                "array" => {
                    let one = least(&schema["items"], root, depth);
                    let n = (bytes / (one.to_string().len() + 1)).max(1);
                    all.push(Value::Array(vec![one; n]));
                    if depth < 2 && all.len() < most {
                        // Some large elements, instead of many small ones.
                        let some = largest(&schema["items"], root, bytes / 8 - 16, depth + 1, 1);
                        all.extend(some.into_iter().map(|v| Value::Array(vec![v; 8])));
                    }
                }
                "object" if depth < 2 => {
                    let base = least(schema, root, depth);
                    for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
                        if all.len() >= most {
                            break;
                        }
                        for value in largest(inner, root, bytes - 64, depth + 1, 1) {
                            let mut object = base.clone();
                            object[name] = value;
                            all.push(object);
                        }
                    }
                    // An object of any keys.
                    if !schema["additionalProperties"].is_boolean() && all.len() < most {
                        let many = (0..bytes / 12).map(|i| (format!("{i}"), json!(1)));
                        all.push(Value::Object(many.collect()));
                    }
                }
                _ => {}
            }
        }
    }
    all
}

/// The bodies of one route, one at a time: an ordinary one with each field in turn as large as `bytes` lets it be.
fn bodies(route: &routes::Route, bytes: usize) -> impl Iterator<Item = (String, String)> {
    let schema = route.body.clone().unwrap_or_default();
    let base = examples::body(route).unwrap_or_else(|| json!({}));
    let fields: Vec<String> = schema["properties"].as_object().into_iter().flatten().map(|(n, _)| n.clone()).collect();
    let path = route.path;
    fields.into_iter().flat_map(move |field| {
        let values = largest(&schema["properties"][&field], &schema, bytes, 0, TRIED);
        let of = |(i, value): (usize, Value)| {
            let mut body = base.clone();
            body[&field] = value;
            (format!("{path} {field} {i}"), body.to_string())
        };
        values.into_iter().enumerate().map(of).collect::<Vec<_>>()
    })
}

#[test]
fn every_route_with_a_body_has_hostile_ones() {
    const SMALL: usize = 4096;
    let (mut routes_with, mut all, mut large) = (0, 0, 0);
    for route in routes::table(&LimitsConfig::default()).iter().filter(|r| r.body.is_some()) {
        let longest = bodies(route, SMALL).map(|(_, body)| body.len()).max();
        // Some bodies hold numbers and flags only.
        large += usize::from(longest.is_some_and(|n| n > SMALL / 2));
        routes_with += 1;
        all += bodies(route, SMALL).count();
    }
    eprintln!("{routes_with} routes, {all} bodies, large ones for {large}");
    assert!(routes_with > 30 && all > 100 && large > 25, "{routes_with} routes, {all} bodies, {large}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_body_within_the_limits_takes_more_than_is_promised() {
    let dir = tempfile::tempdir().unwrap();
    let place = place(dir.path()).with("INSTRUCTD_ENCODER", fixture("bert-tiny").display());
    let server = Server::start(&place).await;
    let http = reqwest::Client::builder().timeout(Duration::from_secs(10)).build().unwrap();
    let send = async |path: &str, body: String| {
        let request = http.post(format!("{}{path}", server.url)).bearer_auth(ADMIN_KEY);
        let sent = request.header("content-type", "application/json").body(body).send().await;
        // Who asks for very much may be drawing for long: leaving ends it.
        match sent {
            Ok(answer) => {
                let status = answer.status().as_u16();
                let _ = answer.bytes().await;
                Some(status)
            }
            Err(_) => None,
        }
    };
    // What is loaded or grows once belongs to nobody's request.
    for body in ["x ".repeat(100_000), "y".repeat(200_000)] {
        send("/tokenize", json!({"prompt": body}).to_string()).await;
        send("/v1/completions", json!({"prompt": body}).to_string()).await;
        send("/v1/embeddings", json!({"input": ["t5", "t6"]}).to_string()).await;
    }
    let mut worst = (0, String::new());
    for route in routes::table(&LimitsConfig::default()) {
        for (name, body) in bodies(&route, BODY) {
            let path = route.path.replace("{id}", "nope");
            let began = Instant::now();
            let (status, mut grown) = under(&server, &name, send(&path, body.clone())).await;
            eprintln!("{name}: {status:?}, {:.1} MB, {:?}", grown as f64 / 1e6, began.elapsed());
            assert!(status.is_none_or(|s| s < 500), "{name}: {status:?}: {}", server.words());
            if grown > PROMISED {
                // The request before may still be at work if its client left, and what was kept from it may be given
                // back and taken again in between.
                server.idle().await;
                (_, grown) = under(&server, &name, send(&path, body)).await;
            }
            assert!(grown <= PROMISED, "{name}: {grown} bytes");
            if grown > worst.0 {
                worst = (grown, name);
            }
        }
    }
    eprintln!("the most: {:.1} MB by {}", worst.0 as f64 / 1e6, worst.1);
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

/// Files to be imported need themselves, and what is promised beside.
#[tokio::test(flavor = "multi_thread")]
async fn no_import_takes_more_than_its_file_and_what_is_promised() {
    const FILE: usize = 8 << 20;
    let dir = tempfile::tempdir().unwrap();
    let place = place(dir.path()).with("INSTRUCTD_LIMITS__IMPORT_BYTES", FILE);
    let server = Server::start(&place).await;
    let line = json!({"messages": user("hello")}).to_string() + "\n";
    let files = [
        ("one line without end", "x".repeat(FILE - 1).into_bytes()),
        ("one long text", json!({"messages": user(&"y".repeat(FILE - 100))}).to_string().into_bytes()),
        ("empty lines", vec![b'\n'; FILE - 1]),
        ("many lines", line.repeat((1 << 20) / line.len()).into_bytes()),
        ("nesting", "[".repeat(FILE - 1).into_bytes()),
        ("a list of numbers", format!("[{}1]", "1,".repeat(FILE / 2 - 4)).into_bytes()),
        ("a bomb", gzip(&vec![b'z'; 64 << 20])),
        ("a bomb of lines", gzip(&vec![b'\n'; 4 << 20])),
        ("a bomb in a bomb", gzip(&gzip(&vec![b'z'; 64 << 20]))),
        ("half a Parquet file", [b"PAR1".as_slice(), &[0xff; 100_000], b"\xff\xff\xff\x7fPAR1"].concat()),
    ];
    for format in ["prompts", "comparisons", "oasst", "parquet"] {
        for (name, file) in &files {
            let name = format!("{name} as {format}");
            let request = server.http.post(format!("{}/admin/import?format={format}", server.url));
            let request = request.bearer_auth(ADMIN_KEY).body(file.clone());
            let send = async { request.send().await.map(|a| a.status().as_u16()) };
            let (status, grown) = under(&server, &name, send).await;
            let status = status.unwrap_or_else(|e| panic!("{name}: {e}: {}", server.words()));
            eprintln!("{name}: {status}, {:.1} MB", grown as f64 / 1e6);
            assert!(status < 500, "{name}: {status}");
            assert!(grown <= PROMISED + 2 * file.len(), "{name}: {grown} bytes for {}", file.len());
        }
    }
}
