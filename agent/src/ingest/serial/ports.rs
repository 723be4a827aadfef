//! Where ports come from: those of the operating system, or doubles of a simulation.
//!
//! A line is asked for bytes and never waits in a call. It tells when it is worth to ask again only while somebody waits for
//! that; a line that is asked at ticks wakes nobody, however often an adapter delivers a few bytes.

use super::drivers::PortSettings;
use super::open;
use super::port_name::PortName;
use crate::telemetry::errors::ErrorRecord;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead as _, AsyncWrite as _, DuplexStream, ReadBuf};

/// An open line to a device.
pub trait Line {
    /// Takes what has come; 0 when the line is gone.
    ///
    /// # Errors
    /// `WouldBlock` when nothing has come; else the line is gone.
    fn try_read(&mut self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Hands over what the line takes now.
    ///
    /// # Errors
    /// `WouldBlock` when it takes nothing now; else the line is gone.
    fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize>;

    /// Ready when there may be something to read or, with `room`, when it may take bytes. To be called after what it is
    /// waited for would have blocked.
    ///
    /// # Errors
    /// The line is gone.
    fn poll_ready(&mut self, context: &mut Context<'_>, room: bool) -> Poll<io::Result<()>>;

    /// Nobody waits for it until the next [`Line::poll_ready`].
    fn rest(&mut self) {}

    /// Changes its settings.
    ///
    /// # Errors
    /// Why the line does not take them.
    fn apply(&mut self, settings: PortSettings) -> Result<(), String>;
}

/// A port of the operating system.
pub(super) struct RealLine(State);

enum State {
    /// The kernel tells when bytes come.
    Watched(AsyncFd<mio_serial::SerialStream>),
    /// It is asked when somebody likes to.
    Resting(mio_serial::SerialStream),
    /// It could not be watched; it is closed.
    Lost,
}

impl RealLine {
    pub(super) fn new(port: mio_serial::SerialStream) -> RealLine {
        RealLine(State::Resting(port))
    }

    #[expect(
        deprecated,
        reason = "what is to come in its place has to be promised in unsafe code; the port owns its descriptor for as long as it is watched"
    )]
    fn watched(&mut self) -> io::Result<&mut AsyncFd<mio_serial::SerialStream>> {
        self.0 = match std::mem::replace(&mut self.0, State::Lost) {
            State::Resting(port) => State::Watched(AsyncFd::new(port)?),
            state => state,
        };
        match &mut self.0 {
            State::Watched(port) => Ok(port),
            State::Resting(_) | State::Lost => Err(lost()),
        }
    }
}

fn lost() -> io::Error {
    io::Error::new(ErrorKind::NotConnected, "it cannot be watched")
}

fn would_block<T>() -> io::Result<T> {
    Err(ErrorKind::WouldBlock.into())
}

fn nobody() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

impl Line for RealLine {
    fn try_read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.0 {
            State::Resting(port) => port.read(buffer),
            // The guard forgets the readiness when the call would have blocked.
            State::Watched(port) => match port.poll_read_ready_mut(&mut nobody()) {
                Poll::Ready(guard) => guard?
                    .try_io(|port| port.get_mut().read(buffer))
                    .unwrap_or_else(|_| would_block()),
                Poll::Pending => would_block(),
            },
            State::Lost => Err(lost()),
        }
    }

    fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.0 {
            State::Resting(port) => port.write(bytes),
            State::Watched(port) => match port.poll_write_ready_mut(&mut nobody()) {
                Poll::Ready(guard) => guard?
                    .try_io(|port| match port.get_mut().write(bytes) {
                        // Nothing taken is no room, which is to be waited for.
                        Ok(0) if !bytes.is_empty() => would_block(),
                        written => written,
                    })
                    .unwrap_or_else(|_| would_block()),
                Poll::Pending => would_block(),
            },
            State::Lost => Err(lost()),
        }
    }

    fn poll_ready(&mut self, context: &mut Context<'_>, room: bool) -> Poll<io::Result<()>> {
        let port = self.watched()?;
        if room && let Poll::Ready(guard) = port.poll_write_ready_mut(context) {
            return Poll::Ready(guard.map(|_| ()));
        }
        let guard = ready!(port.poll_read_ready_mut(context));
        Poll::Ready(guard.map(|_| ()))
    }

    fn rest(&mut self) {
        self.0 = match std::mem::replace(&mut self.0, State::Lost) {
            State::Watched(port) => State::Resting(port.into_inner()),
            state => state,
        };
    }

    fn apply(&mut self, settings: PortSettings) -> Result<(), String> {
        let port = match &mut self.0 {
            State::Watched(port) => port.get_mut(),
            State::Resting(port) => port,
            State::Lost => return Err(lost().to_string()),
        };
        open::apply(port, settings).map_err(|error| error.description)
    }
}

/// The line of a simulation.
pub struct SimulatedLine {
    stream: DuplexStream,
    /// What was read by waiting for it.
    come: Vec<u8>,
    ended: bool,
}

impl From<DuplexStream> for SimulatedLine {
    fn from(stream: DuplexStream) -> SimulatedLine {
        SimulatedLine {
            stream,
            come: Vec::new(),
            ended: false,
        }
    }
}

impl SimulatedLine {
    fn poll_come(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.come.is_empty() || self.ended {
            return Poll::Ready(Ok(()));
        }
        let mut bytes = [0; 4096];
        let mut buffer = ReadBuf::new(&mut bytes);
        ready!(Pin::new(&mut self.stream).poll_read(context, &mut buffer))?;
        self.ended = buffer.filled().is_empty();
        self.come.extend_from_slice(buffer.filled());
        Poll::Ready(Ok(()))
    }
}

impl Line for SimulatedLine {
    fn try_read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.poll_come(&mut nobody()) {
            Poll::Pending => return would_block(),
            Poll::Ready(come) => come?,
        }
        let length = self.come.len().min(buffer.len());
        for (place, byte) in buffer.iter_mut().zip(self.come.drain(..length)) {
            *place = byte;
        }
        Ok(length)
    }

    fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match Pin::new(&mut self.stream).poll_write(&mut nobody(), bytes) {
            Poll::Ready(written) => written,
            Poll::Pending => would_block(),
        }
    }

    fn poll_ready(&mut self, context: &mut Context<'_>, room: bool) -> Poll<io::Result<()>> {
        if room && let Poll::Ready(room) = Pin::new(&mut self.stream).poll_write(context, &[]) {
            return Poll::Ready(room.map(|_| ()));
        }
        self.poll_come(context)
    }

    fn apply(&mut self, _settings: PortSettings) -> Result<(), String> {
        Ok(())
    }
}

/// Something to wait for.
pub type Waiting<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

/// Opens ports.
pub trait Ports {
    /// Opens `port`; gives the line, and where it was found.
    ///
    /// # Errors
    /// Why it cannot be opened now, and what to do.
    fn open(&self, port: &PortName, settings: PortSettings) -> Result<(Box<dyn Line>, PathBuf), ErrorRecord>;

    /// Ends when it is worth to try again: something was plugged in, or some time has passed.
    fn changed<'a>(&'a self, watched: &'a Path) -> Waiting<'a>;
}

/// The ports of the operating system.
#[derive(Debug)]
pub struct RealPorts;

impl Ports for RealPorts {
    fn open(&self, port: &PortName, settings: PortSettings) -> Result<(Box<dyn Line>, PathBuf), ErrorRecord> {
        let path = port.locate().map_err(|why| open::not_there(port, &why))?;
        Ok((Box::new(RealLine::new(open::open(&path, settings)?)), path))
    }

    fn changed<'a>(&'a self, watched: &'a Path) -> Waiting<'a> {
        Box::pin(open::wait_for_change(watched))
    }
}
