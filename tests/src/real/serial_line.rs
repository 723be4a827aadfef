//! A serial cable made of a pair of pseudo-terminals (`socat`), that can be pulled and plugged in again.

use super::{Process, wait_for};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// The cable. The agent opens [`SerialLine::port`]; the device writes with [`SerialLine::send`].
pub struct SerialLine {
    folder: PathBuf,
    cable: Option<Process>,
}

impl SerialLine {
    /// Plugs a cable in.
    pub fn start(folder: &Path) -> SerialLine {
        let mut line = SerialLine {
            folder: folder.to_owned(),
            cable: None,
        };
        line.plug();
        line
    }

    /// The gateway's end: a link, as `/dev/serial/by-id` has them; the terminal behind it changes with each plugging.
    pub fn port(&self) -> PathBuf {
        self.folder.join("ttyGateway")
    }

    /// The device's end.
    pub fn device(&self) -> PathBuf {
        self.folder.join("ttyDevice")
    }

    /// Plugs the cable in (again).
    pub fn plug(&mut self) {
        let end = |path: PathBuf| format!("pty,rawer,link={}", path.display());
        let mut command = Command::new("socat");
        command.arg(end(self.port())).arg(end(self.device()));
        self.cable = Some(Process::start(
            "socat",
            &mut command,
            &self.folder.join("socat.log"),
        ));
        let (port, device) = (self.port(), self.device());
        wait_for("the pseudo-terminals are there", Duration::from_secs(10), || {
            port.exists() && device.exists()
        });
    }

    /// Pulls the cable.
    pub fn pull(&mut self) {
        if let Some(mut cable) = self.cable.take() {
            cable.terminate(Duration::from_secs(5));
        }
    }

    /// The device sends bytes.
    pub fn send(&self, bytes: &[u8]) {
        let mut device = std::fs::File::options()
            .write(true)
            .open(self.device())
            .expect("the device's end");
        device.write_all(bytes).expect("the cable is plugged in");
    }
}
