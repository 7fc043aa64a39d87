//! The real binary on a free port with the tiny model, and a client for it.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::watch;

use crate::api::contract;
use crate::support::fixture;

pub const ADMIN_KEY: &str = "crash-test-admin-key";

/// What a server needs to be started again on the same data.
pub struct Place {
    pub database_url: String,
    pub data_dir: PathBuf,
    pub model: PathBuf,
    /// Further settings, by environment.
    pub env: Vec<(&'static str, String)>,
}

impl Place {
    pub fn new(database_url: &str, data_dir: &Path) -> Self {
        Self {
            database_url: database_url.to_owned(),
            data_dir: data_dir.to_owned(),
            model: fixture("llama-tied-tiny"),
            env: Vec::new(),
        }
    }

    pub fn with(mut self, name: &'static str, value: impl ToString) -> Self {
        self.env.push((name, value.to_string()));
        self
    }

    /// The binary with the place's settings and none of this process's own. `INSTRUCTD_BIN` names another binary, such as
    /// a release build for a long run.
    pub fn command(&self, subcommand: &str) -> Command {
        let built = env!("CARGO_BIN_EXE_instructd").into();
        let mut command = Command::new(std::env::var_os("INSTRUCTD_BIN").unwrap_or(built));
        for (name, _) in std::env::vars_os().filter(|(n, _)| n.to_string_lossy().starts_with("INSTRUCTD_")) {
            command.env_remove(name);
        }
        std::fs::create_dir_all(&self.data_dir).unwrap();
        let config = self.data_dir.join("empty.toml");
        std::fs::write(&config, "").unwrap();
        command.arg(subcommand).arg("--config").arg(config).arg("--data-dir").arg(&self.data_dir);
        command.arg("--database-url").arg(&self.database_url);
        command.env("INSTRUCTD_ADMIN_KEY", ADMIN_KEY).envs(self.env.iter().map(|(n, v)| (*n, v)));
        command.env("RAYON_NUM_THREADS", "1").stdin(Stdio::null());
        command
    }
}

/// A running server; dropping it kills it.
pub struct Server {
    child: Child,
    pub url: String,
    pub http: reqwest::Client,
    log: PathBuf,
    printed: Arc<Mutex<String>>,
}

pub struct Answer {
    pub status: u16,
    pub json: Value,
}

impl Answer {
    /// Panics with the body when the status is another one.
    pub fn expect(self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.json);
        self.json
    }
}

impl Server {
    /// Starts and waits until requests are served.
    pub async fn start(place: &Place) -> Self {
        let server = Self::listening(place);
        server.ready().await;
        server
    }

    /// Starts and waits until it listens; the model may still load.
    pub fn listening(place: &Place) -> Self {
        std::fs::create_dir_all(&place.data_dir).unwrap();
        let log = place.data_dir.join("server.log");
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&log).unwrap();
        let mut command = place.command("serve");
        command.arg("--listen").arg("127.0.0.1:0").arg("--model").arg(&place.model);
        let mut child = command.stdout(Stdio::piped()).stderr(file).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let words = || std::fs::read_to_string(&log).unwrap_or_default();
        let url = loop {
            let Some(Ok(line)) = lines.next() else { panic!("the server did not start: {}", words()) };
            if let Some(rest) = line.split("instructd on ").nth(1) {
                break rest.split_whitespace().next().unwrap().to_owned();
            }
        };
        // Whoever reads no more makes the writer fail.
        let printed = Arc::new(Mutex::new(String::new()));
        let into = printed.clone();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                into.lock().unwrap().push_str(&(line + "\n"));
            }
        });
        let http = reqwest::Client::builder().timeout(Duration::from_secs(60)).build().unwrap();
        Self { child, url, http, log, printed }
    }

    pub async fn ready(&self) {
        loop {
            match self.send("GET", "/ready", ADMIN_KEY, None).await {
                Ok(answer) if answer.status == 200 => return,
                Ok(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                Err(e) => panic!("the server went away: {e}: {}", self.words()),
            }
        }
    }

    /// What it printed to standard output after its address, so far.
    pub fn printed(&self) -> String {
        self.printed.lock().unwrap().clone()
    }

    /// What it logged so far.
    pub fn words(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub async fn send(&self, method: &str, path: &str, key: &str, body: Option<&Value>) -> reqwest::Result<Answer> {
        send(&self.http, &self.url, method, path, key, body).await
    }

    /// With the admin key; the connection must hold.
    pub async fn call(&self, method: &str, path: &str, body: Option<Value>) -> Answer {
        match self.send(method, path, ADMIN_KEY, body.as_ref()).await {
            Ok(answer) => answer,
            Err(e) => panic!("{method} {path}: {e}: {}", self.words()),
        }
    }

    /// Open file descriptors.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }

    /// Memory in use now, and the most since `forget_peak` (bytes).
    pub fn memory(&self) -> (usize, usize) {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let kib = |name: &str| {
            let line = status.lines().find(|l| l.starts_with(name)).unwrap();
            line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10
        };
        (kib("VmRSS:"), kib("VmHWM:"))
    }

    /// Processor time of all threads since the start, to a hundredth of a second.
    pub fn processor_time(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        // The name in parentheses may contain spaces; `utime` and `stime` are the fields 14 and 15.
        let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        let ticks: u64 = fields[11..13].iter().map(|field| field.parse::<u64>().unwrap()).sum();
        // SAFETY: sysconf reads a constant of the system.
        let a_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
        Duration::from_secs_f64(ticks as f64 / a_second as f64)
    }

    /// Waits until the server has nothing left to do: its threads have run for less than a tenth of half a second.
    pub async fn idle(&self) {
        const LOOK: Duration = Duration::from_millis(500);
        let rests = async || {
            let before = self.processor_time();
            tokio::time::sleep(LOOK).await;
            self.processor_time() - before < LOOK / 10
        };
        for _ in 0..120 {
            if rests().await {
                return;
            }
        }
        panic!("the server is still at work: {}", self.words());
    }

    pub fn forget_peak(&self) {
        std::fs::write(format!("/proc/{}/clear_refs", self.child.id()), "5").unwrap();
    }

    pub fn signal(&self, signal: libc::c_int) {
        // SAFETY: the child has not been waited for, so the pid is still its own.
        unsafe { libc::kill(self.child.id().cast_signed(), signal) };
    }

    /// SIGKILL, and wait until the kernel has taken it down.
    pub fn kill(&mut self) {
        self.signal(libc::SIGKILL);
        self.child.wait().unwrap();
    }

    /// Waits for the end; returns its exit status.
    pub async fn end(&mut self) -> std::process::ExitStatus {
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub async fn send(
    http: &reqwest::Client,
    url: &str,
    method: &str,
    path: &str,
    key: &str,
    body: Option<&Value>,
) -> reqwest::Result<Answer> {
    let verb = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
    let mut request = http.request(verb, format!("{url}{path}")).bearer_auth(key);
    if let Some(body) = body {
        request = request.json(body);
    }
    answer(request, method, path).await
}

/// Sends a request to the path of a route, of which the answer must be as the document says.
pub async fn answer(request: reqwest::RequestBuilder, method: &str, path: &str) -> reqwest::Result<Answer> {
    let response = request.send().await?;
    let status = response.status().as_u16();
    let kind = response.headers().get("content-type").map_or("", |kind| kind.to_str().unwrap()).to_owned();
    let text = response.text().await?;
    contract::check(method, path, status, &kind, &text);
    Ok(Answer { status, json: serde_json::from_str(&text).unwrap_or(Value::String(text)) })
}

/// A client that sends each request until it is answered, through any number of restarts.
#[derive(Clone)]
pub struct Client {
    pub http: reqwest::Client,
    /// Where the server listens; the old address while it is down.
    pub url: watch::Receiver<String>,
}

impl Client {
    pub fn new(url: &watch::Receiver<String>) -> Self {
        Self { http: reqwest::Client::builder().timeout(Duration::from_secs(30)).build().unwrap(), url: url.clone() }
    }

    /// The answer to a request with a JSON body.
    pub async fn insist(&mut self, method: &str, path: &str, key: &str, body: Option<&Value>) -> Answer {
        let bytes = body.map(|body| serde_json::to_vec(body).unwrap());
        self.insist_on(method, path, key, bytes.as_deref().map(|bytes| ("application/json", bytes))).await
    }

    /// The answer to a request with a body of a media type.
    pub async fn insist_on(&mut self, method: &str, path: &str, key: &str, body: Option<(&str, &[u8])>) -> Answer {
        let verb = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
        loop {
            let url = self.url.borrow_and_update().clone();
            let mut request = self.http.request(verb.clone(), format!("{url}{path}")).bearer_auth(key);
            if let Some((kind, bytes)) = body {
                request = request.header("content-type", kind).body(bytes.to_vec());
            }
            match answer(request, method, path).await {
                Ok(answer) if answer.status < 500 && answer.status != 429 => return answer,
                Ok(busy) => {
                    assert!([429, 503].contains(&busy.status), "{path}: {} {}", busy.status, busy.json);
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                // Killed in the middle: the answer is lost, so the same request goes out again.
                Err(_) => {
                    if self.url.has_changed().is_ok_and(|new| !new) {
                        let _ = tokio::time::timeout(Duration::from_millis(200), self.url.changed()).await;
                    }
                }
            }
        }
    }
}

/// A small generator of our own, so that a seed means the same run for ever.
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % sides
    }
}

/// A number from the environment, for long runs.
pub fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}: not a number")))
}
