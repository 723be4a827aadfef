use super::*;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};

/// What the server on a socket saw: the number of the connection and the head and body of the request.
type Seen = Receiver<(usize, String)>;

fn read_request(stream: &mut impl BufRead) -> Option<String> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    let length = head
        .lines()
        .find_map(|line| {
            line.to_ascii_lowercase()
                .strip_prefix("content-length: ")
                .and_then(|n| n.parse().ok())
        })
        .unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    Some(head + &String::from_utf8(body).unwrap())
}

/// A server that gives `answers` in turn; an empty answer closes the connection.
fn serve(answers: Vec<Vec<u8>>) -> (String, Seen) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let (tell, seen) = channel();
    std::thread::spawn(move || {
        let mut answers = answers.into_iter();
        let mut connection = 0;
        while let Ok((stream, _)) = listener.accept() {
            connection += 1;
            let mut reader = BufReader::new(stream);
            while let Some(request) = read_request(&mut reader) {
                drop(tell.send((connection, request)));
                match answers.next() {
                    Some(answer) if !answer.is_empty() => reader.get_mut().write_all(&answer).unwrap(),
                    _ => break,
                }
            }
        }
    });
    (base, seen)
}

fn answer(status: &str, headers: &str, body: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 {status}\r\ncontent-length: {}\r\n{headers}\r\n{body}",
        body.len()
    )
    .into_bytes()
}

fn plain() -> UreqClient {
    UreqClient::new(TlsConfig::default(), None)
}

#[test]
fn a_connection_is_used_again_whatever_the_status_was() {
    let (base, seen) = serve(vec![
        answer("503 Busy", "retry-after: 7\r\n", "try later"),
        answer("200 OK", "etag: W/\"2\"\r\n", "{}"),
    ]);
    let client = plain();
    let first = client
        .execute(HttpRequest::with_body(Method::Post, &base, "abc").header("prefer", "return=minimal"))
        .unwrap();
    assert_eq!((first.status, first.header("retry-after")), (503, Some("7")));
    let mut second = HttpRequest::with_body(Method::Put, format!("{base}/x"), "de");
    second.authorization = Some("Bearer t".to_owned());
    let second = client.execute(second).unwrap();
    assert_eq!(
        (second.status, second.header("etag"), second.body.bytes()),
        (200, Some("W/\"2\""), b"{}".as_slice())
    );
    let seen: Vec<_> = seen.try_iter().collect();
    assert!(
        seen.iter().all(|(connection, _)| *connection == 1),
        "one connection for both"
    );
    assert!(seen[0].1.starts_with("POST / HTTP/1.1") && seen[0].1.contains("prefer: return=minimal"));
    assert!(
        seen[0].1.contains("content-length: 3") && seen[0].1.ends_with("abc"),
        "{}",
        seen[0].1
    );
    assert!(seen[1].1.starts_with("PUT /x ") && seen[1].1.contains("authorization: Bearer t"));
}

#[test]
fn every_way_to_fail_has_its_kind_and_says_what_to_do() {
    let nobody = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    };
    let refused = plain().execute(HttpRequest::get(&nobody)).unwrap_err();
    assert_eq!(refused.kind, HttpErrorKind::Connect);
    assert!(refused.text.contains("check the port"), "{}", refused.text);

    let (base, _seen) = serve(vec![Vec::new()]);
    let cut = plain()
        .execute(HttpRequest::with_body(Method::Post, &base, "x"))
        .unwrap_err();
    assert!(
        matches!(cut.kind, HttpErrorKind::Reset | HttpErrorKind::Protocol),
        "{cut:?}"
    );

    let half = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf".to_vec();
    let (base, _seen) = serve(vec![half, Vec::new()]);
    let client = plain();
    std::thread::spawn({
        // The server waits for a second request on the connection; a second client makes it go on and hang up.
        let base = base.clone();
        move || drop(TcpStream::connect(base.trim_start_matches("http://")))
    });
    let (tell, told) = channel();
    std::thread::spawn(move || drop(tell.send(client.execute(HttpRequest::get(&base)))));
    // A truncated answer is no answer: it is still waiting (the limit is a minute), or has failed.
    assert!(!matches!(
        told.recv_timeout(Duration::from_millis(300)),
        Ok(Ok(_))
    ));

    let (base, _seen) = serve(vec![b"SSH-2.0-OpenSSH_9.2\r\n\r\n".to_vec()]);
    let other = plain().execute(HttpRequest::get(&base)).unwrap_err();
    assert!(
        matches!(other.kind, HttpErrorKind::Protocol | HttpErrorKind::Reset),
        "{other:?}"
    );

    let wrong = plain().execute(HttpRequest::get("not an address")).unwrap_err();
    assert_eq!(wrong.kind, HttpErrorKind::Setup);
}

#[test]
fn an_answer_above_the_limit_is_refused() {
    let huge = "x".repeat(MAX_RESPONSE as usize + 10);
    let (base, _seen) = serve(vec![answer("200 OK", "", &huge)]);
    let error = plain().execute(HttpRequest::get(&base)).unwrap_err();
    assert_eq!(error.kind, HttpErrorKind::TooLarge);
}

#[test]
fn a_redirect_is_followed_on_the_same_host_and_never_with_a_credential() {
    let request = |method, authorization: Option<&str>| HttpRequest {
        authorization: authorization.map(str::to_owned),
        ..HttpRequest::with_body(method, "https://fhir.example/r4/Device?identifier=a", "")
    };
    let response = |status, location: &str| HttpResponse {
        status,
        headers: vec![("location".to_owned(), location.to_owned())],
        body: Payload::default(),
    };
    let same = "https://fhir.example/fhir/Device?identifier=a";
    let followed = |r: &HttpRequest, s, l| redirect(r, &response(s, l)).unwrap();
    let get = request(Method::Get, None);
    assert_eq!(followed(&get, 302, same).as_deref(), Some(same));
    assert_eq!(
        followed(&get, 308, "/x").as_deref(),
        Some("https://fhir.example:443/x")
    );
    assert_eq!(
        followed(&request(Method::Post, None), 307, same).as_deref(),
        Some(same)
    );
    assert_eq!(followed(&get, 304, same), None);
    for (request, status, location) in [
        (get.clone(), 302, "https://evil.example/r4"),
        (get.clone(), 302, "http://fhir.example/r4"),
        (get.clone(), 302, "//evil.example/r4"),
        (get, 302, "https://fhir.example:8443/r4"),
        (request(Method::Get, Some("Bearer t")), 302, same),
        (request(Method::Post, None), 302, same),
    ] {
        let error = redirect(&request, &response(status, location)).unwrap_err();
        assert_eq!(error.kind, HttpErrorKind::Redirect, "{location}");
        assert!(error.text.contains("write it into the configuration"));
    }
}

/// A TLS server for one request; `client_ca` makes it ask for a client certificate.
fn serve_tls(
    cert: &rcgen::Certificate,
    key: &rcgen::KeyPair,
    client_ca: Option<&rcgen::Certificate>,
) -> String {
    let chain = vec![cert.der().clone()];
    let key = rustls_pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = match client_ca {
        Some(ca) => {
            let mut roots = rustls::RootCertStore::empty();
            roots.add(ca.der().clone()).unwrap();
            let verifier =
                rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                    .build()
                    .unwrap();
            builder.with_client_cert_verifier(verifier)
        }
        None => builder.with_no_client_auth(),
    };
    let config = Arc::new(builder.with_single_cert(chain, key).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        while let Ok((socket, _)) = listener.accept() {
            let connection = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
            let mut stream = BufReader::new(rustls::StreamOwned::new(connection, socket));
            if read_request(&mut stream).is_some() {
                drop(stream.get_mut().write_all(&answer("200 OK", "", "over TLS")));
            }
        }
    });
    format!("https://localhost:{port}")
}

fn self_signed(change: impl FnOnce(&mut rcgen::CertificateParams)) -> (rcgen::Certificate, rcgen::KeyPair) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut parameters = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    change(&mut parameters);
    (parameters.self_signed(&key).unwrap(), key)
}

#[test]
fn tls_trusts_the_named_authority_only_and_tells_a_clock_from_a_stranger() {
    let folder = tempfile::tempdir().unwrap();
    let ca_file = |name: &str, cert: &rcgen::Certificate| {
        let path = folder.path().join(name);
        std::fs::write(&path, cert.pem()).unwrap();
        TlsConfig {
            ca_file: Some(path),
            ..TlsConfig::default()
        }
    };
    let (cert, key) = self_signed(|_| {});
    let good = serve_tls(&cert, &key, None);
    let trusting = UreqClient::new(ca_file("good.pem", &cert), None);
    assert_eq!(
        trusting.execute(HttpRequest::get(&good)).unwrap().body.bytes(),
        b"over TLS"
    );

    let stranger = plain().execute(HttpRequest::get(&good)).unwrap_err();
    assert_eq!(stranger.kind, HttpErrorKind::Tls { clock: false });
    assert!(stranger.text.contains("tls.ca_file"), "{}", stranger.text);

    for (name, from, to) in [("expired.pem", 2001, 2002), ("future.pem", 2090, 2091)] {
        let (cert, key) = self_signed(|parameters| {
            parameters.not_before = rcgen::date_time_ymd(from, 1, 1);
            parameters.not_after = rcgen::date_time_ymd(to, 1, 1);
        });
        let url = serve_tls(&cert, &key, None);
        let client = UreqClient::new(ca_file(name, &cert), None);
        let error = client.execute(HttpRequest::get(&url)).unwrap_err();
        assert_eq!(
            error.kind,
            HttpErrorKind::Tls { clock: true },
            "{name}: {}",
            error.text
        );
    }
}

#[test]
fn a_client_certificate_is_shown_and_taken_anew_when_its_file_changes() {
    let folder = tempfile::tempdir().unwrap();
    let (server, server_key) = self_signed(|_| {});
    let (client, client_key) = self_signed(|_| {});
    let (other, other_key) = self_signed(|_| {});
    let url = serve_tls(&server, &server_key, Some(&client));
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("ca.pem"), server.pem()).unwrap();
    std::fs::write(path("client.pem"), other.pem()).unwrap();
    std::fs::write(path("client.key"), other_key.serialize_pem()).unwrap();
    let http = UreqClient::new(
        TlsConfig {
            ca_file: Some(path("ca.pem")),
            cert_file: Some(path("client.pem")),
            key: Some(SecretRef::File(path("client.key"))),
        },
        None,
    );
    http.execute(HttpRequest::get(&url)).unwrap_err();
    std::fs::write(path("client.pem"), client.pem()).unwrap();
    std::fs::write(path("client.key"), client_key.serialize_pem()).unwrap();
    let later = SystemTime::UNIX_EPOCH + Duration::from_secs(4_000_000_000);
    std::fs::File::open(path("client.pem"))
        .unwrap()
        .set_modified(later)
        .unwrap();
    assert_eq!(
        http.execute(HttpRequest::get(&url)).unwrap().body.bytes(),
        b"over TLS"
    );
}

/// A proxy that opens tunnels, and the targets that it was asked for.
fn tunnels() -> (String, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let (tell, asked) = channel();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let mut reader = BufReader::new(client.unwrap());
            let head = read_request(&mut reader).unwrap();
            let target = head.split(' ').nth(1).unwrap().to_owned();
            let server = TcpStream::connect(&target).unwrap();
            tell.send(head).unwrap();
            let mut client = reader.into_inner();
            client
                .write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")
                .unwrap();
            let (mut to_server, mut from_client) = (server.try_clone().unwrap(), client.try_clone().unwrap());
            std::thread::spawn(move || std::io::copy(&mut from_client, &mut to_server));
            std::thread::spawn(move || std::io::copy(&mut &server, &mut client));
        }
    });
    (address, asked)
}

#[test]
fn a_proxy_that_is_named_gets_a_tunnel_and_never_the_token() {
    let (base, seen) = serve(vec![answer("200 OK", "", "{}")]);
    let (proxy, asked) = tunnels();
    let client = UreqClient::new(TlsConfig::default(), Some(proxy));
    let mut request = HttpRequest::get(format!("{base}/metadata"));
    request.authorization = Some("Bearer t".to_owned());
    assert_eq!(client.execute(request).unwrap().status, 200);
    let asked: Vec<String> = asked.try_iter().collect();
    let target = base.trim_start_matches("http://");
    assert!(
        asked[0].starts_with(&format!("CONNECT {target} HTTP/1.1")),
        "{}",
        asked[0]
    );
    assert!(!asked[0].contains("Bearer"), "{}", asked[0]);
    let (_, request) = seen.recv().unwrap();
    assert!(request.starts_with("GET /metadata HTTP/1.1") && request.contains("authorization: Bearer t"));
}

#[test]
fn a_proxy_that_refuses_or_is_not_there_is_named_as_the_reason() {
    let (proxy, _seen) = serve(vec![answer("407 Proxy Authentication Required", "", "")]);
    let client = UreqClient::new(TlsConfig::default(), Some(proxy));
    let refused = client
        .execute(HttpRequest::get("http://ehr.hospital.example/r4"))
        .unwrap_err();
    assert_eq!(refused.kind, HttpErrorKind::Proxy, "{}", refused.text);
    assert!(
        refused.text.contains("the proxy refused to connect"),
        "{}",
        refused.text
    );
    let nobody = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    };
    let client = UreqClient::new(TlsConfig::default(), Some(nobody));
    let gone = client
        .execute(HttpRequest::get("http://ehr.hospital.example/r4"))
        .unwrap_err();
    assert_eq!(gone.kind, HttpErrorKind::Connect, "{}", gone.text);
}
