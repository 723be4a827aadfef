//! RabbitMQ with its AMQP 1.0 plugin, on ports and folders of its own, gone with its owner.

use super::{HUB, NAMESPACE, PYTHON, Taken, certificate, script};
use crate::real::{free_port, wait_for};
use serde_json::Value;
use std::net::TcpStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// It starts in 6 s on an idle machine.
const START: Duration = Duration::from_secs(150);

/// A running broker with the durable queue [`HUB`].
pub struct Rabbit {
    folder: tempfile::TempDir,
    port: u16,
    names_port: u16,
    server: Option<Child>,
}

impl Rabbit {
    /// Starts a broker.
    pub fn start() -> Rabbit {
        let folder = tempfile::tempdir().expect("a temporary folder");
        certificate(folder.path());
        let path = folder.path().display();
        let port = free_port();
        let configuration = format!(
            "listeners.tcp = none\nlisteners.ssl.1 = 127.0.0.1:{port}\nssl_options.certfile = {path}/ca.pem\n\
             ssl_options.keyfile = {path}/key.pem\nssl_options.verify = verify_none\nloopback_users = none\n\
             amqp1_0.default_user = gateway\nload_definitions = {path}/definitions.json\nlog.console = true\n\
             log.file = false\n"
        );
        let definitions = serde_json::json!({
            "vhosts": [{ "name": "/" }],
            "users": [{ "name": "gateway", "password": "secret", "tags": "" }],
            "permissions": [{ "user": "gateway", "vhost": "/", "configure": ".*", "write": ".*", "read": ".*" }],
            "queues": [{ "name": HUB, "vhost": "/", "durable": true, "auto_delete": false, "arguments": {} }]
        });
        for (name, content) in [
            ("rabbitmq.conf", configuration.as_str()),
            ("definitions.json", &definitions.to_string()),
            ("enabled_plugins", "[rabbitmq_amqp1_0]."),
            ("password", "secret"),
        ] {
            std::fs::write(folder.path().join(name), content).expect("a file of the broker is written");
        }
        let mut rabbit = Rabbit {
            folder,
            port,
            names_port: free_port(),
            server: None,
        };
        rabbit.run();
        rabbit
    }

    /// Starts the broker (again) with what is on its disk.
    pub fn run(&mut self) {
        let file = |name: &str| self.folder.path().join(name);
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(file("log"))
            .expect("a log file");
        let mut command = Command::new("/usr/lib/rabbitmq/bin/rabbitmq-server");
        command
            .env("HOME", self.folder.path())
            .env("RABBITMQ_NODENAME", format!("bedside-{}@localhost", self.port))
            .env("RABBITMQ_DIST_PORT", free_port().to_string())
            .env("RABBITMQ_MNESIA_BASE", file("data"))
            .env("RABBITMQ_LOG_BASE", file("logs"))
            .env("RABBITMQ_LOGS", "-")
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", file("enabled_plugins"))
            .env("RABBITMQ_CONFIG_FILE", file("rabbitmq.conf"))
            .env("RABBITMQ_CONF_ENV_FILE", file("none"))
            .env("ERL_EPMD_PORT", self.names_port.to_string())
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log file"))
            .stderr(log)
            // Shell and virtual machine end together.
            .process_group(0);
        let server = command.spawn().unwrap_or_else(|error| {
            panic!("RabbitMQ does not start ({error}): run tests/run, which installs it")
        });
        self.server = Some(server);
        let port = self.port;
        wait_for("RabbitMQ listens", START, || {
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
    }

    /// Ends it at once, as a power cut does.
    pub fn kill(&mut self) {
        if let Some(mut server) = self.server.take() {
            let group = format!("-{}", server.id());
            let _ = Command::new("kill").args(["-KILL", "--", &group]).status();
            let _ = server.wait();
        }
    }

    /// A `[[destination]]` of `agent.toml` that sends here.
    pub fn destination(&self) -> String {
        let path = self.folder.path().display();
        format!(
            "[[destination]]\nname = \"cloud\"\nkind = \"event-hub\"\ntransport = \"amqp\"\n\
             namespace = \"{NAMESPACE}\"\nhub = \"{HUB}\"\nendpoint = \"127.0.0.1:{}\"\n\
             tls = {{ ca_file = \"{path}/ca.pem\" }}\n\
             auth = {{ kind = \"basic\", username = \"gateway\", password = \"file:{path}/password\" }}\n",
            self.port
        )
    }

    /// File that holds the password.
    pub fn password_file(&self) -> std::path::PathBuf {
        self.folder.path().join("password")
    }

    /// Takes `count` events out of the queue, in order, through another implementation of AMQP 1.0.
    pub fn take(&self, count: usize) -> Vec<Taken> {
        let output = Command::new(PYTHON)
            .arg(script("take.py"))
            .args([self.port.to_string(), HUB.to_owned(), count.to_string()])
            .output()
            .expect("Python starts");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let events: Vec<Value> = serde_json::from_slice(&output.stdout).expect("JSON");
        events.iter().map(Taken::of).collect()
    }
}

impl Drop for Rabbit {
    fn drop(&mut self) {
        self.kill();
        // The name server of Erlang stays by itself, and does not go before it has noticed that the broker has.
        for _ in 0..50 {
            let killed = Command::new("epmd")
                .args(["-port", &self.names_port.to_string(), "-kill"])
                .output();
            if killed.is_ok_and(|answer| !answer.stdout.starts_with(b"Killing not allowed")) {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}
