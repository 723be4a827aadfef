//! The door over a socket: HTTP/1.1, one thread per connection.

use super::in_process::now_us;
use super::server::{Answer, ChaosServer, Reply};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

/// Serves until the process ends; gives the address.
///
/// # Errors
/// When there is no port.
pub fn serve(server: ChaosServer) -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let server = server.clone();
            std::thread::spawn(move || connection(&server, stream));
        }
    });
    Ok(address)
}

fn connection(server: &ChaosServer, stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let mut words = line.split_whitespace();
        let (method, path) = (
            words.next().unwrap_or_default().to_owned(),
            words.next().unwrap_or_default().to_owned(),
        );
        let mut headers: Vec<(String, String)> = Vec::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let Some((name, value)) = line.split_once(':') else {
                break;
            };
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        let length = headers.iter().find(|(name, _)| name == "content-length");
        let length = length.and_then(|(_, value)| value.parse().ok()).unwrap_or(0);
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let stream = reader.get_mut();
        match server.request(&method, &path, &headers, &body, now_us()) {
            // What follows on this connection finds it closed.
            Reply::Broken => return Ok(()),
            Reply::Half(answer) => {
                stream.write_all(head(&answer).as_bytes())?;
                return stream.write_all(&answer.body[..answer.body.len() / 2]);
            }
            Reply::Answer(answer, slow) => {
                stream.write_all(head(&answer).as_bytes())?;
                let piece = if slow {
                    answer.body.len() / 5 + 1
                } else {
                    answer.body.len().max(1)
                };
                for piece in answer.body.chunks(piece) {
                    stream.write_all(piece)?;
                    if slow {
                        std::thread::sleep(Duration::from_millis(100));
                    }
                }
            }
        }
    }
}

fn head(answer: &Answer) -> String {
    let mut head = format!(
        "HTTP/1.1 {} x\r\ncontent-length: {}\r\n",
        answer.status,
        answer.body.len()
    );
    for (name, value) in &answer.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head + "\r\n"
}
