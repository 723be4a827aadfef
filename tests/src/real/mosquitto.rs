//! mosquitto with a configuration and a port of its own.

use super::{Process, free_port, wait_for};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// A broker that can be killed and started again with the same data.
pub struct Mosquitto {
    folder: PathBuf,
    /// Plain port.
    pub port: u16,
    process: Option<Process>,
}

impl Mosquitto {
    /// Starts a broker whose data is in `folder`; `extra` lines are added to its configuration.
    pub fn start(folder: &Path, extra: &str) -> Mosquitto {
        let folder = folder.join("mosquitto");
        std::fs::create_dir_all(&folder).expect("folder for the broker");
        let port = free_port();
        let configuration = format!(
            "listener {port} 127.0.0.1\nallow_anonymous true\npersistence true\npersistence_location {}/\n\
             autosave_interval 10\nmax_queued_messages 100000\nset_tcp_nodelay true\nuser root\n{extra}\n",
            folder.display()
        );
        std::fs::write(folder.join("mosquitto.conf"), configuration).expect("configuration of the broker");
        let mut broker = Mosquitto {
            folder,
            port,
            process: None,
        };
        broker.run();
        broker
    }

    /// Starts the process (again).
    pub fn run(&mut self) {
        let program = if Path::new("/usr/sbin/mosquitto").exists() {
            "/usr/sbin/mosquitto"
        } else {
            "mosquitto"
        };
        let mut command = Command::new(program);
        command.arg("-c").arg(self.folder.join("mosquitto.conf"));
        self.process = Some(Process::start(
            "mosquitto",
            &mut command,
            &self.folder.join("log"),
        ));
        let port = self.port;
        wait_for("mosquitto listens", Duration::from_secs(10), || {
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
    }

    /// Kills it, and starts it again without what it had saved.
    pub fn lose_everything(&mut self) {
        drop(self.process.take());
        let _ = std::fs::remove_file(self.folder.join("mosquitto.db"));
        self.run();
    }

    /// Stops it in order, so that its persistence is written.
    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.terminate(Duration::from_secs(10));
        }
    }
}
