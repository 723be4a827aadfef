//! A line with a round trip: bytes that are put in come out at the other end half a round trip later, as many as like.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Listens on a free port of the loopback interface and passes every connection on to `target`. Ends with the process.
///
/// # Errors
/// When there is no port.
pub fn start(target: SocketAddr, round_trip: Duration) -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        for near in listener.incoming().flatten() {
            // The handshake of TCP takes a round trip too.
            std::thread::spawn(move || {
                std::thread::sleep(round_trip);
                let Ok(far) = TcpStream::connect(target) else {
                    return;
                };
                let (Ok(near_too), Ok(far_too)) = (near.try_clone(), far.try_clone()) else {
                    return;
                };
                carry(near, far, round_trip / 2);
                carry(far_too, near_too, round_trip / 2);
            });
        }
    });
    Ok(address)
}

fn carry(mut from: TcpStream, mut to: TcpStream, delay: Duration) {
    let (line, end) = mpsc::channel::<(Instant, Vec<u8>)>();
    std::thread::spawn(move || {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            if line
                .send((Instant::now() + delay, buffer[..length].to_vec()))
                .is_err()
            {
                return;
            }
        }
    });
    std::thread::spawn(move || {
        let _ = to.set_nodelay(true);
        for (at, bytes) in end {
            std::thread::sleep(at.saturating_duration_since(Instant::now()));
            if to.write_all(&bytes).is_err() {
                return;
            }
        }
        let _ = to.shutdown(Shutdown::Write);
    });
}
