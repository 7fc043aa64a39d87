//! Fresh, empty stores to test: SQLite in a temporary directory, Postgres in a private server that this
//! process starts once, and the same server behind PgBouncer. A database is dropped with the value that names it, so that
//! all tests together need little room. Without a Postgres installation its tests print a line and pass, unless
//! INSTRUCTD_REQUIRE_POSTGRES=1.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use instructd::domain::{ModelKind, ModelState};
use instructd::store::{self, Store};
use tempfile::TempDir;

/// A store and what must outlive it.
pub struct Fresh {
    pub store: Arc<Store>,
    pub url: String,
    _kept: Kept,
}

/// What is removed with a store.
enum Kept {
    Directory { _dir: TempDir },
    Database { _database: Database },
}

/// A database of the private server and its URL; dropping the value drops the database and ends its connections.
pub struct Database {
    url: String,
    name: String,
}

impl std::ops::Deref for Database {
    type Target = str;

    fn deref(&self) -> &str {
        &self.url
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let server = server().expect("the server that has the database");
        if let Err(error) = server.execute(&format!("DROP DATABASE {} WITH (FORCE)", self.name)) {
            eprintln!("{} stays: {error}", self.name);
        }
    }
}

pub async fn sqlite() -> Option<Fresh> {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", dir.path().join("test.db").display());
    Some(Fresh { store: store::connect(&url).await.unwrap(), url, _kept: Kept::Directory { _dir: dir } })
}

/// Rows as the first schema had them: a policy and its child, which a prompt's completion may name.
pub const OLD_ROWS: &str = "
    INSERT INTO prompts (id, messages, lang, source, content_hash, split, tags, created)
    VALUES ('p', '[]', NULL, 'api', 'h', 'train', '[]', 0);
    INSERT INTO model_versions
        (id, kind, name, stage, parent_id, job_id, artifact_uri, sha256, metrics, state, created, activated)
    VALUES ('root', 'policy', 'root', 'base', NULL, NULL, 'u', 's', '{}', 'active', 1, 5),
           ('child', 'policy', 'child', 'sft', 'root', NULL, 'u', 's', '{\"loss\": 0.5}', 'candidate', 2, NULL),
           ('judge', 'reward', 'judge', 'reward', 'root', NULL, 'u', 's', '{}', 'retired', 3, NULL);";

/// What `OLD_ROWS` became, read through the store; and the kinds that came later can be kept.
pub async fn old_rows_are_whole(store: &Store) {
    let names: Vec<_> = store.models().list().await.unwrap().into_iter().map(|m| (m.name, m.state)).collect();
    let expected = [
        ("judge".to_owned(), ModelState::Retired),
        ("child".to_owned(), ModelState::Candidate),
        ("root".to_owned(), ModelState::Active),
    ];
    assert_eq!(names, expected);
    let child = store.models().find("child").await.unwrap().unwrap();
    assert_eq!((child.parent_id, child.metrics), (Some("root".into()), serde_json::json!({"loss": 0.5})));
    for kind in [ModelKind::Encoder, ModelKind::Classifier, ModelKind::PromptAdapter] {
        let new = super::fixture::model(kind.as_str(), kind);
        store.models().put(new.clone()).await.unwrap();
        assert_eq!(store.models().get(&new.id).await.unwrap(), new);
    }
}

pub async fn postgres() -> Option<Fresh> {
    Some(fresh(postgres_without_schema().await?).await)
}

/// A store through PgBouncer, which gives each transaction one of three connections. Without an installation its tests
/// print a line and pass.
pub async fn pooler() -> Option<Fresh> {
    Some(fresh(pooler_without_schema().await?).await)
}

async fn fresh(database: Database) -> Fresh {
    let url = database.url.clone();
    Fresh { store: store::connect(&url).await.unwrap(), url, _kept: Kept::Database { _database: database } }
}

/// The URL of a new, empty database, through PgBouncer.
pub async fn pooler_without_schema() -> Option<Database> {
    let mut database = postgres_without_schema().await?;
    if tokio::task::spawn_blocking(bouncer).await.unwrap().is_none() {
        println!("SKIPPED: PgBouncer is not installed");
        return None;
    }
    database.url = database.url.replace("@localhost/", &format!("@localhost:{BOUNCER_PORT}/")) + "&pooler=transaction";
    Some(database)
}

/// The URL without PgBouncer.
pub fn direct(url: &str) -> String {
    url.replace(&format!("@localhost:{BOUNCER_PORT}/"), "@localhost/").replace("&pooler=transaction", "")
}

/// Number in the name of PgBouncer's socket, which is in the directory of the server's.
const BOUNCER_PORT: u32 = 6432;

/// Starts PgBouncer once.
fn bouncer() -> Option<()> {
    static STARTED: OnceLock<Option<()>> = OnceLock::new();
    *STARTED.get_or_init(|| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let places = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
        let program = places.map(|dir| dir.join("pgbouncer")).find(|program| program.is_file())?;
        let dir = &server()?.dir;
        let (config, at) = (dir.join("pgbouncer.ini"), dir.display());
        let text = format!(
            "[databases]\n* = host={at} user=postgres\n[pgbouncer]\nlisten_addr =\nunix_socket_dir = {at}\n\
             listen_port = {BOUNCER_PORT}\nauth_type = any\npool_mode = transaction\ndefault_pool_size = 3\n\
             max_client_conn = 2000\nserver_idle_timeout = 5\nlogfile = {at}/pgbouncer.log\n"
        );
        std::fs::write(&config, text).unwrap();
        let ids = unprivileged();
        let mut started = command(&program, ids).arg("-q").arg(&config).stderr(Stdio::null()).spawn().unwrap();
        let socket = dir.join(format!(".s.PGSQL.{BOUNCER_PORT}"));
        while !socket.exists() {
            let log = || std::fs::read_to_string(dir.join("pgbouncer.log")).unwrap_or_default();
            assert!(started.try_wait().unwrap().is_none(), "PgBouncer ended: {}", log());
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        *BOUNCER.lock().unwrap() = Some(started);
        Some(())
    })
}

/// The URL of a new, empty database.
pub async fn postgres_without_schema() -> Option<Database> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let Some(server) = tokio::task::spawn_blocking(server).await.unwrap() else {
        assert!(
            std::env::var("INSTRUCTD_REQUIRE_POSTGRES").as_deref() != Ok("1"),
            "INSTRUCTD_REQUIRE_POSTGRES=1, but no PostgreSQL server is installed (looked for initdb in PATH and \
             under /usr/lib/postgresql)"
        );
        println!("SKIPPED: no PostgreSQL server is installed");
        return None;
    };
    let name = format!("t{}", NUMBER.fetch_add(1, Ordering::Relaxed));
    server.execute(&format!("CREATE DATABASE {name}")).unwrap_or_else(|error| panic!("{error}"));
    let url = format!("postgres://postgres@localhost/{name}?host={}", server.dir.display());
    Some(Database { url, name })
}

struct Server {
    bin: PathBuf,
    dir: PathBuf,
}

impl Server {
    /// Executes a statement outside of any transaction; the error is what psql prints.
    fn execute(&self, sql: &str) -> Result<(), String> {
        let mut psql = Command::new(self.bin.join("psql"));
        psql.arg("-h").arg(&self.dir).args(["-U", "postgres", "-q", "-c", sql, "postgres"]);
        let output = psql.output().map_err(|e| e.to_string())?;
        if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
    }
}

static CHILD: Mutex<Option<(Child, PathBuf)>> = Mutex::new(None);
static BOUNCER: Mutex<Option<Child>> = Mutex::new(None);

/// The directory that holds `initdb`, newest version first.
fn installation() -> Option<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.path().join("bin"))
        .chain(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()))
        .filter(|bin| ["initdb", "postgres", "pg_isready", "psql"].iter().all(|program| bin.join(program).is_file()))
        .collect();
    found.sort();
    found.pop()
}

/// Postgres refuses to run as root: then its own user's ids, from /etc/passwd.
fn unprivileged() -> Option<(u32, u32)> {
    // SAFETY: geteuid has no preconditions.
    if unsafe { libc::geteuid() } != 0 {
        return None;
    }
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap();
    let line = ["postgres:", "nobody:"].iter().find_map(|u| passwd.lines().find(|l| l.starts_with(u)));
    let fields: Vec<&str> = line.expect("a user to run PostgreSQL as").split(':').collect();
    Some((fields[2].parse().unwrap(), fields[3].parse().unwrap()))
}

fn command(program: &Path, ids: Option<(u32, u32)>) -> Command {
    use std::os::unix::process::CommandExt;
    let mut command = Command::new(program);
    command.current_dir("/").stdin(Stdio::null());
    if let Some((uid, gid)) = ids {
        command.uid(uid).gid(gid);
    }
    command
}

fn server() -> Option<&'static Server> {
    static SERVER: OnceLock<Option<Server>> = OnceLock::new();
    SERVER.get_or_init(|| Some(start(installation()?))).as_ref()
}

fn start(bin: PathBuf) -> Server {
    let ids = unprivileged();
    let dir = tempfile::Builder::new().prefix("instructd-pg").tempdir().unwrap().keep();
    if let Some((uid, gid)) = ids {
        std::os::unix::fs::chown(&dir, Some(uid), Some(gid)).unwrap();
    }
    let data = dir.join("data");
    let made = command(&bin.join("initdb"), ids)
        .args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "-N", "-D"])
        .arg(&data)
        .output()
        .unwrap();
    assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
    let log = std::fs::File::create(dir.join("log")).unwrap();
    let child = command(&bin.join("postgres"), ids)
        .args([
            "-c",
            "listen_addresses=",
            "-c",
            "fsync=off",
            "-c",
            "max_connections=400",
            "-c",
            "max_wal_size=96MB",
            "-k",
        ])
        .arg(&dir)
        .arg("-D")
        .arg(&data)
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap();
    *CHILD.lock().unwrap() = Some((child, dir.clone()));
    // SAFETY: `stop` is an extern "C" function that does not unwind into C.
    unsafe { libc::atexit(stop) };
    let dir_text = dir.display().to_string();
    let ready = || Command::new(bin.join("pg_isready")).args(["-q", "-h", &dir_text]).status().unwrap().success();
    while !ready() {
        let ended = CHILD.lock().unwrap().as_mut().unwrap().0.try_wait().unwrap();
        let log = || std::fs::read_to_string(dir.join("log")).unwrap_or_default();
        assert!(ended.is_none(), "PostgreSQL ended: {}", log());
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    Server { bin, dir }
}

/// Runs when the test process exits: the server goes, and its files with it.
extern "C" fn stop() {
    if let Ok(mut child) = BOUNCER.lock()
        && let Some(mut child) = child.take()
    {
        let _ = child.kill();
        let _ = child.wait();
    }
    if let Ok(mut child) = CHILD.lock()
        && let Some((mut child, dir)) = child.take()
    {
        // SAFETY: the child has not been waited for, so the pid is still its own. SIGQUIT = immediate.
        unsafe { libc::kill(child.id().cast_signed(), libc::SIGQUIT) };
        let _ = child.wait();
        let _ = std::fs::remove_dir_all(dir);
    }
}
