//! A TCP connection with somebody listening: passes bytes on unchanged and shows each piece, before it is passed on.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Which way a piece of bytes travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From whoever connected.
    ToServer,
    /// From the server.
    ToClient,
}

/// Who listens: number of the connection, way, bytes. Called from two threads for each connection.
pub type Listener = Arc<dyn Fn(u64, Way, &[u8]) + Send + Sync>;

/// Listens on a port of its own and connects each client to `server` (`127.0.0.1:1883`). Gives the port; it stays open as
/// long as the process, so that a client always finds the same address.
pub fn tap(server: &str, listener: Listener) -> u16 {
    let socket = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = socket.local_addr().expect("its address").port();
    let server = server.to_owned();
    let connections = AtomicU64::new(0);
    std::thread::spawn(move || {
        for client in socket.incoming().flatten() {
            let Ok(upstream) = TcpStream::connect(&server) else {
                continue;
            };
            let number = connections.fetch_add(1, Ordering::Relaxed);
            let _ = (client.set_nodelay(true), upstream.set_nodelay(true));
            let (Ok(client_too), Ok(upstream_too)) = (client.try_clone(), upstream.try_clone()) else {
                continue;
            };
            let (one, other) = (Arc::clone(&listener), Arc::clone(&listener));
            std::thread::spawn(move || pass(client, upstream_too, |bytes| one(number, Way::ToServer, bytes)));
            std::thread::spawn(move || {
                pass(upstream, client_too, |bytes| other(number, Way::ToClient, bytes))
            });
        }
    });
    port
}

fn pass(mut from: TcpStream, mut to: TcpStream, seen: impl Fn(&[u8])) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        let bytes = &buffer[..length];
        seen(bytes);
        if to.write_all(bytes).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}
