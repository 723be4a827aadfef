//! The program under test as a process, with a configuration and folders of its own.

use super::{Process, root};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Configuration and folders of an agent.
pub struct Gateway {
    /// Folder of everything.
    pub folder: PathBuf,
    configuration: String,
    environment: Vec<(String, String)>,
    program: Option<PathBuf>,
}

impl Gateway {
    /// A gateway without sources and destinations below `folder`.
    pub fn new(folder: &Path) -> Gateway {
        let folder = folder.join("gateway");
        std::fs::create_dir_all(folder.join("mappings.d")).expect("folder for mappings");
        let configuration = format!(
            "[gateway]\nid = \"bed-12\"\n[mappings]\ndir = \"{0}/mappings.d\"\n[store]\ndir = \"{0}/store\"\n\
             commit_interval = \"200 ms\"\n[clock]\ntrust = \"always\"\n",
            folder.display()
        );
        Gateway {
            folder,
            configuration,
            environment: Vec::new(),
            program: None,
        }
    }

    /// Adds lines to the configuration.
    #[must_use]
    pub fn with(mut self, lines: &str) -> Gateway {
        let _ = writeln!(self.configuration, "{lines}");
        self
    }

    /// Sets an environment variable of the agent.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Gateway {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Another program than the agent that was built beside this one: a measuring program that is its own agent.
    #[must_use]
    pub fn program(mut self, path: PathBuf) -> Gateway {
        self.program = Some(path);
        self
    }

    /// Sets a member of `[store]` (`progress_interval`, `"300 ms"`).
    #[must_use]
    pub fn store(mut self, name: &str, value: &str) -> Gateway {
        let given = format!("{name} = \"");
        let kept = self
            .configuration
            .lines()
            .filter(|line| !line.starts_with(&given));
        let kept: Vec<&str> = kept.collect();
        let line = format!("[store]\n{name} = \"{value}\"");
        self.configuration = kept.join("\n").replacen("[store]", &line, 1) + "\n";
        self
    }

    /// Puts the store elsewhere than below the gateway's folder.
    #[must_use]
    pub fn store_in(mut self, folder: &Path) -> Gateway {
        let usual = format!("dir = \"{}/store\"", self.folder.display());
        let other = format!("dir = \"{}\"", folder.display());
        self.configuration = self.configuration.replacen(&usual, &other, 1);
        self
    }

    /// Replaces a text of the configuration, once.
    #[must_use]
    pub fn replaced(mut self, old: &str, new: &str) -> Gateway {
        assert!(
            self.configuration.contains(old),
            "{old} in {}",
            self.configuration
        );
        self.configuration = self.configuration.replacen(old, new, 1);
        self
    }

    /// Adds an MQTT source called `ward`.
    #[must_use]
    pub fn mqtt(self, port: u16, extra: &str) -> Gateway {
        self.with(&format!(
            "[[source]]\nname = \"ward\"\nkind = \"mqtt\"\nurl = \"mqtt://127.0.0.1:{port}\"\n\
             topics = [\"wearables/+/telemetry\"]\ndevice_id_from = {{ topic_level = 2 }}\n{extra}"
        ))
    }

    /// Adds a FHIR destination called `ehr`.
    #[must_use]
    pub fn fhir(self, url: &str, extra: &str) -> Gateway {
        self.with(&format!(
            "[[destination]]\nname = \"ehr\"\nkind = \"fhir\"\nurl = \"{url}\"\n{extra}"
        ))
    }

    /// Drops a ready pack into the mappings folder.
    pub fn drop_pack(&self, name: &str) {
        let from = root().join("board-configs/mappings").join(name);
        let to = self.folder.join("mappings.d").join(name);
        std::fs::create_dir_all(&to).expect("folder of the pack");
        for file in ["devicecontent.json", "fhirmapping.json", "agent.json"] {
            if from.join(file).exists() {
                std::fs::copy(from.join(file), to.join(file)).expect("the pack can be copied");
            }
        }
    }

    /// Starts the agent.
    pub fn start(&self) -> Process {
        let file = self.write_configuration();
        let mut command = self.command();
        command.arg("run").arg("--config").arg(&file);
        Process::start("bedside-agent", &mut command, &self.log_file())
    }

    /// Writes `agent.toml`; gives its path.
    pub fn write_configuration(&self) -> PathBuf {
        let file = self.folder.join("agent.toml");
        std::fs::write(&file, &self.configuration).expect("configuration can be written");
        file
    }

    /// The program with the environment of this gateway.
    pub fn command(&self) -> Command {
        let program = match &self.program {
            Some(path) => vec![path.display().to_string()],
            None => program(),
        };
        let mut words = program.into_iter();
        let mut command = Command::new(words.next().expect("a program"));
        command
            .args(words)
            .env_remove("RUNTIME_DIRECTORY")
            .envs(self.environment.iter().cloned());
        command
    }

    /// File that holds everything the agent has printed.
    pub fn log_file(&self) -> PathBuf {
        self.folder.join("log")
    }

    /// Everything the agent has printed.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// The status of the running agent, if it answers.
    pub fn status(&self) -> Option<serde_json::Value> {
        let file = self.folder.join("agent.toml");
        let output = self
            .command()
            .args(["status", "--json", "--config"])
            .arg(file)
            .output()
            .ok()?;
        serde_json::from_slice(&output.stdout).ok()
    }

    /// Waits until every source of the running agent is connected.
    pub fn wait_connected(&self, limit: Duration) {
        super::wait_for("the agent is connected", limit, || {
            self.status().is_some_and(|status| {
                let sources = status["sources"].as_array().cloned().unwrap_or_default();
                !sources.is_empty() && sources.iter().all(|source| source["connected"] == true)
            })
        });
    }

    /// Stops the agent in order; gives the accounts that it prints last.
    pub fn stop(&self, process: &mut Process) -> serde_json::Value {
        let status = process.terminate(Duration::from_secs(60));
        assert!(status.success(), "the agent ended with {status}:\n{}", self.log());
        let log = self.log();
        let last = log
            .lines()
            .rev()
            .find(|line| line.starts_with('{'))
            .unwrap_or_default();
        let accounts: serde_json::Value =
            serde_json::from_str(last).unwrap_or_else(|_| panic!("no accounts in:\n{log}"));
        assert_balanced(&accounts);
        accounts
    }
}

/// The conservation rule: every match is accounted for.
pub fn assert_balanced(accounts: &serde_json::Value) {
    assert!(is_balanced(accounts), "{accounts}");
}

/// Whether every match is accounted for.
pub fn is_balanced(accounts: &serde_json::Value) -> bool {
    let number = |name: &str| {
        accounts[name]
            .as_u64()
            .unwrap_or_else(|| panic!("no {name} in {accounts}"))
    };
    let states = ["delivered", "superseded", "buffered", "waiting", "dead", "lost"];
    number("matches") == states.iter().map(|s| number(s)).sum::<u64>()
}

/// The command line of the program: `BEDSIDE_AGENT`, else what was built beside this test.
fn program() -> Vec<String> {
    if let Ok(given) = std::env::var("BEDSIDE_AGENT") {
        return given.split_whitespace().map(str::to_owned).collect();
    }
    let test = std::env::current_exe().expect("the path of this test");
    let built = test
        .parent()
        .and_then(Path::parent)
        .expect("a target folder")
        .join("bedside-agent");
    assert!(
        built.exists(),
        "{} is missing: run `cargo build` first, or tests/run",
        built.display()
    );
    vec![built.display().to_string()]
}
